"""What the processor can do, as far as INT8 cares."""

import platform
from pathlib import Path

FEATURES = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp")
"""Features that change how INT8 runs, by their names in /proc/cpuinfo."""

_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}


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


def sums_saturate() -> bool:
    """Whether u8 x s8 products are summed in 16 bits, and overflow.

    So do x86 processors without VNNI; one that tells nothing is taken for such.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "x86")
    return x86 and not _EXACT & set(processor_features())
