"""What an application is subscribed to at its node: readings go to their callbacks, none of them twice after a restart
of the node.

Everything but making and ending a subscription runs on the application's receiving thread.
"""

import logging
from collections.abc import Callable
from typing import Any

from meshnode.readings.subscriptions import Subscription
from protocols.base import limits
from protocols.base.errors import RemoteProtocolError
from protocols.local import Parcels, Subscribe, decode_untrusted_parcel
from protocols.wire.readings import Reading

_log = logging.getLogger(__name__)


class Wanted:
    """A subscription, and what it takes to make it again."""

    __slots__ = ("before", "callback", "fallen", "frame", "handle", "newest")

    def __init__(self, frame: Subscribe, handle: Subscription, callback: Callable[[Reading], object]) -> None:
        self.frame, self.handle, self.callback = frame, handle, callback
        self.fallen = 0
        self.newest: dict[tuple[str, str], int] = {}
        self.before: dict[tuple[str, str], int] = {}  # as ``newest`` was when the node went


class Deliveries:
    """The subscriptions of one application, by number."""

    def __init__(self) -> None:
        self.wanted: dict[int, Wanted] = {}
        self.malformed = 0
        """Parcels from the node that hold no reading."""
        self.callbacks_failed = 0

    def node_went(self) -> None:
        """Remember what was delivered, to leave it out when it comes again."""
        for wanted in list(self.wanted.values()):
            wanted.before = wanted.newest.copy()

    def deliver(self, frame: Parcels) -> None:
        """Call the callbacks."""
        for parcel in frame.parcels:
            wanted = self.wanted.get(parcel.label)
            if wanted is None:
                continue
            try:
                reading = decode_untrusted_parcel(parcel)
            except RemoteProtocolError as error:
                self.malformed += 1
                _log.warning("the node sent a parcel without a reading: %s", error)
                continue
            stream = (reading.origin, reading.key)
            if wanted.before and reading.sequence <= wanted.before.get(stream, -1):
                continue
            if stream not in wanted.newest and len(wanted.newest) >= limits.MAX_CACHED_KEYS:
                wanted.newest.clear()
            wanted.newest[stream] = reading.sequence
            self.call(wanted.callback, reading)

    def missed(self, number: int) -> bool:
        """Count a stream that was silent for too long; False when its subscription has ended."""
        wanted = self.wanted.get(number)
        if wanted is not None:
            wanted.handle.deadlines_missed += 1
        return wanted is not None

    def fell(self, number: int, dropped: int) -> None:
        """Note how many readings of a subscription the application was too slow for, since it was made."""
        wanted = self.wanted.get(number)
        if wanted is not None:
            wanted.handle.dropped += max(0, dropped - wanted.fallen)
            wanted.fallen = dropped

    def refused(self, number: int, error: str) -> None:
        """Note that the node, after it came back, refused to make a subscription again."""
        wanted = self.wanted.pop(number, None)
        if wanted is not None:
            _log.error("the node that came back refused %r: %s", wanted.frame.expression, error)
            wanted.handle.close()

    def call(self, callback: Callable[[Any], object], argument: object) -> None:
        """Call a callback of the application."""
        try:
            callback(argument)
        except Exception:  # noqa: BLE001 -- whatever a callback does, receiving goes on
            self.callbacks_failed += 1
            count = self.callbacks_failed
            if count & (count - 1) == 0:
                _log.exception("a callback failed (%d failures so far)", count)
