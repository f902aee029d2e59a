"""The README's recipes, run in order in one folder, as a reader would."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from decoders import DECODERS, make_decoder

README = Path(__file__).parents[1] / "README.md"
PORT = "8137"
"""Of the recipe's server; another one here, which nobody uses."""

BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """In their order; a python block goes on where those before it ended."""
    found: list[tuple[str, str]] = []
    python = ""
    for kind, text in BLOCK.findall(README.read_text("utf-8")):
        python += text if kind == "python" else ""
        found.append((kind, python if kind == "python" else text))
    return found


@pytest.mark.usefixtures("minilm_folder")
def test_the_recipes_run(tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="the extra constrained is not installed")
    pytest.importorskip("tuf", reason="the extra ota is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    llama = next(kind for kind in DECODERS if kind.name == "llama")
    make_decoder(llama, tmp_path / "stories")
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    for kind, written in blocks():
        text = written.replace(PORT, port)
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

    named = set(re.findall(r"promptdial ([\w-]+)", README.read_text("utf-8")))
    assert set(COMMANDS) - {"demo"} <= named
