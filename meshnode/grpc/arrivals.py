"""Lets messages in: one by one bounded by the library, and all together bounded here.

How large a message is shows only when it is there, so room for the largest is kept free while one arrives, and what it
does not need is given back then. Messages take turns at the room: on loopback a small one arrives in less than a
millisecond. One that takes long gives way when another wants its room, or a few clients that stopped in the middle
would keep everybody out.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from meshnode.grpc.patience import ClientPatience
from meshnode.http.guard import BadRequest
from protocols.base.errors import BoundExceeded

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""As the largest body over HTTP."""
MAX_HELD_BYTES: Final = 4 * MAX_MESSAGE_BYTES
"""Of all messages of single calls, until these are answered. 128 calls could otherwise take 8 GiB."""
ARRIVAL_S: Final = 30.0
"""A message that takes longer to arrive is given up, because its call holds a thread."""
GIVE_WAY_S: Final = 1.0
"""… or longer than this, when another call waits for room. 64 MiB take a tenth of a second."""
ROOM_S: Final = 10.0
"""How long a call waits for room."""
_LOOK_S: Final = 0.25
"""How often a call that waits for room looks whether its client is still there, and who has to give way."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(slots=True, eq=False)
class _Arriving:
    """A message on its way."""

    context: Any
    since_s: float


class Arrivals:
    """The room of one server. May be used from any thread."""

    def __init__(self, patience: ClientPatience) -> None:
        self._patience = patience
        self._freed = threading.Condition()
        self._arriving: dict[_Arriving, None] = {}
        """The longest under way first; without those that were told to give way."""
        self.held_bytes = 0

    @contextmanager
    def message(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """The one message of a call, which counts as held until the block ends.

        :raises ClientGone: it was cancelled meanwhile. :raises BoundExceeded: there was no room for too long.
        :raises BadRequest: the client sends none.
        """
        arriving = self._enter(context)
        held_bytes = MAX_MESSAGE_BYTES
        try:
            with self._patience.within(ARRIVAL_S, context.cancel):
                message = next(requests, None)
            if message is None:
                raise BadRequest("the call has no message: send one")
            self._leave(arriving, held_bytes - len(message))
            held_bytes = len(message)
            yield message
        finally:
            self._leave(arriving, held_bytes)

    def _enter(self, context: Any) -> _Arriving:
        until_s = time.monotonic() + ROOM_S
        with self._freed:
            while self.held_bytes + MAX_MESSAGE_BYTES > MAX_HELD_BYTES:
                if not context.is_active():
                    raise ClientGone
                if (left_s := until_s - time.monotonic()) <= 0:
                    raise BoundExceeded(
                        f"{self.held_bytes} bytes of other messages are held or under way, and {MAX_HELD_BYTES} may "
                        "be: try again in a moment"
                    )
                self._make_way()
                self._freed.wait(min(left_s, _LOOK_S))
            self.held_bytes += MAX_MESSAGE_BYTES
            arriving = _Arriving(context, time.monotonic())
            self._arriving[arriving] = None
            return arriving

    def _make_way(self) -> None:
        """End the message that has been under way for longest, if it takes too long."""
        oldest = next(iter(self._arriving), None)
        if oldest is not None and time.monotonic() - oldest.since_s >= GIVE_WAY_S:
            del self._arriving[oldest]
            oldest.context.cancel()

    def _leave(self, arriving: _Arriving, free_bytes: int) -> None:
        with self._freed:
            self._arriving.pop(arriving, None)
            self.held_bytes -= free_bytes
            self._freed.notify_all()
