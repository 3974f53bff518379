"""Which readings a rule takes, and what it takes of each.

A reading is taken once. It is known by ``(origin, key, sequence)``; of each stream the last ``_KEPT`` sequences are
kept, and what is older than all of them counts as taken already. Nodes refuse what is not newer than the last reading
of its stream, so little comes out of order.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from protocols.base.errors import BoundExceeded, LocalProtocolError
from protocols.base.keys import checked_expression, matches
from protocols.base.limits import MAX_TEXT_CHARS
from protocols.base.shares import SharedRows
from protocols.wire.readings import Reading

_KEPT: Final = 16
_MAX_STREAMS: Final = 16_384
_STREAM_BYTES: Final = 1_700
"""What a stream takes at most, with a key and an origin of a hundred characters."""

Expression = Callable[[Reading], Any]
"""A compiled expression over one reading. :raises ExpressionFailed: it has no value for this reading."""


class ExpressionFailed(LocalProtocolError):
    """An expression has no value for a reading: a missing field, a wrong type, a division by zero."""


class _NotTaken:
    """The type of :data:`NOT_TAKEN`."""


NOT_TAKEN: Final = _NotTaken()


@dataclass(frozen=True, slots=True)
class Source:
    """Which readings a rule takes.

    :raises InvalidKey: when ``keys`` is not a key expression.
    :raises BoundExceeded: when the unit is too long.
    """

    keys: str
    """Key expression."""
    source: Literal["own", "any"] = "own"
    """``own``: readings sensed here; ``any``: those of neighbours too."""
    unit: str | None = None
    """The unit that readings must have; None: any."""
    where: Expression | None = None
    """Only readings for which it is true are taken."""
    value: Expression | None = None
    """What is taken of a reading; None: its value."""

    def __post_init__(self) -> None:
        checked_expression(self.keys)
        if self.unit is not None and len(self.unit) > MAX_TEXT_CHARS:
            raise BoundExceeded(
                f"unit {self.unit[:80]!r} has {len(self.unit)} characters: use at most {MAX_TEXT_CHARS}"
            )

    def considers(self, key: str, is_own: bool) -> bool:
        """Whether readings of a key may be taken."""
        return (is_own or self.source == "any") and matches(self.keys, key)

    def taken(self, reading: Reading, counts: Counter[str]) -> Any:
        """What is taken of a reading that it considers; ``NOT_TAKEN``: nothing, and ``counts`` says why."""
        if self.unit is not None and reading.how.unit != self.unit:
            counts["unit_mismatch"] += 1
            return NOT_TAKEN
        try:
            if self.where is not None and self.where(reading) is not True:
                counts["filtered"] += 1
                return NOT_TAKEN
            return reading.value if self.value is None else self.value(reading)
        except ExpressionFailed:
            counts["failed"] += 1
            return NOT_TAKEN


class Seen:
    """Which readings were taken already. At most ``max_streams`` streams are kept; of the origin that has most, the
    oldest gives way, and its readings would count anew."""

    def __init__(self, max_streams: int = _MAX_STREAMS) -> None:
        self._max_streams = min(max_streams, _MAX_STREAMS)
        self._streams: dict[tuple[str, str], deque[int]] = {}
        self._rows: SharedRows[str, tuple[str, str]] = SharedRows()

    @property
    def max_bytes(self) -> int:
        """The most memory that it takes."""
        return self._max_streams * _STREAM_BYTES

    def is_new(self, reading: Reading) -> bool:
        """Whether a reading comes for the first time. It counts as seen from now on."""
        stream = reading.origin, reading.key
        kept = self._streams.get(stream)
        if kept is None:
            if len(self._rows) >= self._max_streams:
                gone = self._rows.next_to_go()
                self._rows.remove(gone)
                del self._streams[gone]
            self._rows.add(reading.origin, stream)
            self._streams[stream] = deque((reading.sequence,), _KEPT)
            return True
        sequence = reading.sequence
        if sequence > kept[-1]:
            kept.append(sequence)
            return True
        if sequence in kept or (len(kept) == _KEPT and sequence < kept[0]):
            return False
        at = next(place for place, other in enumerate(kept) if other > sequence)
        if len(kept) == _KEPT:
            kept.popleft()
            at -= 1
        kept.insert(at, sequence)
        return True
