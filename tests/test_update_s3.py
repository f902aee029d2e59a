"""Publishing to a real S3 server on loopback, and a device that reads from it."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")
pytest.importorskip("moto", reason="moto[server] is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")

import fsspec.config
from test_update_prune import age
from test_update_publishing import tree
from update_world import BASE, blob_file

from promptdial.prompts.errors import Offline
from promptdial.prompts.store import set_up_updates
from promptdial.prompts.store.receiving import StoreReceiver
from promptdial.prompts.updates.device.fetcher import Source
from promptdial.prompts.updates.device.update import update
from promptdial.prompts.updates.publishing.prune import prune
from promptdial.prompts.updates.publishing.publish import publish_prompts
from promptdial.prompts.updates.publishing.repository import open_repository
from promptdial.prompts.updates.publishing.roles import (
    init_repository,
    refresh,
    rotate,
)

BUCKET = "fleet"
PUBLIC = {"s3_additional_kwargs": {"ACL": "public-read"}}
"""What makes an object one that everyone reads; fsspec takes it from its settings."""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a server that has an open bucket."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    code = "import sys; from moto.server import main; main(sys.argv[1:])"
    server = subprocess.Popen(
        [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=60).close()
        yield url
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str) -> None:
    for _ in range(1200):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("moto's server did not come up")


@pytest.fixture
def credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setitem(fsspec.config.conf, "s3", PUBLIC)
    return s3


@pytest.mark.filterwarnings("ignore")  # of botocore and aiohttp, not ours
def test_a_device_follows_a_bucket(credentials: str, tmp_path: Path) -> None:
    to = f"s3://{BUCKET}/one"
    init_repository(tmp_path / "repository", to=to)
    repository = open_repository(tmp_path / "repository")
    publish_prompts(repository, [blob_file(tmp_path / "blobs")])
    root = (repository.metadata / "1.root.json").read_bytes()
    set_up_updates(tmp_path / "device", root, base=BASE)
    device = StoreReceiver(tmp_path / "device")
    source = Source(f"{credentials}/{BUCKET}/one")
    assert [x.version for x in update(device, source).prompts] == [1]
    sent = publish_prompts(repository, [blob_file(tmp_path / "blobs", version=2)]).sent
    # The blob, its list, the snapshot, the timestamp: nothing else again.
    assert sent == 4
    rotate(repository, "timestamp")
    assert refresh(repository).published.sent == 1
    assert [x.version for x in update(device, source).prompts] == [2]
    age(repository.metadata, 8)
    done = prune(repository)
    assert done.removed == done.removed_there > 0
    import s3fs

    files = s3fs.S3FileSystem()
    there = {
        name.removeprefix(f"{BUCKET}/one/"): files.cat_file(name)
        for name in files.find(f"{BUCKET}/one")
    }
    assert there == tree(repository.public)


@pytest.mark.filterwarnings("ignore")
def test_a_bucket_that_is_not_there(credentials: str, tmp_path: Path) -> None:
    del credentials
    with pytest.raises(Offline, match="check the URL, the network and the credentials"):
        init_repository(tmp_path / "repository", to="s3://nowhere/x")
