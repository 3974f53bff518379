"""The socket on which a server for programs of this host listens, and what is said when it can't be had."""

import errno
import socket

from protocols.base.errors import TransportError


def listening_socket(host: str, port: int, door: str, section: str) -> socket.socket:
    """A socket that listens (``port`` 0: on any free one).

    :raises TransportError: the address can't be used; names it, the key in ``section``, and what to do.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise TransportError(
            f"{door} can't listen on {where} ({error}): set {section} host to an address of this host, '127.0.0.1'"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise TransportError(
                f"{door} can't listen on {where}: another process does. Set {section} port to another number, or to 0 "
                "for any free one, or stop that process"
            ) from error
        raise TransportError(
            f"{door} can't listen on {where} ({error.strerror}): set {section} host to '127.0.0.1' and {section} port "
            "to a number above 1023, or 0"
        ) from error
    return listener
