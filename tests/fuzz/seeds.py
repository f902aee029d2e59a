"""Seed corpora of the fuzz targets, made from valid files: no binaries in git.

python tests/fuzz/seeds.py FOLDER     writes FOLDER/blob, /manifest, /pack and /rows
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from blobs import LABELS, META, POOLING, normal
from packs import metas_of, random_pack

from promptdial.prompts.blob import encode, make_blob
from promptdial.prompts.metadata import Golden
from promptdial.prompts.pack import encode_pack
from promptdial.runtime.manifest import (
    Base,
    Dims,
    FileEntry,
    GraphVariant,
    Manifest,
    to_json,
)

ROWS = {
    "classification": '{"text": "wake me", "label": "alarm"}\n'
    '{"text": "play jazz", "label": "music"}\n',
    "pair": '{"text": "a film", "text_pair": "a movie", "label": "same"}\n',
    "token": '{"tokens": ["wake", "me"], "tags": ["O", "B-who"]}\n',
    "embedding": '{"text": "open?", "positive": "we open at nine"}\n\n',
}


def blobs() -> dict[str, bytes]:
    """A small file of each kind, soft and deep, in each precision."""
    rows, bias = normal(0, 2, 8), normal(2, 3)
    pairs = [(normal(i, 2, 2, 4), normal(i + 9, 2, 2, 4)) for i in range(2)]
    found = {}
    for kind, labels in LABELS.items():
        head = normal(1, len(labels), 8) if labels else None
        meta = replace(META, kind=kind, labels=labels, pooling=POOLING[kind])
        for precision in ("int8", "f16", "f32"):
            found[f"{kind}-{precision}"] = make_blob(
                meta, embeddings=rows, head_weight=head, precision=precision
            )
        found[f"{kind}-deep"] = make_blob(meta, past=pairs, head_weight=head)
    golden = (Golden("a red thing", None, (2, 5, 3), "red", 0.75),)
    full = replace(META, golden=golden, template={"before": "it is "})
    head = normal(1, 3, 8)
    found["full"] = make_blob(full, head_weight=head, head_bias=bias)
    return {name: encode(blob.meta, blob.tensors) for name, blob in found.items()}


def packs() -> dict[str, bytes]:
    """Soft and deep, one task and all, factors of keys or none; one reads levels."""
    one = metas_of({"colour": "classification"})
    found = {
        "soft": random_pack(metas_of(), deep=False, length=2),
        "deep": random_pack(metas_of(), length=2),
        "keys": random_pack(metas_of(), length=2, parts=("value", "key")),
        "one": random_pack(one, length=2, parts=()),
        "levels": random_pack(metas_of(), length=2, levels=2, wide=False),
    }
    return {
        name: encode_pack([blob.meta for blob in pack.blobs], pack.tensors)
        for name, pack in found.items()
    }


def manifests() -> dict[str, bytes]:
    """With and without calibrated ranges."""
    dims = Dims(
        layers=2,
        hidden=64,
        embedding=64,
        heads=4,
        kv_heads=4,
        head_dim=16,
        vocab=52,
        max_positions=64,
        token_types=2,
    )
    base = Base("tiny", "BertModel", META.base_fingerprint, META.tokenizer_fingerprint)
    names = ("model_int8.onnx", "model_int8.onnx.data", "tokenizer.json")
    files = {name: FileEntry("0" * 64, 100 + i) for i, name in enumerate(names)}
    plain = GraphVariant(names[:2], "cpu", "int8", "per-row", "1.24", ("avx2",))
    found = {}
    for name, ranges in (("plain", {}), ("ranges", {"x": (-1.0, 2.5)})):
        graphs = {"int8": replace(plain, ranges=ranges)}
        manifest = Manifest(
            "encoder", dims, True, "one_way", 1.0, 29.3, base, graphs, files
        )
        found[name] = to_json(manifest).encode()
    return found


def write_seeds(folder: Path) -> None:
    """Write the four corpora."""
    corpora = {
        "blob": blobs(),
        "manifest": manifests(),
        "pack": packs(),
        "rows": {name: text.encode() for name, text in ROWS.items()},
    }
    for target, seeds in corpora.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            (folder / target / name).write_bytes(data)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
