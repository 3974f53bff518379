"""The relay as carriers see it: which key it has, and the batches of others that are brought there.

It has a connection and a thread of its own, so that what is carried for others never delays this node's own records.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from meshnode.backoff import Backoff
from meshnode.links.requests import RelayRequests, RequestRefused
from meshnode.links.transport import Requester
from meshnode.records.way import Way
from protocols.base.errors import MeshError, TransportError
from protocols.records.carrying.events import UploadSealed
from protocols.records.carrying.sealed import decode_untrusted_reply
from protocols.wire.carrying.frames import CarriedBatch, CarriedReply, RelayKeyAsked, RelayKeyTold
from protocols.wire.frame import Frame

_log = logging.getLogger(__name__)
ASK_S: Final = 600.0
"""The time between two questions for the key, which also find out whether the relay is in reach."""
_ANSWER_S: Final = 15.0
"""How long an answer may take; a batch of 320 KiB at 1 Mb/s, and a disk."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0

_F = TypeVar("_F", bound=Frame)


class CarrierClient:
    """See the module. Callbacks run on its thread."""

    def __init__(
        self, connect: Callable[[], Requester], key_told: Callable[[RelayKeyTold], None],
        uploaded: Callable[[bytes, bytes, str], None], way: Way | None = None,
    ) -> None:  # fmt: skip
        """``connect`` opens a connection; it may raise TransportError. ``uploaded``: see
        :meth:`protocols.records.carrying.machine.Carrying.uploaded`. ``way``: when it may be asked; None: always."""
        self._way, self._interface = way, ""
        self._requests, self._key_told, self._uploaded = RelayRequests(connect), key_told, uploaded
        self._orders: queue.SimpleQueue[tuple[UploadSealed, bytes] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="carrying", daemon=True)

    def start(self) -> None:
        """Ask for the key, until it is closed."""
        self._thread.start()

    def upload(self, order: UploadSealed, data: bytes) -> None:
        """Bring a batch with these bytes to the relay. It never blocks."""
        self._orders.put((order, data))

    def close(self) -> None:
        """End the connection and the thread."""
        self._closed = True
        self._requests.close()
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join(5)

    # --- on the thread -----------------------------------------------------------------------------------------------
    def _run(self) -> None:
        pause, ask_s = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S), 0.0
        while not self._closed:
            try:
                order = self._orders.get(timeout=max(ask_s - time.monotonic(), 0.0))
            except queue.Empty:
                if self._ask():
                    pause.reset()
                    ask_s = time.monotonic() + ASK_S
                else:
                    ask_s = time.monotonic() + pause.next_s()
                continue
            if order is not None and self._bring(*order) == "key":
                ask_s = 0.0  # the relay has another one

    def _ask(self) -> bool:
        try:
            told = self._request(RelayKeyAsked(), RelayKeyTold)
            self._key_told(told)
        except MeshError as error:
            _log.info("the relay's sealing key is not known: %s", error)
            return False
        return True

    def _bring(self, order: UploadSealed, data: bytes) -> str:
        reply, code = b"", ""
        try:
            answer = self._request(CarriedBatch(order.node, order.key, data), CarriedReply)
            said, _ = decode_untrusted_reply(answer.reply)
            if (said.node, said.sealed) == (order.node, order.sealed):
                reply = answer.reply
            else:
                _log.warning("the relay replied to another batch than one of %s", order.node)
        except RequestRefused as refused:
            code = refused.code
            _log.warning("a batch of %s is not taken: %s", order.node, refused)
        except MeshError as error:
            _log.info("a batch of %s did not reach the relay: %s", order.node, error)
        self._uploaded(order.sealed, reply, code)
        return code

    def _request(self, frame: Frame, kind: type[_F]) -> _F:
        """Ask over a way that may be used. :raises MeshError: there is none, or no answer of that kind."""
        if self._way is not None:
            permission = self._way.look()
            if permission.least_priority or permission.interface != self._interface:
                self._requests.hang_up()
            if permission.least_priority:
                raise TransportError(permission.why)
            self._interface = permission.interface or ""
        return self._requests.request(frame, kind, _ANSWER_S)
