"""Rows of several ordered sources as one ordered stream, with a source opened only when one of its rows may be next.

So the newest hundred rows of a thousand sources cost a hundred sources at most, if their bounds are exact.
"""

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Generic, NamedTuple, TypeVar

Row = tuple[Any, ...]
"""It begins with the time and the number by which it is ordered."""
TagT = TypeVar("TagT")


class RowSource(NamedTuple, Generic[TagT]):
    """Rows in the order that is wanted."""

    bound_ns: int
    """No row is newer than this; or older, when the oldest come first."""
    rows: Callable[[], Iterator[Row]]
    """Opens it."""
    tag: TagT
    """What goes with each of its rows."""


def merged(sources: Iterable[RowSource[TagT]], newest_first: bool) -> Iterator[tuple[Row, TagT]]:
    """The rows of all sources in order. No two have the same time and number."""
    sign = -1 if newest_first else 1
    closed: list[tuple[int, int, RowSource[TagT]]] = [
        (sign * source.bound_ns, index, source) for index, source in enumerate(sources)
    ]
    heapify(closed)
    opened: list[tuple[int, int, Row, Iterator[Row], TagT]] = []
    while closed or opened:
        while closed and (not opened or closed[0][0] <= opened[0][0]):
            source = heappop(closed)[2]
            rows = source.rows()
            row = next(rows, None)
            if row is not None:
                heappush(opened, (sign * row[0], sign * row[1], row, rows, source.tag))
        if opened:
            _, _, row, rows, tag = opened[0]
            yield row, tag
            following = next(rows, None)
            if following is None:
                heappop(opened)
            else:
                heapreplace(opened, (sign * following[0], sign * following[1], following, rows, tag))
