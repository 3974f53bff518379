"""The link engine: ``meshnode.net.transport`` on NNG sockets over mutual TLS 1.3. The only module that imports pynng.

Invariants:
- TLS 1.3 and a certificate of the mesh's authority on both sides, no message above ``MAX_FRAME_BYTES``;
- a peer is judged in NNG's pre-connect callback, so nothing of a refused peer is ever received and nothing is sent to it;
  a judge that fails refuses.

NNG is not fork-safe: start processes with ``spawn``. Every call here lets other Python threads run while NNG works.
"""

import atexit
import itertools
import logging
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import pynng
from pynng import TLSConfig, ffi, lib

from meshnode.net._engine import Handshake, Watch
from meshnode.net._exchange import RelayRequester, RelayResponder
from meshnode.net._links import Links
from meshnode.net._peer import plain_host, read_credentials, url_of
from meshnode.net.transport import Address, Credentials, Handler, Requester, Transport, TransportObserver
from protocols.errors import IdentityError, TransportError
from protocols.ids import SERVER_NAME, MeshName, NodeId, Role
from protocols.limits import MAX_FRAME_BYTES

_log = logging.getLogger(__name__)

_MAX_ALTERNATIVE_NAMES = 64
_LINK_REDIAL_MS = (100, 500)
"""Only until the first pipe: a listener that starts a moment after us is met at once."""
_EXCHANGE_REDIAL_MS = (250, 8_000)


def open_transport(credentials: Credentials, observer: TransportObserver, mesh: MeshName) -> Transport:
    """The links of one node. :raises IdentityError: when the credentials can't be used."""
    return _kept(Links(_NngEngine(credentials), observer, mesh))


def open_requester(
    credentials: Credentials, address: Address, mesh: MeshName, role: Role = Role.RELAY, node: NodeId | None = None
) -> Requester:
    """A connection to the relay at ``address``, dialled in the background; ``node`` pins one relay.

    :raises IdentityError: when the credentials can't be used.
    :raises TransportError: when the address can't be dialled at all.
    """
    return _kept(RelayRequester(_NngEngine(credentials), address, mesh, role, node))


def open_responder(
    credentials: Credentials, host: str, port: int, mesh: MeshName, handler: Handler, workers: int = 8
) -> RelayResponder:
    """Answer requests on ``host`` and ``port`` (0: any free one), at most ``workers`` at a time, each on its own thread.

    :raises IdentityError: when the credentials can't be used.
    :raises TransportError: when the port is in use; names it and the way out.
    """
    return _kept(RelayResponder(_NngEngine(credentials), host, port, mesh, handler, workers))


class _Closable(Protocol):
    def close(self) -> None: ...


_open: "weakref.WeakSet[_Closable]" = weakref.WeakSet()
_configuring = threading.Lock()
_configured = False


def _kept[T: _Closable](item: T) -> T:
    _open.add(item)
    return item
