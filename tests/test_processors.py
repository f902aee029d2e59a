"""Shipped prompts on other processors (emulated) and on the oldest onnxruntime."""

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from promptdial.runtime.manifest import GraphVariant
from promptdial.runtime.processor import lacks_all, processor_features

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "other_processors.py"
SHIPPED = Path(str(files("promptdial.prompts") / "shipped"))
VNNI = "flags\t\t: fpu avx2 avx512_vnni\n"
ARM = "Features\t: fp asimd asimddp\n"


def test_features_are_read_from_cpuinfo(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    for text, wanted in ((VNNI, ["avx2", "avx512_vnni"]), (ARM, ["asimddp"])):
        info.write_text(f"processor\t: 0\n{text}\n")
        assert processor_features(info) == wanted
    assert processor_features(tmp_path / "none") == []


def test_a_graph_that_names_no_feature_runs_anywhere() -> None:
    assert not lacks_all(())
    assert not lacks_all(processor_features()) or not processor_features()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "programs"),
    [
        ("oldest", ()),
        ("haswell", ("qemu-x86_64",)),
        ("aarch64", ("qemu-aarch64", "apt-get")),
    ],
)
def test_golden_answers_hold_on(
    name: str, programs: tuple[str, ...], minilm_bundle: Path, tmp_path: Path
) -> None:
    missing = [item for item in programs if shutil.which(item) is None]
    if missing:
        pytest.skip(f"wants {' and '.join(missing)} (qemu: package qemu-user)")
    run = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            str(minilm_bundle),
            str(SHIPPED),
            "--work",
            str(tmp_path),
            "--json",
            "--on",
            name,
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)[name]
    assert found["failures"] == []
    assert found["golden"] >= 40
    assert found["cosine"] > 0.98
    # The x86 one has no VNNI: the manifest's cpu_features decide for exact sums.
    if name != "oldest":
        assert found["exact_mode"] == (name == "haswell")
    elif not found["onnxruntime"].startswith(f"{GraphVariant.min_onnxruntime}."):
        pytest.fail(f"ran on onnxruntime {found['onnxruntime']}")
