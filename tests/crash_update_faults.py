"""An update to a new base and its prompts, while one call after another fails.

As a script, run under the shim: `crash_update_faults.py ROOT [every]` prints one JSON
object: what was tried and what went wrong. With `every`, each call fails in every way;
else in one of them, in turn.
"""

import errno
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from crash_faults import FAULTS, Wrong, command
from crash_scenario import Held
from crash_shim import loaded
from crash_update_scenario import FOLLOWING, TASKS, Follower, held
from update_server import serving
from update_world import BASE, OTHER_BASE, World

from promptdial.prompts.errors import PromptdialError
from promptdial.prompts.store import Device, set_up_updates
from promptdial.prompts.updates.publishing.roles import init_repository


def settled(found: Held) -> Held:
    """Without the times of checks."""
    return tuple(
        (item.following, item.base) if isinstance(item, Device) else item
        for item in found
    )


def once(
    shim: Any,
    root: Path,
    template: Path,
    world: World,
    allowed: tuple[Held, Held],
    fault: tuple[int, int, int],
) -> str:
    """One update with one fault; what became of it: `failed` or `absorbed`.

    Raises:
        Wrong: A promise was broken.
    """
    folder = root / "store"
    shutil.copytree(template, folder, symlinks=True)
    became = "absorbed"
    shim.shim_start(str(root).encode())
    shim.shim_fail(*fault)
    try:
        command("update", folder, "--url", world.server.url)
    except PromptdialError:
        became = "failed"
    shim.shim_stop()
    now = settled(held(folder))
    if now not in allowed or (became == "absorbed" and now != allowed[1]):
        raise Wrong(f"{became}: there is {now}")
    if became == "failed":
        # The next attempt, with a disk that works, ends as if nothing had been.
        command("update", folder, "--url", world.server.url)
        now = settled(held(folder))
        if now != allowed[1]:
            raise Wrong(f"at the end there is {now}")
    shutil.rmtree(folder)
    return became


def prepared(root: Path, world: World, template: Path) -> tuple[Held, Held]:
    """A device on one base, a repository with another; what there is before and after.

    The device is `template`, left as it is before.
    """
    follower = Follower(template, world)
    follower.publish(BASE, 1, *TASKS)
    follower.publish_base(BASE, 1)
    set_up_updates(template, follower.root, FOLLOWING)
    follower.update()
    for task in TASKS:
        follower.begins(task)
        follower.ends(task)
    before = settled(held(template))
    follower.publish_base(OTHER_BASE, 2)
    follower.publish(OTHER_BASE, 2, *TASKS)
    other = root / "after"
    shutil.copytree(template, other, symlinks=True)
    command("update", other, "--url", world.server.url)
    return before, settled(held(other))


def main(root: Path, every: bool) -> None:
    shim = loaded()
    work, template = root / "work", root / "template"
    work.mkdir()
    init_repository(root / "world" / "repository")
    with serving(root / "world" / "repository" / "public") as server:
        world = World(root / "world", server)
        allowed = prepared(root, world, template)
        once(shim, work, template, world, allowed, (0, 0, 0))
        calls = shim.shim_calls()
        found: dict[str, Any] = {"calls": calls, "failed": 0, "absorbed": 0}
        found["wrong"] = []
        for number in range(1, calls + 1):
            chosen = FAULTS if every else FAULTS[number % len(FAULTS) :][:1]
            for name, from_then_on in chosen:
                fault = (number, getattr(errno, name), int(from_then_on))
                try:
                    found[once(shim, work, template, world, allowed, fault)] += 1
                except Exception as error:
                    shim.shim_stop()
                    shutil.rmtree(work / "store", ignore_errors=True)
                    said = f"{type(error).__name__}: {error}"
                    found["wrong"].append([name, from_then_on, number, said])
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["every"])
