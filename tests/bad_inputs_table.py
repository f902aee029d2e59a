"""The table of bad inputs: the tests fill it as they run, and compare it at the end."""

import re
from dataclasses import dataclass, field

HEAD = """\
# Bad inputs and what a user sees

Written by the tests; do not edit. To write it again:

    .venv/bin/python -m pytest tests/test_bad_inputs.py
    cp build/bad_inputs.md tests/bad_inputs.md

Paths, digests and process ids are replaced by names. Every line is all that stands on
stderr; after each refused blob the engine answered with the prompt that it had.

| number | input | code | exit | line on stderr |
|---|---|---|---|---|
"""


@dataclass
class Table:
    """What was seen, in any order."""

    rows: dict[tuple[int, str], str] = field(default_factory=dict)

    def add(self, number: int, name: str, code: str, exit_code: int, line: str) -> None:
        """Take one observed refusal (or answer)."""
        shown = plain(line).replace("|", "\\|")
        text = f"| {number} | {name} | {code} | {exit_code} | `{shown}` |\n"
        assert (number, name) not in self.rows, f"two cases {number} {name}"
        self.rows[number, name] = text

    def numbers(self) -> set[int]:
        return {number for number, _ in self.rows}

    def text(self) -> str:
        """The document."""
        return HEAD + "".join(self.rows[key] for key in sorted(self.rows))


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"/[^\s'\"]*/([^/\s'\":]+)", r"<path>/\1", line)
    line = re.sub(r"\b[0-9a-f]{64}\b", "<digest>", line)
    line = re.sub(r"\b(process|fork) \d+", r"\1 <pid>", line)
    return re.sub(r'("(ms|score)": )[0-9.]+', r"\1<number>", line)
