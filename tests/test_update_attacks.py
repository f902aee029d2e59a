"""Every attack on an update: refused by its code, nothing changed, and what it cost."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from update_attacks import ATTACKS, Attack, make_template
from update_server import serving
from update_world import World, state_of

from promptdial.prompts.errors import EXIT_CODES, PromptdialError


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacks") / "template"
    with serving(folder / "repository" / "public") as server:
        make_template(World(folder, server))
    return folder


@pytest.fixture(scope="module")
def costs() -> Iterator[dict[str, tuple[str, int, float]]]:
    """What each attack cost; shown with -s, and the dearest of each kind always."""
    found: dict[str, tuple[str, int, float]] = {}
    yield found
    print("\n| attack | code | bytes | seconds |\n|---|---|---|---|")
    for name, (code, size, seconds) in found.items():
        print(f"| {name} | {code} | {size:,} | {seconds:.2f} |")


@pytest.fixture
def world(template: Path, tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    shutil.copytree(template, folder, symlinks=True)
    with serving(folder / "repository" / "public") as server:
        yield World(folder, server)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_refused(
    attack: Attack, world: World, costs: dict[str, tuple[str, int, float]]
) -> None:
    attack.arrange(world)
    before = state_of(world.folder / "device")
    started = time.monotonic()
    with pytest.raises(PromptdialError) as caught:
        world.update(attack.limits)
    seconds, error = time.monotonic() - started, caught.value
    assert error.code == attack.code, str(error)
    assert EXIT_CODES[error.code] in (3, 5, 6, 7)
    line = str(error)
    assert "\n" not in line and error.hint, line
    for part in attack.says:
        assert part in line, line
    assert state_of(world.folder / "device") == before
    # A phase of metadata and one of a file, and what a busy machine adds.
    limits = attack.limits
    assert seconds < limits.metadata_seconds + limits.file_seconds + 60
    size = world.server.sent
    assert size < attack.most_bytes, f"{size} bytes"
    costs[attack.name] = (error.code, size, seconds)


def test_the_template_updates_when_nobody_attacks(world: World) -> None:
    """Else everything above might be refused for nothing."""
    report = world.update()
    assert [offer.version for offer in report.prompts] == [3]
    assert world.device.prompts()["", "colour"].version == 3
