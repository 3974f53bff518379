"""When a rule last chose a reading of each key: a bounded table that the origins of readings share."""

from typing import Final

from protocols.base import limits
from protocols.base.shares import SharedRows
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
        self._when: dict[Stream, int] = {}
        self._rows: SharedRows[str, Stream] = SharedRows()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._when)

    def when(self, stream: Stream) -> int:
        """The monotonic instant when the stream was last chosen; long ago when it is not known."""
        return self._when.get(stream, -NEVER)

    def note(self, stream: Stream, origin: str, now: int) -> None:
        """Note that a reading of ``origin`` was chosen now."""
        payer = self._rows.payer_of(stream)  # whoever came first: taking over a key must not make it cheaper
        if payer is None:
            is_counted = self._rows.shares.held(origin) or len(self._rows.shares) < _MAX_ORIGINS
            payer = origin if is_counted else _OTHERS
        self._rows.add(payer, stream)
        self._when[stream] = now
        if len(self._when) > limits.MAX_CACHED_KEYS:
            gone = self._rows.next_to_go()
            self._rows.remove(gone)
            del self._when[gone]
            self.forgotten += 1
