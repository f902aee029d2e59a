"""What the specification asks of a client, against a repository that may be anything.

The topics are those of tuf-conformance, the suite for clients: what is trusted, in
which order lists are asked, and what stays as it was after a refusal.
"""

import json
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile
from tuf_repository import TufRepository, in_days, metadata_asked, quoted
from tuf_repository import trusted as kept
from update_server import Reply, StaticServer, head_of, serving

ROLES = ("timestamp", "snapshot", "targets")


def loaded() -> ModuleType:
    """The executable of the suite's protocol, as a module: no process a call."""
    path = str(Path(__file__).parent / "tuf_client")
    spec = spec_from_loader("tuf_client", SourceFileLoader("tuf_client", path))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Client:
    """A client of one repository; its calls give exit codes."""

    def __init__(self, folder: Path, server: StaticServer) -> None:
        self.metadata, self.downloads = folder / "metadata", folder / "targets"
        self.metadata.mkdir(parents=True)
        self.downloads.mkdir()
        self._server, self._main = server, loaded().main

    def init(self, root: bytes) -> int:
        path = self.metadata.with_name("root.json")
        path.write_bytes(root)
        return self._run("init", str(path))

    def refresh(self) -> int:
        return self._run("--metadata-url", f"{self._server.url}/metadata", "refresh")

    def download(self, name: str) -> int:
        return self._run(
            *("--metadata-url", f"{self._server.url}/metadata"),
            *("--target-name", name, "--target-dir", str(self.downloads)),
            *("--target-base-url", f"{self._server.url}/targets", "download"),
        )

    def files(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.downloads.iterdir())

    def _run(self, *arguments: str) -> int:
        code = self._main(["--metadata-dir", str(self.metadata), *arguments])
        assert isinstance(code, int)
        return code


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StaticServer]:
    with serving(tmp_path / "public") as found:
        yield found


@pytest.fixture
def repository(tmp_path: Path) -> TufRepository:
    return TufRepository(tmp_path / "public")


@pytest.fixture
def client(repository: TufRepository, server: StaticServer, tmp_path: Path) -> Client:
    """One that knows the first root and nothing else."""
    found = Client(tmp_path / "client", server)
    assert found.init(repository.sign("root", repository.root)) == 0
    return found


def trusted(client: Client) -> dict[str, int]:
    return kept(client.metadata)


def versions(root: int, timestamp: int, snapshot: int, targets: int) -> dict[str, int]:
    names = ("root", "timestamp", "snapshot", "targets")
    return dict(zip(names, (root, timestamp, snapshot, targets), strict=True))


def keys(count: int) -> list[CryptoSigner]:
    return [CryptoSigner.generate_ed25519() for _ in range(count)]


# What is there at first, and what nobody expects.


def no_version(root: Any) -> None:
    del root["signed"]["version"]


def no_signature(root: Any) -> None:
    root["signatures"] = []


def other_signature(root: Any) -> None:
    root["signatures"][0]["sig"] = "00" * 64


def other_role(root: Any) -> None:
    root["signed"]["_type"] = "targets"


@pytest.mark.parametrize(
    "spoil", [no_version, no_signature, other_signature, other_role]
)
def test_a_first_root_that_is_wrong(
    repository: TufRepository,
    server: StaticServer,
    tmp_path: Path,
    spoil: Callable[[Any], None],
) -> None:
    body = json.loads(repository.sign("root", repository.root))
    spoil(body)
    client = Client(tmp_path / "other", server)
    client.init(json.dumps(body).encode())
    assert client.refresh() == 1
    assert server.requests == []


def test_a_download_refreshes_first(client: Client, server: StaticServer) -> None:
    assert client.download("nothing") == 1
    assert metadata_asked(server.requests) == [
        *("2.root", "timestamp", "1.snapshot", "1.targets")
    ]
    assert trusted(client) == versions(1, 1, 1, 1)


def test_fields_that_nobody_knows_are_signed_too(
    client: Client, repository: TufRepository
) -> None:
    root = repository.root
    (keyid,) = root.roles["snapshot"].keyids
    root.unrecognized_fields["more"] = "text"
    root.keys[keyid].unrecognized_fields["keyid_hash_algorithms"] = ["md5"]
    root.roles["root"].unrecognized_fields["more"] = {"a": 1}
    repository.publish_root()
    assert client.refresh() == 0
    assert trusted(client)["root"] == 2


def test_the_same_version_of_a_timestamp_is_not_taken_again(
    client: Client, repository: TufRepository
) -> None:
    assert client.refresh() == 0
    before = (client.metadata / "timestamp.json").read_bytes()
    repository.timestamp.snapshot_meta = MetaFile(100)
    repository.write_timestamp()
    assert client.refresh() == 0
    assert (client.metadata / "timestamp.json").read_bytes() == before


# Rollback, and the way out of a leap.


def older_timestamp(repository: TufRepository) -> None:
    repository.timestamp.version -= 1
    repository.write_timestamp()


def older_snapshot(repository: TufRepository) -> None:
    repository.snapshot.version -= 1
    repository.timestamp.version += 1
    repository.write()


def older_targets(repository: TufRepository) -> None:
    repository.targets.version -= 1
    repository.publish()


def other_snapshot(repository: TufRepository) -> None:
    """Its file has another version than the timestamp says."""
    repository.publish("targets")
    repository.timestamp.version += 1
    repository.timestamp.snapshot_meta = MetaFile(9)
    repository.write_timestamp()
    folder = repository.folder / "metadata"
    (folder / "9.snapshot.json").write_bytes((folder / "3.snapshot.json").read_bytes())


def other_targets(repository: TufRepository) -> None:
    """Its file has another version than the snapshot says."""
    repository.publish("targets")
    folder = repository.folder / "metadata"
    (folder / "3.targets.json").write_bytes((folder / "2.targets.json").read_bytes())


@pytest.mark.parametrize("hashes", [False, True], ids=["versions", "hashes"])
@pytest.mark.parametrize(
    ("attack", "after"),
    [
        (older_timestamp, (1, 2, 2, 2)),
        (older_snapshot, (1, 2, 2, 2)),
        (older_targets, (1, 3, 2, 2)),
        (other_snapshot, (1, 4, 2, 2)),
        (other_targets, (1, 3, 3, 2)),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_versions_never_go_back(
    client: Client,
    repository: TufRepository,
    attack: Callable[[TufRepository], None],
    after: tuple[int, int, int, int],
    hashes: bool,
) -> None:
    repository.hashes = hashes
    repository.publish("targets")
    assert client.refresh() == 0
    attack(repository)
    assert client.refresh() == 1
    assert trusted(client) == versions(*after)


@pytest.mark.parametrize(
    ("role", "replaced"),
    [
        ("timestamp", ("timestamp",)),
        ("snapshot", ("snapshot", "timestamp")),
        ("targets", ("snapshot",)),
    ],
)
def test_new_keys_heal_a_leap(
    client: Client, repository: TufRepository, role: str, replaced: tuple[str, ...]
) -> None:
    """Who had a key let a version leap; the honest ones are below it ever after."""
    documents: dict[str, Any] = {
        "timestamp": repository.timestamp,
        "snapshot": repository.snapshot,
        "targets": repository.targets,
    }
    found = documents[role]
    found.version = 99_999
    if role != "timestamp":
        repository.timestamp.version += 1
    if role == "targets":
        repository.snapshot.version += 1
    repository.write()
    assert client.refresh() == 0
    found.version = 2
    if role != "timestamp":
        repository.timestamp.version += 1
    if role == "targets":
        repository.snapshot.version += 1
    repository.write()
    assert client.refresh() == 1
    for name in replaced:
        repository.set_keys(name, keys(1))
    repository.publish_root()
    repository.write()
    assert client.refresh() == 0
    assert trusted(client)[role] == 2


# Expiry.


@pytest.mark.parametrize(
    ("role", "after"),
    [
        ("root", (2, 1, 1, 1)),
        ("timestamp", (1, 1, 1, 1)),
        ("snapshot", (1, 2, 1, 1)),
        ("targets", (1, 2, 2, 1)),
    ],
)
def test_what_has_expired_is_not_taken(
    client: Client,
    repository: TufRepository,
    role: str,
    after: tuple[int, int, int, int],
) -> None:
    """A root is kept all the same: the next one may follow it."""
    assert client.refresh() == 0
    documents: dict[str, Any] = {
        "root": repository.root,
        "timestamp": repository.timestamp,
        "snapshot": repository.snapshot,
        "targets": repository.targets,
    }
    documents[role].expires = in_days(-1)
    if role == "root":
        repository.publish_root()
    repository.publish("targets")
    assert client.refresh() == 1
    assert trusted(client) == versions(*after)
    documents[role].expires = in_days(1)
    if role == "root":
        repository.publish_root()
    repository.publish("targets")
    assert client.refresh() == 0


def test_an_expired_root_may_lead_to_the_next(
    client: Client, repository: TufRepository
) -> None:
    for days in (-2, -1, 1):
        repository.root.expires = in_days(days)
        repository.publish_root()
    assert client.refresh() == 0
    assert trusted(client)["root"] == 4


def test_what_a_client_has_may_have_expired_since(
    client: Client, repository: TufRepository
) -> None:
    """Rollback is told by it still, and new metadata replaces it."""
    repository.publish("targets")
    assert client.refresh() == 0
    for role, found in (
        ("timestamp", repository.timestamp),
        ("snapshot", repository.snapshot),
    ):
        expires, found.expires = found.expires, in_days(-3)
        (client.metadata / f"{role}.json").write_bytes(repository.sign(role, found))
        found.expires = expires
    older_timestamp(repository)
    assert client.refresh() == 1
    repository.timestamp.version = 2
    repository.publish("targets")
    assert client.refresh() == 0
    assert trusted(client) == versions(1, 3, 3, 3)


# Keys and thresholds.

Step = tuple[str, int, str]
"""Keys of a root, its threshold, and who signs it: a letter a key."""


@pytest.mark.parametrize(
    ("steps", "last"),
    [
        ([("a", 1, "a"), ("b", 1, "ab"), ("b", 1, "b")], 3),
        ([("a", 1, "xay"), ("b", 1, "xaby")], 2),
        ([("abcde", 3, "ace"), ("abcde", 3, "abd"), ("abcde", 3, "bcd")], 3),
        ([("abcde", 3, "ace"), ("abdef", 3, "abe")], 2),
        ([("abcde", 3, "ace"), ("fghij", 3, "acefgh"), ("fghij", 3, "hij")], 3),
        ([("abc", 1, "a"), ("abc", 2, "ab")], 2),
        ([("abc", 2, "ab"), ("abc", 1, "ab"), ("abc", 1, "c")], 3),
        ([("a", 1, "a"), ("ab", 2, "ab")], 2),
        # Not signed by the keys of before, or by too few of them.
        ([("a", 1, "a"), ("b", 1, "bxy")], 1),
        ([("abcde", 3, "ace"), ("abdef", 3, "aef")], 1),
        ([("abc", 2, "ab"), ("abc", 1, "a")], 1),
        # Not signed by its own keys, or by too few of them.
        ([("a", 1, "a"), ("b", 1, "axy")], 1),
        ([("abcde", 3, "ace"), ("abdef", 3, "ace")], 1),
        ([("abc", 1, "a"), ("abc", 2, "b")], 1),
        ([("ab", 2, "ab"), ("ab", 2, "aa")], 1),
        # What follows one that is refused is not asked for.
        ([("a", 1, "a"), ("b", 1, "b"), ("b", 1, "ab")], 1),
    ],
    ids=lambda item: (
        "-".join(map("".join, [map(str, x) for x in item]))
        if isinstance(item, list)
        else str(item)
    ),
)
def test_roots_follow_one_another(
    repository: TufRepository,
    server: StaticServer,
    tmp_path: Path,
    steps: list[Step],
    last: int,
) -> None:
    """Each is signed by enough of its own keys and of those before (5.3.4)."""
    known: dict[str, CryptoSigner] = {}

    def of(letters: str) -> list[CryptoSigner]:
        return [known.setdefault(x, CryptoSigner.generate_ed25519()) for x in letters]

    repository.root.version = 0
    for names, threshold, signing in steps:
        repository.set_keys("root", of(names), threshold, of(signing))
        repository.publish_root()
    repository.root.version = last
    client = Client(tmp_path / "other", server)
    folder = repository.folder / "metadata"
    assert client.init((folder / "1.root.json").read_bytes()) == 0
    assert client.refresh() == (0 if last == len(steps) else 1)
    newest = (folder / f"{last}.root.json").read_bytes()
    assert (client.metadata / "root.json").read_bytes() == newest
    asked = [x for x in metadata_asked(server.requests) if x.endswith(".root")]
    assert asked == [f"{n}.root" for n in range(2, last + 2)]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("names", "threshold", "signing", "good"),
    [
        ("b", 1, "b", True),
        ("a", 1, "xay", True),
        ("abcde", 3, "ace", True),
        ("abcde", 3, "bcd", True),
        ("b", 1, "axy", False),
        ("abdef", 3, "ace", False),
        ("abdef", 3, "ae", False),
        ("abc", 2, "aa", False),
        ("ab", 3, "ab", False),
    ],
)
def test_a_role_is_signed_by_enough_of_its_keys(
    client: Client,
    repository: TufRepository,
    role: str,
    names: str,
    threshold: int,
    signing: str,
    good: bool,
) -> None:
    assert client.refresh() == 0
    known = {letter: CryptoSigner.generate_ed25519() for letter in "abcdefxy"}
    own, signers = ([known[x] for x in letters] for letters in (names, signing))
    repository.set_keys(role, own, threshold, signers)
    repository.publish_root()
    repository.publish("targets")
    assert client.refresh() == (0 if good else 1)
    assert trusted(client)["root"] == 2
    assert trusted(client)[role] == (2 if good else 1)


# Delegations.

Tree = list[tuple[str, str, str, bool]]
"""Delegator, role, the paths that it is for, terminating."""


@pytest.mark.parametrize(
    ("tree", "asked"),
    [
        ([("targets", "A", "*", False)], "A"),
        ([("targets", "A", "*", False), ("targets", "B", "*", False)], "AB"),
        # In the order of appearance, and each to its end before the next.
        (
            [
                ("targets", "A", "*", False),
                ("targets", "B", "*", False),
                ("A", "C", "*", False),
                ("C", "D", "*", False),
                ("A", "E", "*", False),
            ],
            "ACDEB",
        ),
        # A terminating delegation ends the search behind its own descendants.
        (
            [
                ("targets", "A", "*", False),
                ("targets", "B", "*", False),
                ("A", "C", "*", True),
                ("A", "D", "*", False),
                ("C", "E", "*", False),
            ],
            "ACE",
        ),
        # What a path does not match is not asked for, nor what is below.
        (
            [
                ("targets", "A", "*.py", False),
                ("targets", "B", "*", False),
                ("A", "C", "*", False),
                ("B", "D", "*.py", False),
            ],
            "B",
        ),
        # A terminating one that does not match ends nothing.
        ([("targets", "A", "*.py", True), ("targets", "B", "*", False)], "B"),
        # Rings, and a role that two delegate to, are gone through once.
        (
            [
                ("targets", "A", "*", False),
                ("A", "B", "*", False),
                ("B", "C", "*", False),
                ("C", "A", "*", False),
                ("C", "B", "*", False),
            ],
            "ABC",
        ),
        (
            [
                ("targets", "A", "*", False),
                ("targets", "B", "*", False),
                ("A", "C", "*.py", False),
                ("B", "C", "*", False),
            ],
            "ABC",
        ),
    ],
)
def test_the_order_of_the_search(
    client: Client,
    repository: TufRepository,
    server: StaticServer,
    tree: Tree,
    asked: str,
) -> None:
    for by, name, paths, terminating in tree:
        repository.delegate(by, name, [paths], terminating)
    repository.publish("targets")
    assert client.download("missing") == 1
    assert metadata_asked(server.requests)[4:] == [f"1.{name}" for name in asked]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("top", ""),
        ("README.md", "A"),
        ("releases/x/one", "BC"),
        ("releases/y/one.zip", "BD"),
        # D has it, and nobody lets D have it.
        ("releases/z/one.zip", "B"),
        # A * does not reach over a slash.
        ("docs/README.md", ""),
    ],
)
def test_targets_are_found_by_their_paths(
    client: Client,
    repository: TufRepository,
    server: StaticServer,
    path: str,
    asked: str,
) -> None:
    repository.delegate("targets", "A", ["*.md"])
    repository.delegate("targets", "B", ["releases/*/*"])
    repository.delegate("B", "C", ["releases/x/*"])
    repository.delegate("B", "D", ["releases/y/*.zip"])
    for role, name in (
        ("targets", "top"),
        ("A", "README.md"),
        ("A", "docs/README.md"),
        ("C", "releases/x/one"),
        ("D", "releases/y/one.zip"),
        ("D", "releases/z/one.zip"),
    ):
        repository.add(role, name, f"{name} of {role}".encode())
    repository.publish("targets")
    found = path not in ("releases/z/one.zip", "docs/README.md")
    assert client.download(path) == (0 if found else 1)
    assert metadata_asked(server.requests)[4:] == [f"1.{name}" for name in asked]
    assert len(client.files()) == found


def test_a_delegated_list_is_checked_as_the_others(
    client: Client, repository: TufRepository
) -> None:
    repository.delegate("targets", "A", ["*"])
    repository.add("A", "one", b"one")
    repository.publish("targets", "A")
    assert client.download("one") == 0
    before = trusted(client)
    good, repository.signers["A"] = repository.signers["A"], keys(1)
    repository.publish("A")
    assert client.download("one") == 1
    repository.signers["A"] = good
    repository.lists["A"].expires = in_days(-1)
    repository.publish("A")
    assert client.download("one") == 1
    assert trusted(client)["A"] == before["A"]
    repository.lists["A"].expires = in_days(1)
    repository.lists["A"].version = 1
    repository.publish()
    assert client.download("one") == 1
    repository.lists["A"].version = 9
    repository.publish()
    assert client.download("one") == 0
    assert trusted(client)["A"] == 9


@pytest.mark.parametrize("role", ["?", "#", "a b", "/role", "../role", "..", "ä"])
def test_names_of_roles_lead_nowhere(
    client: Client,
    repository: TufRepository,
    server: StaticServer,
    tmp_path: Path,
    role: str,
) -> None:
    repository.delegate("targets", role, ["*"])
    repository.publish("targets")
    data = repository.sign(role, repository.lists[role])

    def answer(path: str, headers: object) -> Reply | None:
        del headers
        if path != f"/metadata/1.{role}.json":
            return None
        return lambda to: server.send(to, head_of(200, len(data)) + data)

    server.lie = answer
    before = {
        path for path in tmp_path.rglob("*") if client.metadata not in path.parents
    }
    assert client.download("missing") == 1
    assert metadata_asked(server.requests)[4:] == [f"1.{role}"]
    assert (client.metadata / f"{quoted(role)}.json").read_bytes() == data
    after = {
        path for path in tmp_path.rglob("*") if client.metadata not in path.parents
    }
    assert after == before


# Content.


@pytest.mark.parametrize("consistent", [True, False])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("path", ["file.txt", "a/deep/path/file.txt"])
def test_content_is_downloaded(
    client: Client,
    repository: TufRepository,
    path: str,
    algorithm: str,
    consistent: bool,
) -> None:
    repository.root.consistent_snapshot = consistent
    repository.publish_root()
    repository.add("targets", path, b"content", algorithm)
    repository.publish("targets")
    assert client.refresh() == 0
    assert client.files() == []
    assert client.download(path) == 0
    assert client.files() == [b"content"]


def test_content_that_was_replaced_is_not_taken(
    client: Client, repository: TufRepository
) -> None:
    for name in ("one", "two"):
        repository.add("targets", name, name.encode())
    repository.publish("targets")
    assert client.download("one") == 0
    for path in (repository.folder / "targets").iterdir():
        path.write_bytes(b"bad")
    assert client.download("one") == 0
    assert client.download("two") == 1
    assert client.files() == [b"one"]


def test_content_that_changes_again_and_again(
    client: Client, repository: TufRepository
) -> None:
    for number in range(8):
        repository.add("targets", "one", b"%d" % number)
        repository.publish("targets")
        if number % 3 == 0:
            assert client.download("one") == 0
            assert client.files() == [b"%d" % number]


@pytest.mark.parametrize("edit", ["longer", "shorter", "hash"])
def test_content_is_of_the_signed_length_and_hash(
    client: Client, repository: TufRepository, edit: str
) -> None:
    repository.add("targets", "one", b"content")
    target = repository.targets.targets["one"]
    if edit == "hash":
        file = next((repository.folder / "targets").iterdir())
        file.write_bytes(b"CONTENT")
    else:
        target.length += 1 if edit == "longer" else -1
    repository.publish("targets")
    assert client.download("one") == 1
    assert client.files() == []
