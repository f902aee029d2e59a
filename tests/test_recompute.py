"""Gradient checkpointing: the same losses, gradients and blobs, and less that is kept.

The prompt is in every comparison: transformers' own gradient checkpointing would leave
kept keys and values out without a word.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, make_model
from decoders import DECODERS, make_decoder
from torch import Tensor, nn
from training_tasks import colour_task

from promptdial.export.model import load_base, resolve
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import FrozenBase, encoder_base
from promptdial.prompts.training.batches import collate, encode_rows
from promptdial.prompts.training.comparison.weight_tuning import every_weight, tune
from promptdial.prompts.training.config import TrainConfig, WeightConfig
from promptdial.prompts.training.decoders.decoder_base import DecoderBase, decoder_base
from promptdial.prompts.training.decoders.generation import (
    pack_generation,
    train_generation,
)
from promptdial.prompts.training.decoders.generation_rows import (
    collate_generation,
    encode_generation,
)
from promptdial.prompts.training.initialise import prompt_rows
from promptdial.prompts.training.parameters import Prompt, make_prompt
from promptdial.prompts.training.recompute import recomputed
from promptdial.prompts.training.task import Task
from promptdial.runtime.rows import Row

CPU = torch.device("cpu")
TEXTS = ("turn on the light", "the book was dull but the film was good", "wake me")
ROWS = [Row(text, target="the light and the news", label="red") for text in TEXTS] * 4
TASK = Task("t", "generation", (), ROWS, ROWS[:3])
START = TrainConfig(init="vocab", num_virtual_tokens=6, epochs=2, batch_size=4)
METHODS = ("prompt", "prefix")
KINDS = ("llama", "gpt2", "gpt_neox", "mistral", "gemma2", "gemma3_text")
"""Grouped heads, fused projections, parallel layers, windows, bent scores, both kinds
of mask."""


def decoder_of(name: str, folder: Path) -> DecoderBase:
    kind = next(kind for kind in DECODERS if kind.name == name)
    model = make_decoder(kind, folder / "model")
    return decoder_base(load_base(resolve(str(model)), CPU), CPU)


def encoder_of(name: str, folder: Path) -> FrozenBase:
    kind = next(kind for kind in ARCHITECTURES if kind.name == name)
    model = make_model(kind, folder / "model")
    return encoder_base(load_base(resolve(str(model)), CPU), CPU)


def written_loss(base: DecoderBase, prompt: Prompt) -> Tensor:
    """The loss of all rows over a prompt."""
    examples = encode_generation(ROWS, base.encoder, {}, base.end_token, 100)
    return base.losses(collate_generation(examples, CPU), prompt.state(base)).mean()


def hidden_loss(base: FrozenBase, prompt: Prompt) -> Tensor:
    """A number that all hidden rows of all texts have a part in."""
    examples = encode_rows(ROWS, base.encoder, ("red",), {})
    batch = collate([example.text for example in examples], CPU)
    hidden = base.hidden(batch, prompt.state(base))
    return (hidden * torch.sin(torch.arange(hidden.numel())).view_as(hidden)).mean()


def gradients(loss: Tensor, prompt: Prompt) -> list[Tensor]:
    parts = list(prompt.parameters())
    return list(torch.autograd.grad(loss, parts))


def assert_equal(
    one: Tensor, other: Tensor, prompt: Prompt, limit: float = 1e-6
) -> None:
    """Losses and gradients are the same, and the prompt has gradients at all."""
    assert float(one.detach()) == pytest.approx(float(other.detach()), abs=limit)
    pairs = zip(gradients(one, prompt), gradients(other, prompt), strict=True)
    for wanted, found in pairs:
        assert float(wanted.abs().max()) > 1e-5
        assert torch.allclose(wanted, found, rtol=0, atol=limit)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", KINDS)
def test_a_decoder_has_the_same_loss_and_gradients(
    name: str, method: str, tmp_path: Path
) -> None:
    base = decoder_of(name, tmp_path)
    less = replace(base, gradient_checkpointing=True)
    prompt = make_prompt(method, base, prompt_rows(base, TASK, START))
    found = written_loss(less, prompt)
    assert_equal(written_loss(base, prompt), found, prompt)
    # The prompt is not lost on the way: without it the loss is another.
    bare = make_prompt("probe", base, prompt_rows(base, TASK, START))
    assert abs(float(found.detach()) - float(written_loss(base, bare))) > 1e-3


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("bert", "prompt"),
        ("bert", "prefix"),
        ("modernbert", "prefix"),
        ("deberta-v2", "prompt"),
    ],
)
def test_an_encoder_has_the_same_hidden_rows_and_gradients(
    name: str, method: str, tmp_path: Path
) -> None:
    base = encoder_of(name, tmp_path)
    less = replace(base, gradient_checkpointing=True)
    prompt = make_prompt(method, base, prompt_rows(base, TASK, START))
    assert_equal(hidden_loss(base, prompt), hidden_loss(less, prompt), prompt)


def test_tuned_weights_leave_out_the_same_in_both_passes(base: FrozenBase) -> None:
    """Weights are tuned with dropout, whose second pass must repeat the first."""
    recipe = WeightConfig(learning_rates=(1e-3,), epochs=1, least_steps=1)
    plain, less = (
        tune(one, colour_task(), START, recipe, every_weight)
        for one in (base, replace(base, gradient_checkpointing=True))
    )
    pairs = zip(
        plain.reader.base.model.parameters(),
        less.reader.base.model.parameters(),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    moved = zip(
        plain.reader.base.model.parameters(), base.model.parameters(), strict=True
    )
    assert any(float((one - start).detach().abs().max()) > 1e-4 for one, start in moved)


def kept_bytes(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """Bytes that a pass keeps for the gradients, each storage once, no weights."""
    weights = {item.untyped_storage().data_ptr() for item in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Held, so that no other tensor takes its place in memory and is not counted.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(
        tensor.untyped_storage().nbytes()
        for place, tensor in kept.items()
        if place not in weights
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_activations_are_not_kept(name: str, method: str, tmp_path: Path) -> None:
    """Three layers of width 64: a third or less of the bytes, head and loss included.

    What is left are the inputs of three layers and the logits.
    """
    base = decoder_of(name, tmp_path)
    less = replace(base, gradient_checkpointing=True)
    prompt = make_prompt(method, base, prompt_rows(base, TASK, START))
    model = base.decoder.model
    whole = kept_bytes(model, lambda: written_loss(base, prompt))
    part = kept_bytes(model, lambda: written_loss(less, prompt))
    print(f"{name} {method}: {whole} bytes kept, {part} with gradient checkpointing")
    assert 0 < part < whole / 3


def test_a_prompt_trains_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the model is left as it was."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    base = decoder_of("gemma3_text", tmp_path)
    digests = set()
    for less in (False, True):
        config = replace(START, gradient_checkpointing=less)
        used = replace(base, gradient_checkpointing=less)
        result = train_generation(used, TASK, config)
        assert result.losses[-1] < result.losses[0]
        digests.add(pack_generation(used, TASK, config, result).digest)
    assert len(digests) == 1
    assert not any("forward" in vars(item) for item in base.decoder.model.modules())


def test_the_model_is_put_back_when_a_pass_fails(tmp_path: Path) -> None:
    model = decoder_of("llama", tmp_path).decoder.model
    with pytest.raises(RuntimeError, match="stop"), recomputed(model):
        raise RuntimeError("stop")
    assert not any("forward" in vars(item) for item in model.modules())


def test_a_model_without_such_layers_is_refused(tmp_path: Path) -> None:
    kind = next(kind for kind in ARCHITECTURES if kind.name == "mpnet")
    loaded = load_base(resolve(str(make_model(kind, tmp_path / "model"))), CPU)
    with pytest.raises(UsageError, match="MPNetModel has no layers for it"):
        encoder_base(loaded, CPU, gradient_checkpointing=True)
