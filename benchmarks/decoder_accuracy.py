"""A decoder's INT8 graph on held text: perplexity and chosen tokens beside PyTorch.

    python benchmarks/decoder_accuracy.py MODEL TEXTS.jsonl[.xz] [--texts N] [--json]

TEXTS has objects with `text`; each is cut to the model's window. Perplexity is over all
tokens but the first; agreement is the share of positions that choose the same token.
"""

import argparse
import json
import lzma
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptdial.export import export_bundle
from promptdial.export.decoder_sides import DecoderSide, GraphDecoder, TorchDecoder
from promptdial.export.model import LoadedBase, load_base, resolve
from promptdial.export.session import cpu_session
from promptdial.export.sides import batch_of
from promptdial.export.token_table import read_table
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.manifest import TOKEN_TABLE_NAME
from promptdial.runtime.text import Encoded, TextEncoder

TEXTS = 200
LEAST_TOKENS = 32


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a file, compressed or not."""
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield str(json.loads(line)["text"])


def losses(logits: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cross-entropy of every token but the first."""
    rows = logits[:-1].astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    sums = np.log(np.exp(rows).sum(axis=-1))
    return np.asarray(sums - rows[np.arange(len(rows)), ids[1:]])


def sides_of(model: str, loaded: LoadedBase, out: Path) -> dict[str, DecoderSide]:
    """PyTorch, the FP32 graph over exact token rows, INT8 over the bundle's."""
    bundle = export_bundle(model, out, ("int8", "fp32")).bundle
    tables = {
        "fp32": loaded.token_table.numpy(),
        "int8": read_table(bundle / TOKEN_TABLE_NAME),
    }
    sides: dict[str, DecoderSide] = {"torch": TorchDecoder(loaded)}
    for name, table in tables.items():
        session = cpu_session(open_bundle(bundle, name).graph_path)
        sides[name] = GraphDecoder(session, loaded.dims, table)
    return sides


def measure(model: str, texts: list[str], count: int) -> dict[str, object]:
    """Figures of the FP32 and INT8 graphs over `count` texts."""
    loaded = load_base(resolve(model))
    encoder = TextEncoder(loaded.tokenizer_json, loaded.dims.max_positions)
    encoded: list[Encoded] = []
    for story in texts:
        if story.strip() and len(encoded) < count:
            found = encoder.encode(story)
            if len(found) >= LEAST_TOKENS:
                encoded.append(found)
    with tempfile.TemporaryDirectory() as folder:
        sides = sides_of(model, loaded, Path(folder) / "a.bundle")
        totals = dict.fromkeys(sides, 0.0)
        same = dict.fromkeys(sides, 0)
        tokens = positions = 0
        for text in encoded:
            batch = batch_of([text])
            logits = {name: side.logits(batch, [])[0] for name, side in sides.items()}
            wanted = logits["torch"].argmax(-1)
            tokens, positions = tokens + len(text) - 1, positions + len(text)
            for name, rows in logits.items():
                totals[name] += float(losses(rows, text.ids).sum())
                same[name] += int((rows.argmax(-1) == wanted).sum())
    perplexity = {name: math.exp(total / tokens) for name, total in totals.items()}
    return {
        "texts": len(encoded),
        "tokens": tokens,
        "perplexity": {name: round(value, 4) for name, value in perplexity.items()},
        "int8_over_torch": round(perplexity["int8"] / perplexity["torch"], 5),
        "agreement": {name: round(n / positions, 4) for name, n in same.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("file", type=Path, metavar="TEXTS")
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    args = parser.parse_args()
    found = measure(args.model, list(texts_of(args.file)), args.texts)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
