"""When a rule last chose a reading of each key: a bounded table that the origins of readings share."""

from collections import OrderedDict
from typing import Final

from protocols.base import limits
from protocols.base.shares import Shares
from protocols.base.time import NEVER

_MAX_ORIGINS: Final = 256
"""Origins whose shares are counted apart, because each eviction looks at each of them …"""
_OTHERS: Final = "*"
"""… and the payer of all others."""

Stream = tuple[str, str]
"""The name of a rule, and a key."""


class LastChosen:
    """At most ``MAX_CACHED_KEYS`` streams. When there are more, the origin that holds most gives way with its stream
    that was chosen least recently."""

    def __init__(self) -> None:
        self._when: dict[Stream, tuple[int, str]] = {}
        """The instant, and the payer."""
        self._streams: dict[str, OrderedDict[Stream, None]] = {}
        """By payer; the stream that was chosen least recently comes first."""
        self._shares: Shares[str] = Shares()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._when)

    def when(self, stream: Stream) -> int:
        """The monotonic instant when the stream was last chosen; long ago when it is not known."""
        known = self._when.get(stream)
        return -NEVER if known is None else known[0]

    def note(self, stream: Stream, origin: str, now: int) -> None:
        """Note that a reading of ``origin`` was chosen now."""
        known = self._when.get(stream)
        if known is not None:
            payer = known[1]  # whoever came first: an origin that takes over a key must not make it cheaper
            self._streams[payer].move_to_end(stream)
        else:
            is_counted = self._shares.held(origin) or len(self._streams) < _MAX_ORIGINS
            payer = origin if is_counted else _OTHERS
            self._streams.setdefault(payer, OrderedDict())[stream] = None
            self._shares.add(payer)
        self._when[stream] = (now, payer)
        if self._shares.total > limits.MAX_CACHED_KEYS:
            self._forget(self._shares.largest())

    def _forget(self, payer: str) -> None:
        streams = self._streams[payer]
        stream, _ = streams.popitem(last=False)
        if not streams:
            del self._streams[payer]
        del self._when[stream]
        self._shares.remove(payer)
        self.forgotten += 1
