"""Training on a bundle's own graphs: gradients, blobs that say so, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from blobs import normal
from onnx import TensorProto, helper
from training_tasks import colour_folder

from promptdial.export import export_bundle
from promptdial.export.errors import Unsupported, WrongBase
from promptdial.export.model import quiet_transformers
from promptdial.prompts.blob import read_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.pack import PACK_SUFFIX, read_pack
from promptdial.prompts.training.base import FrozenBase, open_base
from promptdial.prompts.training.batches import collate
from promptdial.prompts.training.config import TrainConfig, check
from promptdial.prompts.training.graphs.graph_base import on_graph
from promptdial.prompts.training.graphs.graph_model import read_graph
from promptdial.prompts.training.graphs.graph_rounding import (
    RoundBlocks,
    RoundRows,
    applied,
)
from promptdial.prompts.training.many.many import make_plan
from promptdial.runtime import Engine
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main

CPU = torch.device("cpu")
VARIANTS = ("int8", "int4", "fp32")
TEXTS = ("wake me at seven", "the film was great and the music was not")


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `tiny_model` with all variants."""
    out = tmp_path_factory.mktemp("graphs") / "tiny.bundle"
    return export_bundle(str(tiny_model), out, VARIANTS).bundle


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_folder(tmp_path_factory.mktemp("tasks") / "colour")


def hidden_sum(base: FrozenBase, rows: torch.Tensor) -> torch.Tensor:
    """A number that depends on every hidden value of a padded batch."""
    batch = collate([base.encoder.encode(text) for text in TEXTS], CPU)
    hidden = base.hidden(batch, base.state_of(rows))
    weights = torch.from_numpy(normal(9, *hidden.shape))
    return (hidden * weights * batch.mask[..., None]).sum()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_the_prompt_rows(
    base: FrozenBase, bundle: Path, variant: str
) -> None:
    """Beside PyTorch's own: equal on the exact graph, alike where it rounds."""
    start = torch.from_numpy(normal(1, 3, base.dims.hidden))
    found = []
    for one in (replace(base, table=None), on_graph(base, bundle, variant)):
        rows = start.clone().requires_grad_()
        hidden_sum(one, rows).backward()  # type: ignore[no-untyped-call]
        assert rows.grad is not None
        found.append(rows.grad.flatten())
    cosine = torch.nn.functional.cosine_similarity(found[0], found[1], dim=0)
    assert cosine > {"fp32": 0.999, "int8": 0.99, "int4": 0.8}[variant]


def test_gradients_of_the_exact_graph_are_its_slopes(
    base: FrozenBase, bundle: Path
) -> None:
    exact = on_graph(base, bundle, "fp32")
    rows = torch.from_numpy(normal(2, 3, base.dims.hidden)).requires_grad_()
    hidden_sum(exact, rows).backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    for seed in range(3):
        way = torch.from_numpy(normal(seed, *rows.shape))
        with torch.no_grad():
            ends = [hidden_sum(exact, rows + step * way) for step in (1e-2, -1e-2)]
        slope = float(ends[0] - ends[1]) / 2e-2
        assert slope == pytest.approx(float((rows.grad * way).sum()), rel=0.02)


def test_gradients_reach_keys_and_values(base: FrozenBase, bundle: Path) -> None:
    on_int8 = on_graph(base, bundle, "int8")
    dims = base.dims
    shape = (1, dims.kv_heads, 3, dims.head_dim)
    state = [
        (
            torch.from_numpy(normal(i, *shape)).requires_grad_(),
            torch.from_numpy(normal(i + 9, *shape)).requires_grad_(),
        )
        for i in range(dims.layers)
    ]
    batch = collate([base.encoder.encode(text) for text in TEXTS], CPU)
    on_int8.hidden(batch, state).square().sum().backward()  # type: ignore[no-untyped-call]
    for pair in state:
        assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in pair)


@pytest.mark.parametrize("width", [64, 40])
def test_rounding_passes_gradients_straight_through(width: int) -> None:
    rows = torch.from_numpy(normal(1, 5, width)).requires_grad_()
    with torch.no_grad():
        rows[2] = 0
    step = rows.detach().abs().amax(-1, keepdim=True) / 127
    places = torch.arange(width).float()
    for found in (applied(RoundRows, rows, 127, 0.0), applied(RoundBlocks, rows, 32)):
        difference = (found - rows).detach().abs()
        assert float(difference.max()) > 0
        assert bool((difference <= 0.5001 * step).all())
        assert not found.detach()[2].any()
        (slope,) = torch.autograd.grad((found * places).sum(), rows)
        assert torch.equal(slope, places.expand(5, -1))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_a_trained_blob_answers_on_the_device_as_in_training(
    tiny_model: Path,
    bundle: Path,
    task: Path,
    tmp_path: Path,
    variant: str,
    method: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Golden margins are of the graph itself; the blob works on every variant."""
    out = tmp_path / "colour.safetensors"
    arguments = ["train", str(tiny_model), "--task", str(task), "--out", str(out)]
    arguments += ["--quantised", str(bundle), "--variant", variant, "--method", method]
    arguments += ["--epochs", "6", "--num-virtual-tokens", "3", "--precision", "f16"]
    assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    blob = read_blob(out)
    digest = open_bundle(bundle, variant).graph_digest
    assert blob.meta.training["graph"] == f"{variant} sha256:{digest}"
    assert answer["graph"] == f"{variant} sha256:{digest}"
    recipe = blob.meta.training["recipe"]
    assert isinstance(recipe, dict) and "quantised" not in recipe
    assert str(bundle) not in str(blob.meta)
    assert blob.meta.golden
    for name in VARIANTS:
        with Engine(bundle, tmp_path, variant=name) as engine:
            for item in blob.meta.golden:
                found = engine.classify("colour", item.text)
                assert found.label in blob.meta.labels
                first, second = sorted(found.scores.values(), reverse=True)[:2]
                if name == variant:
                    assert found.label == item.label
                    assert first - second == pytest.approx(item.margin, abs=0.01)


def test_the_graph_changes_what_is_trained(
    tiny_model: Path, bundle: Path, task: Path, tmp_path: Path
) -> None:
    """Same seed and steps: each graph leaves its own numbers, twice the same ones."""
    found = []
    for number, variant in enumerate((*VARIANTS, "int8", "")):
        out = tmp_path / str(number) / "colour.safetensors"
        more = ["--quantised", str(bundle), "--variant", variant] if variant else []
        arguments = ["train", str(tiny_model), "--task", str(task), "--out", str(out)]
        assert main([*arguments, "--epochs", "1", "--precision", "f32", *more]) == 0
        rows = read_blob(out).prompt_embeddings
        assert rows is not None
        found.append(rows)
    int8, int4, fp32, again, plain = found
    assert np.array_equal(int8, again)
    assert not np.array_equal(int8, fp32)
    assert not np.array_equal(int4, int8)
    # Text rows come from the bundle's int8 token table there, from the model here.
    assert np.abs(fp32 - plain).max() < np.abs(int4 - plain).max()


def test_heads_read_the_levels_of_the_graph(
    tiny_model: Path, bundle: Path, task: Path, tmp_path: Path
) -> None:
    out = tmp_path / "colour.safetensors"
    arguments = ["train", str(tiny_model), "--task", str(task), "--out", str(out)]
    arguments += ["--quantised", str(bundle), "--head-levels", "1", "--epochs", "2"]
    assert main(arguments) == 0
    blob = read_blob(out)
    assert blob.head_mix is not None
    with Engine(bundle, tmp_path, variant="int8") as engine:
        for item in blob.meta.golden:
            assert engine.classify("colour", item.text).label == item.label


def test_a_pack_is_trained_on_the_graph(
    tiny_model: Path, bundle: Path, task: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"two{PACK_SUFFIX}"
    other = tmp_path / "second"
    other.mkdir()
    for path in task.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    arguments = ["train-pack", str(tiny_model), "--task", str(task)]
    arguments += ["--task", str(other), "--out", str(out), "--epochs", "1"]
    assert main([*arguments, "--quantised", str(bundle)]) == 0
    digest = open_bundle(bundle, "int8").graph_digest
    names = [blob.meta.training["graph"] for blob in read_pack(out).blobs]
    assert names == [f"int8 sha256:{digest}"] * 2


def test_many_tasks_are_kept_by_their_graph(
    base: FrozenBase, tiny_model: Path, bundle: Path, task: Path, tmp_path: Path
) -> None:
    """A blob that was trained on another graph is not the one asked for."""
    out = tmp_path / "colour.safetensors"
    arguments = ["train", str(tiny_model), "--task", str(task), "--out", str(out)]
    assert main([*arguments, "--epochs", "1", "--quantised", str(bundle)]) == 0
    fingerprint = base.base.fingerprint
    kept = []
    for more in ({}, {"quantised": bundle}, {"quantised": bundle, "variant": "int4"}):
        typed = {"epochs": 1, **more}
        plan = make_plan([task], tmp_path, None, typed, fingerprint)
        kept.append([entry.status for entry in plan.entries])
    assert kept == [[], ["kept"], []]


def test_baselines_train_weights_in_pytorch(
    tiny_model: Path,
    bundle: Path,
    task: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "colour.safetensors"
    arguments = ["train", str(tiny_model), "--task", str(task), "--out", str(out)]
    arguments += ["--quantised", str(bundle), "--epochs", "1", "--baselines", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)["baselines"]
    assert all(item["dev_metric"] > 60 for item in found.values())


def test_a_bundle_of_another_base_is_refused(
    base: FrozenBase, tiny_model: Path, bundle: Path, task: Path, tmp_path: Path
) -> None:
    from transformers import BertModel

    other = tmp_path / "other"
    with quiet_transformers():
        model = BertModel.from_pretrained(tiny_model, add_pooling_layer=False)
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1
        model.save_pretrained(other)
    (other / "tokenizer.json").write_text((tiny_model / "tokenizer.json").read_text())
    foreign = open_base(str(other), CPU)
    with pytest.raises(WrongBase) as refusal:
        on_graph(foreign, bundle, "int8")
    assert base.base.fingerprint in str(refusal.value)
    assert foreign.base.fingerprint in str(refusal.value)
    out = tmp_path / "colour.safetensors"
    arguments = ["train", str(other), "--task", str(task), "--out", str(out)]
    assert main([*arguments, "--quantised", str(bundle)]) == 4
    assert main([*arguments, "--quantised", str(tmp_path / "none")]) == 3
    assert not out.exists()


@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"gradient_checkpointing": True}, {"variant": "int4"}]
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, object]) -> None:
    quantised = "" if "variant" in options else "a.bundle"
    config = replace(TrainConfig(), quantised=quantised, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=next(iter(options))):
        check(config)


def test_an_unknown_operator_is_named(base: FrozenBase, tmp_path: Path) -> None:
    names = ("inputs_embeds", "last_hidden_state")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", 64])
        for name in names
    ]
    node = helper.make_node("Mish", [names[0]], [names[1]])
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    onnx.save(model, tmp_path / "graph.onnx")
    with pytest.raises(Unsupported, match="Mish"):
        read_graph(tmp_path / "graph.onnx", base.dims, "full", CPU)
