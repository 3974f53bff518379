"""What egress makes of the value of a reading. Values are plain: as they were decoded."""

from collections.abc import Callable, Collection
from typing import Any, Final

from protocols.base.errors import InputInvalid
from protocols.records.egress.coarse import widened
from protocols.records.patterns.base import DESCRIBED
from protocols.wire.tensors import Tensor

Redraw = Callable[[bytes], bytes]
"""Encodes a picture anew. :raises InputInvalid: it is none, or none that can be decoded."""

_START, _END, _UNTIL, _COUNT = "start_ns", "end_ns", "until_ns", "count"
_ENCODED_SHAPE: Final = 1
"""Dimensions of an array that holds an encoded picture."""


def with_fields(value: Any, allowed: Collection[str]) -> dict[str, Any] | None:
    """The allowed fields of a map, which is the map itself if there are no others; None: there are none, or it is no
    map."""
    if type(value) is not dict:
        return None
    kept = {name: item for name, item in value.items() if name in allowed}
    return value if len(kept) == len(value) else kept or None


def has_count(value: Any, least: int) -> bool:
    """Whether a value is a map that says that it was made of enough readings."""
    if type(value) is not dict:
        return False
    count = value.get(_COUNT)
    return type(count) is int and count >= least


def with_described(value: Any, veiled: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The value with ``veiled`` in place of each reading that it describes, as what patterns derive does."""
    match value:
        case dict():
            inner = {name: with_described(item, veiled) for name, item in value.items()}
            return veiled(inner) if inner.keys() == DESCRIBED and type(inner["utc_ns"]) is int else inner
        case list() if value and type(value[0]) is dict:
            return [with_described(item, veiled) for item in value]
        case _:
            return value


def with_wide_window(value: Any, bucket_s: int) -> Any:
    """A map that says when its window began and ended, or until when nothing came, with whole buckets in their place.
    Anything else as it is."""
    if type(value) is dict and type(value.get(_UNTIL)) is int:
        value = value | {_UNTIL: widened(value[_UNTIL], value[_UNTIL], bucket_s)[1]}
    if type(value) is not dict or type(value.get(_START)) is not int or type(value.get(_END)) is not int:
        return value
    start_ns, end_ns = widened(value[_START], value[_END], bucket_s)
    if (start_ns, end_ns) == (value[_START], value[_END]):
        return value
    return value | {_START: start_ns, _END: end_ns}


def sizes_bytes(value: Any) -> list[int]:
    """The sizes of all bytes and arrays in a value, at any depth."""
    match value:
        case bytes():
            return [len(value)]
        case Tensor():
            return [len(value.data)]
        case dict():
            return [size for item in value.values() for size in sizes_bytes(item)]
        case list():
            return [size for item in value for size in sizes_bytes(item)]
        case _:
            return []


def redrawn(value: Any, redraw: Redraw) -> Any:
    """The value with all of its pictures encoded anew.

    A picture is bytes, or an array of bytes of one dimension. Other arrays could be pictures too, which nobody can
    tell, so they may not leave.

    :raises InputInvalid: when bytes or an array are no picture that can be decoded.
    """
    match value:
        case bytes():
            return redraw(value)
        case Tensor(dtype="u1", shape=shape) if len(shape) == _ENCODED_SHAPE:
            picture = redraw(bytes(value.data))
            return Tensor("u1", (len(picture),), memoryview(picture))
        case Tensor():
            raise InputInvalid(
                f"an array {value.dtype} {list(value.shape)} is not an encoded picture: send JPEG or PNG"
            )
        case dict():
            return {name: redrawn(item, redraw) for name, item in value.items()}
        case list():
            return [redrawn(item, redraw) for item in value]
        case _:
            return value
