"""What the processor can do, as far as INT8 cares."""

import platform
from collections.abc import Collection
from pathlib import Path

FEATURES = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp")
"""Features that change how INT8 runs, by their names in /proc/cpuinfo."""

INT8_FEATURES = ("avx512_vnni", "avx_vnni", "asimddp")
"""Features any one of which makes products of u8 and s8 exact at full speed."""


def processor_features(path: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Those of FEATURES that the processor has; [] where nothing tells."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            found = set(line.split())
            return [name for name in FEATURES if name in found]
    return []


def lacks_all(wanted: Collection[str]) -> bool:
    """Whether this is an x86 processor with none of the features a graph is meant for.

    Its products of u8 and s8 are then summed in 16 bits, and overflow, unless
    onnxruntime is told to be exact. One that tells nothing is taken for such.

    Args:
        wanted: `cpu_features` of the graph; a graph that names none runs anywhere.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "x86")
    return x86 and bool(wanted) and not set(wanted) & set(processor_features())
