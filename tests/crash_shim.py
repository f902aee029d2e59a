"""Drives crash_shim.c: what a program does to a folder; calls that fail."""

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("crash_shim.c")
KINDS = (
    "",
    "open",
    "write",
    "truncate",
    "rename",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "fsync",
    "close",
    "mark",
    "symlink",
)
_HEAD = struct.Struct("@iiiIIIq")


@dataclass(frozen=True)
class Call:
    """One call that changed a folder, or that says which file a number stands for.

    Attributes:
        kind: One of KINDS.
        fd: Number of the open file; -1 where a path is given.
        created: Whether an `open` made the file.
        path: Path, or the text of a mark.
        other: The second path of `rename`, `link` and `symlink`.
        data: Bytes of a `write`.
        offset: Where they go; the new size of `truncate`; 1 for an `open` that empties.
    """

    kind: str
    fd: int
    created: bool
    path: str
    other: str
    data: bytes
    offset: int


def compiled(folder: Path) -> Path:
    """The shim as a library; skips the test where it cannot be made."""
    import pytest  # not for the scripts that run under the shim

    if not sys.platform.startswith("linux"):
        pytest.skip("the shim is written for Linux")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for tests/crash_shim.c")
    library = folder / "crash_shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return library


def run_under(library: Path, script: Path, *arguments: str | Path) -> str:
    """Run a script of the tests with the shim in front of libc; what it printed."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "CRASH_SHIM": str(library),
        # Files of Python's own would be among what is recorded.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    found = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    return found.stdout


def loaded() -> Any:
    """The library in a process that `run_under` started."""
    found = ctypes.CDLL(os.environ["CRASH_SHIM"])
    found.shim_start.argtypes = [ctypes.c_char_p]
    found.shim_mark.argtypes = [ctypes.c_char_p]
    found.shim_fail.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_int]
    found.shim_calls.restype = ctypes.c_long
    found.shim_bytes.restype = ctypes.c_size_t
    found.shim_records.restype = ctypes.c_void_p
    return found


def recorded(shim: Any) -> bytes:
    """Everything that was recorded since it started."""
    return ctypes.string_at(shim.shim_records(), shim.shim_bytes())


def calls_of(data: bytes) -> Iterator[Call]:
    """The calls of a recording, in their order."""
    place = 0
    while place < len(data):
        kind, fd, created, path, other, size, offset = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        texts = []
        for length in (path, other):
            texts.append(data[place : place + length].decode())
            place += length
        content = data[place : place + size]
        place += size
        one, two = texts
        yield Call(KINDS[kind], fd, bool(created), one, two, content, offset)
