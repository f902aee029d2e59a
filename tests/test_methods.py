"""Methods, starts and storage of prompts: what is trained is what the blob holds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import normal

from promptdial.prompts.blob import PromptBlob, write_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.int4_rows import quantise_int4, unpack_int4
from promptdial.prompts.quantised_rows import (
    quantise_rows,
    quantise_tokens,
    restore_rows,
    restore_tokens,
)
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import encode_rows
from promptdial.prompts.training.config import METHODS, ROW_METHODS, TrainConfig
from promptdial.prompts.training.initialise import prompt_rows, starting_prompt
from promptdial.prompts.training.packing import pack, stored_rows
from promptdial.prompts.training.parameters import DeepPrompt, flat, make_prompt
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.scoring import logits_of
from promptdial.prompts.training.step import storage_of
from promptdial.prompts.training.storage import EXACT, IN_PACKS, Storage
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.trainer import train
from promptdial.runtime.rows import Row

COLOURS = ("red", "blue", "light")
NOUNS = ("film", "music", "book", "station")
QUICK = TrainConfig(epochs=2, batch_size=6, num_virtual_tokens=4, patience=9)
ROWS = [Row(text=f"the {c} {noun}", label=c) for noun in NOUNS for c in COLOURS]


def colour_task(name: str = "colour") -> Task:
    return Task(name, "classification", COLOURS, ROWS, ROWS[:9])


def trained(base: FrozenBase, config: TrainConfig, path: Path) -> PromptBlob:
    """A blob of a quick run, written to a folder of its own."""
    blob = pack(colour_task(), config, train(base, colour_task(), config))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_blob(path, blob)
    return blob


@pytest.mark.parametrize("method", METHODS[:-1])
def test_the_blob_holds_the_numbers_that_were_judged(
    base: FrozenBase, method: str
) -> None:
    config = replace(QUICK, method=method, learning_rate=0.01)
    result = train(base, colour_task(), config)
    blob = pack(colour_task(), config, result)
    assert blob.meta.metrics["dev_accuracy"] == round(result.dev_metric, 3)
    examples = encode_rows(ROWS, base.encoder, COLOURS, {})
    found = torch.stack(logits_of(blob_reader(base, blob), examples))
    wanted = torch.stack(logits_of(result.reader, examples))
    assert torch.equal(found, wanted)
    bare = torch.stack(logits_of(replace(result.reader, state=[]), examples))
    assert float((found - bare).abs().max()) > 1e-3
    assert result.facts.distance > 0


@pytest.mark.parametrize("method", ROW_METHODS)
def test_reparametrisations_are_folded(base: FrozenBase, method: str) -> None:
    rows = prompt_rows(base, colour_task(), QUICK)
    prompt = make_prompt(method, base, rows, width=8)
    folded = stored_rows(prompt)
    assert folded is not None and folded.shape == tuple(rows.shape)
    # p-tuning makes its rows, the others start from the given ones.
    assert np.allclose(folded, rows, atol=1e-6) == (method != "p-tuning")
    prompt.state(base)[0][0].square().sum().backward()  # type: ignore[no-untyped-call]
    slopes = [item.grad for item in prompt.parameters() if item.grad is not None]
    # At its start the residual network is closed: its last layer opens first.
    least = {"prompt": 1, "residual": 3, "p-tuning": 7}[method]
    assert sum(float(slope.norm()) > 0 for slope in slopes) >= least


def test_storage_rounds_as_the_blob_does() -> None:
    rows, pair = normal(1, 5, 16), normal(2, 4, 3, 8)
    rows[2] = 0
    storage = Storage("int8")
    kept = storage.rows(torch.tensor(rows)).numpy()
    assert np.array_equal(kept, restore_rows(*quantise_rows(rows)))
    tokens = storage.tokens(torch.tensor(pair)).numpy()
    assert np.array_equal(tokens, restore_tokens(*quantise_tokens(pair)))
    halves, scale = quantise_int4(rows)
    kept = IN_PACKS.vectors(torch.tensor(rows)).numpy()
    assert np.array_equal(kept, restore_rows(unpack_int4(halves), scale))
    assert np.array_equal(
        IN_PACKS.rows(torch.tensor(rows)), restore_rows(*quantise_rows(rows))
    )
    half = Storage("f16").tokens(torch.tensor(pair)).numpy()
    assert np.array_equal(half, pair.astype(np.float16).astype(np.float32))
    assert torch.equal(EXACT.rows(torch.tensor(rows)), torch.tensor(rows))
    assert torch.equal(Storage("f32").rows(torch.tensor(rows)), torch.tensor(rows))
    leaf = torch.tensor(rows, requires_grad=True)
    (storage.rows(leaf) * 3).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None and bool((leaf.grad == 3).all())


def test_the_last_steps_run_on_rounded_numbers() -> None:
    config = replace(QUICK, rounded=0.25)
    found = [storage_of(config, step, 8) for step in range(8)]
    assert found == [EXACT] * 6 + [Storage("int8")] * 2
    assert storage_of(replace(config, rounded=0.0), 7, 8) == EXACT


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_a_start_from_a_blob_is_that_blob(
    base: FrozenBase, tmp_path: Path, method: str
) -> None:
    config = replace(QUICK, method=method, precision="f16")
    path = tmp_path / "colour.safetensors"
    blob = trained(base, config, path)
    again = replace(config, init=f"from:{path}", head_init="blob", epochs=0)
    result = train(base, colour_task(), again)
    copy = pack(colour_task(), again, result)
    assert round(result.dev_metric, 3) == blob.meta.metrics["dev_accuracy"]
    for name, array in blob.tensors.items():
        assert np.array_equal(copy.tensors[name], array), name
    with pytest.raises(
        UsageError, match=r"has 4 (soft|deep) virtual tokens, the run 5"
    ):
        starting_prompt(base, colour_task(), replace(again, num_virtual_tokens=5))
    other = replace(again, head_levels=1)
    with pytest.raises(UsageError, match="3 labels over 0 levels and pools by mean"):
        train(base, colour_task(), other)


def test_blends_are_weighted_means(base: FrozenBase, tmp_path: Path) -> None:
    config = replace(QUICK, method="prefix", precision="f16")
    paths = [tmp_path / name / "colour.safetensors" for name in "ab"]
    seeds = [trained(base, replace(config, seed=i), p) for i, p in enumerate(paths)]
    blend = replace(config, init=f"from:{paths[0]}*3,{paths[1]}")
    prompt = starting_prompt(base, colour_task(), blend)
    assert isinstance(prompt, DeepPrompt)
    one, two = (
        torch.cat([torch.tensor(x).flatten() for kv in b.past_key_values for x in kv])
        for b in seeds
    )
    assert torch.allclose(flat(prompt), 0.75 * one + 0.25 * two, atol=1e-6)
    assert float((one - two).abs().max()) > 1e-3
    soft = tmp_path / "soft" / "colour.safetensors"
    trained(base, QUICK, soft)
    for init, words in (
        (f"from:{paths[0]},{soft}", "not of the shape"),
        (f"from:{paths[0]}*-1", "init names"),
        ("from:", "init names"),
    ):
        with pytest.raises(UsageError, match=words):
            starting_prompt(base, colour_task(), replace(config, init=init))
