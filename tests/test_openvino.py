"""Graphs for OpenVINO, and which variant an Engine chooses."""

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from architectures import ARCHITECTURES, make_model
from blobs import random_blob
from openvino_anywhere import is_intel, needs_openvino, without_openvino

from promptdial.export import export_bundle
from promptdial.export.build import build_graphs
from promptdial.export.bundle_parity import verify_bundle
from promptdial.export.calibration import calibration_texts
from promptdial.export.families import family_of
from promptdial.export.model import load_base, resolve
from promptdial.export.onnx_edit import GraphEdit
from promptdial.export.session import cpu_session
from promptdial.export.targets.outliers import bring_down
from promptdial.prompts.blob import encode
from promptdial.prompts.errors import MissingExtra, UsageError
from promptdial.runtime import Engine
from promptdial.runtime.accelerator import CPU
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main
from promptdial.runtime.errors import BundleInvalid, SessionFailed
from promptdial.runtime.openvino import ACCELERATOR, OPENVINO, is_plugged_in
from promptdial.runtime.qnn import QNN
from promptdial.runtime.reading import Floats

TEXTS = ("wake me", "the film was not very good and the book was great")

without_qnn = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is not None,
    reason="the package onnxruntime-qnn is installed",
)


@pytest.fixture(scope="module")
def plain_bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In FP32 alone, which every onnxruntime runs."""
    out = tmp_path_factory.mktemp("plain") / "tiny.bundle"
    return export_bundle(str(tiny_model), out, ("fp32",)).bundle


@pytest.fixture(scope="module")
def prompts(plain_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    manifest = open_bundle(plain_bundle).manifest
    for name, deep in (("soft", False), ("deep", True)):
        blob = random_blob(manifest, name, "embedding", 5, deep=deep, seed=3)
        path = folder / f"{name}.safetensors"
        path.write_bytes(encode(blob.meta, blob.tensors))
    return folder


@pytest.fixture(scope="module")
def bundle(
    plain_bundle: Path,
    tiny_model: Path,
    prompts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """With the variant openvino, calibrated on the prompts."""
    out = tmp_path_factory.mktemp("openvino") / "tiny.bundle"
    shutil.copytree(plain_bundle, out)
    files = sorted(prompts.iterdir())
    export_bundle(
        str(tiny_model), out, target="openvino", calibrate=files, lengths=(8, 32)
    )
    return out


def answers(engine: Engine) -> list[Floats]:
    tasks = (None, "soft", "deep")
    with engine:
        return [engine.embed(task, text) for task in tasks for text in TEXTS]


def cosines(one: list[Floats], other: list[Floats]) -> Floats:
    return np.array([a @ b for a, b in zip(one, other, strict=True)])


def outputs(model: onnx.ModelProto, rows: Floats) -> list[Floats]:
    session = cpu_session(model.SerializeToString())
    found: list[Floats] = session.run(None, {"inputs_embeds": rows})
    return found


def test_answers_as_fp32_does(bundle: Path, prompts: Path) -> None:
    exact = answers(Engine(bundle, prompts, variant="fp32"))
    ours = answers(Engine(bundle, prompts, variant="openvino", providers=[CPU]))
    assert cosines(ours, exact).min() > 0.995
    # A prompt moves an answer more than rounding does.
    assert exact[0] @ exact[2] < 0.98


def test_only_weights_and_what_they_read_have_levels(bundle: Path) -> None:
    variant = open_bundle(bundle, "openvino").variant
    for bucket in variant.buckets:
        graph = onnx.load(bundle / bucket.file).graph
        restored = {
            node.output[0]: node
            for node in graph.node
            if node.op_type == "DequantizeLinear"
        }
        types = {item.name: item.data_type for item in graph.initializer}
        read = [node.input for node in graph.node if set(node.input) & set(restored)]
        kinds = [
            [types[restored[name].input[2]] for name in pair if name in restored]
            for pair in read
        ]
        uint8, int8 = onnx.TensorProto.UINT8, onnx.TensorProto.INT8
        # What makes a prefix reads its rows in float: a prompt's are like no text's.
        wanted = [uint8, int8] if bucket.prefix else [int8]
        assert kinds and all(found == wanted for found in kinds)


def test_a_channel_far_above_the_rest_is_brought_down() -> None:
    """The product is as it was, and the channel is not."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 4)).astype(np.float32)
    make, kind = onnx.helper.make_node, onnx.TensorProto.FLOAT
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            make("Gelu", ["inputs_embeds"], ["gelu"], name="gelu"),
            make("MatMul", ["gelu", "dense.weight"], ["out"], name="dense"),
        ],
        "g",
        [value("inputs_embeds", kind, [1, 3, 64])],
        [value("out", kind, [1, 3, 4])],
        [onnx.numpy_helper.from_array(weight, "dense.weight")],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    rows = rng.normal(size=(1, 3, 64)).astype(np.float32)
    rows[:, :, 5] = 40.0
    top = np.ones(64, np.float32)
    top[5] = 40.0
    wanted = outputs(model, rows)[0]
    bring_down(model, {"gelu": top})
    source = GraphEdit(model).producers["out"].input[0]
    model.graph.output.append(value(source, kind, [1, 3, 64]))
    found, brought = outputs(model, rows)
    assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(brought).max() < 5


@without_openvino
def test_without_the_provider_the_message_says_what_to_install(
    bundle: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MissingExtra, match=f"provider {OPENVINO}") as caught:
        Engine(bundle, variant="openvino")
    assert "pip install 'promptdial[npu-openvino]'" in caught.value.hint
    assert caught.value.exit_code == 7
    arguments = ["run", str(bundle), "soft", "hello", "--prompts", str(prompts)]
    assert main([*arguments, "--policy", "accelerator"]) == 7
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and "promptdial[npu-openvino]" in line
    assert main([*arguments, "--policy", "accelerator_or_cpu"]) == 0
    # Everything else works, and the CPU takes it where it is named.
    with Engine(bundle, variant="openvino", providers=[OPENVINO, CPU]) as engine:
        assert all(set(found) == {CPU} for found in engine.placement().values())


@pytest.mark.skipif(
    not is_plugged_in() or is_intel(), reason="the plug-in is not there, or takes this"
)
def test_of_a_processor_that_the_plugin_does_not_take(
    bundle: Path, prompts: Path
) -> None:
    arguments = [*(sys.executable, "-m", "promptdial.runtime", "run", str(bundle))]
    arguments += ["soft", "hello", "--prompts", str(prompts), "--policy"]

    def run(policy: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*arguments, policy], text=True, capture_output=True)

    refused = run("accelerator")
    assert refused.returncode == 7
    assert "it sees no device; the plug-in takes Intel's" in refused.stderr
    assert run("accelerator_or_cpu").returncode == 0


@without_openvino
@without_qnn
def test_all_that_is_missing_is_named(
    bundle: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "own.bundle"
    shutil.copytree(bundle, own)
    export_bundle(str(tiny_model), own, target="qnn", lengths=(8,))
    with pytest.raises(SessionFailed, match=f"{QNN}.*; .*{OPENVINO}") as caught:
        Engine(own, policy="accelerator")
    assert "npu-qnn" in caught.value.hint
    assert "npu-openvino" in caught.value.hint
    with (
        caplog.at_level(logging.WARNING),
        Engine(own, policy="accelerator_or_cpu") as engine,
    ):
        assert engine.variant == "fp32"
    assert "no accelerator, fp32 runs" in caplog.text


def test_policies_say_what_they_cannot_do(bundle: Path, plain_bundle: Path) -> None:
    with Engine(bundle) as engine:
        assert engine.variant == "fp32"
    with pytest.raises(UsageError, match="policy 'fast'"):
        Engine(bundle, policy="fast")
    with pytest.raises(UsageError, match="beside a variant"):
        Engine(bundle, variant="openvino", policy="accelerator")
    with pytest.raises(UsageError, match="beside a variant"):
        Engine(bundle, providers=[CPU], policy="accelerator_or_cpu")
    with pytest.raises(BundleInvalid, match="no variant for an accelerator"):
        Engine(plain_bundle, policy="accelerator")
    with Engine(plain_bundle, policy="accelerator_or_cpu") as engine:
        assert engine.variant == "fp32"


def test_unknown_devices_are_refused(bundle: Path) -> None:
    """The provider itself takes a device that it does not know for the CPU."""
    for name, wrong in (("HETERO", OPENVINO), ("0", QNN)):
        with pytest.raises(SessionFailed, match=f"device '{name}' of {wrong}"):
            Engine(bundle, variant="openvino", providers=[f"{wrong}:{name}"])
    with pytest.raises(SessionFailed, match="one accelerator"):
        Engine(bundle, variant="openvino", providers=[OPENVINO, QNN])


@needs_openvino
def test_every_node_runs_on_openvino(bundle: Path, prompts: Path) -> None:
    on_cpu = Engine(bundle, prompts, variant="openvino", providers=[CPU])
    with Engine(bundle, prompts, policy="accelerator") as engine:
        assert engine.variant == "openvino"
        placed, there = engine.placement(), on_cpu.placement()
        assert len(placed) == 3
        for file, nodes in placed.items():
            assert nodes == {OPENVINO: there[file][CPU]}
    ours = answers(Engine(bundle, prompts, variant="openvino"))
    exact = answers(Engine(bundle, prompts, variant="fp32"))
    assert cosines(ours, exact).min() > 0.99
    assert cosines(ours, answers(on_cpu)).min() > 0.99


@needs_openvino
def test_every_node_of_t5s_encoder_runs_on_openvino(tmp_path: Path) -> None:
    """Its norms are written out, its distances a constant."""
    kind = next(kind for kind in ARCHITECTURES if kind.name == "t5")
    model, out = make_model(kind, tmp_path / "model"), tmp_path / "a.bundle"
    export_bundle(str(model), out, ("fp32",), target="openvino", lengths=(48,))
    blob = random_blob(open_bundle(out).manifest, "soft", "embedding", 5, seed=3)
    found = []
    for variant in ("openvino", "fp32"):
        with Engine(out, variant=variant) as engine:
            for nodes in engine.placement().values():
                assert set(nodes) == {OPENVINO}
            engine.load(blob)
            found.append([engine.embed("soft", text) for text in TEXTS])
            plain = engine.embed(None, TEXTS[0])
    assert cosines(*found).min() > 0.99
    assert found[1][0] @ plain < 0.98


@needs_openvino
def test_a_device_that_is_not_here_is_an_error(bundle: Path) -> None:
    if Path("/dev/accel").exists():
        pytest.skip("there may be an NPU here")
    with pytest.raises(SessionFailed, match=f"{OPENVINO} on NPU"):
        Engine(bundle, variant="openvino", providers=[f"{OPENVINO}:NPU"])


@needs_openvino
def test_contexts_are_kept_where_they_can_be_read(
    bundle: Path, prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "own.bundle"
    shutil.copytree(bundle, own)
    kept = tmp_path / "own.bundle.contexts"
    first = answers(Engine(own, prompts, variant="openvino"))
    names = [path.name for path in kept.glob("*.onnx")] if kept.exists() else []
    assert len(names) == (3 if ACCELERATOR.keeps_contexts("") else 0)
    again = answers(Engine(own, prompts, variant="openvino"))
    assert "compiled again" not in caplog.text
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@needs_openvino
def test_openvino_writes_a_context(bundle: Path, tmp_path: Path) -> None:
    """One node for the whole graph; whether it can be read is `keeps_contexts`'."""
    import onnxruntime as ort

    target = tmp_path / "context.onnx"
    variant = open_bundle(bundle, "openvino").variant
    options = ort.SessionOptions()
    for key, value in (
        ("session.disable_cpu_ep_fallback", "1"),
        ("ep.context_enable", "1"),
        ("ep.context_embed_mode", "1"),
        ("ep.context_file_path", str(target)),
    ):
        options.add_session_config_entry(key, value)
    ACCELERATOR.add(options, "")
    ort.InferenceSession(str(bundle / variant.files[1]), options, enable_fallback=0)
    kinds = [node.op_type for node in onnx.load(target).graph.node]
    assert kinds == ["EPContext"]
    again = ort.SessionOptions()
    again.log_severity_level = 4
    ACCELERATOR.add(again, "")
    if ACCELERATOR.keeps_contexts(""):
        ort.InferenceSession(str(target), again, enable_fallback=0)
    else:
        with pytest.raises(Exception, match="EP_FAIL"):
            ort.InferenceSession(str(target), again, enable_fallback=0)


@needs_openvino
def test_verify_compares_on_the_provider(bundle: Path, tiny_model: Path) -> None:
    on_cpu = verify_bundle(bundle, str(tiny_model)).variants["openvino"]
    found = verify_bundle(bundle, str(tiny_model), provider=OPENVINO)
    assert found.variants["openvino"].cosine > 0.995
    assert found.variants["openvino"] != on_cpu


def test_verify_knows_its_providers(
    bundle: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(bundle), "--model", str(tiny_model), "--json"]
    assert main([*arguments, "--provider", "Nothing"]) == 7
    assert "provider 'Nothing'" in capsys.readouterr().err
    assert main([*arguments, "--provider", QNN]) == 0
    assert "openvino" in json.loads(capsys.readouterr().out)["variants"]


@needs_openvino
def test_the_int8_graph_runs_on_this_onnxruntime_too(tiny_model: Path) -> None:
    """Exact products of 1.24.1 read beyond a list on processors without VNNI."""
    loaded = load_base(resolve(str(tiny_model)))
    family, rows = family_of(loaded), calibration_texts()
    exact = family.trace(loaded)
    made = build_graphs(loaded, exact, ("int8",), rows)["int8"]
    ours, theirs = (cpu_session(x.SerializeToString()) for x in (made, exact))
    for feed in family.feeds(loaded, theirs, rows[:4]):
        found, wanted = (
            session.run(["last_hidden_state"], feed)[0].ravel()
            for session in (ours, theirs)
        )
        size = np.linalg.norm(found) * np.linalg.norm(wanted)
        assert found @ wanted / size > 0.97
