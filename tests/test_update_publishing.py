"""The publishing side: keys, versions, layout, rotation, and readers meanwhile."""

import json
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from tuf.api.metadata import TargetFile
from update_server import serving
from update_world import BASE, World, blob_file, days_ago

from promptdial.prompts.errors import (
    FileFailed,
    KeyRefused,
    PromptdialError,
    UpdateBusy,
    UsageError,
    VersionPublished,
)
from promptdial.prompts.updates.lock import locked
from promptdial.prompts.updates.names import PromptName, check_name, parse_name, short
from promptdial.prompts.updates.publishing.layout import (
    bin_bits,
    put,
    rebalance,
    targets_of,
)
from promptdial.prompts.updates.publishing.publish import publish_prompts, revoke
from promptdial.prompts.updates.publishing.releases import Audience
from promptdial.prompts.updates.publishing.repository import (
    Repository,
    changing,
    finish,
    open_repository,
)
from promptdial.prompts.updates.publishing.roles import (
    delegate,
    init_repository,
    refresh,
    rotate,
)
from promptdial.prompts.updates.publishing.settings import (
    Lifetimes,
    Signers,
    parse_days,
    parse_signers,
)
from promptdial.prompts.updates.receiver import Following


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    init_repository(folder / "repository")
    with serving(folder / "repository" / "public") as server:
        yield World(folder, server)


def signed(path: Path) -> Any:
    return json.loads(path.read_text())["signed"]


def fill(world: World, count: int, tenant: str = "", start: int = 0) -> list[str]:
    """Publish targets without content, as many as a test needs."""
    names = []
    with changing(world.repository) as draft:
        for number in range(start, start + count):
            name = PromptName(tenant, f"task{number:05}", short(BASE.fingerprint))
            custom = {"tokenizer": "b" * 8, "version": 1}
            put(
                draft,
                name,
                TargetFile(
                    40_000,
                    {"sha256": f"{number:064x}"},
                    name.target,
                    {"custom": custom},
                ),
            )
            names.append(name.target)
        rebalance(draft, tenant)
        finish(world.repository, draft, names)
    return names


def test_keys_are_private_and_ed25519(tmp_path: Path) -> None:
    init_repository(tmp_path, {"root": Signers(2, 3)})
    keys = list((tmp_path / "keys").glob("*.pem"))
    assert len(keys) == 3 + 1 + 1 + 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    root = signed(tmp_path / "public" / "metadata" / "1.root.json")
    assert root["roles"]["root"]["threshold"] == 2
    assert root["consistent_snapshot"] is True
    assert {key["scheme"] for key in root["keys"].values()} == {"ed25519"}
    # Nothing private is where a web server looks.
    assert not [
        path for path in (tmp_path / "public").rglob("*") if ".pem" in str(path)
    ]


def test_a_repository_is_not_made_twice(world: World) -> None:
    with pytest.raises(UsageError, match="has a repository"):
        init_repository(world.folder / "repository")


@pytest.mark.parametrize(
    "text", ["root", "root=2", "root=3/2", "root=0/1", "root=a/b", "root=1/17"]
)
def test_thresholds_that_cannot_be(tmp_path: Path, text: str) -> None:
    with pytest.raises((UsageError, KeyRefused)):
        init_repository(tmp_path, parse_signers([text]))
    assert not (tmp_path / "public").exists()


@pytest.mark.parametrize("text", ["root", "root=x", "tenant=3", "timestamp=0"])
def test_lifetimes_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="lifetime"):
        parse_days([text], Lifetimes())


def test_the_same_blob_again_is_nothing_new(world: World) -> None:
    assert world.publish()
    before = sorted(world.metadata.iterdir())
    assert world.publish() == ()
    assert sorted(world.metadata.iterdir()) == before


def test_51_a_version_never_changes(world: World) -> None:
    world.publish(version=2)
    before = world.current("targets")
    other = blob_file(world.folder / "other", "colour", 2, seed=9)
    with pytest.raises(VersionPublished, match="version 2 is published with digest"):
        publish_prompts(world.repository, [other])
    with pytest.raises(VersionPublished, match="version 2 is published with digest"):
        publish_prompts(world.repository, [other], Audience(channel="beta"))
    with pytest.raises(VersionPublished, match="version 2 is published, this one is 1"):
        world.publish(version=1)
    assert world.current("targets") == before


def test_50_a_missing_key_is_refused(world: World) -> None:
    for path in world.repository.keys.glob("targets-*.pem"):
        path.rename(path.with_suffix(".away"))
    with pytest.raises(KeyRefused, match="role targets has 0 keys here, needs 1"):
        world.publish()
    assert world.current("targets") == "1.targets.json"
    shutil.rmtree(world.repository.keys)
    with pytest.raises(KeyRefused, match="no folder of keys"):
        world.publish()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_50_a_key_that_others_read_is_refused(world: World, mode: int) -> None:
    path = next(world.repository.keys.glob("timestamp-*.pem"))
    path.chmod(mode)
    with pytest.raises(KeyRefused, match=f"mode {mode:04o}, allowed: 0600"):
        world.publish()


def test_50_only_ed25519_keys_are_taken(world: World) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    path = next(world.repository.keys.glob("timestamp-*.pem"))
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    with pytest.raises(KeyRefused, match="allowed: Ed25519"):
        world.publish()
    path.write_bytes(b"no key")
    with pytest.raises(KeyRefused, match="is no key"):
        world.publish()


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "prompts/../../evil~aaaaaaaa.safetensors",
        "/etc/passwd",
        "prompts/a b~aaaaaaaa.safetensors",
        "prompts/all/colour~aaaaaaaa.safetensors",
        "prompts/colour~aaaaaaaa~stable.safetensors",
        "prompts/colour~../../../../etc.safetensors",
        "prompts\\evil~aaaaaaaa.safetensors",
        "bases/x/../y",
        "bases/x/.hidden",
        "other/x",
        "",
    ],
)
def test_36_names_that_no_target_has(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)
    assert parse_name(name) is None


def test_36_a_bundle_whose_manifest_climbs_is_refused(world: World) -> None:
    from promptdial.prompts.updates.publishing.publish import publish_bundle

    bundle = world.folder / "bundle"
    bundle.mkdir()
    (world.folder / "evil").write_bytes(b"evil")
    body = {
        "base": {
            "fingerprint": BASE.fingerprint,
            "tokenizer_fingerprint": BASE.tokenizer_fingerprint,
        },
        "files": {"../evil": {"sha256": "0" * 64, "bytes": 4}},
    }
    (bundle / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(UsageError, match=r"leads out of its folder"):
        publish_bundle(world.repository, bundle, "tiny", 1)


def test_names_are_read_back() -> None:
    for name in (
        "prompts/colour~01234567.safetensors",
        "prompts/acme/a.b-c_d~01234567~beta.safetensors",
        "bases/minilm/model_int8.onnx",
        "bases/minilm~beta/manifest.json",
    ):
        found = parse_name(name)
        assert found is not None and found.target == name
        check_name(name)


def test_bins_by_the_rule() -> None:
    assert 2 ** bin_bits(10_000) == 256
    assert [bin_bits(count) for count in (0, 1, 201, 10**9)] == [1, 1, 5, 14]


def test_above_200_targets_the_list_is_split(world: World) -> None:
    names = fill(world, 200)
    assert len(signed(world.metadata / world.current("targets"))["targets"]) == 200
    names += fill(world, 30, start=200)
    top = signed(world.metadata / world.current("targets"))
    assert top["targets"] == {}
    assert top["delegations"]["succinct_roles"]["bit_length"] == bin_bits(230)
    bins = sorted(world.metadata.glob("1._-*.json"))
    assert len(bins) == 2 ** bin_bits(230)
    found = [name for path in bins for name in signed(path)["targets"]]
    assert sorted(found) == sorted(names)
    # One more target signs one bin again, and what names it.
    written = world.publish("colour")
    lists = [name for name in written if "_-" in name]
    assert len(lists) == 1 and "timestamp.json" == written[-1]


def test_bins_grow_with_the_targets(world: World) -> None:
    fill(world, 201)
    assert len(list(world.metadata.glob("1._-*.json"))) == 32
    # As many as make 128 bins right: all names move, none is lost.
    names = fill(world, 2_600, start=201)
    with changing(world.repository) as draft:
        found = {target.path for target in targets_of(draft, "")}
    assert set(names) <= found and len(found) == 2_801
    bins = {path.name.partition(".")[2] for path in world.metadata.glob("*._-*")}
    assert len(bins) == 128


@pytest.mark.parametrize("bins_first", [True, False])
def test_bins_beside_tenants_are_of_a_role_of_their_own(
    world: World, bins_first: bool
) -> None:
    """Whatever came first, and for a device that knew the list of before."""
    world.publish(version=1)
    world.publish(version=2, channel="beta")
    beta = Following("d", "beta", ("", "acme"), frozenset({"colour"}))
    world.set_up_device(beta)
    if bins_first:
        fill(world, 230)
        assert [offer.version for offer in world.update().prompts] == [2]
        delegate(world.repository, "acme", Signers())
    else:
        delegate(world.repository, "acme", Signers())
        world.update()
        fill(world, 230)
    top = signed(world.metadata / world.current("targets"))
    roles = {role["name"]: role for role in top["delegations"]["roles"]}
    assert set(roles) == {"all", "acme"}
    assert all(role["terminating"] is True for role in roles.values())
    assert "channels" in signed(world.metadata / world.current("all"))
    assert world.update().prompts == ()
    for version, tenant, channel in ((3, "", "beta"), (4, "acme", "stable")):
        world.publish(version=version, tenant=tenant, channel=channel)
        assert [offer.version for offer in world.update().prompts] == [version]
    rotate(world.repository, "targets")
    world.publish(version=5)
    assert [offer.version for offer in world.update().prompts] == [5]


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_devices_of_a_repository_in_bins_follow_a_rotation(
    world: World, role: str
) -> None:
    fill(world, 230)
    world.publish()
    world.set_up_device(Following("d", tasks=frozenset({"colour"})))
    world.update()
    rotate(world.repository, role)
    assert world.update().prompts == ()
    world.publish(version=2)
    assert [offer.version for offer in world.update().prompts] == [2]


def test_a_tenant_has_its_own_key_and_path(world: World) -> None:
    delegate(world.repository, "acme", Signers(2, 2))
    world.publish(tenant="acme")
    role = signed(world.metadata / world.current("targets"))["delegations"]["roles"][0]
    assert role["name"] == "acme" and role["threshold"] == 2
    assert role["paths"] == ["prompts/acme/*"] and role["terminating"] is True
    own = signed(world.metadata / world.current("acme"))["targets"]
    assert list(own) == ["prompts/acme/colour~aaaaaaaa.safetensors"]
    with pytest.raises(UsageError, match="no tenant 'other', there is: acme"):
        world.publish(tenant="other")
    with pytest.raises(UsageError, match="is there"):
        delegate(world.repository, "acme", Signers())
    for name in ("root", "all", "A", "../x", ""):
        with pytest.raises(UsageError):
            delegate(world.repository, name, Signers())


def test_a_tenant_alone_publishes_with_its_keys(world: World) -> None:
    """The publisher's machine needs no other key of targets than the tenant's."""
    delegate(world.repository, "acme", Signers())
    for role in ("root", "targets"):
        for path in world.repository.keys.glob(f"{role}-*.pem"):
            path.unlink()
    assert world.publish(tenant="acme")
    with pytest.raises(KeyRefused, match="role targets"):
        world.publish()


def test_a_tenants_bins(world: World) -> None:
    delegate(world.repository, "acme", Signers())
    names = fill(world, 230, "acme")
    world.set_up_device(Following("d", tenants=("acme",)))
    with changing(world.repository) as draft:
        assert {x.path for x in targets_of(draft, "acme")} == set(names)
    rotate(world.repository, "acme")
    report = world.update(dry_run=True)
    assert len(report.prompts) == 230


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "acme"])
def test_devices_follow_a_rotation(world: World, role: str) -> None:
    delegate(world.repository, "acme", Signers())
    world.publish()
    world.publish(tenant="acme")
    world.set_up_device(Following("d", tenants=("", "acme")))
    world.update()
    old = list(world.repository.keys.glob(f"{role}-*.pem"))
    rotate(world.repository, role)
    assert all((path.parent / "retired" / path.name).exists() for path in old)
    assert not any(path.exists() for path in old)
    world.update()
    tenant = "acme" if role == "acme" else ""
    world.publish(version=2, tenant=tenant)
    assert [offer.version for offer in world.update().prompts] == [2]


def test_a_rotation_may_change_the_threshold(world: World) -> None:
    rotate(world.repository, "root", Signers(2, 3))
    rotate(world.repository, "targets", Signers(2, 2))
    world.publish()
    root = signed(world.metadata / world.current("root"))
    assert root["roles"]["root"]["threshold"] == 2
    assert len(root["roles"]["root"]["keyids"]) == 3
    world.set_up_device()
    assert world.update().prompts
    with pytest.raises(UsageError, match="no role 'nope'"):
        rotate(world.repository, "nope")


def test_what_is_revoked_leaves_use_and_stays_away(world: World) -> None:
    world.publish(version=1)
    world.set_up_device()
    world.update()
    world.pass_trials()
    world.publish(version=2)
    world.update()
    world.pass_trials()
    revoke(world.repository, "colour")
    report = world.update()
    assert report.revoked and not report.prompts
    state = world.device.prompts()["", "colour"]
    assert (state.version, state.floor) == (1, 2)
    with pytest.raises(VersionPublished, match="was revoked"):
        world.publish(version=2)
    # What went out under the old number comes back under a new one.
    world.publish(version=3)
    assert [offer.version for offer in world.update().prompts] == [3]
    with pytest.raises(UsageError, match="no release of 'nope'"):
        revoke(world.repository, "nope")


def test_refresh_needs_the_timestamps_key_alone(world: World) -> None:
    world.publish()
    for path in world.repository.keys.glob("*.pem"):
        if not path.name.startswith("timestamp"):
            path.unlink()
    done = refresh(world.repository)
    assert done.published.written == ("timestamp.json",) and not done.due


def test_refresh_signs_again_what_lived_half_its_life(world: World) -> None:
    with days_ago(100):
        world.publish()
    done = refresh(world.repository)
    roles = [name.split(".")[-2] for name in done.published.written]
    assert roles == ["targets", "snapshot", "timestamp"]
    world.set_up_device()
    assert world.update().prompts


def test_refresh_says_what_it_cannot_sign(world: World) -> None:
    with days_ago(100):
        world.publish()
    for path in world.repository.keys.glob("targets-*.pem"):
        path.unlink()
    assert set(refresh(world.repository).due) == {"targets"}


def test_what_a_run_cut_short_left_is_no_hindrance(world: World) -> None:
    """Files that nothing names: the next versions, written before the power went."""
    world.publish()
    (world.metadata / "3.targets.json").write_bytes(b"half")
    (world.metadata / "3.snapshot.json").write_bytes(b"half")
    (world.metadata / "7.all.json").write_bytes(b"half")
    world.publish(version=2)
    assert not (world.metadata / "7.all.json").exists()
    world.set_up_device()
    assert [offer.version for offer in world.update().prompts] == [2]


def test_nothing_is_signed_over_a_forgery(world: World) -> None:
    """Who can write to the web server's folder gets no signature that way."""
    world.publish()
    world.edit(
        world.current("targets"),
        lambda targets: targets.targets.update(
            {"prompts/evil~aaaaaaaa.safetensors": next(iter(targets.targets.values()))}
        ),
    )
    with pytest.raises(PromptdialError) as caught:
        world.publish(version=2)
    assert caught.value.code == "UNTRUSTED"


def test_two_publishers_at_once(world: World) -> None:
    with locked(world.folder / "repository" / ".lock", "a change"):
        code = (
            "import sys; from pathlib import Path\n"
            "from promptdial.prompts.updates.publishing.roles import refresh\n"
            "from promptdial.prompts.updates.publishing.repository import "
            "open_repository\n"
            "refresh(open_repository(Path(sys.argv[1])))"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, str(world.folder / "repository")],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert UpdateBusy.__name__ in run.stderr
        with pytest.raises(UpdateBusy):
            refresh(world.repository)


def test_a_folder_that_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(FileFailed, match="is no repository"):
        open_repository(tmp_path)


def test_a_reader_never_sees_a_hole(world: World) -> None:
    """A device reads without a pause while everything is published and rotated."""
    world.publish()
    failures: list[str] = []
    reads, following = 0, Following("d", tasks=frozenset({"colour"}))
    stop = threading.Event()

    def read() -> None:
        nonlocal reads
        while not stop.is_set():
            world.set_up_device(following)
            try:
                world.update()
                world.update()
                reads += 1
            except PromptdialError as error:
                failures.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in range(2, 6):
            world.publish(version=version)
            for role in ("timestamp", "snapshot", "targets", "root"):
                rotate(world.repository, role)
            refresh(world.repository)
        fill(world, 220)
    finally:
        stop.set()
        reader.join()
    assert failures == []
    assert reads > 0


def test_the_destination_is_the_same_as_public(tmp_path: Path) -> None:
    init_repository(tmp_path / "repository", to=str(tmp_path / "www"))
    repository = open_repository(tmp_path / "repository")
    publish_prompts(repository, [blob_file(tmp_path / "blobs")])
    assert tree(tmp_path / "www") == tree(repository.public)


def test_a_url_is_the_same_as_public(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    init_repository(tmp_path / "repository", to="memory://fleet/one")
    repository: Repository = open_repository(tmp_path / "repository")
    publish_prompts(repository, [blob_file(tmp_path / "blobs")])
    files = fsspec.filesystem("memory")
    found = {
        name.removeprefix("/fleet/one/"): files.cat(name)
        for name in files.find("/fleet/one")
    }
    assert found == tree(repository.public)


def test_an_unknown_kind_of_url(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nope://x"):
        init_repository(tmp_path / "repository", to="nope://x")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
