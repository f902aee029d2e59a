"""The one place that talks to the network: bounded, metered, every error mapped."""

import re
import ssl
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface
from urllib3.exceptions import HTTPError, MaxRetryError, TimeoutError
from urllib3.response import BaseHTTPResponse

from promptdial.prompts.errors import Offline, TooBig, TooSlow
from promptdial.prompts.updates.device.connection import open_manager
from promptdial.prompts.updates.device.dial import Resolve, system_addresses
from promptdial.prompts.updates.device.limits import DEFAULT_LIMITS, Limits, Meter

_CHUNK = 16_384
_OBJECT = re.compile(r"^(<.*?>|\w+\(.*?\)): ")
_PARTIAL = 206
_RANGE_WRONG = 416
_ABSENT = (403, 404)
"""What a server says of a root that is not there yet; object stores say 403."""


@dataclass(frozen=True)
class Source:
    """Where a repository is.

    Attributes:
        url: Of the folder that has `metadata/` and `targets/`.
        ca: Certificates to trust instead of the system's.
        headers: Sent with every request, such as ("Authorization", "Bearer ...").
    """

    url: str
    ca: Path | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def metadata_url(self) -> str:
        """Of the metadata."""
        return f"{self.url.rstrip('/')}/metadata/"

    @property
    def targets_url(self) -> str:
        """Of the content."""
        return f"{self.url.rstrip('/')}/targets/"


@dataclass(frozen=True)
class Piece:
    """The beginning of an answer.

    Attributes:
        offset: Where in the file it begins; 0 where the server sends all of it.
        chunks: The bytes; to be closed, read to their end or not.
    """

    offset: int
    chunks: Generator[bytes, None, None]


class BoundedFetcher(FetcherInterface):
    """Fetches over HTTP.

    Its errors are promptdial's own but for DownloadHTTPError: the updater must see that
    a root is not there.

    Attributes:
        meter: What the update has cost so far.
    """

    def __init__(
        self,
        source: Source,
        limits: Limits = DEFAULT_LIMITS,
        resolve: Resolve = system_addresses,
    ) -> None:
        """Open no connection yet.

        Args:
            source: Where the repository is.
            limits: The most that it may cost.
            resolve: Looks names up.

        Raises:
            UsageError: The URL is not of http or https.
            FileFailed: The certificates cannot be read.
        """
        self.meter = Meter()
        self.look: Callable[[str, bytes], None] = _ignore
        headers = {
            # No compression: what unpacks to more than came cannot be bounded by it.
            "Accept-Encoding": "identity",
            "User-Agent": "promptdial",
            **dict(source.headers),
        }
        self._manager = open_manager(
            source.url, source.ca, headers, self.meter, limits.wait_seconds, resolve
        )

    def close(self) -> None:
        """Close the connections."""
        self._manager.clear()

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """A small file, in memory.

        Raises:
            DownloadHTTPError: The server answered 403 or 404.
            UpdateError: It cannot be had, is too big or too slow.
        """
        with closing(self.open(url, 0).chunks) as chunks:
            found = b"".join(_bounded(chunks, url, max_length))
        self.look(url, found)
        return found

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.open(url, 0).chunks

    def fetch(self, url: str) -> Iterator[bytes]:
        """The bytes of a file, without a bound but the meter's.

        Raises:
            DownloadHTTPError: The server answered 403 or 404.
            UpdateError: It cannot be had, or is too slow.
        """
        return self._fetch(url)

    def open(self, url: str, offset: int) -> Piece:
        """Ask for a file, or for its rest.

        Args:
            url: Its URL.
            offset: Bytes of it that are here already.

        Raises:
            DownloadHTTPError: The server answered 403 or 404.
            UpdateError: It cannot be had, or is too slow.
        """
        self.meter.left()
        headers = dict(self._manager.headers)
        if offset:
            headers["Range"] = f"bytes={offset}-"
        with _failing(url):
            answer = self._manager.request(
                "GET", url, headers=headers, preload_content=False
            )
        if offset and answer.status == _RANGE_WRONG:
            answer.close()
            return self.open(url, 0)
        if answer.status in _ABSENT:
            self._drain(answer)
            raise DownloadHTTPError(f"{url}: HTTP {answer.status}", answer.status)
        if answer.status not in (200, _PARTIAL):
            answer.close()
            raise Offline(f"{url}: HTTP status {answer.status}, expected 200")
        begins = _begin(answer) if offset and answer.status == _PARTIAL else 0
        if begins not in (0, offset):
            answer.close()
            raise Offline(f"{url}: asked for bytes from {offset}, got from {begins}")
        return Piece(begins, self._chunks(answer, url))

    def _chunks(
        self, answer: BaseHTTPResponse, url: str
    ) -> Generator[bytes, None, None]:
        try:
            with _failing(url):
                # read1 gives what has come: a break later loses nothing of it.
                while chunk := answer.read1(_CHUNK, decode_content=False):
                    yield chunk
        finally:
            # Of no effect after the last byte: the connection was given back then.
            answer.close()

    def _drain(self, answer: BaseHTTPResponse) -> None:
        """Read a short error page, so that the connection can be used again."""
        try:
            if int(answer.headers.get("Content-Length", _CHUNK)) < _CHUNK:
                answer.read(decode_content=False)
                answer.release_conn()
        except (ValueError, HTTPError):
            pass
        finally:
            answer.close()


def _bounded(chunks: Iterator[bytes], url: str, max_length: int) -> Iterator[bytes]:
    length = 0
    for chunk in chunks:
        length += len(chunk)
        if length > max_length:
            raise TooBig(f"{url}: more than {max_length} bytes, the most allowed")
        yield chunk


def _begin(answer: BaseHTTPResponse) -> int:
    """Where `Content-Range: bytes 100-199/200` begins; -1 where that is unclear."""
    text = answer.headers.get("Content-Range", "")
    first = text.removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdecimal() else -1


def _ignore(url: str, data: bytes) -> None:
    del url, data


@contextmanager
def _failing(url: str) -> Iterator[None]:
    """Map what urllib3 and what lies below it raise.

    Raises:
        TooSlow: Nothing came for too long.
        Offline: Anything else.
    """
    try:
        yield
    except MaxRetryError as error:
        reason = error.reason
        if isinstance(reason, urllib3.exceptions.ReadTimeoutError):
            raise TooSlow(f"{url}: no answer in time") from None
        raise Offline(f"{url}: {_why(reason or error)}") from None
    except TimeoutError:
        raise TooSlow(f"{url}: nothing came any more, or its time was over") from None
    except (HTTPError, OSError, ssl.SSLError, ValueError) as error:
        # ValueError: an address or header that cannot be.
        raise Offline(f"{url}: {_why(error)}") from None


def _why(error: BaseException) -> str:
    """What went wrong, without the names of objects in memory that urllib3 shows."""
    # (message, cause), and the message mostly repeats the cause.
    parts = [str(part) for part in error.args] or [str(error)]
    told = len(parts) > 1 and (parts[1] in parts[0] or "broken" in parts[0])
    text = _OBJECT.sub("", " ".join(parts[:1] if told else parts))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
