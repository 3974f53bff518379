"""The bodies of a pack: what of its records is in no column that questions look at.

A reading comes back in the very bytes in which its node sent it, so receipts and proofs stay what they were. It is
taken apart into columns only if the same bytes come out of them again, and if the columns of its row do; any other
record, of a node that encodes in another way, say, is kept whole beside them.
"""

from collections.abc import Iterable
from itertools import chain
from math import isnan
from sys import getsizeof
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Raw, Struct

from cloud_relay.store.packs.columns import (
    compressed,
    expanded,
    floats_packed,
    integers_packed,
    short_columns_unpacked,
)
from cloud_relay.store.rows import Cost, RecordUnsuitable, Row, row_of
from protocols.base.errors import RemoteProtocolError
from protocols.wire.parcels import decode_untrusted_reading
from protocols.wire.readings import EventTime, Position, Provenance

MAX_BODY_RECORDS: Final = 512
"""Records of a body. Who looks for one record expands all of them, in 0.1 ms."""
MAX_BODY_BYTES: Final = 256 * 1024
"""Encoded readings of a body that has more than one record."""


_NEGATIVE_ZERO: Final = b"\xcb\x80\0\0\0\0\0\0\0"
"""A number that SQLite does not keep in a column of numbers, so the row has another one than the reading."""


class PackableRecord(NamedTuple):
    """A record with all that the store knows of it."""

    number: int
    origin: str
    sequence: int
    rule: str
    row: Row
    """See :func:`cloud_relay.store.rows.row_of`."""
    received_utc_ns: int
    encoded: bytes
    receipt: int
    """The number of the receipt that covers it; 0: none does, as far as its pack knows."""
    receipt_place: int


class _Parts(Struct, frozen=True, array_like=True, gc=False):
    """A reading whose value is left in its bytes."""

    key: str
    origin: str
    sequence: int
    value: Raw
    where: Position
    when: EventTime
    how: Provenance
    priority: int
    lifespan_ms: int
    hops: int


_Profile = tuple[str, str, str, str, tuple[str, ...], int, int, int]
"""What many records share: sensing origin (empty: the node that sent it), sensor, unit, calibration, lineage, priority,
lifespan and hops."""


class _Columns(Struct, array_like=True):
    profiles: list[_Profile]
    integers: list[bytes]
    """Columns: profile, as an index into ``profiles``; uncertainty_ns, received_utc_ns, sequence of the reading,
    receipt and place in it, and where the value ends in ``values``."""
    floats: list[bytes]
    """Columns: accuracy_m, altitude_m and heading_deg. NaN: there is none, because rows have only finite numbers."""
    values: bytes
    odd: dict[int, tuple[list[Any], bytes]]
    """Records that are kept whole, by their place in the body: row and encoded reading."""


_parts_decoder = msgspec.msgpack.Decoder(_Parts)
_columns_decoder = msgspec.msgpack.Decoder(_Columns)


class BodyBuilder:
    """Collects the records of one body."""

    def __init__(self) -> None:
        self.records = 0
        self.size_bytes = 0
        self._profiles: dict[_Profile, int] = {}
        self._integers: list[list[int]] = [[] for _ in range(7)]
        self._floats: list[list[float]] = [[] for _ in range(3)]
        self._values = bytearray()
        self._odd: dict[int, tuple[list[Any], bytes]] = {}

    @property
    def is_full(self) -> bool:
        """Whether the next record begins another body."""
        return self.records >= MAX_BODY_RECORDS or self.size_bytes >= MAX_BODY_BYTES

    def add(self, record: PackableRecord) -> None:
        """Add the next record."""
        parts = _taken_apart(record)
        profile: _Profile = ("", "", "", "", (), 0, 0, 0)
        numbers, uncertainty_ns, reading_sequence = (0.0, 0.0, 0.0), 0, 0
        if parts is None:
            self._odd[self.records] = (list(record.row), record.encoded)
        else:
            where, how = parts.where, parts.how
            sensing_origin = "" if parts.origin == record.origin else parts.origin
            profile = (
                sensing_origin, how.sensor, how.unit, how.calibration, how.lineage, parts.priority, parts.lifespan_ms,
                parts.hops,
            )  # fmt: skip
            numbers = (where.accuracy_m, _or_nan(where.altitude_m), _or_nan(where.heading_deg))
            uncertainty_ns, reading_sequence = parts.when.uncertainty_ns, parts.sequence
            self._values += parts.value
        integers = (
            self._profiles.setdefault(profile, len(self._profiles)), uncertainty_ns, record.received_utc_ns,
            reading_sequence, record.receipt, record.receipt_place, len(self._values),
        )  # fmt: skip
        for column, integer in zip(self._integers, integers, strict=True):
            column.append(integer)
        for cells, number in zip(self._floats, numbers, strict=True):
            cells.append(number)
        self.records += 1
        self.size_bytes += len(record.encoded)

    def block(self) -> bytes:
        """The block of all of them."""
        integers = [integers_packed(np.array(column, np.int64)) for column in self._integers]
        floats = [floats_packed(np.array(column, np.float64)) for column in self._floats]
        columns = _Columns(list(self._profiles), integers, floats, bytes(self._values), self._odd)
        return compressed(msgspec.msgpack.encode(columns))


class PackBody:
    """The records of one body."""

    def __init__(self, block: bytes) -> None:
        """:raises ValueError: the block is damaged."""
        try:
            columns = _columns_decoder.decode(expanded(block))
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error
        self._profiles, self._odd, self._values = columns.profiles, columns.odd, columns.values
        integers, self._floats = short_columns_unpacked(columns.integers, columns.floats)
        (
            self._profile, self._uncertainty_ns, self._received_utc_ns, self._reading_sequence, self._receipt,
            self._receipt_place, self._ends,
        ) = integers  # fmt: skip
        numbers = sum(column.nbytes for column in (*integers, *self._floats))
        self.size_bytes = len(columns.values) + numbers + _held_bytes((self._profiles, self._odd))
        """All that Python holds for it."""

    def record(
        self, at: int, number: int, stream: tuple[str, str, str], sequence: int, event_utc_ns: int,
        place: tuple[float, float], quality: float,
    ) -> PackableRecord:  # fmt: skip
        """The record at a place in the body. The columns of the pack say the rest of it: its stream is key, node and
        rule, its place latitude and longitude.

        :raises ValueError: it does not give a reading.
        """
        key, origin, rule = stream
        row, encoded = self._whole(at, key, origin, event_utc_ns, place, quality)
        return PackableRecord(
            number, origin, sequence, rule, row, int(self._received_utc_ns[at]), encoded, int(self._receipt[at]),
            int(self._receipt_place[at]),
        )  # fmt: skip

    def _whole(
        self, at: int, key: str, origin: str, event_utc_ns: int, place: tuple[float, float], quality: float
    ) -> tuple[Row, bytes]:
        if at in self._odd:
            row, encoded = self._odd[at]
            return tuple(row), encoded
        sensing, sensor, unit, calibration, lineage, priority, lifespan_ms, hops = self._profiles[self._profile[at]]
        accuracy_m, altitude_m, heading_deg = (float(column[at]) for column in self._floats)
        begin = int(self._ends[at - 1]) if at else 0
        parts = _Parts(
            key, sensing or origin, int(self._reading_sequence[at]), Raw(self._values[begin : int(self._ends[at])]),
            Position(*place, accuracy_m, _or_none(altitude_m), _or_none(heading_deg)),
            EventTime(event_utc_ns, int(self._uncertainty_ns[at])),
            Provenance(sensor, unit, quality, calibration, lineage), priority, lifespan_ms, hops,
        )  # fmt: skip
        encoded = msgspec.msgpack.encode(parts)
        try:
            return row_of(decode_untrusted_reading(encoded), encoded, Cost()), encoded
        except (RemoteProtocolError, msgspec.MsgspecError) as error:
            raise ValueError(str(error)) from error


def _taken_apart(record: PackableRecord) -> _Parts | None:
    """The parts of a reading that give its bytes and its row again; None: they would not."""
    encoded = record.encoded
    if _NEGATIVE_ZERO in encoded:
        return None
    try:
        parts = _parts_decoder.decode(encoded)
        if msgspec.msgpack.encode(parts) != encoded:
            return None
        row = row_of(decode_untrusted_reading(encoded), encoded, Cost())
    except (RemoteProtocolError, RecordUnsuitable, msgspec.MsgspecError):
        return None
    return parts if row == record.row else None


def _held_bytes(content: Any) -> int:
    """What Python holds for a decoded value and all that is in it."""
    inner: Iterable[Any] = ()
    if isinstance(content, dict):
        inner = chain(content.keys(), content.values())
    elif isinstance(content, (list, tuple)):
        inner = content
    return getsizeof(content) + sum(map(_held_bytes, inner))


def _or_nan(number: float | None) -> float:
    return float("nan") if number is None else number


def _or_none(number: float) -> float | None:
    return None if isnan(number) else number
