"""The device's side: what it takes, leaves, resumes and survives."""

import io
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from test_update_publishing import tree
from update_attacks import content, half_here, plain, targets_like
from update_server import Reply, head_of, serving
from update_world import BASE, OTHER_BASE, World, blob_file, state_of

from promptdial.prompts.errors import (
    BlobInvalid,
    ClockBack,
    NoSpace,
    Offline,
    PromptdialError,
    UpdateBusy,
    UsageError,
)
from promptdial.prompts.updates.device.fetcher import Source
from promptdial.prompts.updates.device.progress import Progress
from promptdial.prompts.updates.device.update import CLOCK_SLACK, update
from promptdial.prompts.updates.lock import locked
from promptdial.prompts.updates.names import PromptName
from promptdial.prompts.updates.offer import Offer
from promptdial.prompts.updates.publishing.publish import publish_prompts
from promptdial.prompts.updates.publishing.roles import (
    delegate,
    init_repository,
    rotate,
)
from promptdial.prompts.updates.publishing.settings import Signers
from promptdial.prompts.updates.receiver import BaseState, Following


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    init_repository(folder / "repository")
    with serving(folder / "repository" / "public") as server:
        made = World(folder, server)
        made.publish()
        made.set_up_device()
        yield made


def versions(world: World) -> dict[str, int]:
    found = world.device.prompts()
    return {"/".join(filter(None, key)): state.version for key, state in found.items()}


def test_an_update_brings_what_is_new_and_then_nothing(world: World) -> None:
    first = world.update()
    assert [offer.version for offer in first.prompts] == [1]
    assert first.needed > 0 and first.received > first.needed
    second = world.update()
    assert second.prompts == () and second.needed == 0
    assert second.received < 1_500
    assert versions(world) == {"colour": 1}
    digest = world.device.prompts()["", "colour"].digest
    blob = blob_file(world.folder / "blobs").read_bytes()
    assert world.blob_path(digest).read_bytes() == blob


def all_of(device: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """All files, and what the index says: its bytes may change when it is closed."""
    files = tree(device)
    kept = {name: files[name] for name in files if not name.startswith("index.sqlite")}
    return kept, state_of(device)


def test_a_dry_run_changes_nothing(world: World) -> None:
    device = world.folder / "device"
    before = all_of(device)
    report = world.update(dry_run=True)
    assert report.dry_run and [offer.version for offer in report.prompts] == [1]
    assert all_of(device) == before
    world.update()
    world.publish(version=2)
    before = all_of(device)
    assert [offer.version for offer in world.update(dry_run=True).prompts] == [2]
    assert all_of(device) == before


def test_only_what_fits_the_base_is_offered(world: World) -> None:
    other = blob_file(world.folder / "blobs", "taste", 1, base=OTHER_BASE)
    odd = BaseState(BASE.fingerprint, "tok1:" + "d" * 64)
    third = blob_file(world.folder / "blobs", "smell", 1, base=odd)
    publish_prompts(world.repository, [other, third])
    report = world.update()
    assert versions(world) == {"colour": 1}
    assert [(item.name, item.why) for item in report.held] == [
        ("smell", "version 1 is for another tokenizer")
    ]


def test_a_device_may_follow_some_tasks(world: World) -> None:
    world.publish("taste")
    world.set_up_device(Following("d", tasks=frozenset({"taste", "nothing"})))
    world.update()
    assert versions(world) == {"taste": 1}


def test_a_channel_goes_before_stable(world: World) -> None:
    world.publish(version=2, channel="beta")
    assert [x.version for x in world.update().prompts] == [1]
    on_beta = Following("d", channel="beta")
    assert [x.version for x in world.update(following=on_beta).prompts] == [2]
    # Stable overtakes: everyone takes it, and the release on beta goes away.
    world.publish(version=3)
    assert [x.version for x in world.update(following=on_beta).prompts] == [3]
    assert world.update(following=on_beta, dry_run=True).prompts == ()


def test_a_first_release_may_be_on_a_channel_alone(world: World) -> None:
    world.publish("taste", channel="beta")
    following = Following("d", channel="beta", tasks=frozenset({"taste"}))
    assert [x.version for x in world.update(following=following).prompts] == [1]
    assert world.update(following=replace(following, channel="stable")).prompts == ()


def test_a_canary_release_goes_to_its_share(world: World) -> None:
    world.update()
    world.publish(version=2, channel="canary", percent=25)
    took = [
        bool(world.update(following=Following(f"d{n}"), dry_run=True).prompts)
        for n in range(12)
    ]
    name = PromptName("", "colour", "a" * 8, "canary")
    offer = Offer(name, 2, "0" * 64, 1, "b" * 8, "a" * 8, percent=25)
    assert took == [offer.is_open_to("stable", f"d{n}") for n in range(12)]
    # A larger share lets none go.
    world.publish(version=2, channel="canary", percent=100)
    assert world.update(following=Following("d0")).prompts
    # A device that has it keeps it when the share is taken back.
    world.publish(version=2, channel="canary", percent=1)
    assert world.update(following=Following("d0")).prompts == ()
    assert versions(world) == {"colour": 2}


def test_shares_are_as_large_as_they_say() -> None:
    name = PromptName("", "colour", "a" * 8, "canary")
    for percent in (1, 10, 50):
        offer = Offer(name, 2, "0" * 64, 1, "b" * 8, "a" * 8, percent=percent)
        count = sum(offer.is_open_to("stable", f"device {n}") for n in range(20_000))
        assert abs(count / 20_000 - percent / 100) < 0.012
        assert not offer.is_open_to("beta", "device 1")
        assert offer.is_open_to("canary", "device 1")


def test_a_tenants_key_is_good_for_its_own_path_alone(world: World) -> None:
    delegate(world.repository, "acme", Signers())
    delegate(world.repository, "globex", Signers())
    world.publish(tenant="globex")
    world.publish(tenant="acme")

    def intrude(acme: Any) -> None:
        mine = next(iter(acme.targets.values()))
        acme.version += 1
        for name in ("prompts/globex/taste", "prompts/taste", "prompts/colour"):
            acme.targets[f"{name}~{'a' * 8}.safetensors"] = mine

    role = world.current("acme")
    number = int(role.partition(".")[0]) + 1
    world.edit(role, intrude, "acme", to=f"{number}.acme.json")
    from tuf.api.metadata import MetaFile
    from update_attacks import snapshot_like

    snapshot_like(lambda s: s.meta.update({"acme.json": MetaFile(number)}))(world)
    world.update(following=Following("d", tenants=("", "acme", "globex")))
    assert versions(world) == {"colour": 1, "acme/colour": 1, "globex/colour": 1}


def test_a_tenants_list_of_revoked_is_for_its_own_prompts(world: World) -> None:
    delegate(world.repository, "acme", Signers())
    world.publish(tenant="acme")
    following = Following("d", tenants=("", "acme"))
    world.update(following=following)
    digest = world.device.prompts()["", "colour"].digest.removeprefix("sha256:")
    role = world.current("acme")
    number = int(role.partition(".")[0]) + 1

    def revoke_all(acme: Any) -> None:
        acme.version = number
        acme.unrecognized_fields["revoked"] = [digest[:32]]

    world.edit(role, revoke_all, "acme", to=f"{number}.acme.json")
    from tuf.api.metadata import MetaFile
    from update_attacks import snapshot_like

    snapshot_like(lambda s: s.meta.update({"acme.json": MetaFile(number)}))(world)
    world.update(following=following)
    # The same blob is published for everyone as well, and stays in use there.
    assert versions(world) == {"colour": 1, "acme/colour": 0}


def test_36_climbing_names_stay_names(world: World) -> None:
    """Signed with stolen keys: nothing is asked for, nothing is written outside."""

    def climb(world: World, targets: Any) -> None:
        del world
        mine = next(iter(targets.targets.values()))
        for name in (
            "../../../evil",
            "prompts/../../evil~aaaaaaaa.safetensors",
        ):
            targets.targets[name] = mine

    targets_like(climb)(world)
    outside = tree(world.folder.parent)
    world.update()
    assert versions(world) == {"colour": 1}
    new = set(tree(world.folder.parent)) - set(outside)
    assert all(name.startswith("world/device/") for name in new)
    assert not any("evil" in path for path in world.server.requests)


def test_a_broken_download_goes_on_where_it_broke(world: World) -> None:
    path = blob_file(world.folder / "blobs", "large", 1, rows_of_prompt=250)
    publish_prompts(world.repository, [path])
    size = path.stat().st_size
    body = path.read_bytes()

    def broken(asked: str, headers: Mapping[str, str]) -> Reply | None:
        if "large" not in asked or "range" in headers:
            return None

        def reply(to: socket.socket) -> None:
            world.server.send(to, head_of(200, size) + body[: size // 2])
            time.sleep(0.2)
            to.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        return reply

    world.server.lie = broken
    world.update()
    assert versions(world)["large"] == 1
    # Half, the other half, and the small rest: nothing was sent twice.
    assert world.server.sent < size + 8_000


def test_a_later_update_goes_on_too(world: World) -> None:
    half_here(world, b"")
    world.update()
    assert versions(world) == {"colour": 1}
    sent = [path for path in world.server.requests if "/targets/" in path]
    assert len(sent) == 1
    assert not list((world.folder / "device").glob("update/staging/*"))


def test_without_ranges_a_file_begins_again(world: World) -> None:
    half_here(world, b"")
    world.server.ranges = False
    world.update()
    assert versions(world) == {"colour": 1}


def test_a_wrong_part_begins_again(world: World) -> None:
    """What someone left there is no hindrance when the server is honest."""
    half_here(world, b"evil")
    world.update()
    assert versions(world) == {"colour": 1}


def test_parts_that_nobody_wants_are_removed(world: World) -> None:
    staging = world.device.staging_folder
    staging.mkdir(parents=True)
    (staging / f"{'0' * 64}.part").write_bytes(b"old")
    world.update()
    assert not staging.exists() or not list(staging.iterdir())


def test_38_a_second_update_is_busy(world: World) -> None:
    with locked(world.device.lock_path, "an update"):
        with pytest.raises(UpdateBusy, match="an update is already running"):
            world.update()
    world.update()


def test_38_two_processes_at_once(world: World) -> None:
    world.server.delay = 0.2
    runs = [start_update(world) for _ in range(2)]
    lines = [run.communicate(timeout=300)[1] for run in runs]
    codes = sorted(run.returncode for run in runs)
    # Both may have run one after the other; never both at once, never a traceback.
    assert codes in ([0, 0], [0, 7]), lines
    assert all("Traceback" not in line for line in lines)
    assert versions(world) == {"colour": 1}


def test_34_a_clock_behind_the_last_check(world: World) -> None:
    world.update()
    before = state_of(world.folder / "device")
    long_ago = time.time() - 10 * 365 * 86_400
    with pytest.raises(ClockBack, match="was seen at an earlier check"):
        world.update(clock=lambda: long_ago)
    assert state_of(world.folder / "device") == before
    # Clocks are set by little all the time.
    world.update(clock=lambda: time.time() - CLOCK_SLACK / 2)


def test_34_a_clock_behind_the_repository_on_first_contact(world: World) -> None:
    with pytest.raises(ClockBack, match="was signed by the repository"):
        world.update(clock=lambda: 0.0)
    assert versions(world) == {}


def test_37_no_space_is_seen_before_anything_comes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(world.folder)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    before = state_of(world.folder / "device")
    with pytest.raises(NoSpace, match="100 bytes are free"):
        world.update()
    assert state_of(world.folder / "device") == before
    assert not any("/targets/" in path for path in world.server.requests)


def start_update(world: World, *more: str) -> "subprocess.Popen[str]":
    """An update in a process of its own, by the command."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "promptdial.runtime",
            "update",
            str(world.folder / "device"),
            "--url",
            world.server.url,
            *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_blob_that_is_refused_stops_the_whole_update(world: World) -> None:
    """All or nothing: the good prompt beside it does not come either."""

    def bad(world: World, targets: Any) -> None:
        from tuf.api.metadata import TargetFile

        name = f"prompts/taste~{'a' * 8}.safetensors"
        target = TargetFile.from_data(name, b"pickle" * 9, ["sha256"])
        mine = next(iter(targets.targets.values()))
        target.unrecognized_fields = dict(mine.unrecognized_fields)
        targets.targets[name] = target
        path = world.targets / "prompts" / f"{target.hashes['sha256']}.{name[8:]}"
        path.write_bytes(b"pickle" * 9)

    targets_like(bad)(world)
    with pytest.raises(BlobInvalid):
        world.update()
    assert versions(world) == {}
    assert not any((world.folder / "device" / "blobs" / "x").parent.glob("*~*"))


def test_30_a_rotation_heals_a_leap(world: World) -> None:
    """The device took a leap (its first timestamp); the honest one then looks old."""
    world.edit("timestamp.json", lambda t: setattr(t, "version", 2**31), "timestamp")
    world.update()
    world.edit("timestamp.json", lambda t: setattr(t, "version", 9), "timestamp")
    with pytest.raises(
        PromptdialError, match="repo rotate DIR timestamp heals it"
    ) as e:
        world.update()
    assert e.value.code == "ROLLBACK"
    rotate(world.repository, "timestamp")
    world.publish(version=2)
    assert [x.version for x in world.update().prompts] == [2]


def test_keys_may_be_replaced_between_two_reads(world: World) -> None:
    """The root was asked for before a rotation, the timestamp after the next change."""
    rotate(world.repository, "timestamp")
    world.publish(version=2)
    asked: list[str] = []

    def late(path: str, headers: Mapping[str, str]) -> Reply | None:
        del headers
        asked.append(path)
        first = path == "/metadata/2.root.json" and asked.count(path) == 1
        return plain(404, b"")(world) if first else None

    world.server.lie = late
    assert [x.version for x in world.update().prompts] == [2]


def test_offline_leaves_everything_as_it_is(world: World) -> None:
    world.update()
    world.server.close()
    before = state_of(world.folder / "device")
    with pytest.raises(Offline, match="go on serving"):
        world.update()
    assert state_of(world.folder / "device") == before


@pytest.mark.parametrize("url", ["", "file:///etc", "ftp://x", "http://", "no url"])
def test_urls_that_cannot_be(world: World, url: str) -> None:
    with pytest.raises(UsageError, match="give http"):
        update(world.device, Source(url))


def test_a_host_that_does_not_exist(world: World) -> None:
    with pytest.raises(Offline):
        update(world.device, Source("http://nowhere.invalid"))


def test_headers_go_to_the_server_and_not_elsewhere(
    world: World, tmp_path: Path
) -> None:
    seen: list[tuple[str, str]] = []
    with serving(tmp_path) as elsewhere:

        def here(asked: str, headers: Mapping[str, str]) -> Reply | None:
            seen.append(("here", headers.get("x-key", "")))
            if asked != "/metadata/timestamp.json":
                return None
            there = {"Location": f"{elsewhere.url}/timestamp.json"}
            return lambda to: world.server.send(to, head_of(302, 0, there))

        def there(asked: str, headers: Mapping[str, str]) -> Reply | None:
            del asked
            seen.append(("there", headers.get("x-key", "")))
            return plain(500, b"")(world)

        world.server.lie, elsewhere.lie = here, there
        source = Source(world.server.url, headers=(("X-Key", "secret"),))
        with pytest.raises(Offline, match="500"):
            update(world.device, source)
    assert ("here", "secret") in seen and ("there", "") in seen
    assert ("there", "secret") not in seen


def test_tls_wants_a_certificate_that_is_trusted(world: World, tmp_path: Path) -> None:
    certificate, context = self_signed(tmp_path)
    with serving(world.server.folder, tls=context) as server:
        with pytest.raises(Offline, match="CERTIFICATE_VERIFY_FAILED"):
            update(world.device, Source(server.url))
        report = update(world.device, Source(server.url, certificate))
    assert report.prompts and report.received > report.needed
    with pytest.raises(PromptdialError, match="certificates"):
        update(world.device, Source(server.url, tmp_path / "none.pem"))


def self_signed(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that nobody has signed."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    here = x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path, private = folder / "ca.pem", folder / "key.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, private)
    return path, context


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(world: World) -> None:
    lines = io.StringIO()
    world.update(progress=Progress(lines))
    assert lines.getvalue().startswith("promptdial: colour 1: 1,3")
    assert lines.getvalue().count("\n") == 1

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    bar, shown = Terminal(), Progress(None)
    shown.begin("x", 10)
    shown.end()
    live = Progress(bar)
    live.begin("colour", 100)
    live.advance(100)
    live.end()
    assert "\r" in bar.getvalue() and "100%" in bar.getvalue()


def test_a_device_without_a_base_says_so(world: World) -> None:
    world.set_up_device(base=None)
    with pytest.raises(UsageError, match="has no base"):
        world.update()


def test_content_lies_are_seen_in_what_the_device_has(world: World) -> None:
    """A blob that rotted on the disk is fetched again."""
    world.update()
    digest = world.device.prompts()["", "colour"].digest
    world.blob_path(digest).write_bytes(b"rot")
    assert not world.device.has(digest)
    world.publish(version=2)
    content(lambda data: data)(world)
    assert [x.version for x in world.update().prompts] == [2]
