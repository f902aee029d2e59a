"""Commands on a store while one call after another fails; run under the shim.

As a script: `crash_faults.py ROOT` prints one JSON object: what was tried and what went
wrong.
"""

import contextlib
import errno
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from crash_scenario import Held, held
from crash_shim import loaded
from stores import make_good, new_store, small_blob

from promptdial.prompts.blob import write_blob
from promptdial.prompts.errors import EXIT_CODES, PromptdialError
from promptdial.prompts.store import PromptStore
from promptdial.runtime.cli import main as promptdial

FAULTS = (
    ("EIO", False),
    ("ENOSPC", False),
    ("ENOSPC", True),
    ("EROFS", False),
    ("EROFS", True),
    ("EINTR", False),
)
"""Errors, and whether every call after the first fails as well."""


PROGRESS = re.compile(r"promptdial: [\w.]+( \d+)?: [0-9,]+ bytes")
"""Lines that an update may say before it fails."""


class Wrong(Exception):
    """A promise was broken; the text says which."""


def command(*words: str | Path) -> None:
    """A command, whose failure must be one line with a code.

    Raises:
        PromptdialError: It failed as it should.
        Wrong: It failed otherwise.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = promptdial([*map(str, words)])
    if code == 0:
        return
    *before, line = err.getvalue().splitlines()
    name = line.removeprefix("promptdial: ").split(":")[0]
    if EXIT_CODES.get(name) != code or name == "INTERNAL":
        raise Wrong(f"exit code {code}, {line!r}")
    if not all(PROGRESS.fullmatch(text) for text in before):
        raise Wrong(f"more than a line: {before}")
    raise PromptdialError(line)


def trial(folder: Path) -> None:
    with PromptStore(folder) as store:
        _, digest = store.serving("a")
        if digest is not None and store.begin_trial("a", digest, wait=False):
            store.end_trial("a", digest, "")


def steps(folder: Path, blob: Path) -> list[Callable[[], None]]:
    return [
        lambda: command("store", "install", folder, blob),
        lambda: command("store", "activate", folder, "a", "2"),
        lambda: trial(folder),
        lambda: command("store", "rollback", folder, "a", "--allow-below-floor"),
        lambda: command("store", "remove", folder, "a", "2"),
        lambda: command("store", "gc", folder),
    ]


def settled(found: Held) -> Held:
    """Without the number of trials: one that was broken off counts as well."""
    return tuple((*item[:6], *item[7:]) if len(item) == 8 else item for item in found)


def once(
    shim: Any, root: Path, template: Path, wanted: list[Held], fault: tuple[int, ...]
) -> str:
    """All steps with one fault; what became of it: `failed` or `absorbed`.

    Raises:
        Wrong: A promise was broken.
    """
    folder = root / "store"
    shutil.copytree(template, folder)
    todo = steps(folder, root.parent / "a.safetensors")
    became, done = "failed", 0
    shim.shim_start(str(root).encode())
    shim.shim_fail(*fault)
    try:
        for step in todo:
            step()
            done += 1
        became = "absorbed"
    except PromptdialError:
        pass
    shim.shim_stop()
    now = settled(held(folder))
    if became == "failed":
        if now not in (wanted[done], wanted[done + 1]):
            raise Wrong(f"step {done} left {now}")
        # The next attempt, with a disk that works, ends as if nothing had been.
        for step in todo[done + (now == wanted[done + 1]) :]:
            step()
        now = settled(held(folder))
    if now != wanted[-1]:
        raise Wrong(f"at the end there is {now}")
    shutil.rmtree(folder)
    return became


def main(root: Path) -> None:
    shim = loaded()
    template, work = root / "template", root / "work"
    work.mkdir()
    with new_store(template) as store:
        make_good(store, "a", 1)
    write_blob(root / "a.safetensors", small_blob("a", 2))
    # What there is after each step where nothing fails, and how many calls that takes.
    folder = work / "store"
    shutil.copytree(template, folder)
    wanted = [settled(held(folder))]
    for step in steps(folder, root / "a.safetensors"):
        step()
        wanted.append(settled(held(folder)))
    shutil.rmtree(folder)
    once(shim, work, template, wanted, (0, 0, 0))
    calls = shim.shim_calls()
    found: dict[str, Any] = {"calls": calls, "failed": 0, "absorbed": 0, "wrong": []}
    for name, from_then_on in FAULTS:
        for number in range(1, calls + 1):
            fault = (number, getattr(errno, name), int(from_then_on))
            try:
                found[once(shim, work, template, wanted, fault)] += 1
            except Exception as error:
                shim.shim_stop()
                shutil.rmtree(folder, ignore_errors=True)
                said = f"{type(error).__name__}: {error}"
                found["wrong"].append([name, from_then_on, number, said])
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
