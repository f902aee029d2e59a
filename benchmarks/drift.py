"""What the drift watch says of real texts: a task's own, and other ones.

    python benchmarks/drift.py BUNDLE BLOB DATA.jsonl ... [--limit N]

BLOB is a prompt that `train` made, with its reference. Each file's rows are asked of a
store of their own, as a device would; its own test rows should shift nothing.
"""

import argparse
import tempfile
from pathlib import Path

from promptdial.prompts.blob import PromptBlob, read_blob
from promptdial.prompts.distribution import distance, reference_of
from promptdial.prompts.store import PromptStore, make_store
from promptdial.runtime import Engine
from promptdial.runtime.rows import Row, read_rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("blob", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, default=1000)
    args = parser.parse_args()
    blob = read_blob(args.blob)
    for path in args.data:
        rows = read_rows(path, args.limit)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "store"
            make_store(folder)
            with PromptStore(folder) as store:
                ask(args.bundle, store, blob, rows)
                print(f"{path.parent.name}/{path.stem}: {said(store, blob)}")


def ask(bundle: Path, store: PromptStore, blob: PromptBlob, rows: list[Row]) -> None:
    """Put the blob in use and ask it every row."""
    store.install(blob)
    store.activate(blob.meta.task)
    with Engine(bundle, store, threads=1) as engine:
        for row in rows:
            engine.run(blob.meta.task, row.text, row.text_pair)


def said(store: PromptStore, blob: PromptBlob) -> str:
    """The distances, and what the store says of them."""
    meta = blob.meta
    tally = store.figures.counted()[meta.task, meta.version]
    parts = []
    for measure, rows in reference_of(meta.metrics).items():
        found = distance(rows, tally.bins[measure])
        psi = "too few" if found is None else f"PSI {found.psi:.3f}"
        parts.append(f"{measure} {psi}")
    shifts = [item.says for item in store.figures.shifts()] or ["no shift"]
    return f"{tally.answers} answers, {', '.join(parts)}; {'; '.join(shifts)}"


if __name__ == "__main__":
    main()
