"""Memory that loading leaves behind, given back to the system.

Opening parses a tokenizer, packs weights, and runs code of its libraries that no
request runs again: registering some thousand kernels alone touches most of onnxruntime.
Free pages of the allocator are returned, and pages of those libraries that hold nothing
but what their file holds are let go. The system would take them back under pressure
anyway; letting go now is for systems that count a process' proportional set (PSS), and
costs a request that wants such a page again one minor fault.
"""

import ctypes
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_LIBRARIES = ("onnxruntime", "tokenizers", "numpy", "numpy.libs")
"""Folders whose code opening runs: nobody else's pages are touched."""

_SHARED = ("libcrypto.", "libstdc++.", "libpython")
"""Beginnings of file names of what opening runs beside them: OpenSSL hashes the bundle,
the libraries' C++, and the interpreter with its imports."""

_SMAPS = Path("/proc/self/smaps")
_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4
_HEAD = re.compile(
    r"(?P<begin>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<rights>\S+) \S+ \S+ \d+ +(?P<path>.*)"
)


def trim() -> None:
    """Return free pages of the allocator and the libraries' pages that are clean.

    Linux; elsewhere nothing happens.
    """
    try:
        lines = _SMAPS.read_text("utf-8", "surrogateescape").splitlines()
        maps = _MAPS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc has it, musl has not
        libc.malloc_trim(0)
    for begin, size in clean_code(lines, maps):
        # A locked mapping is refused, which is right: its owner wants it resident.
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _MADV_DONTNEED)


def clean_code(smaps: Iterable[str], maps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Address and bytes of the libraries' mappings that equal their file.

    A mapping qualifies when it cannot be written and holds no anonymous page: a table
    of relocated addresses (RELRO) is read-only too, but differs from its file. It must
    stand in both files: an emulator of another processor (qemu) tells the process' own
    addresses in one and the emulator's in the other.

    Args:
        smaps: Lines of /proc/PID/smaps (proc(5)).
        maps: Lines of /proc/PID/maps.
    """
    own = {line.partition(" ")[0] for line in maps if _HEAD.fullmatch(line)}
    found: tuple[int, int] | None = None
    for line in smaps:
        head = _HEAD.fullmatch(line)
        if head is not None:
            begin, end = int(head["begin"], 16), int(head["end"], 16)
            mine = head["rights"][1] == "-" and _is_library(head["path"])
            mine = mine and line.partition(" ")[0] in own
            found = (begin, end - begin) if mine else None
        elif found is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                yield found
            found = None


def _is_library(path: str) -> bool:
    file = Path(path)
    if file.name.startswith(_SHARED):
        return True
    return ".so" in file.name and any(name in _LIBRARIES for name in file.parts[-4:-1])
