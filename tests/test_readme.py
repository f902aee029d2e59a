"""The README's recipes, run in order in one folder, as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """Shell blocks one by one; python blocks joined, since the second goes on."""
    found = BLOCK.findall(README.read_text("utf-8"))
    python = "\n".join(text for kind, text in found if kind == "python")
    shell = [text for kind, text in found if kind == "sh"]
    return [("sh", shell[0]), ("python", python), *(("sh", text) for text in shell[1:])]


@pytest.mark.usefixtures("minilm_folder")
def test_the_recipes_run(tmp_path: Path) -> None:
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    for kind, text in blocks():
        command = [sys.executable, "-c", text]
        if kind == "sh":
            command = ["sh", "-e", "-c", text]
        run = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, f"{text}\n{run.stderr}"
    first = tmp_path / "prompts" / "mood.safetensors"
    assert first.read_bytes() == (tmp_path / "again/mood.safetensors").read_bytes()


def test_every_command_of_the_readme_exists() -> None:
    from promptdial.runtime.cli import COMMANDS

    named = set(re.findall(r"promptdial (\w+)", README.read_text("utf-8")))
    assert set(COMMANDS) - {"demo"} <= named
