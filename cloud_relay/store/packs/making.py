"""Makes the blocks of a pack out of records, and what the tables say of it. It writes nothing.

Records come one at a time in the order of the pack, and its bodies go out as they fill, so memory holds the columns and
one body, whatever the records are.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec
import numpy as np

from cloud_relay.store.packs.bodies import BodyBuilder, PackableRecord
from cloud_relay.store.packs.columns import compressed, floats_packed, integers_packed
from cloud_relay.store.packs.reading import PackHead, origin_order
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
)
from cloud_relay.store.rows import EVENT_COLUMN, KEY_COLUMN, LATITUDE_COLUMN, LONGITUDE_COLUMN, QUALITY_COLUMN

PLACE_COLUMNS: Final = (LATITUDE_COLUMN, LONGITUDE_COLUMN)


class StreamPart(NamedTuple):
    """What a pack has of a stream."""

    key: str
    origin: str
    rule: str
    records: int
    newest_utc_ns: int


class SequenceRange(NamedTuple):
    """Sequences of a node that follow one another in a pack."""

    origin: str
    first: int
    last: int
    receipted: int


class PackMaker:
    """Makes one pack: take all of :meth:`blocks`, and then read the rest."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str, str], int] = {}
        self._counts: Counter[int] = Counter()
        self._newest_utc_ns: dict[int, int] = {}
        self._stream: list[int] = []
        self._time: list[int] = []
        self._sequence: list[int] = []
        self._number: list[int] = []
        self._places: list[tuple[float, float]] = []
        self._quality: list[float] = []
        self._received_utc_ns: list[int] = []
        self._receipts: set[int] = set()
        self._receipted: defaultdict[str, set[int]] = defaultdict(set)
        self.encoded_bytes = 0

    def blocks(self, records: Iterable[PackableRecord]) -> Iterator[tuple[int, bytes]]:
        """Each block with its part. There is at least one record."""
        starts, body = [0], BodyBuilder()
        for record in records:
            if body.is_full:
                yield FIRST_BODY + len(starts) - 1, body.block()
                starts.append(len(self._number))
                body = BodyBuilder()
            body.add(record)
            self._note(record)
        yield FIRST_BODY + len(starts) - 1, body.block()
        streams = list(self._streams)
        stream = np.array(self._stream, np.int64)
        order = origin_order(streams, stream)
        places = np.array(self._places, np.float64)
        yield HEAD, compressed(msgspec.msgpack.encode(PackHead(streams, starts)))
        yield STREAM, compressed(integers_packed(stream))
        yield TIME, compressed(integers_packed(np.array(self._time, np.int64)))
        yield SEQUENCE, compressed(integers_packed(np.array(self._sequence, np.int64)[order]))
        yield NUMBER, compressed(integers_packed(np.array(self._number, np.int64)[order]))
        yield LATITUDE, compressed(floats_packed(np.ascontiguousarray(places[:, 0])))
        yield LONGITUDE, compressed(floats_packed(np.ascontiguousarray(places[:, 1])))
        yield QUALITY, compressed(floats_packed(np.array(self._quality, np.float64)))

    def _note(self, record: PackableRecord) -> None:
        row = record.row
        stream = self._streams.setdefault((row[KEY_COLUMN], record.origin, record.rule), len(self._streams))
        event_utc_ns = row[EVENT_COLUMN]
        self._counts[stream] += 1
        self._newest_utc_ns[stream] = max(event_utc_ns, self._newest_utc_ns.get(stream, 0))
        self._stream.append(stream)
        self._time.append(event_utc_ns)
        self._sequence.append(record.sequence)
        self._number.append(record.number)
        self._places.append((row[LATITUDE_COLUMN], row[LONGITUDE_COLUMN]))
        self._quality.append(row[QUALITY_COLUMN])
        self._received_utc_ns.append(record.received_utc_ns)
        self.encoded_bytes += len(record.encoded)
        if record.receipt:
            self._receipts.add(record.receipt)
            self._receipted[record.origin].add(record.sequence)

    def entry(self, pack: int, content: int, first_number: int, last_number: int) -> PackEntry:
        """The row of ``packs``, for the numbers that the pack is about."""
        latitudes, longitudes = zip(*self._places, strict=True)
        return PackEntry(
            pack, content, first_number, last_number, len(self._number), self._time[0], self._time[-1],
            min(latitudes), min(longitudes), max(latitudes), max(longitudes), max(self._quality),
            min(self._received_utc_ns), max(self._received_utc_ns),
            min(self._receipts, default=0), max(self._receipts, default=0),
        )  # fmt: skip

    def streams(self) -> list[StreamPart]:
        """What it has of each stream."""
        return [
            StreamPart(*name, self._counts[stream], self._newest_utc_ns[stream])
            for name, stream in self._streams.items()
        ]

    def ranges(self) -> list[SequenceRange]:
        """The sequences that are in it, in order."""
        names = list(self._streams)
        sequences: defaultdict[str, list[int]] = defaultdict(list)
        for stream, sequence in zip(self._stream, self._sequence, strict=True):
            sequences[names[stream][1]].append(sequence)
        found: list[SequenceRange] = []
        for origin in sorted(sequences):
            own = sorted(sequences[origin])
            receipted = self._receipted[origin]
            ends = [at for at, (one, following) in enumerate(pairwise(own)) if following != one + 1]
            for first, last in zip([0, *(end + 1 for end in ends)], [*ends, len(own) - 1], strict=True):
                covered = sum(sequence in receipted for sequence in own[first : last + 1])
                found.append(SequenceRange(origin, own[first], own[last], covered))
        return found
