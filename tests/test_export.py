"""Export of encoders: parity with PyTorch, prefixes, INT8 rows, safe bundles."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from blobs import normal

from promptdial.export import export_bundle
from promptdial.export.errors import ExportError, Unsupported, WrongBase
from promptdial.export.fingerprint import checkpoint_fingerprint
from promptdial.export.masks import text_mask
from promptdial.export.model import quiet_transformers
from promptdial.export.prefix_attention import Prefix
from promptdial.prompts.training.base import FrozenBase, open_base
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.encoder_session import EncoderSession
from promptdial.runtime.errors import BundleInvalid
from promptdial.runtime.profiles import PROFILES

CPU = torch.device("cpu")
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def session_of(bundle: Path, variant: str) -> EncoderSession:
    opened = open_bundle(bundle, variant)
    return EncoderSession(
        opened.graph_path, opened.manifest.dims, PROFILES["memory"], threads=1
    )


def padded(base: FrozenBase, lengths: Sequence[int]) -> tuple[Floats, np.ndarray]:
    """Embeddings [B, T, H] of random tokens and their mask [B, T]."""
    rng = np.random.default_rng(0)
    longest = max(lengths)
    ids = rng.integers(5, base.dims.vocab, (len(lengths), longest))
    mask = np.array([[1] * n + [0] * (longest - n) for n in lengths], np.int64)
    return base.token_table.numpy()[ids], mask


def torch_hidden(
    base: FrozenBase, embeds: Floats, mask: object, rows: Floats
) -> Floats:
    """PyTorch's hidden states over the prefix of prompt rows [P, H]."""
    batch, length = embeds.shape[:2]
    with torch.no_grad():
        state = base.state_of(torch.tensor(rows)) if len(rows) else []
        seen = torch.cat([torch.ones(batch, len(rows)), torch.tensor(mask)], 1)
        out = base.model(
            inputs_embeds=torch.tensor(embeds),
            attention_mask=text_mask(seen, length),
            position_ids=torch.arange(length).expand(batch, length),
            token_type_ids=torch.zeros(batch, length, dtype=torch.long),
            prefix=Prefix(past=[(pair[0], pair[1]) for pair in state]),
        ).last_hidden_state
    return np.asarray(out.numpy())


def graph_hidden(
    session: EncoderSession, embeds: Floats, mask: object, rows: Floats
) -> Floats:
    batch, length = embeds.shape[:2]
    state = session.state_of(rows) if len(rows) else session.no_prompt
    seen = np.concatenate([np.ones((batch, len(rows)), np.int64), np.asarray(mask)], 1)
    positions = np.tile(np.arange(length), (batch, 1))
    return session.hidden(embeds, seen, positions, positions * 0, state)


def check_parity(base: FrozenBase, session: EncoderSession) -> None:
    for lengths in ([9], [9, 4, 6]):
        embeds, mask = padded(base, lengths)
        answers = []
        for count in (0, 1, 5, 20):
            rows = normal(count, count, base.dims.hidden) * 0.2
            wanted = torch_hidden(base, embeds, mask, rows)
            found = graph_hidden(session, embeds, mask, rows)
            for index, length in enumerate(lengths):
                difference = found[index, :length] - wanted[index, :length]
                assert np.abs(difference).max() < 1e-4
            answers.append(found[0, : lengths[0]])
        for other in answers[1:]:
            assert np.abs(other - answers[0]).max() > 1e-2


def test_fp32_equals_pytorch_with_and_without_prompt(
    tiny_model: Path, tiny_bundle: Path
) -> None:
    base = open_base(str(tiny_model), CPU)
    check_parity(base, session_of(tiny_bundle, "fp32"))


def test_minilm_fp32_equals_pytorch_with_and_without_prompt(
    minilm_bundle: Path,
) -> None:
    check_parity(open_base("minilm", CPU), session_of(minilm_bundle, "fp32"))


def test_minilm_int8_is_close_and_rows_are_independent(minilm_bundle: Path) -> None:
    base = open_base("minilm", CPU)
    parity = json.loads((minilm_bundle / "parity.json").read_text())
    assert parity["int8"]["cosine"] >= 0.997
    session = session_of(minilm_bundle, "int8")
    embeds, mask = padded(base, [8, 8, 8])
    embeds[1] *= 30  # an outlier beside it must not change a row
    rows = normal(0, 5, base.dims.hidden) * 0.2
    together = graph_hidden(session, embeds, mask, rows)
    for index in range(3):
        alone = graph_hidden(session, embeds[index : index + 1], mask[:1], rows)
        assert np.array_equal(alone[0], together[index])


def test_no_scale_is_shared_by_rows(minilm_bundle: Path) -> None:
    graph = onnx.load(minilm_bundle / "model_int8.onnx", load_external_data=False)
    kinds = {node.op_type for node in graph.graph.node}
    assert "DynamicQuantizeLinear" not in kinds
    assert "MatMulIntegerToFloat" in kinds
    weights = [
        item.name
        for item in graph.graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT and len(item.dims) == 2
    ]
    used = {
        name
        for node in graph.graph.node
        if node.op_type == "MatMul"
        for name in node.input
    }
    assert not used & set(weights)


def test_a_second_export_adds_a_variant(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export_bundle(str(tiny_model), out, ("fp32",))
    first = json.loads((out / "manifest.json").read_text())
    export_bundle(str(tiny_model), out, ("int8",))
    second = json.loads((out / "manifest.json").read_text())
    assert set(first["graphs"]) == {"fp32"}
    assert set(second["graphs"]) == {"fp32", "int8"}
    assert first["graphs"]["fp32"] == second["graphs"]["fp32"]


def test_equal_exports_have_equal_graphs(tiny_model: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        export_bundle(str(tiny_model), tmp_path / name)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        digests.append({n: f["sha256"] for n, f in manifest["files"].items()})
    assert digests[0]["model_int8.onnx"] == digests[1]["model_int8.onnx"]
    assert digests[0]["model_int8.onnx.data"] == digests[1]["model_int8.onnx.data"]


def other_model(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model with one number changed."""
    from transformers import BertModel

    folder = tmp_path / "other"
    with quiet_transformers():
        model = BertModel.from_pretrained(tiny_model, add_pooling_layer=False)
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1
        model.save_pretrained(folder)
    text = (tiny_model / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text)
    return folder


def test_a_bundle_of_another_base_is_left_alone(
    tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    export_bundle(str(tiny_model), out, ("fp32",))
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(WrongBase):
        export_bundle(str(other_model(tmp_path, tiny_model)), out)
    assert (out / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other"]


def test_fingerprints_are_of_the_stored_checkpoint(
    tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import BertModel

    sharded = tmp_path / "sharded"
    with quiet_transformers():
        model = BertModel.from_pretrained(tiny_model, add_pooling_layer=False)
        model.save_pretrained(sharded, max_shard_size="50KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    ours = checkpoint_fingerprint(tiny_model)
    assert ours.startswith("ckpt1:")
    assert checkpoint_fingerprint(sharded) == ours
    assert checkpoint_fingerprint(other_model(tmp_path, tiny_model)) != ours


def test_what_is_not_built_says_so(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="not built yet"):
        export_bundle(str(tiny_model), tmp_path / "out", ("int2",))
    with pytest.raises(Unsupported, match="target 'coreml' is not built yet"):
        export_bundle(str(tiny_model), tmp_path / "out", target="coreml")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["no/such model", "folder-that-is-not-there!"])
def test_models_that_are_not_there(tmp_path: Path, model: str) -> None:
    with pytest.raises(ExportError):
        export_bundle(model, tmp_path / "out")


def broken_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tiny_bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize(
    "name", ["model_int8.onnx", "model_int8.onnx.data", "tokenizer.json"]
)
def test_changed_files_are_refused_before_they_are_loaded(
    tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    copy = broken_copy(tiny_bundle, tmp_path)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleInvalid, match=f"{name} has SHA-256"):
        open_bundle(copy)
    (copy / name).unlink()
    with pytest.raises(BundleInvalid, match=f"{name}: No such file"):
        open_bundle(copy)
    (copy / name).symlink_to(tiny_bundle / name)
    with pytest.raises(BundleInvalid, match=name):
        open_bundle(copy)
