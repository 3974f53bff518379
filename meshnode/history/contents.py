"""What a segment of the history has, stream by stream: so that a question looks only at what may answer it.

Invariant: at most ``MAX_STREAMS`` streams have a summary of their own, and no origin has all of them. Readings of
further ones are counted together, as those of ``OTHERS``, and a question has to look into each of them.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

from meshnode.history.query import HistoryQuery
from protocols.readings.matching import KeyPattern

MAX_STREAMS: Final = 2_048
"""Of one segment. A node that publishes on ever new keys must not fill the memory of this one."""
_FREE_PARTS: Final = 3
"""Times as many streams as are free may be those of one origin. So the first that publishes on ever new keys gets three
quarters of them, and those that come later are found as quickly as before."""
MAX_OPENED: Final = 1_024
"""Streams that one question opens, in all segments together. Each takes 50 µs before there is a first row, and who asks
can't be answered meanwhile: a neighbour with 2,048 streams from pole to pole in each segment made a question for a box
take 1.6 s."""
OTHERS: Final = 0
"""The stream of all readings whose own has no summary."""

Placed = tuple[int, float, float]
"""When and where a reading was sensed: UTC nanoseconds, latitude, longitude."""


class StreamSummary:
    """The readings of one origin on one key, in one segment."""

    __slots__ = (
        "east_deg",
        "first_ns",
        "key",
        "last_ns",
        "north_deg",
        "origin",
        "rows",
        "south_deg",
        "stream",
        "west_deg",
    )

    def __init__(self, stream: int, key: str, origin: str) -> None:
        self.stream, self.key, self.origin = stream, key, origin
        self.rows = 0
        self.first_ns, self.last_ns = 1 << 63, -1
        self.south_deg = self.west_deg = 1_000.0
        self.north_deg = self.east_deg = -1_000.0

    def add(self, placed: Placed, rows: int = 1) -> None:
        """Count a reading in, or a corner of the box and the span of ``rows`` readings."""
        utc_ns, latitude_deg, longitude_deg = placed
        self.rows += rows
        self.first_ns, self.last_ns = min(self.first_ns, utc_ns), max(self.last_ns, utc_ns)
        self.south_deg, self.north_deg = min(self.south_deg, latitude_deg), max(self.north_deg, latitude_deg)
        self.west_deg, self.east_deg = min(self.west_deg, longitude_deg), max(self.east_deg, longitude_deg)

    @property
    def values(self) -> tuple[int, int, int, float, float, float, float]:
        """The columns from ``rows`` to ``east_deg``."""
        return (self.rows, self.first_ns, self.last_ns, self.south_deg, self.west_deg, self.north_deg, self.east_deg)


class Selection:
    """A question, prepared for many streams. It remembers which keys match, because segments have the same ones."""

    def __init__(self, query: HistoryQuery, permits: Callable[[str], bool] | None) -> None:
        """``permits``: whether who asks may have readings on a key; None: all of them."""
        self.query, self.bounds = query, query.bounds
        self._pattern, self._permits = KeyPattern(query.expression), permits
        self._known: dict[str, bool] = {}
        self._opened = 0

    def may_open(self, streams: int) -> bool:
        """Whether so many further streams may be opened for this question. They count then."""
        if self._opened + streams > MAX_OPENED:
            return False
        self._opened += streams
        return True

    def wants(self, key: str, origin: str) -> bool:
        """Whether readings of this stream answer it."""
        if self.query.origin is not None and origin != self.query.origin:
            return False
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._pattern.matches(key, key.split("/")) and (
                self._permits is None or self._permits(key)
            )
        return known

    def may_have(self, summary: StreamSummary) -> bool:
        """Whether a stream may have readings that answer it."""
        low, high = self.bounds
        if not summary.rows or summary.last_ns < low[0] or summary.first_ns > high[0]:
            return False
        box = self.query.box
        if box is not None and not box.meets(summary.south_deg, summary.west_deg, summary.north_deg, summary.east_deg):
            return False
        return summary.stream == OTHERS or self.wants(summary.key, summary.origin)


class SegmentContents:
    """The summaries of one segment. One thread changes them; others may look on."""

    def __init__(self) -> None:
        self.streams: dict[int, StreamSummary] = {OTHERS: StreamSummary(OTHERS, "", "")}
        self._by_name: dict[tuple[str, str], int] = {}
        self._named: Counter[str] = Counter()
        """Streams by origin."""
        self.rows = 0
        self.first_ns, self.last_ns = 1 << 63, -1

    def stream_of(self, key: str, origin: str) -> int | None:
        """The number of a stream; None: it has none yet and gets one by :meth:`name`."""
        stream = self._by_name.get((key, origin))
        if stream is None and self._named[origin] >= _FREE_PARTS * (MAX_STREAMS + 1 - len(self.streams)):
            return OTHERS
        return stream

    def name(self, key: str, origin: str, stream: int | None = None) -> int:
        """Give a stream a number."""
        number = len(self.streams) if stream is None else stream
        self.streams[number] = StreamSummary(number, key, origin)
        self._by_name[key, origin] = number
        self._named[origin] += 1
        return number

    def forget(self, streams: list[int]) -> None:
        """Take back what :meth:`name` gave, because it was not written."""
        for stream in streams:
            gone = self.streams.pop(stream)
            del self._by_name[gone.key, gone.origin]
            self._named[gone.origin] -= 1

    def add(self, stream: int, placed: Placed, rows: int = 1) -> None:
        """Count a reading in."""
        self.streams[stream].add(placed, rows)
        self.rows += rows
        self.first_ns, self.last_ns = min(self.first_ns, placed[0]), max(self.last_ns, placed[0])

    def matching(self, selection: Selection) -> list[StreamSummary]:
        """The streams that may have what is asked for."""
        return [summary for summary in list(self.streams.values()) if selection.may_have(summary)]
