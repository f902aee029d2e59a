"""What it costs to read the two texts of a pair apart, beside reading them as one.

    python benchmarks/pair_cost.py BUNDLE PROMPT.safetensors ROWS.jsonl
        [--count N] [--rounds N] [--threads N]

PROMPT is a pair's, read either way; class vectors of zeros take its own's place, so
that both ways have the same virtual tokens and differ in nothing else. ROWS has objects
with `text` and `text_pair`. Ratios are of medians over rounds, in each of which every
row is asked both ways.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from timing import alternate

from promptdial.prompts.blob import PromptBlob, make_blob, read_blob
from promptdial.prompts.metadata import APART, feature_width
from promptdial.runtime import Engine
from promptdial.runtime.rows import Row, read_rows

WAYS = {"together": "segments_l2", "apart": APART}
ROWS, ROUNDS, THREADS = 100, 11, 1


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompt", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--count", type=int, default=ROWS, help="rows that are asked")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=THREADS)
    args = parser.parse_args()
    rows, blob = read_rows(args.rows, args.count), read_blob(args.prompt)
    with Engine(args.bundle, threads=args.threads) as engine:
        for way in WAYS:
            engine.load(read_as(blob, way, engine.manifest.dims.hidden))
        found = alternate(
            {way: partial(asked, engine, way, rows) for way in WAYS},
            args.rounds,
        )
    for way, times in found.items():
        print(f"{way}: {times} for {len(rows)} pairs")
    print(f"ratio {found['apart'].p50 / found['together'].p50:.2f}")


def read_as(blob: PromptBlob, way: str, hidden: int) -> PromptBlob:
    """The same virtual tokens for the other way, with class vectors of zeros."""
    pooling = WAYS[way]
    classes = len(blob.meta.labels)
    return make_blob(
        replace(blob.meta, task=way, pooling=pooling, golden=()),
        embeddings=blob.prompt_embeddings,
        past=list(blob.past_key_values) or None,
        head_weight=np.zeros((classes, feature_width(pooling, hidden)), np.float32),
    )


def asked(engine: Engine, task: str, rows: list[Row]) -> None:
    """Every row, one after the other."""
    for row in rows:
        engine.classify(task, row.text, text_pair=row.text_pair)


if __name__ == "__main__":
    main()
