"""Reads records out of packs.

A :class:`PackReader` belongs to one question, within one transaction, and keeps the few packs that it looked at last
open. A part of a pack is read when it is needed first, out of a :class:`~cloud_relay.store.packs.cache.PackCache` if a
question before this one needed it, too.
"""

import sqlite3
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain
from operator import attrgetter
from sys import getsizeof
from typing import Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud_relay.store.packs.bodies import PackableRecord, PackBody
from cloud_relay.store.packs.cache import PackCache
from cloud_relay.store.packs.columns import Floats, Integers, expanded, floats_unpacked, integers_unpacked
from cloud_relay.store.packs.tables import (
    FIRST_BODY,
    HEAD,
    LATITUDE,
    LONGITUDE,
    NUMBER,
    QUALITY,
    SEQUENCE,
    STREAM,
    TIME,
    PackEntry,
    packed_up_to,
    part_name,
    place_of,
)
from protocols.base.errors import StorageError

MAX_OPEN_PACKS: Final = 8
MAX_OPEN_BYTES: Final = 32 * 1024 * 1024
"""Packs that one question keeps open, and what Python may hold for them when another one is opened: mostly up to 4 MB
each, but a node that invents a key for each record makes packs with ten times as much."""
MAX_OPEN_BODIES: Final = 16
MAX_OPEN_BODY_BYTES: Final = 2 * 1024 * 1024
"""Bodies of a pack that are kept expanded, and all that Python holds for them."""
_OWN_BYTES: Final = 16 * 1024 * 1024
"""What a question keeps that is given no cache."""
_STREAM_BYTES: Final = 512
"""What Python holds for a stream of a head beside its texts: tuples, and places in dictionaries."""
ResultT = TypeVar("ResultT")
NumberT = TypeVar("NumberT", np.int64, np.float64)


class PackHead(msgspec.Struct, frozen=True, array_like=True):
    """What the first block of a pack says."""

    streams: list[tuple[str, str, str]]
    """Key, node and rule, by the number that the column of streams has."""
    starts: list[int]
    """The first record of each body."""


_head_decoder = msgspec.msgpack.Decoder(PackHead)


class PackDamaged(StorageError):
    """A block of a pack is missing or is not what was written."""


class PackStreams:
    """The streams of a pack, and where its bodies begin."""

    def __init__(self, head: PackHead) -> None:
        self.names, self.starts = head.streams, head.starts
        self._rules: dict[tuple[str, str], dict[int, str]] | None = None
        self.size_bytes = (
            sum(map(getsizeof, chain.from_iterable(self.names))) + len(self.names) * _STREAM_BYTES
            + sum(map(getsizeof, self.starts)) + getsizeof(self.starts)
        )  # fmt: skip
        """All that Python holds for it."""

    def rules_of(self, key: str, origin: str) -> dict[int, str]:
        """The rules of a key and node, by the numbers of their streams."""
        if self._rules is None:
            found: dict[tuple[str, str], dict[int, str]] = {}
            for number, (of_key, of_origin, rule) in enumerate(self.names):
                found.setdefault((of_key, of_origin), {})[number] = rule
            self._rules = found
        return self._rules.get((key, origin), {})


class OpenPack:
    """One pack. Its records are counted from 0 in the order in which they are shown. Whatever reads a part of it raises
    PackDamaged when that is damaged."""

    def __init__(self, db: sqlite3.Connection, entry: PackEntry, cache: PackCache) -> None:
        self._db, self.entry, self._cache = db, entry, cache
        self._bodies: OrderedDict[int, PackBody] = OrderedDict()
        self._expected: dict[int, int] = {}
        self._of_origin: tuple[str, dict[int, int]] | None = None
        self._read_bytes = 0
        """Of its head and its columns."""

    @property
    def size_bytes(self) -> int:
        """All that Python holds for what was read of it."""
        return self._read_bytes + sum(body.size_bytes for body in self._bodies.values())

    @cached_property
    def _head(self) -> PackStreams:
        head = self._part(HEAD, _streams_of_head, lambda head: head.size_bytes)
        self._read_bytes += head.size_bytes
        return head

    @property
    def streams(self) -> list[tuple[str, str, str]]:
        """Key, node and rule of each stream."""
        return self._head.names

    @cached_property
    def stream(self) -> Integers:
        """The number of the stream of each record."""
        return self._column(STREAM, self._integers)

    @cached_property
    def event_utc_ns(self) -> Integers:
        """When each was sensed. It only grows."""
        return self._column(TIME, self._integers)

    @cached_property
    def sequence(self) -> Integers:
        """The sequence of each."""
        return self._column(SEQUENCE, lambda data: self._scattered(self._integers(data)))

    @cached_property
    def number(self) -> Integers:
        """The number of each."""
        return self._column(NUMBER, lambda data: self._scattered(self._integers(data)))

    @cached_property
    def latitude_deg(self) -> Floats:
        """Where each was sensed."""
        return self._column(LATITUDE, self._floats)

    @cached_property
    def longitude_deg(self) -> Floats:
        """Where each was sensed."""
        return self._column(LONGITUDE, self._floats)

    @cached_property
    def quality(self) -> Floats:
        """The quality of each."""
        return self._column(QUALITY, self._floats)

    @cached_property
    def _order(self) -> Integers:
        return origin_order(self.streams, self.stream)

    def rules_of(self, key: str, origin: str) -> dict[int, str]:
        """The rules of a key and node, by the numbers of their streams."""
        return self._head.rules_of(key, origin)

    def expect(self, positions: Iterable[int], numbers: Iterable[int]) -> None:
        """Remember where a few records are that are going to be asked for by their numbers."""
        self._expected = dict(zip(numbers, positions, strict=True))

    def place(self, at: int) -> tuple[int, str, int]:
        """Time of sensing, node and sequence of a record."""
        return int(self.event_utc_ns[at]), self.streams[self.stream[at]][1], int(self.sequence[at])

    def record(self, at: int) -> PackableRecord:
        """A whole record. :raises PackDamaged: a block of it is."""
        starts = self._head.starts
        start = bisect_right(starts, at) - 1
        part = FIRST_BODY + start
        body = self._bodies.get(start) or self._opened_body(start)
        event_utc_ns, _, sequence = self.place(at)
        try:
            return body.record(
                at - starts[start], int(self.number[at]), self.streams[self.stream[at]], sequence, event_utc_ns,
                (float(self.latitude_deg[at]), float(self.longitude_deg[at])), float(self.quality[at]),
            )  # fmt: skip
        except (ValueError, IndexError) as error:
            raise self._damaged(part, error) from error

    def _opened_body(self, start: int) -> PackBody:
        body = self._part(FIRST_BODY + start, PackBody, lambda body: body.size_bytes)
        self._bodies[start] = body
        while len(self._bodies) > 1 and (
            len(self._bodies) > MAX_OPEN_BODIES
            or sum(body.size_bytes for body in self._bodies.values()) > MAX_OPEN_BODY_BYTES
        ):
            self._bodies.popitem(last=False)
        return body

    def at_sequence(self, origin: str, sequence: int) -> int | None:
        """Where the record of a node with a sequence is; None: it was deleted."""
        if self._of_origin is None or self._of_origin[0] != origin:
            of_stream = np.array([name == origin for _, name, _ in self.streams], np.bool_)
            positions = np.flatnonzero(of_stream[self.stream])
            self._of_origin = origin, dict(zip(self.sequence[positions].tolist(), positions.tolist(), strict=True))
        return self._of_origin[1].get(sequence)

    def at_number(self, number: int) -> int | None:
        """Where the record with a number is; None: it was deleted."""
        if number in self._expected:
            return self._expected[number]
        found = np.flatnonzero(self.number == number)
        return int(found[0]) if len(found) else None

    def _integers(self, data: bytes) -> Integers:
        return self._whole(integers_unpacked(expanded(data)))

    def _floats(self, data: bytes) -> Floats:
        return self._whole(floats_unpacked(expanded(data)))

    def _whole(self, column: "NDArray[NumberT]") -> "NDArray[NumberT]":
        if len(column) != self.entry.records:
            raise ValueError(f"it has {len(column)} records and not {self.entry.records}")
        return column

    def _scattered(self, by_origin: Integers) -> Integers:
        """A column that is kept node by node, in the order of the pack."""
        column = np.empty_like(by_origin)
        column[self._order] = by_origin
        return column

    def _column(self, part: int, read: "Callable[[bytes], NDArray[NumberT]]") -> "NDArray[NumberT]":
        def read_only(data: bytes) -> "NDArray[NumberT]":
            column = read(data)
            column.flags.writeable = False  # other questions may be given it
            return column

        column = self._part(part, read_only, lambda column: column.nbytes)
        self._read_bytes += column.nbytes
        return column

    def _part(self, part: int, read: Callable[[bytes], ResultT], size_bytes: Callable[[ResultT], int]) -> ResultT:
        kept: ResultT | None = self._cache.find(self.entry, part)
        if kept is None:
            kept = self._block(part, read)
            self._cache.keep(self.entry, part, kept, size_bytes(kept))
        return kept

    def _block(self, part: int, read: Callable[[bytes], ResultT]) -> ResultT:
        found = self._db.execute(
            "SELECT data FROM pack_blocks WHERE place = ?", (place_of(self.entry.content, part),)
        ).fetchone()
        if found is None:
            raise self._damaged(part, ValueError("it is missing"))
        try:
            return read(found[0])
        except (ValueError, TypeError, IndexError, msgspec.MsgspecError) as error:
            raise self._damaged(part, error) from error

    def _damaged(self, part: int, error: Exception) -> PackDamaged:
        entry = self.entry
        return PackDamaged(
            f"the block {part_name(part)!r} of pack {entry.pack} of the store is damaged ({str(error)[:120]}): its "
            f"{entry.records} records, sensed from {entry.oldest_utc_ns} to {entry.newest_utc_ns} ns, can't all be "
            "read; ask for other times, or restore a copy of the store"
        )


class PackReader:
    """The packs of a store, at one moment. Belongs to one thread."""

    def __init__(self, db: sqlite3.Connection, most_open: int = MAX_OPEN_PACKS, cache: PackCache | None = None) -> None:
        """``cache`` is that of the store for all questions."""
        self._db, self._most_open = db, most_open
        self._cache = PackCache(_OWN_BYTES) if cache is None else cache
        self._open: OrderedDict[int, OpenPack] = OrderedDict()

    @cached_property
    def entries(self) -> list[PackEntry]:
        """All of them that have records, in the order of their numbers."""
        rows = self._db.execute("SELECT * FROM packs WHERE records > 0 ORDER BY pack")
        entries = list(map(PackEntry._make, rows))
        self._cache.keep_only(entries)
        return entries

    @cached_property
    def up_to(self) -> int:
        """The highest number that is or was in a pack."""
        return packed_up_to(self._db)

    @cached_property
    def newest_utc_ns(self) -> int:
        """When the newest packed record was sensed, or later; -1: there is none."""
        return max((entry.newest_utc_ns for entry in self.entries), default=-1)

    def opened(self, entry: PackEntry) -> OpenPack:
        """A pack."""
        pack = self._open.pop(entry.content, None)
        if pack is None:
            while self._open and (len(self._open) >= self._most_open or self._open_bytes() > MAX_OPEN_BYTES):
                self._open.popitem(last=False)
            pack = OpenPack(self._db, entry, self._cache)
        self._open[entry.content] = pack
        return pack

    def _open_bytes(self) -> int:
        return sum(pack.size_bytes for pack in self._open.values())

    def with_number(self, number: int) -> PackableRecord | None:
        """The record with a number; None: it is in no pack."""
        found = bisect_right(self.entries, number, key=attrgetter("first_number")) - 1
        if found < 0 or self.entries[found].last_number < number:
            return None
        pack = self.opened(self.entries[found])
        at = pack.at_number(number)
        return None if at is None else pack.record(at)

    def named(self, origin: str, sequence: int) -> PackableRecord | None:
        """The record of a node with a sequence; None: it is in no pack."""
        found = self._db.execute(
            "SELECT packs.* FROM (SELECT last, pack FROM pack_ranges WHERE origin = ? AND first <= ?"
            " ORDER BY first DESC LIMIT 1) AS near JOIN packs USING (pack) WHERE near.last >= ?",
            (origin, sequence, sequence),
        ).fetchone()
        if found is None or not PackEntry._make(found).records:
            return None
        pack = self.opened(PackEntry._make(found))
        at = pack.at_sequence(origin, sequence)
        return None if at is None else pack.record(at)

    def every(self, entry: PackEntry) -> Iterator[PackableRecord]:
        """All records of a pack, in order."""
        pack = self.opened(entry)
        return map(pack.record, range(entry.records))


def _streams_of_head(data: bytes) -> PackStreams:
    return PackStreams(_head_decoder.decode(expanded(data)))


def origin_order(streams: list[tuple[str, str, str]], stream: Integers) -> Integers:
    """The order in which the records of each node follow one another, node by node. Sequences and numbers are kept in
    it, because most of them are one more than the one before."""
    ranks: dict[str, int] = {}
    # NumPy sorts integers of 16 bits by radix, much faster. A pack has at most 32,768 records, and so as many nodes.
    of_stream = np.array([ranks.setdefault(origin, len(ranks)) for _, origin, _ in streams], np.uint16)
    return np.argsort(of_stream[stream], kind="stable")
