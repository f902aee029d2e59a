"""Names are looked up within a time, and every address of a name is tried."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from update_server import StaticServer, serving

from promptdial.prompts.errors import Offline, TooSlow
from promptdial.prompts.updates.device.dial import Resolve, system_addresses
from promptdial.prompts.updates.device.fetcher import BoundedFetcher, Source
from promptdial.prompts.updates.device.limits import Limits

NAME = "fleet.invalid"
"""A name that no resolver knows: an answer comes from the one that a test gives."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StaticServer]:
    (tmp_path / "file").write_bytes(b"content")
    with serving(tmp_path) as found:
        yield found


@pytest.fixture
def silent() -> Iterator[Resolve]:
    """A resolver whose name server does not answer, until the test is over."""
    over = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        del host, port
        over.wait(60)
        return ["127.0.0.1"]

    yield resolve
    over.set()


def fetch(server: StaticServer, resolve: Resolve, limits: Limits) -> bytes:
    port = server.url.rpartition(":")[2]
    source = Source(f"http://{NAME}:{port}")
    fetcher = BoundedFetcher(source, limits, resolve)
    fetcher.meter.begin(limits.metadata_seconds, limits.metadata_bytes)
    try:
        return fetcher.download_bytes(f"{source.url}/file", 100)
    finally:
        fetcher.close()


def test_a_name_leads_to_the_server(server: StaticServer) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(f"{host}:{port}")
        return ["127.0.0.1"]

    assert fetch(server, resolve, Limits()) == b"content"
    assert asked == [f"{NAME}:{server.url.rpartition(':')[2]}"]


def test_a_silent_name_server_is_given_up(
    server: StaticServer, silent: Resolve
) -> None:
    with pytest.raises(Offline, match=f"no address of {NAME} after 0.2 s"):
        fetch(server, silent, Limits(wait_seconds=0.2))
    assert server.requests == []


def test_looking_up_takes_no_more_than_the_time_of_all(
    server: StaticServer, silent: Resolve
) -> None:
    with pytest.raises(TooSlow, match="not done after"):
        fetch(server, silent, Limits(wait_seconds=30, metadata_seconds=0.2))


def test_the_next_address_is_tried(server: StaticServer) -> None:
    # The server listens at the second one alone.
    addresses = ["127.0.0.2", "127.0.0.1"]
    assert fetch(server, lambda host, port: addresses, Limits()) == b"content"


@pytest.mark.parametrize(
    ("addresses", "why"),
    [([], "the name has no address"), (["127.0.0.2"], "refused")],
)
def test_no_address_that_answers(
    server: StaticServer, addresses: list[str], why: str
) -> None:
    with pytest.raises(Offline, match=why):
        fetch(server, lambda host, port: addresses, Limits())


def test_the_systems_resolver() -> None:
    assert system_addresses("127.0.0.1", 80) == ["127.0.0.1"]
    assert "127.0.0.1" in system_addresses("localhost", 80)
    with pytest.raises(socket.gaierror):
        system_addresses(NAME, 80)
