"""The executable of tuf-conformance's protocol: exit codes, files, requests."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from update_attacks import NAME
from update_server import serving
from update_world import World, blob_file

from promptdial.prompts.updates.publishing.roles import init_repository, rotate

CLIENT = Path(__file__).parent / "tuf_client"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    init_repository(folder / "repository")
    with serving(folder / "repository" / "public") as server:
        made = World(folder, server)
        made.publish()
        (folder / "metadata").mkdir()
        (folder / "targets").mkdir()
        yield made


def client(world: World, *arguments: str) -> int:
    metadata = ["--metadata-dir", str(world.folder / "metadata")]
    run = subprocess.run(
        [sys.executable, str(CLIENT), *metadata, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in run.stderr
    return run.returncode


def init(world: World) -> int:
    return client(world, "init", str(world.metadata / "1.root.json"))


def refresh(world: World) -> int:
    return client(world, "--metadata-url", f"{world.server.url}/metadata", "refresh")


def download(world: World, name: str = NAME) -> int:
    return client(
        world,
        "--metadata-url",
        f"{world.server.url}/metadata",
        "--target-name",
        name,
        "--target-base-url",
        f"{world.server.url}/targets",
        "--target-dir",
        str(world.folder / "targets"),
        "download",
    )


def trusted(world: World) -> dict[str, int]:
    """Roles and versions, as the suite reads them: every .json of the folder."""
    found = {}
    for path in sorted((world.folder / "metadata").iterdir()):
        if path.name.endswith(".json"):
            body: Any = json.loads(path.read_text())
            found[path.stem] = body["signed"]["version"]
    return found


def test_it_can_be_executed() -> None:
    assert os.access(CLIENT, os.X_OK)
    assert CLIENT.read_text().startswith("#!/usr/bin/env python3\n")


def test_init_asks_nothing_of_the_network(world: World) -> None:
    assert init(world) == 0
    assert world.server.requests == []
    assert trusted(world) == {"root": 1}


def test_refresh_keeps_names_without_versions(world: World) -> None:
    init(world)
    assert refresh(world) == 0
    assert trusted(world) == {"root": 1, "snapshot": 2, "targets": 2, "timestamp": 2}
    assert world.server.requests == [
        "/metadata/2.root.json",
        "/metadata/timestamp.json",
        "/metadata/2.snapshot.json",
        "/metadata/2.targets.json",
    ]
    rotate(world.repository, "root")
    assert refresh(world) == 0
    assert trusted(world)["root"] == 2


def test_a_refused_refresh_exits_with_1_and_keeps_what_it_had(world: World) -> None:
    init(world)
    assert refresh(world) == 0
    before = trusted(world)
    world.edit("timestamp.json", lambda timestamp: setattr(timestamp, "version", 9))
    assert refresh(world) == 1
    assert trusted(world) == before
    world.server.close()
    assert refresh(world) == 1


def test_download_verifies_and_does_not_ask_twice(world: World) -> None:
    init(world)
    assert download(world) == 0
    (path,) = (world.folder / "targets").iterdir()
    blob = blob_file(world.folder / "blobs").read_bytes()
    assert path.read_bytes() == blob
    world.server.requests.clear()
    assert download(world) == 0
    assert not any("/targets/" in asked for asked in world.server.requests)
    world.publish(version=2)
    assert download(world) == 0
    assert [item.name for item in (world.folder / "targets").iterdir()] == [path.name]
    assert path.read_bytes() != blob


def test_a_download_that_is_refused(world: World) -> None:
    init(world)
    assert download(world, "prompts/nothing") == 1
    for path in (world.targets / "prompts").iterdir():
        path.write_bytes(b"x" * path.stat().st_size)
    assert download(world) == 1
    assert list((world.folder / "targets").iterdir()) == []


def test_what_cannot_be_meant(world: World) -> None:
    assert client(world, "init", str(world.folder / "none.json")) == 1
    (world.folder / "bad.json").write_text("{}")
    assert client(world, "init", str(world.folder / "bad.json")) == 1
