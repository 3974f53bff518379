"""Requests of a node to its relay over one connection."""

import threading
from collections.abc import Callable
from typing import TypeVar

from meshnode.links.transport import Requester
from protocols.base.errors import MeshError, RemoteProtocolError, TransportError
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.records import RelayRefusal

_F = TypeVar("_F", bound=Frame)


class RequestRefused(RemoteProtocolError):
    """The relay answered with a refusal."""

    def __init__(self, refusal: RelayRefusal) -> None:
        super().__init__(f"the relay refuses ({refusal.code}): {refusal.detail}")
        self.code = refusal.code


class RelayRequests:
    """A connection that is opened when it is needed, and again after a failure. One thread asks; any thread may close
    it."""

    def __init__(self, connect: Callable[[], Requester]) -> None:
        """``connect`` may raise TransportError."""
        self._connect = connect
        self._lock = threading.Lock()
        self._requester: Requester | None = None
        self._closed = False

    def request(self, frame: Frame, kind: type[_F], timeout_s: float) -> _F:
        """Ask, and wait for the answer.

        :raises RequestRefused: it is a refusal.
        :raises MeshError: there is no answer of that kind; the relay is dialled again then.
        """
        try:
            answer = decode_untrusted_relay_frame(self._opened().request(encode_frame(frame), timeout_s))
            if not isinstance(answer, kind | RelayRefusal):
                raise RemoteProtocolError(f"the relay answered {type(answer).__name__}: {answer}"[:500])
        except MeshError:
            self.hang_up()
            raise
        if isinstance(answer, RelayRefusal):
            raise RequestRefused(answer)
        return answer

    def _opened(self) -> Requester:
        with self._lock:
            if self._closed:
                raise TransportError("the node is closing")
            if self._requester is None:
                self._requester = self._connect()
            return self._requester

    def hang_up(self) -> None:
        """End the connection; the next request opens another one."""
        with self._lock:
            requester, self._requester = self._requester, None
        if requester is not None:
            requester.close()

    def close(self) -> None:
        """End it for good."""
        with self._lock:
            self._closed = True
        self.hang_up()
