"""Tiny tasks of every kind that a tiny random model can learn."""

import json
from pathlib import Path

from promptdial.prompts.training.task import Task
from promptdial.runtime.rows import Row

COLOURS = ("red", "blue", "light")
NOUNS = ("film", "music", "book", "station", "four", "five", "three", "seven")


def colour_rows() -> list[Row]:
    return [
        Row(text=f"the {colour} {noun}", label=colour)
        for noun in NOUNS
        for colour in COLOURS
    ]


def colour_task(name: str = "colour") -> Task:
    rows = colour_rows()
    return Task(name, "classification", COLOURS, rows, rows[:9], rows[9:15])


def colour_folder(folder: Path) -> Path:
    """A folder of ten rows of two colours, the same in every part."""
    folder.mkdir(parents=True)
    rows = [
        {"text": f"the {colour} {noun}", "label": colour}
        for noun in ("film", "music", "book", "station", "light")
        for colour in ("red", "blue")
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for part in ("train", "dev", "test"):
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")
    return folder


def token_task() -> Task:
    rows = [
        Row(
            text=f"the {colour} {noun}",
            tokens=("the", colour, noun),
            tags=("O", "B-colour", "O"),
        )
        for noun in NOUNS
        for colour in COLOURS
    ]
    return Task("find", "token", ("O", "B-colour"), rows, rows[:9], metric="entity_f1")


def pair_task() -> Task:
    rows = [
        Row(
            text=f"the {one} {noun}",
            text_pair=f"a {two} {noun}",
            label="same" if one == two else "other",
        )
        for noun in NOUNS[:4]
        for one in COLOURS
        for two in COLOURS
    ]
    return Task("match", "pair", ("other", "same"), rows, rows[:9])


def embedding_task() -> Task:
    rows = [
        Row(text=f"the {noun}", positive=f"a {noun} of {COLOURS[i % 3]}")
        for i, noun in enumerate(NOUNS)
    ]
    return Task("search", "embedding", (), rows, rows, metric="recall_at_1")
