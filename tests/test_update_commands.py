"""The commands repo and update: from an empty folder to a device that follows."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from update_server import serving
from update_world import BASE, World, blob_file, state_of

from promptdial.prompts.errors import EXIT_CODES
from promptdial.prompts.store import PromptStore, set_up_updates
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    assert main(["repo", "init", str(folder / "repository"), "--json"]) == 0
    with serving(folder / "repository" / "public") as server:
        yield World(folder, server)


def answer(capfd: Captured, *arguments: str) -> dict[str, object]:
    capfd.readouterr()
    assert main([*arguments, "--json"]) == 0
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def test_from_init_to_a_device_that_updates_itself(
    world: World, capfd: Captured
) -> None:
    repository, device = str(world.folder / "repository"), str(world.folder / "device")
    blobs = blob_file(world.folder / "blobs", "colour", 1).parent
    done = answer(capfd, "repo", "publish", repository, str(blobs))
    assert done["changed"] == ["colour.safetensors"]
    world.set_up_device()
    command = ("update", device, "--url", world.server.url)
    plan = answer(capfd, *command, "--dry-run")
    assert plan["dry_run"] is True and world.device.prompts() == {}
    took = answer(capfd, *command)
    assert [item["version"] for item in took["changed"]] == [1]  # type: ignore[attr-defined]
    again = answer(capfd, *command)
    assert again["changed"] == [] and again["needed"] == 0
    # The publisher goes on, cron refreshes, keys are rotated.
    blobs = blob_file(world.folder / "blobs", "colour", 2).parent
    answer(capfd, "repo", "publish", repository, str(blobs))
    assert answer(capfd, "repo", "refresh", repository)["due"] == {}
    assert answer(capfd, "repo", "rotate", repository, "root")["rotated"] == "root"
    assert main([*command]) == 0
    text = capfd.readouterr()
    assert "took colour 2 (1,3" in text.out and "bytes received" in text.out
    assert text.err.startswith("promptdial: colour 2: 1,3")
    revoked = answer(capfd, "repo", "revoke", repository, "colour")
    assert len(revoked["revoked"]) == 1  # type: ignore[arg-type]
    assert main([*command]) == 0
    assert "revoked: sha256:" in capfd.readouterr().out


def test_tenants_channels_and_shares_by_command(world: World, capfd: Captured) -> None:
    repository, device = str(world.folder / "repository"), str(world.folder / "device")
    answer(capfd, "repo", "tenant", repository, "acme", "--signers", "1/2")
    one, two = (blob_file(world.folder / "blobs", "colour", n) for n in (1, 2))
    publish = ("repo", "publish", repository)
    answer(capfd, *publish, str(one))
    answer(capfd, *publish, str(one), "--tenant", "acme")
    share = ("--channel", "canary", "--percent", "50")
    answer(capfd, *publish, str(two), *share)
    world.set_up_device()
    took = {}
    for number in range(8):
        plan = answer(
            capfd,
            "update",
            device,
            "--url",
            world.server.url,
            "--dry-run",
            "--device-id",
            f"d{number}",
        )
        took[number] = plan["changed"][0]["version"]  # type: ignore[index]
    assert set(took.values()) == {1, 2}
    url = ("--url", world.server.url)
    plan = answer(capfd, "update", device, *url, "--channel", "canary", "--dry-run")
    assert plan["changed"][0]["channel"] == "canary"  # type: ignore[index]


def test_a_store_is_set_up_by_command(
    world: World, capfd: Captured, tiny_bundle: Path
) -> None:
    repository, device = str(world.folder / "repository"), str(world.folder / "device")
    root = str(world.metadata / "1.root.json")
    init = ("store", "init", device, "--root", root)
    words = ("--channel", "beta", "--device-id", "kiosk-7", "--tenant", "acme")
    more = ("--tenant", "globex", "--task", "colour", "--base-name", "tiny")
    found = answer(capfd, *init, *words, *more, "--base", str(tiny_bundle))
    assert found["made"] is True and found["following"] == {
        "device_id": "kiosk-7",
        "channel": "beta",
        "tenants": ["", "acme", "globex"],
        "tasks": ["colour"],
        "bundle": "tiny",
    }
    # Once more: what is given is changed, and the rest stays.
    again = answer(capfd, *init, "--channel", "stable")
    assert again["made"] is False and again["base"] == found["base"]
    assert again["following"] == {**found["following"], "channel": "stable"}
    assert main(["store", "base", device]) == 2
    assert "has no base of its own" in capfd.readouterr().err
    publish = ("repo", "publish", repository)
    answer(capfd, *publish, "--bundle", str(tiny_bundle), "--name", "tiny", *V1)
    took = answer(capfd, "update", device, "--url", world.server.url)
    assert took["bundle"] == 1
    folder = answer(capfd, "store", "base", device)["base"]
    assert Path(str(folder)).parent == world.folder / "device" / "bases"
    assert open_bundle(str(folder)).manifest == open_bundle(tiny_bundle).manifest


V1 = ("--version", "1")


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        ("USAGE", ["init", "{device}", "--channel", "beta"], "give --root"),
        ("USAGE", ["init", "{device}", "--tenant", "acme"], "give --root"),
        ("USAGE", ["init", "{new}", "--root", "{root}", "--tenant", "all"], "'all'"),
        ("USAGE", ["init", "{new}", "--root", "{root}", "--channel", "?"], "channel"),
        ("USAGE", ["init", "{new}", "--root", "{root}", "--task", "/"], "task '/'"),
        ("USAGE", ["init", "{new}", "--root", "{root}", "--base-name", "?"], "bases/?"),
        (
            "USAGE",
            ["list", "{device}", "--root", "{root}"],
            "unrecognized arguments: --root",
        ),
        ("FILE", ["init", "{new}", "--root", "{none}"], "none.json"),
        (
            "DATA_INVALID",
            ["init", "{new}", "--root", "{blob}"],
            "root of trust is none",
        ),
        (
            "BUNDLE_INVALID",
            ["init", "{new}", "--root", "{root}", "--base", "{none}"],
            "promptdial export",
        ),
    ],
)
def test_a_set_up_that_is_refused_is_one_line(
    world: World, capfd: Captured, code: str, arguments: list[str], message: str
) -> None:
    world.set_up_device()
    capfd.readouterr()
    values = {
        "{device}": str(world.folder / "device"),
        "{new}": str(world.folder / "new"),
        "{none}": str(world.folder / "none.json"),
        "{root}": str(world.metadata / "1.root.json"),
        "{blob}": str(blob_file(world.folder / "blobs")),
    }
    before = state_of(world.folder / "device")
    assert main(["store", *(values.get(x, x) for x in arguments)]) == EXIT_CODES[code]
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"promptdial: {code}: ") and message in err
    assert state_of(world.folder / "device") == before
    assert not (world.folder / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repo"], "required: PART"),
        (["repo", "fly"], "invalid choice"),
        (["repo", "init"], "required: DIR"),
        (["repo", "publish", "{repository}"], "no blob to publish"),
        (["repo", "publish", "{repository}", "--percent", "5", "{blob}"], "canary"),
        (["repo", "publish", "{repository}", "--channel", "A B", "{blob}"], "channel"),
        (["repo", "publish", "{repository}", "--tenant", "no", "{blob}"], "no tenant"),
        (["repo", "rotate", "{repository}", "pope"], "no role 'pope'"),
        (["repo", "rotate", "{repository}", "root", "--signers", "2"], "THRESHOLD"),
        (["repo", "tenant", "{repository}", "root"], "choose another name"),
        (["repo", "init", "{repository}"], "has a repository"),
        (["update", "{device}"], "required: --url"),
        (["update", "{device}", "--url", "file:///etc"], "give http"),
        (["update", "{device}", "--url", "http://x", "--header", "X"], "NAME: VALUE"),
        (["update", "{device}", "--url", "http://x", "--channel", "?"], "channel"),
    ],
)
def test_wrong_use_is_one_line(
    world: World, capfd: Captured, arguments: list[str], message: str
) -> None:
    world.set_up_device()
    capfd.readouterr()
    values = {
        "{repository}": str(world.folder / "repository"),
        "{device}": str(world.folder / "device"),
        "{blob}": str(blob_file(world.folder / "blobs")),
    }
    before = state_of(world.folder / "device")
    assert main([values.get(word, word) for word in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("promptdial: USAGE: ") and message in err
    assert state_of(world.folder / "device") == before


def test_a_missing_extra_names_the_pip_command(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('tuf', 'cryptography'): sys.modules[name] = None\n"
        "from promptdial.runtime.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    root = b'{"signed": {"_type": "root"}}'
    set_up_updates(tmp_path / "device", root, base=BASE)
    for arguments in (
        ["repo", "init", str(tmp_path / "r")],
        ["update", str(tmp_path / "device"), "--url", "http://x"],
    ):
        run = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 7, run.stderr
        assert "MISSING_EXTRA" in run.stderr
        assert "pip install 'promptdial[ota]'" in run.stderr


RECIPE = """
promptdial repo init repository
promptdial repo publish repository blobs
# The device.
python -m http.server --bind 127.0.0.1 --directory repository/public PORT &
server=$!
trap 'kill $server' EXIT
until python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:PORT')" \
    2>/dev/null
do sleep 0.2
done
promptdial update device --url http://127.0.0.1:PORT
promptdial repo refresh repository
promptdial update device --url http://127.0.0.1:PORT
"""
"""What the README's recipe does, but for the store that the device is."""


def test_the_recipe_by_a_plain_file_server(tmp_path: Path) -> None:
    blob_file(tmp_path / "made", "colour", 1).parent.rename(tmp_path / "blobs")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    publishing, receiving = RECIPE.replace("PORT", str(port)).split("# The device.\n")
    shell(tmp_path, publishing)
    root = (tmp_path / "repository/public/metadata/1.root.json").read_bytes()
    set_up_updates(tmp_path / "device", root, base=BASE)
    assert "took colour 1" in shell(tmp_path, receiving)
    with PromptStore(tmp_path / "device") as store:
        assert store.get("colour").meta.version == 1


def shell(folder: Path, script: str) -> str:
    """Run a script as a reader would, with `promptdial` on the path."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    program = tools / "promptdial"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m promptdial.runtime "$@"\n')
    program.chmod(0o755)
    run = subprocess.run(
        ["sh", "-e", "-c", script.replace("python ", f"{sys.executable} ")],
        cwd=folder,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
