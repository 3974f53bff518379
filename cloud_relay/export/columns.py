"""The columns of an exported file: their names, types, units and meanings, and what a record puts into them.

Names that a query has too mean the same. A value is in ``value`` whole, as JSON with the forms of
:mod:`meshnode.http.reading_json` for what JSON lacks, so that nothing is lost. It is in one or two of the typed columns
too if it is one number, text or truth value, so that programs can compute with it; numbers that are not finite are
themselves there.
"""

import struct
from typing import Any, Final, NamedTuple

import msgspec

from cloud_relay.query.forms import value_of
from cloud_relay.query.searching import COLUMNS, StoredRecord
from meshnode.readings.value_json import value_form
from protocols.wire.tensors import Tensor

_MAX_INTEGER: Final = 2**63


class Column(NamedTuple):
    """One column."""

    name: str
    kind: str
    """``text``, ``texts``, ``integer``, ``real``, ``truth``, ``bytes``, ``time`` in microseconds, or ``point`` in
    WKB."""
    unit: str
    """A UCUM symbol; empty where there is none."""
    description: str
    nullable: bool = False


EXPORTED: Final = (
    Column("origin", "text", "", "The node that sent the record."),
    Column("sequence", "integer", "", "The number that it gave it: 1, 2, 3 …"),
    Column("rule", "text", "", "The rule that chose it."),
    Column("key", "text", "", "The key of the reading."),
    Column("sensing_origin", "text", "", "The node that sensed it."),
    Column("reading_sequence", "integer", "", "The number that this node gave the reading within its key."),
    Column("event_time", "time", "", "When it was sensed, UTC, to the microsecond."),
    Column("event_utc_ns", "integer", "ns", "When it was sensed, since 1970 in UTC, as the node said."),
    Column("uncertainty_ns", "integer", "ns", "How far that may be off, because of the node's clock."),
    Column("received_utc_ns", "integer", "ns", "When the relay stored it, by the clock of the relay."),
    Column("latitude_deg", "real", "deg", "Where it was sensed, WGS 84."),
    Column("longitude_deg", "real", "deg", "Where it was sensed, WGS 84."),
    Column("accuracy_m", "real", "m", "How far that may be off."),
    Column("altitude_m", "real", "m", "How high, if the node knew.", nullable=True),
    Column("heading_deg", "real", "deg", "Where the sensor was heading, clockwise from north.", nullable=True),
    Column("sensor", "text", "", "What sensed it."),
    Column("unit", "text", "", "The unit of the value, a UCUM symbol; 1 for a bare number."),
    Column("quality", "real", "1", "How good the node held it to be, 0 to 1."),
    Column("calibration", "text", "", "The calibration that was in force; empty: none."),
    Column("lineage", "texts", "", "What it was derived from, nearest step first."),
    Column("derived_by", "text", "", "The nearest of these steps, such as a rule; none: it was sensed.", nullable=True),
    Column("about_from_utc_ns", "integer", "ns", "When what the value is about begins: the window of a summary."),
    Column(
        "about_until_utc_ns", "integer", "ns", "When it ends, exclusive. All but summaries are about their event time."
    ),
    Column("priority", "integer", "", "0 to 7, the most urgent."),
    Column("lifespan_ms", "integer", "ms", "How long it is worth something; 0: for ever."),
    Column("has_receipt", "truth", "", "Whether the signature of its node covers it."),
    Column("value_kind", "text", "", "null, bool, int, float, text, bytes, time, list, map or tensor."),
    Column("value", "text", "", "The whole value as JSON; $float, $bytes, $time, $tensor are what JSON lacks."),
    Column("value_number", "real", "", "The value, if it is a number; its unit is in the column unit.", nullable=True),
    Column("value_integer", "integer", "", "The same exactly, if it is an integer of 64 bits.", nullable=True),
    Column("value_text", "text", "", "The value, if it is a text.", nullable=True),
    Column("value_bool", "truth", "", "The value, if it is true or false.", nullable=True),
)
"""In the order in which they are written."""
READING: Final = Column("reading", "bytes", "", "The reading in the bytes of its node, which its digest is about.")
"""What exports of datasets have beside ``EXPORTED``: with it, a file shows by itself that it is whole."""
GEOMETRY: Final = Column("geometry", "point", "", "The place as a point, longitude first, WKB.")


def row_of_record(record: StoredRecord) -> dict[str, Any]:
    """What a record has in each column of ``EXPORTED``, and in ``READING``."""
    fields, value = record.fields, value_of(record)
    number = value if type(value) in (int, float) else None
    lineage = msgspec.json.decode(fields["lineage"])
    begins, ends = _span_of(value, fields["event_utc_ns"])
    return {name: fields[name] for name in COLUMNS} | {
        "event_time": fields["event_utc_ns"] // 1_000,
        "lineage": lineage,
        "derived_by": lineage[0] if lineage else None,
        "about_from_utc_ns": begins,
        "about_until_utc_ns": ends,
        "value_kind": kind_of(value),
        "value": msgspec.json.encode(value_form(value)).decode(),
        "value_number": None if number is None else float(number),
        "value_integer": value if type(value) is int and -_MAX_INTEGER <= value < _MAX_INTEGER else None,
        "value_text": value if type(value) is str else None,
        "value_bool": value if type(value) is bool else None,
        "reading": record.encoded,
    }


def _span_of(value: object, event_utc_ns: int) -> tuple[int, int]:
    """The time that a value is about, its end exclusive: what a rule derived of a window says it, see
    :mod:`protocols.records.windows.rule`."""
    if type(value) is dict:
        begins, ends = value.get("start_ns"), value.get("end_ns")
        if type(begins) is int and type(ends) is int and 0 <= begins < ends < _MAX_INTEGER:
            return begins, ends
    return event_utc_ns, min(event_utc_ns + 1, _MAX_INTEGER - 1)


def point_of(row: dict[str, Any]) -> bytes:
    """The place of a row in WKB, little-endian."""
    return struct.pack("<BIdd", 1, 1, row["longitude_deg"], row["latitude_deg"])


def kind_of(value: object) -> str:
    """The word for the type of a value."""
    kinds: dict[type, str] = {
        type(None): "null", bool: "bool", int: "int", float: "float", str: "text", bytes: "bytes",
        memoryview: "bytes", list: "list", dict: "map", Tensor: "tensor",
    }  # fmt: skip
    return kinds.get(type(value), "time")
