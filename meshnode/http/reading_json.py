"""Readings as JSON objects, with their whole context, both ways.

JSON has fewer types than a reading, so five of them are written as objects with one key that begins with ``$``:

    bytes        {"$bytes": "<base64>"}
    array        {"$tensor": {"dtype": "f4", "shape": [2, 3], "data": "<base64 of little-endian bytes in C order>"}}
    nan, ±inf    {"$float": "nan"}   "inf"   "-inf"
    timestamp    {"$time": "2026-11-29T05:27:00.123456Z"}   ISO 8601 with its offset from UTC

A key in a reading's own objects that begins with ``$`` gets a second ``$``, so that it is not taken for one of these.
"""

import base64
import binascii
from datetime import datetime
from math import prod
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from meshnode.http.guard import BadRequest
from meshnode.models import element_of_short
from meshnode.readings.value_json import value_form
from protocols.base import limits
from protocols.base.errors import InputInvalid
from protocols.wire.fields import Latitude, Longitude, NonNegative
from protocols.wire.readings import Position, Reading
from protocols.wire.tensors import Tensor

MAX_READING_BYTES: Final = 24 * 1024 * 1024
"""Largest body of one reading: the largest frame in base64, and its context."""


_MAX_EXTENT: Final = 2**48


class PositionForm(Struct, frozen=True, forbid_unknown_fields=True):
    """``protocols.wire.readings.Position`` as an object with named members."""

    latitude_deg: Latitude
    longitude_deg: Longitude
    accuracy_m: NonNegative
    altitude_m: float | None = None
    heading_deg: Annotated[float, Meta(ge=0, lt=360)] | None = None


class PublishForm(Struct, frozen=True, forbid_unknown_fields=True):
    """The body that publishes a reading: the arguments of ``Node.publish``."""

    key: str
    value: Any
    unit: str = "1"
    sensor: str = "http"
    where: PositionForm | None = None
    time_ns: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    quality: float = 1.0
    calibration: str = ""
    lineage: Annotated[tuple[str, ...], Meta(max_length=limits.MAX_LINEAGE)] = ()
    priority: int = 3
    lifespan_ms: int = 0
    hops: int = 0

    @property
    def position(self) -> Position | None:
        """``where`` as a reading has it."""
        where = self.where
        if where is None:
            return None
        return Position(where.latitude_deg, where.longitude_deg, where.accuracy_m, where.altitude_m, where.heading_deg)


_publish_decoder = msgspec.json.Decoder(PublishForm)


def parse_untrusted_publish(body: bytes) -> PublishForm:
    """Parse a body that publishes; its value becomes a Python value. :raises BadRequest: for anything else."""
    try:
        form = _publish_decoder.decode(body)
        return msgspec.structs.replace(form, value=_value_of(form.value))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not a reading: {str(error)[:200]}") from error


def reading_form(reading: Reading) -> dict[str, Any]:
    """The reading as a JSON object. :raises ValueUnsupported: its value has no form in JSON."""
    where, when, how = reading.where, reading.when, reading.how
    return {
        "key": reading.key,
        "origin": reading.origin,
        "sequence": reading.sequence,
        "value": value_form(reading.value),
        "where": position_form(where),
        "when": {"utc_ns": when.utc_ns, "uncertainty_ns": when.uncertainty_ns},
        "how": {
            "sensor": how.sensor,
            "unit": how.unit,
            "quality": how.quality,
            "calibration": how.calibration,
            "lineage": list(how.lineage),
        },
        "priority": reading.priority,
        "lifespan_ms": reading.lifespan_ms,
        "hops": reading.hops,
    }


def position_form(where: Position) -> dict[str, float | None]:
    """The position as a JSON object."""
    return {
        "latitude_deg": where.latitude_deg,
        "longitude_deg": where.longitude_deg,
        "accuracy_m": where.accuracy_m,
        "altitude_m": where.altitude_m,
        "heading_deg": where.heading_deg,
    }


def _value_of(form: Any) -> Any:
    match form:
        case list():
            return [_value_of(item) for item in form]
        case {"$bytes": str(text), **rest} if not rest:
            return _decoded(text)
        case {"$float": "nan" | "inf" | "-inf" as text, **rest} if not rest:
            return float(text)
        case {"$time": str(text), **rest} if not rest:
            return _instant(text)
        case {"$tensor": {"dtype": str(dtype), "shape": list(shape), "data": str(text)}, **rest} if not rest:
            return _tensor_of_form(dtype, shape, _decoded(text))
        case dict():
            for key in form:
                if key.startswith("$") and not key.startswith("$$"):
                    raise BadRequest(
                        f"the value has the key {key[:40]!r}: write '$bytes', '$tensor', '$time' or '$float' alone "
                        "and as documented, and double the '$' of a key of your own that begins with it"
                    )
            return {key.removeprefix("$"): _value_of(item) for key, item in form.items()}
        case _:
            return form


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{text[:20]!r} is not base64: {error}") from error


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRequest(f"{text[:40]!r} is not a time: {error}") from error
    if instant.tzinfo is None:
        raise BadRequest(f"the time {text[:40]!r} has no offset from UTC: append 'Z', or an offset such as '+02:00'")
    return instant


def _tensor_of_form(dtype: str, shape: list[Any], data: bytes) -> Tensor:
    try:
        element = element_of_short(dtype)
    except InputInvalid as error:
        raise BadRequest(f"a tensor in the value: {error}") from error
    if len(shape) > limits.MAX_TENSOR_DIMENSIONS or any(type(size) is not int or size < 0 for size in shape):
        raise BadRequest(f"a tensor has at most {limits.MAX_TENSOR_DIMENSIONS} dimensions, whole numbers from 0")
    if prod(size or 1 for size in shape) > _MAX_EXTENT:  # with a 0 in it, no byte is needed and no array can be made
        raise BadRequest(f"a tensor of shape {shape} is not addressable: give the sizes that it has")
    if prod(shape) * element.size_bytes != len(data):
        raise BadRequest(
            f"a tensor of {dtype} {shape} has {prod(shape) * element.size_bytes} bytes, {len(data)} are given"
        )
    return Tensor(element.short, tuple(shape), memoryview(data))
