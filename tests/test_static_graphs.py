"""Graphs of fixed sizes: buckets, calibrated ranges, on the CPU and on QNN."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from architectures import ARCHITECTURES, make_model
from blobs import random_blob

from promptdial.export import export_bundle, verify_bundle
from promptdial.export.build import ExportResult
from promptdial.export.errors import Unsupported, WrongBase
from promptdial.prompts.blob import PromptBlob, encode, make_blob
from promptdial.prompts.errors import MissingExtra, UsageError
from promptdial.prompts.metadata import APART
from promptdial.runtime import Engine
from promptdial.runtime.accelerator import CPU
from promptdial.runtime.answers import Classification
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main
from promptdial.runtime.errors import BundleInvalid, PromptRefused, SessionFailed
from promptdial.runtime.manifest import Manifest
from promptdial.runtime.prompt_limits import PromptLimits, check_state
from promptdial.runtime.qnn import QNN
from promptdial.runtime.reading import Floats

LENGTHS = (8, 32)
TEXTS = (
    "wake me",
    "play some music",
    "the film was not very good and the book was great",
    "where is the station",
)
KINDS = ("classification", "pair", "token", "embedding")

needs_qnn = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None,
    reason="the package onnxruntime-qnn is not installed",
)


def blobs_of(manifest: Manifest) -> list[PromptBlob]:
    """A soft and a deep prompt of each kind, one that mixes levels, a pair apart."""
    found = [
        random_blob(manifest, f"{kind}{deep:d}", kind, 5, deep=deep, seed=7 * place)
        for place, kind in enumerate(KINDS)
        for deep in (False, True)
    ]
    found.append(random_blob(manifest, "mixed", length=3, mixes=2, seed=77))
    found.append(random_blob(manifest, "pair_apart", "pair", seed=78, pooling=APART))
    return found


def made_static(name: str, folder: Path) -> ExportResult:
    """The bundle of an architecture with the variant qnn alone."""
    kind = next(kind for kind in ARCHITECTURES if kind.name == name)
    model = make_model(kind, folder / "model")
    out = folder / "a.bundle"
    return export_bundle(str(model), out, (), target="qnn", lengths=(12,))


def write(blob: PromptBlob, folder: Path) -> Path:
    path = folder / f"{blob.meta.task}.safetensors"
    path.write_bytes(encode(blob.meta, blob.tensors))
    return path


@pytest.fixture(scope="module")
def prompts(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    for blob in blobs_of(open_bundle(tiny_bundle).manifest):
        write(blob, folder)
    return folder


@pytest.fixture(scope="module")
def bundle(
    tiny_bundle: Path,
    tiny_model: Path,
    prompts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny bundle with the variant qnn, calibrated on all of the prompts."""
    out = tmp_path_factory.mktemp("static") / "tiny.bundle"
    shutil.copytree(tiny_bundle, out)
    files = sorted(prompts.iterdir())
    export_bundle(str(tiny_model), out, target="qnn", calibrate=files, lengths=LENGTHS)
    return out


@pytest.fixture
def on_cpu(bundle: Path, prompts: Path) -> Engine:
    return Engine(bundle, prompts, variant="qnn", providers=[CPU], threads=1)


def scores_of(answer: Classification) -> Floats:
    return np.array(list(answer.scores.values()), np.float32)


def answers(engine: Engine, text: str) -> dict[str, Floats]:
    """Numbers of every task's answer."""
    found = {"base": engine.embed(None, text)}
    for task in engine.tasks():
        if task.startswith("embedding"):
            found[task] = engine.embed(task, text)
        elif task.startswith("pair"):
            found[task] = scores_of(engine.classify(task, text, "on"))
        elif not task.startswith("token"):
            found[task] = scores_of(engine.classify(task, text))
    return found


def test_variants_lie_beside_those_of_the_cpu(bundle: Path, tiny_bundle: Path) -> None:
    manifest, before = open_bundle(bundle).manifest, open_bundle(tiny_bundle).manifest
    assert sorted(manifest.graphs) == ["fp32", "int8", "qnn"]
    assert open_bundle(bundle).variant_name == "int8"
    for name in ("model_fp32.onnx", "model_int8.onnx", "model_int8.onnx.data"):
        assert manifest.files[name] == before.files[name]
    variant = manifest.graphs["qnn"]
    sizes = [(bucket.prefix, bucket.text) for bucket in variant.buckets]
    assert sizes == [(0, 32), (32, 8), (32, 32)]
    # One file of weights for all of them.
    assert len(variant.files) == len(sizes) + 1
    heavy = max(manifest.files[name].bytes for name in variant.files[:-1])
    assert heavy < manifest.files["model_fp32.onnx.data"].bytes


def test_every_bucket_answers_as_fp32_does(bundle: Path, prompts: Path) -> None:
    fixed = Engine(bundle, prompts, variant="qnn", providers=[CPU], threads=1)
    exact = Engine(bundle, prompts, variant="fp32", threads=1)
    with fixed, exact:
        assert len(exact.tasks()) == 10
        for text in TEXTS:
            ours, theirs = answers(fixed, text), answers(exact, text)
            for task, wanted in theirs.items():
                assert np.abs(ours[task] - wanted).max() < 0.05, (task, text)
        wanted_tags = exact.tag("token1", TEXTS[1]).tags
        assert fixed.tag("token1", TEXTS[1]).tags == wanted_tags
        # A prompt changes an answer, and much more than rounding does.
        plain, steered = (
            exact.embed(None, TEXTS[0]),
            exact.embed("embedding1", TEXTS[0]),
        )
        assert np.abs(plain - steered).max() > 0.1


def test_answers_in_company_are_those_alone(on_cpu: Engine) -> None:
    items = [("embedding0", text) for text in TEXTS] + [("embedding1", TEXTS[0])]
    with on_cpu:
        together = on_cpu.run_batch(items)
        for (task, text), answer in zip(items, together, strict=True):
            assert np.array_equal(on_cpu.embed(task, text), np.asarray(answer))


def test_verify_compares_with_pytorch(bundle: Path, tiny_model: Path) -> None:
    parity = verify_bundle(bundle, str(tiny_model))
    found = parity.variants["qnn"]
    assert found.cosine > 0.998
    assert found.batch_diff == 0
    assert found.prompt_effect > 0.01


def test_a_text_longer_than_every_bucket_is_cut(on_cpu: Engine) -> None:
    long = " ".join(["good"] * 40)
    with on_cpu:
        assert on_cpu.classify("classification0", long).truncated
        fits = on_cpu.classify("classification0", " ".join(["good"] * 30))
        assert not fits.truncated
        assert on_cpu.classify("classification0", long).scores == fits.scores


def scaled(blob: PromptBlob, factor: float) -> PromptBlob:
    rows = blob.prompt_embeddings
    return make_blob(
        blob.meta,
        embeddings=None if rows is None else rows * factor,
        past=[(key * factor, value) for key, value in blob.past_key_values] or None,
        head_weight=blob.head_weight,
        precision="f16",
    )


@pytest.mark.parametrize(
    ("deep", "name", "factor"), [(0, "inputs_embeds", 6.0), (1, "past_key", 30.0)]
)
def test_a_prompt_outside_the_ranges_is_refused(
    bundle: Path, on_cpu: Engine, deep: int, name: str, factor: float
) -> None:
    manifest = open_bundle(bundle).manifest
    good = random_blob(manifest, "fresh", length=5, deep=bool(deep), seed=3)
    far = scaled(good, factor)
    with on_cpu, Engine(bundle, threads=1) as int8:
        on_cpu.load(good)
        before = on_cpu.classify("fresh", TEXTS[0])
        with pytest.raises(PromptRefused, match=rf"{name}.*calibrated for") as caught:
            on_cpu.load(far)
        assert "--calibrate" in caught.value.hint
        assert caught.value.exit_code == 3
        assert "calibrated for" in on_cpu.compatible(far).reason
        assert on_cpu.compatible(good).ok
        assert on_cpu.classify("fresh", TEXTS[0]) == before
        # The other variants have no ranges.
        int8.load(far)


def test_a_prompt_longer_than_the_graphs_is_refused(
    bundle: Path, on_cpu: Engine
) -> None:
    manifest = open_bundle(bundle).manifest
    with on_cpu:
        for deep in (False, True):
            long = random_blob(manifest, "long", length=33, deep=deep)
            with pytest.raises(PromptRefused, match=r"33 virtual tokens.*room for 32"):
                on_cpu.load(long)


def test_a_manifest_without_sound_ranges_is_refused(
    bundle: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.bundle"
    shutil.copytree(bundle, own)
    body = json.loads((own / "manifest.json").read_text())
    ranges = body["graphs"]["qnn"]["ranges"]
    for wrong in ({}, {**ranges, "inputs_embeds": [1, -1]}):
        body["graphs"]["qnn"]["ranges"] = wrong
        (own / "manifest.json").write_text(json.dumps(body))
        with pytest.raises(BundleInvalid, match="inputs_embeds has the range"):
            Engine(own, variant="qnn", providers=[CPU])
    body["graphs"]["qnn"]["ranges"] = ranges
    body["graphs"]["qnn"]["buckets"][1]["text"] = 9
    (own / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(BundleInvalid, match="the manifest"):
        Engine(own, variant="qnn", providers=[CPU])


def test_keys_that_were_cut_are_noticed(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    limits = PromptLimits(32, manifest.graphs["qnn"].ranges)
    low, high = limits.ranges["past_key_values.0.key"]
    shape = (1, manifest.dims.kv_heads, 2, manifest.dims.head_dim)
    state = tuple(np.zeros(shape, np.float32) for _ in range(4))
    check_state("t", state, manifest.dims, limits)
    for end in (low, high):
        state[0][0, 0, 0, 0] = end
        with pytest.raises(PromptRefused, match=r"past_key_values\.0\.key"):
            check_state("t", state, manifest.dims, limits)


def test_without_the_package_the_message_says_what_to_install(
    bundle: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    with pytest.raises(MissingExtra, match=r"pip install 'promptdial\[npu-qnn\]'"):
        Engine(bundle, prompts, variant="qnn")
    # Only whoever names the CPU gets it.
    with Engine(bundle, prompts, variant="qnn", providers=[QNN, CPU]) as engine:
        assert engine.classify("classification0", TEXTS[0]).label
        nodes = engine.placement()
    assert len(nodes) == 3
    assert all(set(found) == {CPU} for found in nodes.values())
    with Engine(bundle, prompts) as engine:
        assert engine.placement() == {}
    with pytest.raises(SessionFailed, match="AzureExecutionProvider"):
        Engine(bundle, variant="qnn", providers=["AzureExecutionProvider"])


def test_what_has_no_static_graphs_says_so(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    soft = prompts / "classification0.safetensors"
    with pytest.raises(UsageError, match="prompts of any range"):
        export_bundle(str(tiny_model), out, calibrate=[soft])
    model = str(tiny_model)
    assert main(["export", model, str(out), "--seq-len", "8"]) == 2
    short = ["export", model, str(out), "--target", "qnn", "--seq-len", "3"]
    assert main(short) == 2
    assert not out.exists()


@pytest.mark.parametrize("name", ["roberta", "t5"])
def test_other_positions_answer_as_pytorch_does(tmp_path: Path, name: str) -> None:
    """Positions with an offset, and distances over prefixes that fill no bucket."""
    parity = made_static(name, tmp_path).parity
    assert parity.variants["qnn"].cosine_min > 0.998


def test_masks_of_their_own_are_refused(tmp_path: Path) -> None:
    kind = next(kind for kind in ARCHITECTURES if kind.name == "modernbert")
    model = make_model(kind, tmp_path / "model")
    with pytest.raises(Unsupported, match="a mask or options of its own"):
        export_bundle(str(model), tmp_path / "a.bundle", (), target="qnn")
    assert not (tmp_path / "a.bundle").exists()


def test_prompts_of_another_base_do_not_calibrate(
    bundle: Path, tiny_model: Path, tmp_path: Path
) -> None:
    manifest = open_bundle(bundle).manifest
    other = replace(manifest.base, fingerprint="ckpt1:" + "0" * 64)
    blob = write(random_blob(replace(manifest, base=other)), tmp_path)
    with pytest.raises(WrongBase, match="ckpt1:000"):
        export_bundle(str(tiny_model), tmp_path / "o", target="qnn", calibrate=[blob])


@needs_qnn
def test_every_node_runs_on_qnn(bundle: Path, prompts: Path, on_cpu: Engine) -> None:
    """In the simulator where there is no such processor."""
    with on_cpu, Engine(bundle, prompts, variant="qnn") as engine:
        placed, there = engine.placement(), on_cpu.placement()
        for file, nodes in placed.items():
            assert nodes == {QNN: there[file][CPU]}
        for task in ("embedding0", "embedding1"):
            wanted = on_cpu.embed(task, TEXTS[0])
            assert wanted @ engine.embed(task, TEXTS[0]) > 0.99


@needs_qnn
def test_every_node_of_t5s_encoder_runs_on_qnn(tmp_path: Path) -> None:
    out = made_static("t5", tmp_path).bundle
    blob = random_blob(open_bundle(out, "qnn").manifest, "steered", "embedding", 5)
    with (
        Engine(out, variant="qnn", providers=[CPU]) as on_cpu,
        Engine(out, variant="qnn") as engine,
    ):
        for one in (on_cpu, engine):
            one.load(blob)
        placed, there = engine.placement(), on_cpu.placement()
        for file, nodes in placed.items():
            assert nodes == {QNN: there[file][CPU]}
        wanted = on_cpu.embed("steered", TEXTS[0])
        assert wanted @ engine.embed("steered", TEXTS[0]) > 0.99
        assert wanted @ on_cpu.embed(None, TEXTS[0]) < 0.9


@needs_qnn
def test_a_graph_that_is_compiled_wrongly_is_not_used(
    bundle: Path, tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    """onnxruntime-qnn 2.7 errs where a text has as many rows as a head is wide."""
    own = tmp_path / "own.bundle"
    width = open_bundle(bundle).manifest.dims.head_dim
    export_bundle(str(tiny_model), own, (), target="qnn", lengths=(width,))
    with Engine(own, variant="qnn", providers=[CPU]) as engine:
        wanted = engine.embed(None, TEXTS[2])
    try:
        with Engine(own, variant="qnn") as engine:
            found = engine.embed(None, TEXTS[2])
    except SessionFailed as error:
        assert "wrongly, cosine" in error.message
        kept = [path.name for path in (tmp_path / "own.bundle.contexts").iterdir()]
        assert not [name for name in kept if f"_{width}.QNN" in name]
    else:
        assert wanted @ found > 0.99


@needs_qnn
def test_graphs_are_compiled_once(
    bundle: Path, prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "own.bundle"
    shutil.copytree(bundle, own)
    kept = tmp_path / "own.bundle.contexts"

    def answer() -> Floats:
        with Engine(own, prompts, variant="qnn") as engine:
            assert all(set(found) == {QNN} for found in engine.placement().values())
            return engine.embed("embedding1", TEXTS[0])

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in kept.glob("*.onnx")}

    wanted = answer()
    first = times()
    assert len(first) == 3 and all(QNN in name for name in first)
    assert not [path for path in kept.iterdir() if path.name.startswith(".")]
    assert np.array_equal(answer(), wanted)
    assert times() == first
    # The provider itself would run a damaged context.
    damaged = sorted(kept.glob("*.onnx"))[0]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    # One of other graphs is stale.
    stale = sorted(kept.glob("*.json"))[1]
    stale.write_text(stale.read_text().replace('"source": "', '"source": "0'))
    with caplog.at_level("WARNING"):
        assert np.array_equal(answer(), wanted)
    assert "is damaged" in caplog.text
    second = times()
    assert [second[name] != first[name] for name in sorted(first)] == [1, 1, 0]
    assert damaged.read_bytes() != data


@needs_qnn
def test_without_room_for_contexts_each_opening_compiles(
    bundle: Path, prompts: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.bundle"
    shutil.copytree(bundle, own)
    # No folder can be made where a file is.
    (tmp_path / "own.bundle.contexts").write_text("")
    with Engine(own, prompts, variant="qnn") as engine:
        assert all(set(found) == {QNN} for found in engine.placement().values())
