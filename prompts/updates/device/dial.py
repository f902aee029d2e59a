"""Connections to a name: looked up and made within a time, whatever the resolver does.

The system's resolver knows no timeout that a program could set: a name server that does
not answer holds it for minutes. So it is asked in a thread of its own, which is left
behind when its time is over.
"""

import socket
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.util.connection import allowed_gai_family, create_connection

from promptdial.prompts.updates.device.limits import Meter

RECEIVE_BUFFER = 65_536
"""Bytes that a connection asks the kernel to keep unread; Linux keeps twice as many.

Left to itself the kernel grows it to megabytes as long as a server sends: an attacker's
bytes that no limit of ours would count.
"""

Resolve = Callable[[str, int], list[str]]
"""Host and port to addresses as digits, the best one first; raises OSError."""


def system_addresses(host: str, port: int) -> list[str]:
    """The system's addresses of a name.

    Raises:
        OSError: It has none.
    """
    found = socket.getaddrinfo(host, port, allowed_gai_family(), socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def dial(
    connection: HTTPConnection, resolve: Resolve, meter: Meter, wait: float
) -> socket.socket:
    """Connect to the first address of a connection's host that answers.

    Args:
        connection: What the socket is for.
        resolve: Looks the host up.
        meter: Knows the time that is left.
        wait: Longest time to look up, and to connect to one address, seconds.

    Raises:
        TooSlow: The time that was left is over.
        urllib3.exceptions.HTTPError: There is no address, or none answers.
    """
    host, port = connection.host.strip("[]"), connection.port
    try:
        addresses = _addresses_within(resolve, host, port, min(wait, meter.left()))
    except TimeoutError as error:
        raise ConnectTimeoutError(connection, str(error)) from None
    except socket.gaierror as error:
        raise NameResolutionError(host, connection, error) from None
    failure = OSError("the name has no address")
    buffer = (socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    for address in addresses:
        try:
            return create_connection(
                (address, port),
                min(wait, meter.left()),
                source_address=connection.source_address,
                socket_options=[*(connection.socket_options or ()), buffer],
            )
        except OSError as error:
            failure = error
    if isinstance(failure, TimeoutError):
        raise ConnectTimeoutError(connection, f"{host} does not answer") from None
    raise NewConnectionError(
        connection, f"no connection to {host}: {failure}"
    ) from None


def _addresses_within(
    resolve: Resolve, host: str, port: int, seconds: float
) -> list[str]:
    """Look a name up.

    Raises:
        TimeoutError: It took too long.
        OSError: There is no such name.
    """
    answers: SimpleQueue[list[str] | Exception] = SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(resolve(host, port))
        except Exception as error:  # raised by the one who waits
            answers.put(error)

    threading.Thread(target=look_up, name="promptdial-look-up", daemon=True).start()
    try:
        found = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no address of {host} after {seconds:.3g} s") from None
    if isinstance(found, Exception):
        raise found
    return found
