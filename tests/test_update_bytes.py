"""Bytes on the wire, counted at the server, headers of both sides among them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from test_update_publishing import fill
from update_server import serving
from update_world import World, blob_file

from promptdial.prompts.updates.publishing.publish import publish_prompts
from promptdial.prompts.updates.publishing.roles import init_repository
from promptdial.prompts.updates.receiver import Following


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    init_repository(folder / "repository")
    with serving(folder / "repository" / "public") as server:
        yield World(folder, server)


def test_a_check_without_news(world: World) -> None:
    world.publish()
    world.set_up_device()
    world.update()
    world.server.reset_counts()
    report = world.update()
    assert report.prompts == ()
    assert len(world.server.requests) == 2
    assert world.server.sent + world.server.received <= 1_500
    # What the device counts is what the server sent.
    assert report.received == world.server.sent


def test_one_prompt_of_ten_thousand(world: World) -> None:
    """First contact and an update: 40 KB of prompt, and no more than 20 of metadata."""
    fill(world, 9_999)
    size = publish_large(world, 1)
    world.set_up_device(Following("d", tasks=frozenset({"large"})))
    world.server.reset_counts()
    world.update()
    first = world.server.sent + world.server.received
    assert size > 39_000
    assert first <= 60_000
    size = publish_large(world, 2)
    world.server.reset_counts()
    world.update()
    update = world.server.sent + world.server.received
    assert update <= 60_000
    # Others' news: a device that needs none of it.
    fill(world, 1, start=20_000)
    world.server.reset_counts()
    assert world.update().prompts == ()
    others = world.server.sent + world.server.received
    assert others <= 20_000
    print(f"first {first:,}, update {update:,}, others' news {others:,} bytes")


def publish_large(world: World, version: int) -> int:
    blobs = world.folder / "blobs"
    path = blob_file(blobs, "large", version, rows_of_prompt=98, width=384)
    publish_prompts(world.repository, [path])
    return path.stat().st_size
