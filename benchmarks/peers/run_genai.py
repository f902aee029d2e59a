"""onnxruntime-genai's round: its own int8 graph, the prefix kept by rewinding.

It takes no embeddings, so the prompt is 20 token ids here.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from rounds import PROMPT, PROMPT_IDS, STEPS, TEXT, TEXT_IDS, THREADS, serve, timed


def build(work: Path) -> Path:
    """The model as its builder makes it, on two threads."""
    folder = work / "genai"
    if not (folder / "genai_config.json").is_file():
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        where = [
            "-i",
            str(work / "model"),
            "-o",
            str(folder),
            "-c",
            str(work / "cache"),
        ]
        subprocess.run(
            [*builder, *where, "-p", "int8", "-e", "cpu"],
            check=True,
            capture_output=True,
        )
        path = folder / "genai_config.json"
        config = json.loads(path.read_text("utf-8"))
        options = config["model"]["decoder"]["session_options"]
        options["intra_op_num_threads"] = THREADS
        path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def main() -> None:
    """Serve rounds."""
    model = og.Model(str(build(Path(sys.argv[1]))))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=256, do_sample=False)
    prompt, text = np.array([PROMPT_IDS], np.int32), np.array([TEXT_IDS], np.int32)
    together = np.concatenate([prompt, text], axis=1)

    def one_round() -> dict[str, float]:
        generator = og.Generator(model, params)
        found = {"cold": timed(lambda: generator.append_tokens(together))}
        generator.rewind_to(PROMPT)
        found["warm"] = timed(lambda: generator.append_tokens(text))
        assert generator.token_count() == PROMPT + TEXT
        generator.generate_next_token()

        def steps() -> None:
            for _ in range(STEPS):
                generator.generate_next_token()

        found["per_token"] = timed(steps) / STEPS
        return found

    serve(f"int8, {og.__version__}", one_round)


if __name__ == "__main__":
    main()
