"""OpenVINO on whatever x86-64 processor the tests run on.

    python tests/openvino_anywhere.py SCRIPT [ARGUMENT ...]

The plug-in takes Intel's processors alone, though its device CPU runs on others. There
a library that is compiled here stands before it (openvino_anywhere.c).
"""

import runpy
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from promptdial.runtime.openvino import OPENVINO, is_plugged_in
from promptdial.runtime.session import available_providers

SOURCE = Path(__file__).with_suffix(".c")
PROCESSOR = Path("/proc/cpuinfo")


def is_intel() -> bool:
    """Whether the processor is one that the plug-in takes."""
    return "GenuineIntel" in PROCESSOR.read_text() if PROCESSOR.exists() else False


@cache
def openvino_runs() -> bool:
    """Whether the provider can be used in this process, from now on."""
    if not is_plugged_in():
        return OPENVINO in available_providers()
    if is_intel():
        return True
    compiler = shutil.which("cc")
    if compiler is None:
        return False
    import onnxruntime_ep_openvino as package

    plugin = package.get_library_path()
    # Not removed: the process has it loaded to its end.
    library = Path(tempfile.mkdtemp(prefix="openvino-")) / "anywhere.so"
    subprocess.run(
        [
            *(compiler, "-shared", "-fPIC", "-O1", f'-DPLUGIN="{plugin}"'),
            *("-o", str(library), str(SOURCE), "-ldl"),
        ],
        check=True,
    )
    package.get_library_path = lambda: str(library)
    return True


needs_openvino = pytest.mark.skipif(
    not openvino_runs(), reason="no OpenVINO provider runs here"
)
without_openvino = pytest.mark.skipif(
    openvino_runs() or is_plugged_in(), reason="there is an OpenVINO provider"
)

if __name__ == "__main__":
    sys.argv.pop(0)
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
