"""The INT8 and int4 products on their own: rows of every kind, plain arithmetic."""

from math import erf
from typing import Any

import numpy as np
import onnx
import pytest
from blobs import normal
from onnx import TensorProto, helper, numpy_helper

from promptdial.export.quantise import quantise_rows
from promptdial.export.quantise_blocks import quantise_blocks, quantise_int4
from promptdial.export.session import cpu_session

WIDTH, COLUMNS = 64, 48
WEIGHT = normal(1, WIDTH, COLUMNS)


def product(rank: int, activation: str = "") -> Any:
    """A session of rows times WEIGHT in INT8, behind an activation if one is named."""
    model = exact_product(rank, WEIGHT, activation)
    quantise_rows(model)
    onnx.checker.check_model(model)
    return cpu_session(model.SerializeToString(), threads=1)


def exact_product(rank: int, weight_values: Any, activation: str = "") -> Any:
    """The FP32 graph of rows times a weight [H, N]."""
    width, columns = weight_values.shape
    lead: list[str | int | None] = [*("batch", "text")[3 - rank :]]
    shape = [*lead, width]
    rows = helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [*lead, columns])
    nodes, source = [], "inputs_embeds"
    if activation:
        nodes.append(helper.make_node(activation, [source], ["bent"], name="bent"))
        source = "bent"
    nodes.append(helper.make_node("MatMul", [source, "a.weight_t"], ["out"], name="m"))
    weight = numpy_helper.from_array(weight_values, "a.weight_t")
    graph = helper.make_graph(nodes, "g", [rows], [out], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    model.ir_version = 11
    return model


def run(session: Any, rows: Any) -> Any:
    return session.run(None, {"inputs_embeds": rows.astype(np.float32)})[0]


@pytest.mark.parametrize("rank", [2, 3])
def test_rows_are_near_their_exact_product(rank: int) -> None:
    rows = normal(2, 6, WIDTH) * np.logspace(-6, 6, 6)[:, None].astype(np.float32)
    found = run(product(rank), rows if rank == 2 else rows.reshape(2, 3, WIDTH))
    wanted = (rows @ WEIGHT).reshape(found.shape)
    scale = np.abs(wanted).max(axis=-1, keepdims=True)
    assert (np.abs(found - wanted) / scale).max() < 0.03


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("least", [0.0, 1e-45, 1e-38])
def test_rows_of_nothing_give_nothing(rank: int, least: float) -> None:
    """0 / 0 inside, beside a row that is not zero; the smallest numbers too."""
    rows = np.full((3, WIDTH), least, np.float32)
    rows[1] = normal(3, WIDTH)
    shaped = rows if rank == 2 else rows[None]
    found = run(product(rank), shaped).reshape(3, COLUMNS)
    assert np.abs(found[[0, 2]]).max() < 1e-30
    alone = run(
        product(rank), shaped.reshape(3, WIDTH)[1].reshape((1,) * (rank - 1) + (-1,))
    )
    assert np.array_equal(found[1], alone.reshape(-1))


def test_rows_of_gelu_use_their_own_steps() -> None:
    """Large ones, and some so small that GELU's dip below zero is all there is."""
    rows = np.stack([normal(4, WIDTH) * 8, normal(5, WIDTH) * 0.1, -np.ones(WIDTH)])
    found = run(product(3, "Gelu"), rows[None])[0]
    bent = np.vectorize(lambda x: 0.5 * x * (1 + erf(x / 2**0.5)))(rows)
    wanted = bent @ WEIGHT
    assert np.abs(found - wanted)[0].max() / np.abs(wanted[0]).max() < 0.03
    assert np.abs(found - wanted)[1:].max() < 0.35


def test_blocks_are_within_their_steps() -> None:
    """A block of one sign, of zeros, and one that is filled up."""
    weight = normal(6, 72, 5)
    weight[:32, 0] = np.abs(weight[:32, 0]) + 1
    weight[32:64, 1] = 0
    blocks = quantise_blocks(weight)
    assert blocks.levels.shape == (5, 3, 32)
    assert blocks.levels.max() <= 15 and blocks.zero.max() <= 15
    steps = blocks.levels.astype(np.float32) - blocks.zero[..., None]
    found = (steps * blocks.scale[..., None]).reshape(5, 96).T
    assert not found[72:].any() and not found[32:64, 1].any()
    error = np.abs(found[:72] - weight)
    # The largest may be cut by a fifth of the range; the others are half a step off.
    assert error.max() < 4 * blocks.scale.max()
    assert np.median(error) < 0.5 * blocks.scale.max()
    assert np.sqrt((error**2).mean()) < 0.1 * weight.std()


@pytest.mark.parametrize("width", [64, 40])
@pytest.mark.parametrize("rank", [2, 3])
def test_int4_rows_are_near_their_exact_product(rank: int, width: int) -> None:
    weight = normal(7, width, COLUMNS)
    model = quantise_int4(exact_product(rank, weight), {})
    onnx.checker.check_model(model)
    session = cpu_session(model.SerializeToString(), threads=1)
    rows = normal(8, 6, width) * np.logspace(-3, 3, 6)[:, None].astype(np.float32)
    rows[2] = 0
    found = run(session, rows if rank == 2 else rows.reshape(2, 3, width))
    flat = found.reshape(6, COLUMNS)
    wanted = rows @ weight
    assert not flat[2].any()
    lengths = np.linalg.norm(wanted, axis=-1) + 1e-30
    assert (np.linalg.norm(flat - wanted, axis=-1) / lengths).max() < 0.2
    for row in range(6):
        # One row alone goes another way through onnxruntime: its sums end otherwise.
        alone = run(session, rows[row].reshape((1,) * (rank - 1) + (-1,))).reshape(-1)
        assert np.abs(alone - flat[row]).max() <= 1e-6 * np.abs(flat[row]).max()
