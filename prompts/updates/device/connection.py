"""Connections whose every byte is metered: also those of headers, which can drip too.

A timeout of a socket is the longest silence. A server that sends a byte every few
seconds is never silent, in a body or in an endless header; so the time that is left and
the bytes that came are looked at whenever the socket itself is read.
"""

import ssl
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from promptdial.prompts.errors import FileFailed, UsageError
from promptdial.prompts.updates.device.dial import Resolve, dial
from promptdial.prompts.updates.device.limits import Meter


def open_manager(
    url: str,
    ca: Path | None,
    headers: dict[str, str],
    meter: Meter,
    wait: float,
    resolve: Resolve,
) -> urllib3.PoolManager:
    """A connection pool for a server, through the proxy that the environment names.

    Args:
        url: The repository's.
        ca: Certificates to trust instead of the system's; None for the system's.
        headers: Sent with every request.
        meter: Counts what comes, and stops it.
        wait: Longest silence, seconds.
        resolve: Looks names up.

    Raises:
        UsageError: The URL is not of http or https.
        FileFailed: The certificates cannot be read.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"URL {url[:128]!r}", "give http://... or https://...")
    retries = urllib3.Retry(
        total=4,
        connect=1,
        read=1,
        redirect=3,
        status=0,
        other=0,
        backoff_factor=0.1,
        raise_on_status=False,
        # What the user added is for this server, not for where it points.
        remove_headers_on_redirect=frozenset(
            {*urllib3.Retry.DEFAULT_REMOVE_HEADERS_ON_REDIRECT, *headers}
        ),
    )
    settings: dict[str, Any] = {
        "headers": headers,
        "retries": retries,
        "timeout": urllib3.Timeout(connect=wait, read=wait),
        "ssl_context": _context(ca, meter, wait),
    }
    proxy = None if proxy_bypass(parts.hostname) else getproxies().get(parts.scheme)
    manager = (
        urllib3.ProxyManager(proxy, **settings)
        if proxy
        else urllib3.PoolManager(**settings)
    )
    manager.pool_classes_by_scheme = _pools(meter, wait, resolve)
    return manager


def _context(ca: Path | None, meter: Meter, wait: float) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise FileFailed(f"certificates {ca}: {error}", "check --ca") from None

    class Metered(ssl.SSLSocket):
        """A TLS socket; what it counts is what was in the records."""

        def recv_into(
            self, buffer: Any, nbytes: int | None = None, flags: int = 0
        ) -> int:
            self.settimeout(min(wait, meter.left()))
            size = super().recv_into(buffer, nbytes, flags)
            meter.count(size)
            return size

    context.sslsocket_class = Metered
    return context


def _pools(meter: Meter, wait: float, resolve: Resolve) -> dict[str, Any]:
    class Metered(socket):
        """A plain socket."""

        def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
            self.settimeout(min(wait, meter.left()))
            size = super().recv_into(buffer, nbytes, flags)
            meter.count(size)
            return size

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket:
            raw = dial(self, resolve, meter, wait)
            timeout = raw.gettimeout()
            metered = Metered(fileno=raw.detach())
            metered.settimeout(timeout)
            return metered

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket:
            # TLS counts in its own socket, which the context makes of this one.
            return dial(self, resolve, meter, wait)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
