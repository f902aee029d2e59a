"""Training on graphs of fixed sizes: the device's numbers, gradients and ranges."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, make_model
from blobs import normal
from onnx import numpy_helper
from training_tasks import colour_folder

from promptdial.export import export_bundle
from promptdial.export.errors import Unsupported
from promptdial.export.sides import batch_of
from promptdial.export.targets.parity import static_side
from promptdial.prompts.blob import read_blob
from promptdial.prompts.training.base import FrozenBase, open_base
from promptdial.prompts.training.batches import collate
from promptdial.prompts.training.graphs.fixed_rounding import (
    RoundFixed,
    with_fixed_ranges,
)
from promptdial.prompts.training.graphs.graph_base import on_graph
from promptdial.prompts.training.graphs.graph_operators import Node
from promptdial.prompts.training.graphs.graph_rounding import applied
from promptdial.runtime import Engine
from promptdial.runtime.accelerator import CPU
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main
from promptdial.runtime.errors import PromptRefused
from promptdial.runtime.session import Floats

TARGETS = ("qnn", "openvino")
TORCH = torch.device("cpu")
TEXTS = ("wake me at seven", "the film was great and the music was not", "on")
LENGTHS = (8, 24)


@pytest.fixture(scope="module")
def bundle(
    tiny_bundle: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny bundle with the variants of both targets, calibrated on texts."""
    out = tmp_path_factory.mktemp("static") / "tiny.bundle"
    shutil.copytree(tiny_bundle, out)
    for target in TARGETS:
        export_bundle(str(tiny_model), out, target=target, lengths=LENGTHS)
    return out


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> FrozenBase:
    return open_base(str(tiny_model), TORCH)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_folder(tmp_path_factory.mktemp("tasks") / "colour")


def rows_of(base: FrozenBase, count: int = 4) -> torch.Tensor:
    ids = torch.arange(10, 10 + count) % base.dims.vocab
    return base.token_table[ids].detach().clone()


def differences(base: FrozenBase, bundle: Path, variant: str) -> list[float]:
    """Between torch, in one batch, and the runtime's graphs, for prompt and texts."""
    opened = open_bundle(bundle, variant)
    table = base.token_table.numpy()
    side = static_side(bundle, opened.variant, opened.manifest.dims, table)
    rows = rows_of(base)
    wanted = side.state(rows.numpy())
    texts = [base.encoder.encode(text) for text in TEXTS]
    with torch.no_grad():
        state = base.state_of(rows)
        batch = collate(texts, TORCH)
        hidden, levels = base.hidden(batch, state), base.levels(batch, state)
    assert torch.equal(levels[-1], hidden)
    found = [
        float(np.abs(ours.numpy() - theirs).max())
        for pair, other in zip(state, wanted, strict=True)
        for ours, theirs in zip(pair, other, strict=True)
    ]
    for place, text in enumerate(texts):
        theirs = side.hidden(batch_of([text]), wanted)[0]
        found.append(float(np.abs(hidden[place, : len(text)].numpy() - theirs).max()))
    return found


@pytest.mark.parametrize("variant", TARGETS)
def test_batches_in_torch_are_what_the_graphs_answer(
    base: FrozenBase, bundle: Path, variant: str
) -> None:
    """Also for texts that lie in another bucket alone than beside a longer one."""
    ours = on_graph(base, bundle, variant)
    assert max(differences(ours, bundle, variant)) < 2e-2
    # What quantisation changes is far more than that.
    with torch.no_grad():
        batch = collate([base.encoder.encode(TEXTS[1])], TORCH)
        rows = rows_of(ours)
        exact = base.hidden(batch, base.state_of(rows))
        rounded = ours.hidden(batch, ours.state_of(rows))
        plain = ours.hidden(batch, [])
    assert float((exact - rounded).abs().max()) > 1e-2
    assert float((plain - rounded).abs().max()) > 1e-1


def test_distances_are_those_of_the_graphs(tmp_path: Path) -> None:
    """T5's prefix lies right before the text, also where it does not fill its room."""
    kind = next(kind for kind in ARCHITECTURES if kind.name == "t5")
    model = make_model(kind, tmp_path / "model")
    out = tmp_path / "a.bundle"
    export_bundle(str(model), out, (), target="qnn", lengths=(12,))
    ours = on_graph(open_base(str(model), TORCH), out, "qnn")
    assert max(differences(ours, out, "qnn")) < 2e-2


@pytest.mark.parametrize("variant", TARGETS)
def test_gradients_reach_rows_keys_and_values(
    base: FrozenBase, bundle: Path, variant: str
) -> None:
    ours = on_graph(base, bundle, variant)
    weights: torch.Tensor | None = None
    found = []
    for one in (replace(ours, graph=None), ours):
        rows = rows_of(ours).requires_grad_()
        made = one.state_of(rows)
        # Leaves of their own: a layer's keys also lead to those of the next.
        leaves = [part.detach().requires_grad_() for pair in made for part in pair]
        state = list(zip(leaves[0::2], leaves[1::2], strict=True))
        batch = collate([ours.encoder.encode(text) for text in TEXTS], TORCH)
        if weights is None:
            shape = (*batch.mask.shape, ours.dims.hidden)
            weights = torch.from_numpy(normal(9, *shape)) * batch.mask[..., None]
        for prompt in (made, state):
            found_sum = (one.hidden(batch, prompt) * weights).sum()
            found_sum.backward()  # type: ignore[no-untyped-call]
        slopes = [rows.grad, *(part.grad for part in leaves)]
        assert all(slope is not None for slope in slopes)
        found.append([slope.flatten() for slope in slopes if slope is not None])
    for exact, rounded in zip(*found, strict=True):
        cosine = torch.nn.functional.cosine_similarity(exact, rounded, dim=0)
        assert cosine > 0.98


def test_what_a_range_cuts_has_no_gradient() -> None:
    values = torch.tensor([-3.0, -0.1, 0.26, 1.74, 2.0], requires_grad=True)
    found = applied(RoundFixed, values, 0.5, 1, 4)
    assert found.tolist() == [-0.5, 0.0, 0.5, 1.5, 1.5]
    (slope,) = torch.autograd.grad(found.sum(), values)
    assert slope.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("variant", TARGETS)
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_a_trained_blob_answers_on_the_device_as_in_training(
    tiny_model: Path,
    bundle: Path,
    task: Path,
    tmp_path: Path,
    variant: str,
    method: str,
) -> None:
    out = tmp_path / "colour.safetensors"
    arguments = ["train", str(tiny_model), "--task", str(task), "--out", str(out)]
    arguments += ["--quantised", str(bundle), "--variant", variant, "--method", method]
    arguments += ["--epochs", "4", "--num-virtual-tokens", "3", "--precision", "f16"]
    assert main(arguments) == 0
    blob = read_blob(out)
    digest = open_bundle(bundle, variant).graph_digest
    assert blob.meta.training["graph"] == f"{variant} sha256:{digest}"
    assert blob.meta.golden
    with Engine(bundle, tmp_path, variant=variant, providers=[CPU]) as engine:
        for item in blob.meta.golden:
            found = engine.classify("colour", item.text)
            assert found.label == item.label
            first, second = sorted(found.scores.values(), reverse=True)[:2]
            assert first - second == pytest.approx(item.margin, abs=0.01)
    with Engine(bundle, tmp_path) as engine:
        assert engine.classify("colour", TEXTS[0]).label in blob.meta.labels


@pytest.mark.parametrize(("method", "rate"), [("prompt", "1"), ("prefix", "5")])
def test_steps_beyond_the_ranges_stop_at_their_ends(
    tiny_model: Path, bundle: Path, task: Path, tmp_path: Path, method: str, rate: str
) -> None:
    """Trained in torch the same steps leave a prompt that the graph would cut."""
    arguments = ["train", str(tiny_model), "--task", str(task), "--epochs", "3"]
    arguments += ["--method", method, "--learning-rate", rate]
    arguments += ["--max-grad-norm", "1e6"]
    found: dict[str, Floats] = {}
    for name, more in (
        ("outside", []),
        ("inside", ["--quantised", str(bundle), "--variant", "qnn"]),
    ):
        out = tmp_path / name / "colour.safetensors"
        assert main([*arguments, "--out", str(out), *more]) == 0
        blob = read_blob(out)
        pairs = blob.past_key_values
        values = blob.prompt_embeddings if method == "prompt" else pairs[0][0]
        assert values is not None
        found[name] = values
    ranges = open_bundle(bundle, "qnn").variant.ranges
    name = "inputs_embeds" if method == "prompt" else "past_key_values.0.key"
    low, high = ranges[name]
    assert found["outside"].max() > high and found["outside"].min() < low
    assert low < found["inside"].min() < 0.9 * low
    assert 0.9 * high < found["inside"].max() < high
    with Engine(bundle, variant="qnn", providers=[CPU]) as engine:
        with pytest.raises(PromptRefused, match="calibrated"):
            engine.load(read_blob(tmp_path / "outside" / "colour.safetensors"))
        if method == "prefix":
            engine.load(read_blob(tmp_path / "inside" / "colour.safetensors"))
            assert engine.classify("colour", TEXTS[0]).label


def test_a_prompt_that_the_device_would_refuse_is_told(
    tiny_model: Path,
    bundle: Path,
    task: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rows of a network are not held back; what they lead to lies at an end."""
    out = tmp_path / "colour.safetensors"
    arguments = ["train", str(tiny_model), "--task", str(task), "--out", str(out)]
    arguments += ["--method", "residual", "--learning-rate", "2", "--epochs", "2"]
    arguments += ["--quantised", str(bundle), "--variant", "qnn", "--json"]
    arguments += ["--max-grad-norm", "1e6"]
    assert main(arguments) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert [item for item in warnings if "OUTSIDE_RANGES" in str(item)]
    with Engine(bundle, variant="qnn", providers=[CPU]) as engine:
        with pytest.raises(PromptRefused):
            engine.load(read_blob(out))


def test_texts_are_cut_as_the_device_cuts_them(base: FrozenBase, bundle: Path) -> None:
    ours = on_graph(base, bundle, "qnn")
    assert ours.encoder.max_tokens == max(LENGTHS)
    assert len(ours.encoder.encode("the film " * 40)) == max(LENGTHS)
    with pytest.raises(Unsupported, match="virtual tokens"):
        ours.state_of(rows_of(ours, 60))


def test_other_ways_to_levels_are_refused() -> None:
    scale, zero = torch.tensor(0.5), torch.tensor(1, dtype=torch.uint8)
    constants = {"s": scale, "z": zero, "t": torch.tensor(0.25)}
    cut = Node("QuantizeLinear", ("x", "s", "z"), ("q",))
    for inputs, message in (
        (("q", "t", "z"), "no rounding"),
        (("y", "s", "z"), "no rounding"),
        (("q", "s", "w"), "no constant"),
    ):
        back = Node("DequantizeLinear", inputs, ("r",))
        with pytest.raises(Unsupported, match=message):
            with_fixed_ranges([cut, back], dict(constants))


def test_weights_are_restored_by_column() -> None:
    levels = numpy_helper.from_array(np.array([[1, -2], [3, 4]], np.int8))
    constants = {
        "w": torch.from_numpy(numpy_helper.to_array(levels).copy()),
        "s": torch.tensor([0.5, 2.0]),
        "z": torch.zeros(2, dtype=torch.int8),
    }
    back = Node("DequantizeLinear", ("w", "s", "z"), ("r",), {"axis": 1})
    assert with_fixed_ranges([back], constants) == []
    assert constants["r"].tolist() == [[0.5, -4.0], [1.5, 8.0]]
