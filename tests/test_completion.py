"""Completion scripts, in the shells that read them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import BLOCKED, promptdial

from promptdial.runtime.cli import COMMANDS, command_parser, load_command
from promptdial.runtime.completion import WRITERS

SHELLS = sorted(WRITERS)
REPO_INIT = ["--help", "--json", "--verbose", "--signers", "--days", "--keys", "--to"]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each shell's script, written where no extra is installed."""
    folder, found = tmp_path_factory.mktemp("completion"), {}
    for shell in SHELLS:
        run = subprocess.run(
            [sys.executable, "-c", BLOCKED, "completion", shell],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        assert run.stderr == ""
        found[shell] = folder / f"promptdial.{shell}"
        found[shell].write_text(run.stdout)
    return found


def need(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


def in_bash(script: Path, words: list[str], folder: Path) -> list[str]:
    """What bash is offered at the end of a line, one word each."""
    line = " ".join(f"'{word}'" for word in words)
    code = f"""
        source '{script}'
        complete -p promptdial >/dev/null || exit 9
        COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _promptdial
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    run = subprocess.run(
        [need("bash"), "--norc", "--noprofile", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stderr == "", run.stderr
    return run.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["promptdial", "ins"], ["inspect"]),
        (["promptdial", "--v"], ["--version"]),
        (["promptdial", "run", "--pro"], ["--prompts", "--profile"]),
        (["promptdial", "run", "x", "--profile", ""], ["battery", "latency", "memory"]),
        (["promptdial", "run", "--profile", "=", "mem"], ["memory"]),
        (["promptdial", "run", "--profile", "="], ["battery", "latency", "memory"]),
        (["promptdial", "train", "--ep"], ["--epochs"]),
        (["promptdial", "completion", ""], ["bash", "fish", "zsh"]),
        (["promptdial", "completion", "z"], ["zsh"]),
        # Free values: nothing is offered, so that bash offers files.
        (["promptdial", "run", "--prompts", ""], []),
        (["promptdial", "inspect", ""], []),
        (["promptdial", "fly", "--"], []),
        # Parts, and what each takes.
        (["promptdial", "repo", "re"], ["revoke", "refresh"]),
        (["promptdial", "repo", "init", "--"], REPO_INIT),
        (["promptdial", "repo", "--json", "init", "--si"], ["--signers"]),
        (["promptdial", "repo", "init", "--keys", ""], []),
        (["promptdial", "repo", "init", ""], []),
        (["promptdial", "repo", "publish", "DIR", "--per"], ["--percent"]),
        (["promptdial", "repo", "fly", "--"], []),
        (["promptdial", "run", "init", "--signers"], []),
    ],
)
def test_bash_completes(
    scripts: dict[str, Path], tmp_path: Path, words: list[str], offered: list[str]
) -> None:
    assert in_bash(scripts["bash"], words, tmp_path) == offered


def test_every_command_and_option_is_offered(
    scripts: dict[str, Path], tmp_path: Path
) -> None:
    offered = in_bash(scripts["bash"], ["promptdial", ""], tmp_path)
    assert offered == [*COMMANDS, "--help", "--version"]
    commands = {name: load_command(name) for name in COMMANDS}
    for name, command in list(commands.items()):
        words = ["promptdial", name, ""]
        if command.parts:
            assert in_bash(scripts["bash"], words, tmp_path) == [*command.parts]
        commands |= {f"{name} {word}": part for word, part in command.parts.items()}
    assert "repo init" in commands
    for title, command in commands.items():
        parser = command_parser(title, command)
        flags = [flag for item in parser._actions for flag in item.option_strings]
        assert flags
        words = ["promptdial", *title.split(), "-"]
        assert set(in_bash(scripts["bash"], words, tmp_path)) == set(flags)


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_valid(scripts: dict[str, Path], shell: str) -> None:
    run = subprocess.run(
        [need(shell), "-n", scripts[shell]], capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stderr == "", run.stderr


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("promptdial ins", {"inspect"}),
        ("promptdial run --prof", {"--profile"}),
        ("promptdial run x --profile ", {"battery", "latency", "memory"}),
        ("promptdial completion ", {"bash", "fish", "zsh"}),
        ("promptdial repo re", {"revoke", "refresh"}),
        ("promptdial repo init --si", {"--signers"}),
        ("promptdial repo --si", set()),
        ("promptdial repo publish DIR --per", {"--percent"}),
    ],
)
def test_fish_completes(
    scripts: dict[str, Path], tmp_path: Path, line: str, offered: set[str]
) -> None:
    code = f"source '{scripts['fish']}'; complete -C '{line}'"
    run = subprocess.run(
        [need("fish"), "--no-config", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    found = {item.split("\t")[0] for item in run.stdout.splitlines()}
    assert found == offered, run.stderr


def test_zsh_takes_the_script(scripts: dict[str, Path], tmp_path: Path) -> None:
    code = f"""
        autoload -U compinit && compinit -u -d '{tmp_path}/dump'
        source '{scripts["zsh"]}'
        print -- $_comps[promptdial]
    """
    run = subprocess.run(
        [need("zsh"), "-f", "-c", code], capture_output=True, text=True
    )
    assert run.stdout.split() == ["_promptdial"], run.stderr


def test_an_unknown_shell_is_wrong_use() -> None:
    run = promptdial("completion", "tcsh")
    assert run.returncode == 2
    assert "choose from" in run.stderr
