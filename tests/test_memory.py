"""Memory given back after opening, and the token table that need not stay."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from promptdial.runtime.errors import BundleInvalid
from promptdial.runtime.manifest import TOKEN_TABLE_NAME, from_json
from promptdial.runtime.memory import clean_code
from promptdial.runtime.table import TokenTable

SMAPS = """\
1000-3000 r-xp 00000000 fe:00 7        /x/site-packages/numpy/_core/m.so
Anonymous:             0 kB
3000-4000 r--p 00002000 fe:00 7        /x/site-packages/numpy/_core/m.so
Anonymous:             4 kB
4000-5000 rw-p 00003000 fe:00 7        /x/site-packages/numpy/_core/m.so
Anonymous:             0 kB
5000-7000 r--p 00000000 fe:00 8        /x/numpy.libs/libscipy_openblas64_-1.so
Anonymous:             0 kB
7000-8000 r--p 00000000 fe:00 9        /usr/lib/libz.so.1
Anonymous:             0 kB
8000-9000 r--p 00000000 fe:00 10       /data/numpy/model.onnx
Anonymous:             0 kB
9000-a000 r-xp 00000000 00:00 0
Anonymous:             0 kB
a000-b000 r-xp 00000000 fe:00 11       /usr/lib/libcrypto.so.3
Anonymous:             0 kB
"""

CHILD = """
import json, sys
import onnxruntime
from promptdial.runtime.memory import trim

def code():
    name, found = "", 0
    for line in open("/proc/self/smaps"):
        fields = line.split()
        if not fields[0].endswith(":"):
            name = line if fields[1] == "r-xp" else ""
        elif fields[0] == "Pss:" and "onnxruntime_pybind11" in name:
            found += int(fields[1])
    return found

before = code()
trim()
after = code()
print(json.dumps([before, after, len(onnxruntime.get_available_providers())]))
"""


def test_only_clean_pages_of_the_libraries_are_let_go() -> None:
    lines = SMAPS.splitlines()
    found = list(clean_code(lines, lines))
    assert found == [(0x1000, 0x2000), (0x5000, 0x2000), (0xA000, 0x1000)]


def test_addresses_of_an_emulator_are_left_alone() -> None:
    lines = SMAPS.splitlines()
    moved = [line.replace("1000-3000", "71000-73000") for line in lines]
    assert list(clean_code(moved, lines)) == [(0x5000, 0x2000), (0xA000, 0x1000)]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux only")
def test_code_of_opening_is_let_go_and_still_runs() -> None:
    run = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True
    )
    before, after, providers = json.loads(run.stdout)
    assert after < before / 2
    assert providers


def test_rows_read_are_the_rows_mapped(tiny_bundle: Path) -> None:
    dims = from_json((tiny_bundle / "manifest.json").read_text()).dims
    path = tiny_bundle / TOKEN_TABLE_NAME
    ids = np.array([0, dims.vocab - 1, 3, 3], np.int64)
    read = TokenTable(path, dims.vocab, dims.embedding, mapped=False)
    mapped = TokenTable(path, dims.vocab, dims.embedding, mapped=True)
    assert np.array_equal(read.embed(ids), mapped.embed(ids))
    with pytest.raises(BundleInvalid, match=f"token id {dims.vocab}"):
        read.embed(np.array([1, dims.vocab], np.int64))
