"""What is the most that anything which reads a base's tokens can have on test rows.

    python benchmarks/token_ceiling.py MODEL ROWS.jsonl ...

Texts that give the same tokens get the same answer, whatever the prompt. The ceiling
is the accuracy of one that knows the commonest label of each sequence of tokens among
these very rows. Beside it: rows of which the tokenizer knows no letter, which are
`[UNK]` and signs, and the accuracy if of those only the commonest label were known.
Rows with labels only (classification, pair).
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path

from promptdial.prompts.training.base import open_base, pick_device
from promptdial.prompts.training.batches import encode_text
from promptdial.runtime.rows import Row, read_rows

_BLANK = "no letter known"


def main() -> None:
    """One line a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("rows", type=Path, nargs="+")
    args = parser.parse_args()
    base = open_base(args.model, pick_device("cpu"))
    for path in args.rows:
        rows = read_rows(path)
        texts = [encode_text(base.encoder, x.text, x.text_pair, {}).ids for x in rows]
        blank = [
            not any(_is_word(base.encoder.token_text(x)) for x in own) for own in texts
        ]
        keys = [tuple(ids.tolist()) for ids in texts]
        merged = [_BLANK if no else key for no, key in zip(blank, keys, strict=True)]
        print(
            f"{path.parent.name:16} ceiling {_best(rows, keys):6.2f}; "
            f"{sum(blank)} of {len(rows)} rows without a known letter, "
            f"{_best(rows, merged):6.2f} if they are told apart by nothing"
        )


def _is_word(name: str) -> bool:
    return not name.startswith("[") and any(sign.isalpha() for sign in name)


def _best(rows: list[Row], keys: Iterable[Hashable]) -> float:
    """Accuracy, percent, of the commonest label of each key."""
    found: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for row, key in zip(rows, keys, strict=True):
        found[key][str(row.label)] += 1
    return 100 * sum(max(labels.values()) for labels in found.values()) / len(rows)


if __name__ == "__main__":
    main()
