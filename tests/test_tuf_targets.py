"""Delegations and content as TUF asks of a client: where a target is looked for.

The topics are those of tuf-conformance, the suite for clients.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from tuf_in_process import Client, keys, new_client, trusted
from tuf_repository import TufRepository, in_days, metadata_asked, quoted
from update_server import Reply, StaticServer, head_of, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StaticServer]:
    with serving(tmp_path / "public") as found:
        yield found


@pytest.fixture
def repository(tmp_path: Path) -> TufRepository:
    return TufRepository(tmp_path / "public")


@pytest.fixture
def client(repository: TufRepository, server: StaticServer, tmp_path: Path) -> Client:
    return new_client(repository, server, tmp_path)


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
