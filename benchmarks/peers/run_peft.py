"""PEFT's round: prompt tuning on PyTorch, whose prompt is computed in every request."""

import sys
from pathlib import Path
from typing import Any

import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from rounds import PROMPT, PROMPT_ROWS, STEPS, TEXT_IDS, THREADS, serve, timed
from transformers import AutoModelForCausalLM


def main() -> None:
    """Serve rounds; the second argument says whether in bfloat16."""
    torch.set_num_threads(THREADS)
    low = sys.argv[2].endswith("bf16")
    dtype = torch.bfloat16 if low else torch.float32
    base = AutoModelForCausalLM.from_pretrained(
        Path(sys.argv[1]) / "model", dtype=dtype
    )
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=PROMPT, token_dim=576
    )
    model = get_peft_model(base, config).eval()
    rows = torch.tensor(PROMPT_ROWS, dtype=dtype)
    encoder: Any = model.prompt_encoder["default"]
    encoder.embedding.weight.data.copy_(rows)
    ids = torch.tensor([TEXT_IDS])

    @torch.no_grad()
    def first() -> object:
        return model(input_ids=ids, use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def one_round() -> dict[str, float]:
        found = {"cold": timed(first), "warm": timed(first)}
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        cache = output.cache if hasattr(output, "cache") else output.past_key_values

        def steps() -> None:
            token = output.logits[:, -1:].argmax(-1)
            for _ in range(STEPS):
                step = base(input_ids=token, cache=cache, use_cache=True)
                token = step.logits[:, -1:].argmax(-1)

        found["per_token"] = timed(steps) / STEPS
        return found

    serve(f"torch {torch.__version__} {dtype}", one_round)


if __name__ == "__main__":
    main()
