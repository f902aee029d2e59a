"""kill -9 at random moments of a real update, in processes of their own."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from crash_update_scenario import held, make_bundle
from test_update_device import start_update, versions
from update_server import serving
from update_world import BASE, OTHER_BASE, World, blob_file

from promptdial.prompts.updates.publishing.publish import (
    publish_bundle,
    publish_prompts,
)
from promptdial.prompts.updates.publishing.roles import init_repository
from promptdial.prompts.updates.receiver import Following

TASKS = ("colour", "smell", "taste")
BASE_ROUNDS = 3
"""Every so many rounds, a base comes as well, and prompts for it."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    init_repository(folder / "repository")
    with serving(folder / "repository" / "public") as server:
        yield World(folder, server)


@pytest.mark.parametrize(
    "rounds", [20, pytest.param(200, marks=pytest.mark.slow)], ids=str
)
def test_kill_at_any_moment(world: World, rounds: int) -> None:
    """Prompts and base are those of before or those of after, all of one release."""
    publish_all(world, 0)
    publish_all(world, 1)
    world.set_up_device(Following("d", bundle="tiny"), base=None)
    world.update()
    # Fixed, so that a failure comes again; moments differ by the machine's load anyway.
    rng, killed, changed = random.Random(7), 0, 0
    world.server.delay = 0.02
    whole = seconds_of_an_update(world)
    for number in range(rounds):
        publish_all(world, number + 2)
        before = versions(world)
        run = start_update(world)
        time.sleep(rng.uniform(0.2, 1.05) * whole)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        killed += run.returncode == -signal.SIGKILL
        after = versions(world)
        assert len(set(after.values())) == 1, f"a mixture: {after}"
        assert min(after.values()) >= min(before.values())
        changed += after != before
        # Every blob and the base are whole, and made for each other.
        held(world.folder / "device")
        world.update()
        assert set(versions(world).values()) == {number + 2}
        assert not list((world.folder / "device").glob("update/staging/*"))
    print(f"{killed} of {rounds} killed, {changed} of them after the change")
    assert killed > rounds / 4


def publish_all(world: World, version: int) -> None:
    number = version // BASE_ROUNDS
    base = OTHER_BASE if number % 2 else BASE
    if version % BASE_ROUNDS == 0:
        bundle = make_bundle(world.folder / f"tiny{number}.bundle", base)
        publish_bundle(world.repository, bundle, "tiny", number + 1)
    if not version:
        return
    blobs = world.folder / "blobs"
    paths = [
        blob_file(blobs, task, version, base=base, rows_of_prompt=200) for task in TASKS
    ]
    publish_prompts(world.repository, paths)


def seconds_of_an_update(world: World) -> float:
    started = time.monotonic()
    run = start_update(world, "--dry-run")
    run.communicate(timeout=300)
    assert run.returncode == 0
    return time.monotonic() - started
