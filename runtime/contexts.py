"""Compiled graphs, kept beside a bundle in `BUNDLE.contexts`: one compiles once.

A file is named after the graph, the provider with its version, and the processor. A
note beside it has the digest of the bundle's graphs that it was compiled from, and its
own: a provider runs a damaged context without a word, and answers wrongly. What is
stale or damaged is compiled and written anew. Where nothing can be written, one
compiles at every opening.

The note guards against accidents, not against people: who may write in that folder
decides what runs on the accelerator, as with the bundle's own folder.
"""

import hashlib
import json
import logging
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.errors import PromptError
from promptdial.prompts.strict_json import JsonInvalid, parse_json

LOGGER = logging.getLogger("promptdial")

_SOC = (Path("/sys/devices/soc0/machine"), Path("/sys/devices/soc0/soc_id"))
_MAX_NOTE = 100_000

Nodes = dict[str, int]


@dataclass(frozen=True)
class Contexts:
    """Where the compiled graphs of a variant are kept.

    Attributes:
        folder: Made when the first one is written.
        source: Digest of the variant's files.
    """

    folder: Path
    source: str

    def of(self, graph: Path, provider: str) -> "Context":
        """The place of one graph's.

        Args:
            graph: The .onnx file.
            provider: Provider and version.
        """
        name = f"{graph.stem}.{provider}.{processor_model()}.onnx"
        return Context(self.folder / name, self.source)


@dataclass(frozen=True)
class Context:
    """The place of one compiled graph, which may be empty.

    Attributes:
        path: Its file.
        source: Digest of what it must have been compiled from.
    """

    path: Path
    source: str

    def nodes(self) -> Nodes | None:
        """Nodes of the graph by provider when it was compiled.

        None where there is no context, or one that is stale or damaged.
        """
        try:
            with self._note.open("rb") as file:
                note = parse_json(file.read(_MAX_NOTE).decode("utf-8"))
            data = self.path.read_bytes()
        except (OSError, UnicodeDecodeError, JsonInvalid):
            return None
        if not isinstance(note, dict) or note.get("source") != self.source:
            return None
        nodes = note.get("nodes")
        if note.get("sha256") != _digest(data) or not isinstance(nodes, dict):
            LOGGER.warning("%s is damaged, it is compiled again", self.path)
            return None
        return {str(name): int(count) for name, count in nodes.items()}

    @contextmanager
    def room(self) -> Iterator[Path | None]:
        """A path to compile to, before `keep`; None where nothing can be written."""
        try:
            self.path.parent.mkdir(exist_ok=True)
            room = tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".")
        except OSError as error:
            LOGGER.info("no compiled graph is kept: %s", error)
            yield None
            return
        with room as folder:
            yield Path(folder) / self.path.name

    def keep(self, made: Path, nodes: Nodes) -> None:
        """Keep what was compiled to `made`; a disk that refuses is no failure."""
        try:
            data = made.read_bytes()
            note = {"source": self.source, "sha256": _digest(data), "nodes": nodes}
            # The note last: a context without its own is none.
            write_atomic(self.path, data)
            text = json.dumps(note, indent=2, sort_keys=True) + "\n"
            write_atomic(self._note, text.encode())
        except (OSError, PromptError) as error:
            LOGGER.info("no compiled graph is kept: %s", error)

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".json")


def processor_model() -> str:
    """Model of the system on a chip, or the kind of machine where none is told."""
    found = platform.machine().lower()
    for path in _SOC:
        try:
            found = path.read_text("utf-8", errors="replace").strip() or found
            break
        except OSError:
            continue
    return "".join(sign if sign.isalnum() else "_" for sign in found)[:64]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
