"""PEFT folders and T5X arrays: in, out, and loaded by PEFT itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from blobs import random_blob

from promptdial.prompts.blob import read_blob, write_blob
from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.interchange import read_foreign, write_peft
from promptdial.runtime.cli import main
from promptdial.runtime.manifest import from_json


@pytest.mark.parametrize("deep", [False, True])
def test_a_blob_unpacked_and_packed_is_the_same_file(
    tiny_bundle: Path, tmp_path: Path, deep: bool
) -> None:
    manifest = from_json((tiny_bundle / "manifest.json").read_text())
    path = tmp_path / "colour.safetensors"
    write_blob(path, random_blob(manifest, deep=deep))
    assert main(["unpack", str(path), str(tmp_path / "adapter")]) == 0
    again = tmp_path / "again" / "colour.safetensors"
    again.parent.mkdir()
    assert main(["pack", str(tmp_path / "adapter"), str(again)]) == 0
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("deep", [False, True])
def test_peft_loads_an_unpacked_blob(
    tiny_model: Path, tiny_bundle: Path, tmp_path: Path, deep: bool
) -> None:
    import torch
    from peft import PeftModel
    from transformers import BertModel

    manifest = from_json((tiny_bundle / "manifest.json").read_text())
    blob = random_blob(manifest, kind="embedding", deep=deep)
    write_peft(blob, tmp_path)
    base = BertModel.from_pretrained(tiny_model, add_pooling_layer=False)
    model = PeftModel.from_pretrained(base, tmp_path)
    saved = model.get_prompt_embedding_to_save("default")
    if not deep:
        np.testing.assert_array_equal(saved.numpy(), blob.prompt_embeddings)
        return
    prompt = model.get_prompt(batch_size=1)
    layers = prompt.layers if hasattr(prompt, "layers") else None
    for index, (key, value) in enumerate(blob.past_key_values):
        if layers is not None:
            found = (layers[index].keys, layers[index].values)
        else:
            found = (prompt[index][0], prompt[index][1])
        assert torch.equal(found[0][0], torch.tensor(key))
        assert torch.equal(found[1][0], torch.tensor(value))


def test_a_peft_prompt_with_a_head_becomes_a_task(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    manifest = from_json((tiny_bundle / "manifest.json").read_text())
    blob = random_blob(manifest)
    folder = tmp_path / "adapter"
    write_peft(blob, folder)
    out = tmp_path / "mood.safetensors"
    arguments = ["--bundle", str(tiny_bundle), "--kind", "classification"]
    labels = ["--labels", "good", "bad", "so-so"]
    assert main(["pack", str(folder), str(out), *arguments, *labels]) == 0
    made = read_blob(out)
    assert made.meta.labels == ("good", "bad", "so-so")
    np.testing.assert_array_equal(made.prompt_embeddings, blob.prompt_embeddings)
    np.testing.assert_array_equal(made.head_weight, blob.head_weight)


def test_t5x_rows_come_in(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    np.save(tmp_path / "prompt.npy", rows)
    out = tmp_path / "search.safetensors"
    arguments = ["--bundle", str(tiny_bundle), "--kind", "embedding"]
    source = str(tmp_path / "prompt.npy")
    assert main(["pack", source, str(out), *arguments, "--precision", "f32"]) == 0
    np.testing.assert_array_equal(read_blob(out).prompt_embeddings, rows)


def test_arrays_that_are_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataInvalid):
        read_foreign(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type LORA"),
        ({"peft_type": "PREFIX_TUNING", "num_layers": 7}, "does not fit"),
        ([], "no JSON object"),
    ],
)
def test_adapters_that_are_no_prompt_are_refused(
    tiny_bundle: Path, tmp_path: Path, config: object, message: str
) -> None:
    manifest = from_json((tiny_bundle / "manifest.json").read_text())
    write_peft(random_blob(manifest), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(DataInvalid, match=message):
        read_foreign(tmp_path)


def test_a_foreign_prompt_needs_its_base(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = from_json((tiny_bundle / "manifest.json").read_text())
    write_peft(random_blob(manifest), tmp_path)
    assert main(["pack", str(tmp_path), str(tmp_path / "x.safetensors")]) == 2
    assert "give --bundle and --kind" in capsys.readouterr().err
