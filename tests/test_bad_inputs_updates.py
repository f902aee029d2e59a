"""Bad inputs 27 to 38, 50 and 51 by the commands: exit code, code, one line.

Every case goes into tests/bad_inputs_updates.md as tests/test_bad_inputs.py does it.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from bad_inputs_table import HEAD, Table
from update_attacks import ATTACKS, Attack, make_template
from update_server import serving
from update_world import HASTE, World, blob_file, state_of

from promptdial.prompts.errors import EXIT_CODES, PromptdialError
from promptdial.prompts.updates.lock import locked
from promptdial.prompts.updates.receiver import Change
from promptdial.runtime.cli import main

ROOT = Path(__file__).parents[1]
NUMBERS = {*range(27, 39), 50, 51}
FILE = "bad_inputs_updates.md"
PROGRESS = r"promptdial: \w+ \d+: [0-9,]+ bytes"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    found = Table()
    yield found
    if found.numbers() == NUMBERS:
        (ROOT / "build").mkdir(exist_ok=True)
        text = found.text().replace(HEAD, head())
        (ROOT / "build" / FILE).write_text(text, encoding="utf-8")


def head() -> str:
    changed = HEAD.replace("# Bad inputs and", "# Bad inputs of updates and")
    changed = changed.replace("test_bad_inputs.py", "test_bad_inputs_updates.py")
    changed = changed.replace("bad_inputs.md", FILE)
    first, _, last = changed.partition("Every line is")
    lines = last[last.index("| number") :]
    return (
        f"{first.rstrip()}\nEvery line is the last on stderr (progress stands before "
        f"it); nothing of the device's\nor the repository's was changed.\n\n{lines}"
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "template"
    with serving(folder / "repository" / "public") as server:
        make_template(World(folder, server))
    return folder


@pytest.fixture
def world(template: Path, tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    shutil.copytree(template, folder, symlinks=True)
    with serving(folder / "repository" / "public") as server:
        yield World(folder, server)


def run(world: World, capfd: Captured, *more: str) -> tuple[int, str]:
    """The update command: its exit code, and the line that it leaves on stderr."""
    url = ("--url", world.server.url)
    code = main(["update", str(world.folder / "device"), *url, *more])
    return code, line_of(capfd)


def line_of(capfd: Captured) -> str:
    """The one line that says what is wrong; lines of progress may stand before it."""
    out, err = capfd.readouterr()
    assert out == ""
    *before, line = err.splitlines()
    assert all(re.fullmatch(PROGRESS, text) for text in before), err
    return line


def check(line: str, code: str, exit_code: int) -> None:
    assert line.startswith(f"promptdial: {code}: "), line
    wrong, _, hint = line.rpartition("; ")
    assert wrong and len(hint) > 8, line
    assert exit_code == EXIT_CODES[code]


def plain(line: str) -> str:
    """Without what differs from run to run: ports, times, free space, key ids."""
    line = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:<port>", line)
    line = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "<time>", line)
    line = re.sub(r"\b[0-9a-f]{12}\b", "<digest>", line)
    line = re.sub(r": 40\d{5} bytes came", ": <number> bytes came", line)
    return re.sub(r"-[0-9a-f]{8}\.pem|: [0-9a-f]{8}\)", "-<key>", line)


SHOWN = [attack for attack in ATTACKS if attack.limits is not HASTE]


@pytest.mark.parametrize("attack", SHOWN, ids=lambda attack: attack.name)
def test_attacks(attack: Attack, world: World, capfd: Captured, table: Table) -> None:
    attack.arrange(world)
    before = state_of(world.folder / "device")
    code, line = run(world, capfd)
    check(line, attack.code, code)
    assert state_of(world.folder / "device") == before
    table.add(attack.number, attack.name, attack.code, code, plain(line))


def test_33_slow(world: World, table: Table) -> None:
    """The command's own limit is a minute; this one is shorter."""
    attack = next(a for a in ATTACKS if a.name == "metadata drips")
    attack.arrange(world)
    with pytest.raises(PromptdialError) as caught:
        world.update(HASTE)
    line = f"promptdial: {caught.value}"
    check(line, "TOO_SLOW", caught.value.exit_code)
    # It depends on the moment whether the last wait or the whole time was over.
    shown = re.sub(r"TOO_SLOW: [^;]*;", "TOO_SLOW: <what was slow>;", plain(line))
    table.add(33, attack.name, "TOO_SLOW", caught.value.exit_code, shown)


def test_34_clock(world: World, capfd: Captured, table: Table) -> None:
    later = int(time.time()) + 10**8
    world.device.commit(Change(checked=later, time_floor=later))
    code, line = run(world, capfd)
    check(line, "CLOCK_BACK", code)
    table.add(34, "clock behind the last check", "CLOCK_BACK", code, plain(line))


def test_36_climbing_name(world: World, capfd: Captured, table: Table) -> None:
    bundle = world.folder / "bundle"
    bundle.mkdir()
    base = {"fingerprint": "ckpt1:" + "a" * 64, "tokenizer_fingerprint": "tok1:x"}
    files = {"../evil": {"sha256": "0" * 64, "bytes": 4}}
    (bundle / "manifest.json").write_text(json.dumps({"base": base, "files": files}))
    command = ["repo", "publish", str(world.folder / "repository")]
    code = main([*command, "--bundle", str(bundle), "--name", "x", "--version", "1"])
    line = line_of(capfd)
    check(line, "USAGE", code)
    table.add(36, "../ in a bundle's file name", "USAGE", code, plain(line))


def test_37_disk(
    world: World, capfd: Captured, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(world.folder)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    code, line = run(world, capfd)
    check(line, "NO_SPACE", code)
    table.add(37, "disk full", "NO_SPACE", code, plain(line))


def test_38_busy(world: World, capfd: Captured, table: Table) -> None:
    with locked(world.device.lock_path, "an update"):
        code, line = run(world, capfd)
    check(line, "BUSY", code)
    table.add(38, "a second update", "BUSY", code, plain(line))
    with locked(world.folder / "repository" / ".lock", "a change"):
        code = main(["repo", "refresh", str(world.folder / "repository")])
    line = line_of(capfd)
    check(line, "BUSY", code)
    table.add(38, "a second publisher", "BUSY", code, plain(line))


def missing(key: Path) -> None:
    key.unlink()


def shown(key: Path) -> None:
    key.chmod(0o644)


@pytest.mark.parametrize(
    ("name", "change"), [("missing key", missing), ("world-readable key", shown)]
)
def test_50_keys(
    name: str,
    change: Callable[[Path], None],
    world: World,
    capfd: Captured,
    table: Table,
) -> None:
    change(next(world.repository.keys.glob("targets-*.pem")))
    blob = blob_file(world.folder / "new", "colour", 9)
    code = main(["repo", "publish", str(world.folder / "repository"), str(blob)])
    line = line_of(capfd)
    check(line, "KEY_REFUSED", code)
    table.add(50, name, "KEY_REFUSED", code, plain(line))


def test_51_taken(world: World, capfd: Captured, table: Table) -> None:
    blob = blob_file(world.folder / "new", "colour", 3, seed=99)
    code = main(["repo", "publish", str(world.folder / "repository"), str(blob)])
    line = line_of(capfd)
    check(line, "VERSION_TAKEN", code)
    name = "same version, other content"
    table.add(51, name, "VERSION_TAKEN", code, plain(line))


def test_the_table_is_complete_and_the_committed_one(
    table: Table, request: pytest.FixtureRequest
) -> None:
    """Last in the file: what ran before it has filled the table."""
    here = [item for item in request.session.items if item.path == request.path]
    if len(here) < len(SHOWN):
        pytest.skip("only some of the cases were chosen")
    assert table.numbers() == NUMBERS
    committed = (ROOT / "tests" / FILE).read_text(encoding="utf-8")
    assert committed == table.text().replace(HEAD, head())
