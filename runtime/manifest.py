"""The bundle's manifest.json: plain data classes and their JSON form.

Written by promptdial.export, read by promptdial.runtime. Reading is strict about
what the runtime relies on and ignores keys that it does not know, so that a later
minor version can add some.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from promptdial.prompts.strict_json import JsonInvalid, parse_json

FORMAT = "promptdial.bundle"
FORMAT_VERSION = 1
ENCODER, DECODER = "encoder", "decoder"
MANIFEST_NAME = "manifest.json"
TOKEN_TABLE_NAME = "embed_tokens.safetensors"
TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAMES = ("generation_config.json", "config.json")

_MAX_LAYERS = 1024
_MAX_SIZE = 1 << 24
_MAX_KERNEL = 64
_MAX_BUCKET = 1 << 16
_RELEASE = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}")
_TIED = "tied_table_bytes"
_LEVELS = "level_outputs"
_MAY_BE_ZERO = ("position_offset", "token_types", "conv_kernel")


class ManifestInvalid(ValueError):
    """The text is no manifest of this format; the message names the key."""


class ManifestTooNew(ManifestInvalid):
    """The manifest's format_version is newer than this reader."""


@dataclass(frozen=True)
class Dims:
    """Sizes of the base model (notation of the project's docstrings in brackets).

    Attributes:
        layers: [L].
        hidden: [H], the width of the output.
        embedding: The width of `inputs_embeds`, of the token table and of prompt rows:
            [H] but for models that project their embeddings (small ELECTRA).
        heads: Query heads.
        kv_heads: Key/value heads [K].
        head_dim: Width of a head [D].
        vocab: Tokens [V].
        max_positions: Longest text in tokens, special tokens included.
        position_offset: Position id of the first text token (RoBERTa: 2).
        token_types: Number of segment ids; 0 where the graph takes none.
        conv_layers: Indices of the layers whose state is not keys and values but the
            last rows of a short convolution, [B, H, conv_kernel]; they ascend.
        conv_kernel: Rows that such a convolution sees; 0 without any.
    """

    layers: int
    hidden: int
    embedding: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    position_offset: int = 0
    token_types: int = 0
    conv_layers: tuple[int, ...] = ()
    conv_kernel: int = 0


@dataclass(frozen=True)
class Base:
    """The frozen model a bundle was made from.

    Attributes:
        model: Hub id, folder name or alias, for people.
        architecture: Class name in transformers.
        fingerprint: `ckpt1:` and a SHA-256 over the stored checkpoint.
        tokenizer_fingerprint: `tok1:` and a SHA-256 over the tokenizer.
        license: SPDX id where known, else "".
    """

    model: str
    architecture: str
    fingerprint: str
    tokenizer_fingerprint: str
    license: str = ""


@dataclass(frozen=True)
class StaticBucket:
    """One of a variant's graphs of fixed sizes.

    Attributes:
        file: Its .onnx file.
        prefix: Rows of the prefix [P] that it takes; 0 for an encoder's graph that
            makes a prefix of prompt rows. Of a decoder, the window of its cache [W].
        text: Rows of text, or of the prompt [T]; 1 for a decoder's graph that writes.
    """

    file: str
    prefix: int
    text: int


@dataclass(frozen=True)
class GraphVariant:
    """One graph of the bundle, or the graphs of fixed sizes that stand for it.

    Attributes:
        files: File names in the bundle; the first is the graph.
        target: `cpu`, `qnn` or `openvino`.
        precision: `fp32`, `int8` or `int4`.
        scheme: How it was quantised; "" for fp32.
        min_onnxruntime: Oldest onnxruntime that runs it.
        cpu_features: Processor features it is meant for, any one of which will do. An
            x86 processor with none runs it in onnxruntime's exact mode, which is
            slower and keeps a second copy of the weights, where onnxruntime is 1.30 or
            newer; () runs anywhere as it is.
        ranges: Of graphs of fixed sizes, (low, high) by input: what a prompt's rows
            (`inputs_embeds`) and its keys and values may be, and (the bias of keys
            that are not seen, 0) of `attention_bias`.
        packed_cache: Whether a decoder takes sequences of different lengths together,
            each one's keys at the beginning of its room in the cache. Such a graph
            takes several rows of several sequences over an empty cache alone.
        buckets: Graphs of fixed sizes, for accelerators; () for one that takes any.
            A reader of before this key runs the other variants of the bundle.
    """

    files: tuple[str, ...]
    target: str
    precision: str
    scheme: str = ""
    min_onnxruntime: str = "1.24"
    cpu_features: tuple[str, ...] = ()
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    packed_cache: bool = False
    buckets: tuple[StaticBucket, ...] = ()

    @property
    def graphs(self) -> tuple[str, ...]:
        """Its .onnx files."""
        return tuple(bucket.file for bucket in self.buckets) or self.files[:1]

    @property
    def text_buckets(self) -> tuple[StaticBucket, ...]:
        """The buckets that take a text, the shortest one first."""
        found = [bucket for bucket in self.buckets if bucket.prefix]
        return tuple(sorted(found, key=lambda bucket: (bucket.text, bucket.prefix)))


@dataclass(frozen=True)
class FileEntry:
    """Digest and size of one file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Attributes:
        family: `encoder`, `decoder` or `seq2seq`.
        dims: Sizes of the base.
        prefix: Whether the graphs take `past_key_values`.
        attention: `one_way` (prefix) or `full` (prompt rows are concatenated).
        input_multiplier: Factor on token table and prompt rows alike.
        row_norm_limit: Largest L2 norm a prompt row may have on this base.
        base: The frozen model.
        graphs: Variants by name (`int8`, `int4`, `fp32`).
        files: Every file of the folder but the manifest itself.
        tied_table_bytes: What it costs that a decoder's head is its token table (tied
            weights): bytes of the table's file, while the graph holds the same numbers
            as its head. 0 where they are not tied, and in bundles of before this key.
        level_outputs: Whether an encoder's graphs give what enters each layer, which
            heads may read; no graph of a bundle of before this key does.
    """

    family: str
    dims: Dims
    prefix: bool
    attention: str
    input_multiplier: float
    row_norm_limit: float
    base: Base
    graphs: dict[str, GraphVariant]
    files: dict[str, FileEntry]
    tied_table_bytes: int = 0
    level_outputs: bool = False


def to_json(manifest: Manifest) -> str:
    """The manifest as JSON text: sorted keys, two spaces, a final newline."""
    body = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    return json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def from_json(text: str) -> Manifest:
    """Parse and check manifest.json.

    Raises:
        ManifestTooNew: `format_version` is above FORMAT_VERSION.
        ManifestInvalid: Anything else that the runtime could not rely on.
    """
    try:
        body = parse_json(text)
    except JsonInvalid as error:
        raise ManifestInvalid(f"not JSON: {error}") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ManifestInvalid(f"key format is not {FORMAT!r}")
    version = body.get("format_version")
    if type(version) is not int or version < 1:
        raise ManifestInvalid(f"format_version {version!r} is not a positive integer")
    if version > FORMAT_VERSION:
        raise ManifestTooNew(f"format_version {version}, known up to {FORMAT_VERSION}")
    return _manifest(body)


def _manifest(body: dict[str, Any]) -> Manifest:
    try:
        manifest = Manifest(
            family=_text(body, "family"),
            dims=_dims(body["dims"]),
            prefix=_flag(body, "prefix"),
            attention=_text(body, "attention"),
            input_multiplier=_number(body, "input_multiplier"),
            row_norm_limit=_number(body, "row_norm_limit"),
            base=Base(**{key: _text(body["base"], key) for key in _names(Base)}),
            graphs={name: _variant(item) for name, item in body["graphs"].items()},
            files={name: _entry(item) for name, item in body["files"].items()},
            tied_table_bytes=_count({_TIED: 0, **body}, _TIED),
            level_outputs=_flag({_LEVELS: False, **body}, _LEVELS),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ManifestInvalid(f"missing or misshapen key: {error}") from None
    for name in manifest.files:
        if not name or not name.isprintable():
            raise ManifestInvalid(f"file name {name[:64]!r}, not printable")
    for name, variant in manifest.graphs.items():
        _check_buckets(manifest.family, variant.buckets)
        if not _RELEASE.fullmatch(variant.min_onnxruntime):
            raise ManifestInvalid(
                f"min_onnxruntime {variant.min_onnxruntime[:32]!r}, not like 1.24"
            )
        for file in variant.files:
            if file not in manifest.files:
                raise ManifestInvalid(f"graph {name!r} names {file!r}, not in files")
    return manifest


def _names(kind: type) -> tuple[str, ...]:
    return tuple(kind.__dataclass_fields__)  # type: ignore[attr-defined]


def _dims(item: dict[str, Any]) -> Dims:
    # Bundles of before these keys have no projection, and keys and values everywhere.
    item = {"embedding": item["hidden"], "conv_layers": [], "conv_kernel": 0, **item}
    found = {key: _count(item, key) for key in _names(Dims) if key != "conv_layers"}
    highest = {"layers": _MAX_LAYERS, "conv_kernel": _MAX_KERNEL}
    for key, value in found.items():
        low, high = 0 if key in _MAY_BE_ZERO else 1, highest.get(key, _MAX_SIZE)
        if not low <= value <= high:
            raise ManifestInvalid(f"dims.{key} is {value}, not {low} to {high}")
    return Dims(**found, conv_layers=_conv_layers(item["conv_layers"], found))


def _conv_layers(layers: object, found: dict[str, int]) -> tuple[int, ...]:
    count, kernel = found["layers"], found["conv_kernel"]
    if not isinstance(layers, list) or not all(type(x) is int for x in layers):
        raise ManifestInvalid(f"dims.conv_layers is {str(layers)[:64]!r}, not a list")
    if layers != sorted(set(layers) & set(range(count))) or len(layers) == count:
        raise ManifestInvalid(
            f"dims.conv_layers is {str(layers)[:64]}, not some of {count} in order"
        )
    if (kernel > 0) != (len(layers) > 0):
        raise ManifestInvalid(f"dims.conv_kernel is {kernel}, conv_layers {layers}")
    return tuple(layers)


def _variant(item: dict[str, Any]) -> GraphVariant:
    if "custom_ops_library" in item:
        # onnxruntime-genai has such a key; it names native code.
        raise ManifestInvalid(
            f"custom_ops_library {str(item['custom_ops_library'])[:64]!r}, allowed: "
            "none; operator libraries are never loaded from a bundle"
        )
    if not item["files"]:
        raise ManifestInvalid("a graph has no files")
    return GraphVariant(
        files=_texts(item, "files"),
        target=_text(item, "target"),
        precision=_text(item, "precision"),
        scheme=_text(item, "scheme"),
        min_onnxruntime=_text(item, "min_onnxruntime"),
        cpu_features=_texts(item, "cpu_features"),
        ranges={name: _range(found) for name, found in item["ranges"].items()},
        # Bundles of before this key have none.
        packed_cache=_flag({"packed_cache": False, **item}, "packed_cache"),
        buckets=_buckets(item.get("buckets", []), item["files"]),
    )


def _buckets(found: object, files: list[str]) -> tuple[StaticBucket, ...]:
    if not isinstance(found, list):
        raise ManifestInvalid(f"buckets is {str(found)[:64]!r}, not a list")
    buckets = tuple(
        StaticBucket(_text(item, "file"), _count(item, "prefix"), _count(item, "text"))
        for item in found
    )
    for bucket in buckets:
        if bucket.file not in files:
            raise ManifestInvalid(f"a bucket names {bucket.file!r}, not in files")
        if not 1 <= bucket.text <= _MAX_BUCKET or bucket.prefix > _MAX_BUCKET:
            raise ManifestInvalid(
                f"bucket {bucket.file!r} is of {bucket.prefix} and {bucket.text} rows, "
                f"allowed: text 1 to {_MAX_BUCKET}, prefix up to that"
            )
    return buckets


def _check_buckets(family: str, buckets: tuple[StaticBucket, ...]) -> None:
    makers = sum(bucket.prefix == 0 for bucket in buckets)
    windows = {bucket.prefix for bucket in buckets}
    if family == DECODER and buckets and (makers or len(windows) > 1):
        raise ManifestInvalid(
            f"buckets of the prefixes {sorted(windows)}, allowed of a decoder: one"
        )
    if family != DECODER and buckets and (makers != 1 or len(buckets) < 2):
        raise ManifestInvalid(
            f"{len(buckets)} buckets, {makers} without a prefix, allowed: 1 of them "
            "and any number of others"
        )


def _entry(item: dict[str, Any]) -> FileEntry:
    return FileEntry(sha256=_text(item, "sha256"), bytes=_count(item, "bytes"))


def _text(item: dict[str, Any], key: str) -> str:
    if not isinstance(item[key], str):
        raise ManifestInvalid(f"{key} is {item[key]!r}, not text")
    return str(item[key])


def _texts(item: dict[str, Any], key: str) -> tuple[str, ...]:
    found = item[key]
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise ManifestInvalid(f"{key} is {str(found)[:64]!r}, not a list of texts")
    return tuple(found)


def _range(found: object) -> tuple[float, float]:
    numbers = isinstance(found, list) and all(
        type(x) in (int, float) and abs(x) < 1e30 for x in found
    )
    if not numbers or not isinstance(found, list) or len(found) != 2:
        raise ManifestInvalid(f"a range is {str(found)[:64]!r}, not two numbers")
    return float(found[0]), float(found[1])


def _count(item: dict[str, Any], key: str) -> int:
    value = item[key]
    if type(value) is not int or not 0 <= value < 2**40:
        raise ManifestInvalid(f"{key} is {value!r}, not a count")
    return value


def _flag(item: dict[str, Any], key: str) -> bool:
    if type(item[key]) is not bool:
        raise ManifestInvalid(f"{key} is {item[key]!r}, not true or false")
    return bool(item[key])


def _number(item: dict[str, Any], key: str) -> float:
    value = item[key]
    if type(value) not in (int, float) or not 0 < value < 1e30:
        raise ManifestInvalid(f"{key} is {value!r}, not a positive number")
    return float(value)
