"""Packed records as sources of a question, and one moment of the store for all that one question looks at.

A pack has all of its records in the order in which they are shown, so it is one source, whatever is asked: its columns
are compared as a whole. Packs that can't have what is asked for, by the bounds of their times, places and qualities, or
because they have none of the streams, are not opened.
"""

import sqlite3
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud_relay.query.selection import LAST_UTC_NS, Box, Query
from cloud_relay.query.steps import LAST_NAME, NOTHING, OPENING, Step
from cloud_relay.store.packs.cache import PackCache
from cloud_relay.store.packs.reading import OpenPack, PackReader
from cloud_relay.store.packs.tables import PackEntry
from protocols.base.keys import matches

MAX_NAMED_STREAMS: Final = 16
"""So many streams are looked for in the tables, to leave out packs that have none of them."""
_CHUNK: Final = 256

Bools = NDArray[np.bool_]


@contextmanager
def one_moment(db: sqlite3.Connection, cache: PackCache | None = None) -> Iterator[PackReader]:
    """The packs of a store at one moment, and its rows at the same one: while records go from rows into a pack, a
    question finds each of them once. The transaction ends with the question, so it holds nothing up. ``cache`` is that
    of the store for all questions."""
    begins = not db.in_transaction
    if begins:
        db.execute("BEGIN")
    try:
        yield PackReader(db, cache=cache)
    finally:
        if begins and db.in_transaction:
            db.execute("COMMIT")


def pack_sources(
    db: sqlite3.Connection, reader: PackReader, query: Query, streams: Collection[tuple[str, str]] | None
) -> list[Iterator[Step]]:
    """The steps of each pack that may have records of a question. ``streams`` are the keys and nodes that it is about,
    if they are known."""
    having = None if streams is None or len(streams) > MAX_NAMED_STREAMS else _packs_having(db, streams)
    return [
        _steps(reader, entry, query)
        for entry in reader.entries
        if (having is None or entry.pack in having) and may_have(entry, query)
    ]


def may_have(entry: PackEntry, query: Query) -> bool:
    """Whether a pack may have records of a question, by its bounds."""
    low, high = _bounds(query)
    if entry.newest_utc_ns < low or entry.oldest_utc_ns > high:
        return False
    if query.min_quality is not None and entry.best_quality < query.min_quality:
        return False
    box = query.box
    if box is None:
        return True
    if entry.north < box.south or entry.south > box.north:
        return False
    return box.has_pole or any(entry.west <= east and entry.east >= west for west, east in box.spans())


def wanted_streams(pack: OpenPack, query: Query) -> Bools | None:
    """Which streams of a pack a question asks for; None: it asks for all."""
    if query.key is None and query.origin is None and query.rule is None:
        return None
    return np.array([_is_wanted(name, query) for name in pack.streams], np.bool_)


def selected(pack: OpenPack, query: Query, low: int, high: int, of_stream: Bools | None) -> NDArray[np.int64]:
    """Which records of a pack, from one to before another, are what a question asks for, but for their times. Their
    streams are those of :func:`wanted_streams`."""
    wanted: Bools = np.ones(high - low, np.bool_)
    if of_stream is not None:
        if not of_stream.any():
            return np.empty(0, np.int64)
        wanted &= of_stream[pack.stream[low:high]]
    if query.box is not None:
        wanted &= _in_box(query.box, pack.latitude_deg[low:high], pack.longitude_deg[low:high])
    if query.min_quality is not None:
        wanted &= pack.quality[low:high] >= query.min_quality
    return np.flatnonzero(wanted) + low


def newest_of_stream(
    db: sqlite3.Connection, reader: PackReader, stream: tuple[str, str, int], rule: str | None
) -> tuple[OpenPack, int] | None:
    """The newest packed record of a key and node, which was sensed at the time that is given; None: none was."""
    key, origin, newest_utc_ns = stream
    found: tuple[OpenPack, int] | None = None
    if newest_utc_ns > reader.newest_utc_ns:
        return None
    packs = db.execute(
        "SELECT DISTINCT packs.* FROM pack_streams JOIN packs USING (pack) WHERE key = ? AND origin = ?"
        " AND pack_streams.newest_utc_ns = ? AND packs.records > 0 AND (?4 IS NULL OR rule = ?4)",
        (key, origin, newest_utc_ns, rule),
    )
    for row in packs.fetchall():
        entry = PackEntry._make(row)
        pack = reader.opened(entry)
        streams = {number for number, of in pack.rules_of(key, origin).items() if rule in (None, of)}
        first = int(np.searchsorted(pack.event_utc_ns, newest_utc_ns, "left"))
        end = int(np.searchsorted(pack.event_utc_ns, newest_utc_ns, "right"))
        at = first + bisect_right(range(first, end), (newest_utc_ns, origin, LAST_UTC_NS), key=pack.place) - 1
        while pack.stream[at] not in streams:
            at -= 1  # its other streams may have later sequences at this time
        if found is None or pack.place(at) > found[0].place(found[1]):
            found = pack, at
    return found


def _steps(reader: PackReader, entry: PackEntry, query: Query) -> Iterator[Step]:
    """The records of a pack. It is opened anew for each chunk, and nothing of it is held between: a question may merge
    hundreds of packs. Until its turn comes, no more is read than its times."""
    newest_first = query.newest_first
    yield _opening(entry.newest_utc_ns if newest_first else entry.oldest_utc_ns, query)
    pack = reader.opened(entry)
    low, high = _span(pack, query)
    if low >= high:
        return
    yield _opening(int(pack.event_utc_ns[high - 1 if newest_first else low]), query)
    of_stream: Bools | None = None
    while low < high:
        pack = reader.opened(entry)
        if of_stream is None:
            of_stream = wanted_streams(pack, query)
        found = selected(pack, query, low, high, of_stream)
        chunk = found[: -_CHUNK - 1 : -1] if newest_first else found[:_CHUNK]
        numbers = pack.number[chunk].tolist()
        pack.expect(chunk.tolist(), numbers)
        columns = (column[chunk].tolist() for column in (pack.event_utc_ns, pack.stream, pack.sequence))
        steps = [
            Step(event_utc_ns, pack.streams[stream][1], sequence, number)
            for event_utc_ns, stream, sequence, number in zip(*columns, numbers, strict=True)
        ]
        if len(chunk) == len(found):
            steps.append(Step(*pack.place(low if newest_first else high - 1), NOTHING))
            low = high
        elif newest_first:
            high = int(chunk[-1])
        else:
            low = int(chunk[-1]) + 1
        del pack, found, chunk
        yield from steps


def _opening(utc_ns: int, query: Query) -> Step:
    if query.newest_first:
        return Step(utc_ns, LAST_NAME, LAST_UTC_NS, OPENING)
    return Step(utc_ns, "", 0, OPENING)


def _span(pack: OpenPack, query: Query) -> tuple[int, int]:
    """Where in a pack the times of a question begin and end, after the place where the page before ended."""
    times, (first, last) = pack.event_utc_ns, _bounds(query)
    low = int(np.searchsorted(times, first, "left"))
    high = int(np.searchsorted(times, last, "right"))
    if query.after is not None and low < high:
        # Only records of the very time of that place are looked at more closely: it needs more columns.
        if query.newest_first:
            same = max(low, int(np.searchsorted(times, query.after[0], "left")))
            if same < high:
                high = same + bisect_left(range(same, high), query.after, key=pack.place)
        else:
            same = min(high, int(np.searchsorted(times, query.after[0], "right")))
            if low < same:
                low += bisect_right(range(low, same), query.after, key=pack.place)
    return low, high


def _bounds(query: Query) -> tuple[int, int]:
    """The first and the last time that a question is about."""
    low = 0 if query.since_utc_ns is None else max(0, min(query.since_utc_ns, LAST_UTC_NS))
    high = LAST_UTC_NS if query.until_utc_ns is None else max(-1, min(query.until_utc_ns - 1, LAST_UTC_NS))
    if query.after is not None:
        low, high = (low, min(high, query.after[0])) if query.newest_first else (max(low, query.after[0]), high)
    return low, high


def _packs_having(db: sqlite3.Connection, streams: Collection[tuple[str, str]]) -> set[int]:
    return {
        pack
        for stream in streams
        for (pack,) in db.execute("SELECT pack FROM pack_streams WHERE key = ? AND origin = ?", stream)
    }


def _is_wanted(name: tuple[str, str, str], query: Query) -> bool:
    key, origin, rule = name
    return (
        query.origin in (None, origin)
        and query.rule in (None, rule)
        and (query.key is None or query.key == key or ("*" in query.key and matches(query.key, key)))
    )


def _in_box(box: Box, latitude_deg: NDArray[Any], longitude_deg: NDArray[Any]) -> Bools:
    around: Bools = np.abs(latitude_deg) == 90  # a pole is one point, whatever its longitude is said to be
    for west, east in box.spans():
        around |= (longitude_deg >= west) & (longitude_deg <= east)
    return around & (latitude_deg >= box.south) & (latitude_deg <= box.north)
