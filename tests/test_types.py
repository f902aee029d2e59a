"""The types that a user's checker sees, in the package as it is installed.

A default editable install shows checkers nothing, so the package is built and put into
an environment of its own; numpy comes from the one that runs the tests.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("export", "prompts", "runtime")

CONSUMER = """\
from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts import PromptBlob, PromptFolder, read_blob
from promptdial.runtime import Classification, Engine, Generation, Span, Spans

Answers = list[Classification | Spans | NDArray[np.float32] | Generation]

with Engine("a.bundle", prompts=PromptFolder("prompts")) as engine:
    assert_type(engine, Engine)
    reveal_type(engine.classify("a", "b"))
    assert_type(engine.classify("a", "b").scores, dict[str, float])
    assert_type(engine.tag("a", ["b"]).spans, tuple[Span, ...])
    assert_type(engine.embed(None, "b"), NDArray[np.float32])
    assert_type(engine.run_batch([("a", "b"), (None, "b", "c")]), Answers)
    assert_type(engine.tasks(), list[str])
    assert_type(engine.generate(None, "b", max_new_tokens=3), Generation)
    assert_type(next(engine.stream(None, "b")), str)
    assert_type(engine.load(Path("a.safetensors")), str)
    blob = read_blob(Path("a.safetensors"))
    assert_type(blob, PromptBlob)
    assert_type(engine.compatible(blob).ok, bool)
"""

WRONG = """\
from typing import assert_type

from promptdial.runtime import Engine

engine = Engine("a.bundle", threads="two")
assert_type(engine.tasks(), list[int])
engine.classify(7, "b")
engine.tag("a", "b").label
engine.fly()
"""
ERRORS = ["arg-type", "assert-type", "arg-type", "attr-defined", "attr-defined"]

BUILDER = """\
from promptdial.export import export_bundle

reveal_type(export_bundle("minilm", "a.bundle").bundle)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with promptdial installed, not editable."""
    folder = tmp_path_factory.mktemp("user")
    # A copy, since building leaves files beside the sources.
    source = folder / "source"
    for name in SOURCES:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / "env")}))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    where = ["--no-index", "--no-build-isolation", "--target", str(site), str(source)]
    run = subprocess.run([*pip, *where], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env" / "bin" / "python"


def mypy(python: Path, text: str, folder: Path) -> str:
    """What mypy says of a user's file, from outside the repository."""
    (folder / "consumer.py").write_text(text)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            f"--python-executable={python}",
            "--cache-dir=cache",
            "consumer.py",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert not run.stderr, run.stderr
    return run.stdout


def revealed(output: str) -> list[str]:
    return re.findall(r'Revealed type is "(.*)"', output)


def test_a_users_checker_sees_types(python: Path, tmp_path: Path) -> None:
    output = mypy(python, CONSUMER, tmp_path)
    assert "error:" not in output, output
    assert revealed(output) == ["promptdial.runtime.answers.Classification"]


def test_a_users_checker_finds_mistakes(python: Path, tmp_path: Path) -> None:
    output = mypy(python, WRONG, tmp_path)
    assert re.findall(r"\[([a-z-]+)\]$", output, re.MULTILINE) == ERRORS, output


@pytest.mark.slow
def test_a_users_checker_sees_types_of_the_build_machine(
    python: Path, tmp_path: Path
) -> None:
    """Slow: it reads the types of torch."""
    output = mypy(python, BUILDER, tmp_path)
    assert "error:" not in output, output
    assert revealed(output) == ["pathlib.Path"]
