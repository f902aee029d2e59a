"""LFM2's graph and bundle: rows that convolutions still see are part of the prefix.

The reference is transformers' own attention, over one sequence or with its own cache.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from blobs import normal
from decoders import (
    DECODERS,
    MadeDecoder,
    made_decoder,
    make_decoder,
    plain_logits,
    plain_model,
)
from made_once import MakeOnce
from transformers import DynamicCache

from promptdial.export import export_bundle
from promptdial.export.decoder_sides import GraphDecoder
from promptdial.export.errors import Unsupported
from promptdial.export.model import load_base, resolve
from promptdial.export.model_probe import require_conv_state
from promptdial.export.session import cpu_session
from promptdial.export.sides import State
from promptdial.runtime import Engine
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.decoder_session import DecoderSession
from promptdial.runtime.errors import BundleInvalid
from promptdial.runtime.manifest import ManifestInvalid, from_json
from promptdial.runtime.profiles import profile_named

Floats = np.ndarray[Any, np.dtype[np.float32]]
Change = Callable[[dict[str, Any]], object]
LFM2 = next(kind for kind in DECODERS if kind.name == "lfm2")
CONVOLUTIONS, KERNEL = (0, 2), 3


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> MadeDecoder:
    return made_decoder(make_once, "lfm2")


@pytest.fixture(scope="module")
def model(made: MadeDecoder) -> Path:
    return made.model


@pytest.fixture(scope="module")
def bundle(made: MadeDecoder) -> Path:
    return made.bundle


@pytest.fixture(scope="module")
def plain(model: Path) -> Any:
    return plain_model(model)


def graph_of(bundle: Path, model: Path, variant: str = "fp32") -> GraphDecoder:
    """A graph over the exact token table."""
    opened, base = open_bundle(bundle, variant), load_base(resolve(str(model)))
    session = cpu_session(opened.graph_path, threads=1)
    return GraphDecoder(session, opened.manifest.dims, base.token_table.numpy())


def run(graph: GraphDecoder, rows: Floats, state: State) -> tuple[Floats, State]:
    """Logits [B, T, V] and the state after rows [B, T, H] over a state."""
    return graph.run(graph.feed(rows, np.ones(rows.shape[:2], np.int64), state))


def some_rows(seed: int, *shape: int) -> Floats:
    """Rows about as large as tokens."""
    return normal(seed, *shape) * np.float32(0.15)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_the_state_after_a_prompt_is_that_of_transformers(
    bundle: Path, model: Path, plain: Any, length: int
) -> None:
    """Fewer rows than a convolution sees, as many, and more: zeros stand in front."""
    graph, prompt = graph_of(bundle, model), some_rows(length, length, 64)
    cache: Any = DynamicCache(config=plain.config)
    with torch.no_grad():
        plain(inputs_embeds=torch.tensor(prompt[None]), cache=cache)
    state = graph.state(prompt)
    assert [len(layer) for layer in state] == [1, 2, 1]
    for layer in CONVOLUTIONS:
        wanted = cache.layers[layer].conv_states[0].numpy()
        assert state[layer][0].shape == wanted.shape == (1, 64, KERNEL)
        assert np.abs(state[layer][0] - wanted).max() < 1e-5
        assert (state[layer][0][:, :, : max(0, KERNEL - length)] == 0).all()
    assert np.abs(state[1][0] - cache.layers[1].keys.numpy()).max() < 1e-5


@pytest.mark.parametrize("parts", [(1, 1, 1, 1), (2, 1, 7), (1, 9), (4, 2, 2, 1)])
def test_passes_of_any_length_are_one_sequence(
    bundle: Path, model: Path, plain: Any, parts: tuple[int, ...]
) -> None:
    """Over nothing and over a state, of one row, of fewer than the kernel, of many."""
    graph, rows = graph_of(bundle, model), some_rows(1, sum(parts), 64)
    wanted, start = plain_logits(plain, rows), 0
    state: State = []
    for count in parts:
        logits, state = run(graph, rows[None, start : start + count], state)
        assert np.abs(logits[0] - wanted[start : start + count]).max() < 1e-4
        start += count


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_the_answer_changes_with_each_part_of_the_prefix(
    bundle: Path, model: Path, variant: str
) -> None:
    """Keys and values alone are another prompt, and so is each convolution's zero."""
    graph, text = graph_of(bundle, model, variant), some_rows(7, 1, 6, 64)
    state = list(graph.state(some_rows(3, 5, 64)))
    whole, _ = run(graph, text, state)
    for layer in range(3):
        without = state.copy()
        without[layer] = tuple(np.zeros_like(array) for array in state[layer])
        assert np.abs(run(graph, text, without)[0] - whole).max() > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"conv_bias": True, "conv_L_cache": 4}, marks=pytest.mark.slow),
        {"conv_L_cache": 1},
        pytest.param(
            {"layer_types": ["full_attention", "conv", "conv"]}, marks=pytest.mark.slow
        ),
    ],
    ids=["bias", "one_row", "attention_first"],
)
def test_other_convolutions(options: dict[str, Any], tmp_path: Path) -> None:
    kind = replace(LFM2, options=LFM2.options | options)
    model = make_decoder(kind, tmp_path / "model")
    bundle = export_bundle(str(model), tmp_path / "a.bundle", ("fp32",)).bundle
    graph, plain = graph_of(bundle, model), plain_model(model)
    prompt, text = some_rows(1, 5, 64), some_rows(2, 6, 64)
    wanted = plain_logits(plain, np.concatenate([prompt, text]))
    logits, state = run(graph, text[None, :-1], graph.state(prompt))
    assert np.abs(logits[0] - wanted[5:-1]).max() < 1e-4
    last, _ = run(graph, text[None, -1:], state)
    assert np.abs(last[0, 0] - wanted[-1]).max() < 1e-4


def test_padding_on_the_left_is_seen_by_no_convolution(
    bundle: Path, model: Path, plain: Any
) -> None:
    """Two texts of unlike length: the short one's logits, and its next token's."""
    graph, short, new = graph_of(bundle, model), some_rows(1, 4, 64), some_rows(2, 64)
    rows = np.stack([some_rows(3, 9, 64), np.concatenate([some_rows(9, 5, 64), short])])
    mask = np.ones((2, 9), np.int64)
    mask[1, :5] = 0
    logits, state = graph.run(graph.feed(rows, mask, []))
    wanted = plain_logits(plain, np.concatenate([short, new[None]]))
    # Keys are turned by their position, and only distances count.
    assert np.abs(logits[1, 5:] - wanted[:-1]).max() < 1e-4
    feed = graph.feed(np.stack([new, new])[:, None], np.ones((2, 1), np.int64), state)
    feed["attention_mask"] = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
    assert np.abs(graph.run(feed)[0][1, 0] - wanted[-1]).max() < 1e-4


def test_projections_of_convolutions_are_int8_and_smoothed(bundle: Path) -> None:
    graph = onnx.load(bundle / "model_int8.onnx", load_external_data=False).graph
    names = {node.name for node in graph.node if "MatMulInteger" in node.op_type}
    for layer in CONVOLUTIONS:
        for part in ("in_proj", "out_proj"):
            stem = f"model.model.layers.{layer}.conv.{part}"
            assert f"{stem}.MatMulIntegerToFloat" in names
    # The factor of in_proj's rows went into the norm before it: none is multiplied.
    norms = [node for node in graph.node if node.op_type == "RMSNormalization"]
    read = {name for node in norms for name in node.input}
    assert len([name for name in read if name.endswith(".smooth")]) == 7
    assert not [node.name for node in graph.node if ".smooth" in node.name]


def test_a_model_whose_state_is_not_handed_over_is_refused(model: Path) -> None:
    base = load_base(resolve(str(model)))
    require_conv_state(base.model, base.dims)
    for changes in ({"conv_kernel": 4}, {"conv_layers": (0, 1)}):
        with pytest.raises(Unsupported, match="no state"):
            require_conv_state(base.model, replace(base.dims, **changes))


@pytest.mark.parametrize("kinds", [["conv"] * 3, ["conv", "sliding_attention"] * 2])
def test_other_mixtures_of_layers_are_refused(kinds: list[str], tmp_path: Path) -> None:
    changes = {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    kind = replace(LFM2, options=LFM2.options | changes)
    model = make_decoder(kind, tmp_path / "model")
    with pytest.raises(Unsupported, match="and conv beside full_attention"):
        load_base(resolve(str(model)))


def lying(bundle: Path, out: Path, change: Change) -> Path:
    """A copy of a bundle whose manifest says something else."""
    shutil.copytree(bundle, out)
    body = json.loads((out / "manifest.json").read_text())
    change(body["dims"])
    (out / "manifest.json").write_text(json.dumps(body))
    return out


def test_the_manifest_says_which_state_there_is(bundle: Path) -> None:
    dims = open_bundle(bundle).manifest.dims
    assert (dims.conv_layers, dims.conv_kernel) == (CONVOLUTIONS, KERNEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(conv_layers=[0]), "input past_(conv|key_values).2"),
        (lambda d: d.update(conv_layers=[1, 2]), "input past_(conv|key_values).[01]"),
        (
            lambda d: d.update(conv_layers=[], conv_kernel=0),
            "input past_(conv|key_values).0",
        ),
        (
            lambda d: (d.pop("conv_layers"), d.pop("conv_kernel")),
            "input past_(conv|key_values).0",
        ),
        (lambda d: d.update(conv_kernel=4), "a size of 3, the manifest 4"),
        (lambda d: d.update(hidden=32), "a size of 64, the manifest 32"),
    ],
)
def test_a_manifest_of_another_state_is_refused(
    bundle: Path, tmp_path: Path, change: Change, message: str
) -> None:
    with pytest.raises(BundleInvalid, match=message):
        Engine(lying(bundle, tmp_path / "a.bundle", change), threads=1)


@pytest.mark.parametrize("size", [2, None])
def test_a_graph_of_another_state_is_refused(
    bundle: Path, tmp_path: Path, size: int | None
) -> None:
    """An output of another size, and one under another name."""
    dims = open_bundle(bundle).manifest.dims
    for file in bundle.glob("model_int8.onnx*"):
        shutil.copyfile(file, tmp_path / file.name)
    path = tmp_path / "model_int8.onnx"
    DecoderSession(path, dims, profile_named("latency"), 1)
    model = onnx.load(path, load_external_data=False)
    output = next(item for item in model.graph.output if item.name == "present_conv.2")
    start = f"{output.name}.full"
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == output.name:
                node.output[place] = start
    if size is None:
        output.name, message = start, "lacks output present_conv.2"
    else:
        output.type.tensor_type.shape.dim[2].dim_value = size
        message = "output present_conv.2 has a size of 2, the manifest 3"
        ends = [np.array([value]) for value in (0, size, 2)]
        names = [f"cut.{place}" for place in range(3)]
        for name, value in zip(names, ends, strict=True):
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        cut = onnx.helper.make_node("Slice", [start, *names], [output.name], name="cut")
        model.graph.node.append(cut)
    onnx.save(model, path)
    with pytest.raises(BundleInvalid, match=message):
        DecoderSession(path, dims, profile_named("latency"), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_layers": [0, 1, 2]}, "not some of 3 in order"),
        ({"conv_layers": [2, 0]}, "not some of 3 in order"),
        ({"conv_layers": [0, 0]}, "not some of 3 in order"),
        ({"conv_layers": [3]}, "not some of 3 in order"),
        ({"conv_layers": [True]}, "not a list"),
        ({"conv_layers": "02"}, "not a list"),
        ({"conv_layers": []}, "dims.conv_kernel is 3"),
        ({"conv_kernel": 0}, "dims.conv_kernel is 0"),
        ({"conv_kernel": 65}, "not 0 to 64"),
    ],
)
def test_a_state_that_cannot_be_is_refused(
    bundle: Path, changes: dict[str, Any], message: str
) -> None:
    body = json.loads((bundle / "manifest.json").read_text())
    body["dims"].update(changes)
    with pytest.raises(ManifestInvalid, match=message):
        from_json(json.dumps(body))


def test_a_manifest_from_before_means_keys_and_values(tiny_bundle: Path) -> None:
    body = json.loads((tiny_bundle / "manifest.json").read_text())
    now = from_json(json.dumps(body))
    del body["dims"]["conv_layers"], body["dims"]["conv_kernel"]
    assert from_json(json.dumps(body)) == now
    assert now.dims.conv_layers == ()
