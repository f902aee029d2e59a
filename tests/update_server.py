"""A static file server on loopback that counts every byte, and may be told to lie."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

Reply = Callable[[socket.socket], None]
"""Sends an answer; the connection is closed after it."""

Lie = Callable[[str, Mapping[str, str]], Reply | None]
"""Path and headers to an answer; None for the honest one."""

SEND_BUFFER = 32_768
"""Bytes asked for; Linux keeps twice as many."""

_STATUS = {200: "OK", 206: "Partial Content", 404: "Not Found", 416: "Range Wrong"}


@dataclass
class StaticServer:
    """Serves a folder over HTTP/1.1 with ranges, as nginx or an object store does.

    Attributes:
        folder: What it shows; may be changed while it runs.
        lie: Answers instead, where it wants to.
        sent: Bytes to clients, headers counted.
        received: Bytes from clients.
        requests: Paths that were asked for, in order.
        ranges: Whether it knows of ranges.
        delay: Seconds before each answer.
    """

    folder: Path
    lie: Lie | None = None
    sent: int = 0
    received: int = 0
    requests: list[str] = field(default_factory=list)
    ranges: bool = True
    delay: float = 0.0
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Else the kernel would take megabytes off its hands that nobody reads.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._port = self._listener.getsockname()[1]
        self._counting = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://127.0.0.1:{self._port}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def send(self, connection: socket.socket, data: bytes) -> None:
        """Send, and count it."""
        # Before it goes: the client may look at the count as soon as it has all.
        with self._counting:
            self.sent += len(data)
        connection.sendall(data)

    def reset_counts(self) -> None:
        self.sent, self.received = 0, 0
        self.requests.clear()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(
                target=self._serve, args=(connection,), daemon=True
            )
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.add(connection)
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            while self._answer(connection):
                pass
        except OSError:
            pass
        finally:
            self._open.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket) -> bool:
        """Answer a request; whether another may follow."""
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(65_536)
            if not data:
                return False
            head += data
        with self._counting:
            self.received += len(head)
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines if line)
        headers = {name.lower(): value for name, _, value in pairs}
        path = unquote(first.split(" ")[1])
        self.requests.append(path)
        time.sleep(self.delay)
        lie = self.lie(path, headers) if self.lie is not None else None
        if lie is not None:
            lie(connection)
            return False
        status, extra, body = self._file(path, headers)
        self.send(connection, head_of(status, len(body), extra) + body)
        return True

    def _file(
        self, path: str, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        file = self.folder / path.lstrip("/")
        if ".." in path or not file.is_file():
            return 404, {"Content-Type": "text/html"}, b"<html>not found</html>"
        body = file.read_bytes()
        wanted = headers.get("range", "")
        if not self.ranges or not wanted.startswith("bytes="):
            return 200, {}, body
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            return 416, {"Content-Range": f"bytes */{len(body)}"}, b""
        part = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return 206, {"Content-Range": part}, body[start:]


def head_of(status: int, length: int, extra: Mapping[str, str] | None = None) -> bytes:
    """The head of an answer."""
    lines = [
        f"HTTP/1.1 {status} {_STATUS.get(status, 'Status')}",
        "Server: static",
        "Date: Thu, 26 Nov 2026 00:00:00 GMT",
        'ETag: "0123456789abcdef"',
        "Last-Modified: Thu, 26 Nov 2026 00:00:00 GMT",
        f"Content-Length: {length}",
        *(f"{name}: {value}" for name, value in (extra or {}).items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextmanager
def serving(folder: Path, tls: ssl.SSLContext | None = None) -> Iterator[StaticServer]:
    """A server for the length of a block."""
    server = StaticServer(folder, tls=tls)
    try:
        yield server
    finally:
        server.close()
