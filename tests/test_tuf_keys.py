"""Keys and thresholds as TUF asks of a client: who may sign what.

The topics are those of tuf-conformance, the suite for clients.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from securesystemslib.signer import CryptoSigner
from tuf_in_process import Client, new_client, trusted
from tuf_repository import TufRepository, metadata_asked
from update_server import StaticServer, serving


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


ROLES = ("timestamp", "snapshot", "targets")

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
