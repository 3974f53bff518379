"""Records from the wire as rows of the store.

What SQLite can't hold exactly (integers beyond 63 bits, numbers that are not finite, values without a JSON form) is
refused here, record by record, so that one odd record never holds up the others of its batch.
"""

from math import isfinite
from typing import Any

import msgspec

from protocols.base.errors import InvalidKey, RemoteProtocolError
from protocols.base.keys import checked_key
from protocols.base.limits import MAX_RECORD_BYTES
from protocols.wire.codec import decode_untrusted_relay_frame
from protocols.wire.readings import Reading
from protocols.wire.records import Acknowledgement, Batch, RelayRefusal
from protocols.wire.tensors import Tensor

MAX_INTEGER = 2**63 - 1

Row = tuple[Any, ...]


class _RawRecord(msgspec.Struct, array_like=True, gc=False):
    sequence: int
    rule: Any
    reading: msgspec.Raw


class _RawBatch(msgspec.Struct, array_like=True, gc=False, tag=64):
    major: Any
    minor: Any
    node: Any
    incarnation: Any
    next_sequence: Any
    records: tuple[_RawRecord, ...] = ()


_raw_decoder = msgspec.msgpack.Decoder(_RawBatch)


class RecordUnsuitable(RemoteProtocolError):
    """A record that the store can't hold; the message is the reason told to its node."""


def decode_untrusted_batch(data: bytes) -> tuple[Batch, list[bytes]]:
    """A batch and the bytes of each of its readings, exactly as sent.

    :raises RemoteProtocolError: for anything that is not a batch, or contradicts itself.
    """
    frame = decode_untrusted_relay_frame(data)
    if isinstance(frame, Acknowledgement | RelayRefusal):
        raise RemoteProtocolError("a relay takes batches only")
    if frame.next_sequence > MAX_INTEGER or frame.incarnation > MAX_INTEGER:
        raise RemoteProtocolError("a sequence or incarnation has more than 63 bits")
    if any(fate.last >= frame.next_sequence for fate in frame.fates):
        raise RemoteProtocolError("a fate is about records that were not issued yet")
    if any(record.sequence >= frame.next_sequence for record in frame.records):
        raise RemoteProtocolError("a record's sequence is not below next_sequence")
    encoded = [bytes(raw.reading) for raw in _raw_decoder.decode(data).records]
    return frame, encoded


def row_of(reading: Reading, encoded: bytes) -> Row:
    """The columns of a reading from ``key`` to ``lifespan_ms``. :raises RecordUnsuitable: says why."""
    where, when, how = reading.where, reading.when, reading.how
    try:
        checked_key(reading.key)
    except InvalidKey as error:
        raise RecordUnsuitable(str(error)) from error
    if len(encoded) > MAX_RECORD_BYTES:
        raise RecordUnsuitable(f"{len(encoded)} bytes are too large for a record of {MAX_RECORD_BYTES}")
    if max(reading.sequence, when.utc_ns, when.uncertainty_ns) > MAX_INTEGER:
        raise RecordUnsuitable("sequence, time or uncertainty has more than 63 bits")
    numbers = (
        where.latitude_deg,
        where.longitude_deg,
        where.accuracy_m,
        where.altitude_m,
        where.heading_deg,
        how.quality,
    )
    if not all(number is None or isfinite(number) for number in numbers):
        raise RecordUnsuitable("position or quality is not a finite number")
    try:
        value = msgspec.json.encode(_described(reading.value)).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RecordUnsuitable(f"the value has no JSON form: {str(error)[:120]}") from error
    return (
        reading.key,
        reading.origin,
        reading.sequence,
        value,
        where.latitude_deg,
        where.longitude_deg,
        where.accuracy_m,
        where.altitude_m,
        where.heading_deg,
        when.utc_ns,
        when.uncertainty_ns,
        how.sensor,
        how.unit,
        how.quality,
        how.calibration,
        msgspec.json.encode(how.lineage).decode(),
        reading.priority,
        reading.lifespan_ms,
    )


def _described(value: Any) -> Any:
    """The value with tensors described instead of spelt out: their elements are in the encoded bytes."""
    if isinstance(value, Tensor):
        return {"tensor": {"dtype": value.dtype, "shape": value.shape}}
    if isinstance(value, dict):
        return {key: _described(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_described(inner) for inner in value]
    return value
