"""Fuzz target: a .jsonl file to rows of task data, through the file reader itself.

python tests/fuzz/fuzz_rows.py CORPUS -runs=N
"""

import json
import os
import sys
from pathlib import Path
from random import Random

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["promptdial"]):
    from promptdial.prompts.errors import DataInvalid
    from promptdial.runtime.rows import read_rows
    from promptdial.runtime.text import check_text

from fuzz.harness import check_message, run
from fuzz.seeds import ROWS
from mutation import damaged_json, damaged_text

# A file in memory: a write to a disk takes longer than the rest, and libFuzzer ends the
# process before a folder could be removed.
HANDLE = os.memfd_create("rows.jsonl")
FILE = Path(f"/proc/self/fd/{HANDLE}")


def one_input(data: bytes) -> bool:
    """Only DataInvalid may come out, and rows hold texts that can be encoded."""
    os.truncate(HANDLE, 0)
    os.pwrite(HANDLE, data, 0)
    try:
        rows = read_rows(FILE)
    except DataInvalid as error:
        check_message(error)
        return False
    for row in rows:
        check_text(row.text)
        for text in (row.label or "", *row.tags):
            text.encode("utf-8")
        if row.kind != rows[0].kind:
            raise AssertionError("two kinds of rows in one file")
    return True


def damaged(data: bytes, random: Random) -> bytes:
    """Lines of which one is changed, dropped or doubled."""
    lines = data.splitlines() or [b""]
    place = random.randrange(len(lines))
    try:
        value = json.loads(lines[place])
    except (ValueError, RecursionError):
        value = {"text": "a"}
    text = json.dumps(damaged_json(value, random, 1 + random.randrange(2)))
    if random.randrange(5) == 0:
        text = damaged_text(text, random)
    line = text.encode("utf-8", "surrogatepass")
    after = lines[place : place + random.randrange(3)]
    return b"\n".join([*lines[:place], line, *after, *lines[place + 1 :]][:20])


if __name__ == "__main__":
    run(one_input, damaged, [text.encode() for text in ROWS.values()])
