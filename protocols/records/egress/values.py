"""What egress makes of the value of a reading. Values are plain: as they were decoded."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from protocols.base.errors import InputInvalid
from protocols.records.egress.coarse import widened
from protocols.wire.tensors import Tensor

PixelBox = tuple[float, float, float, float]
"""Left, top, right and bottom of a box in a picture, in pixels of the upright picture."""
Redraw = Callable[[bytes, Sequence[PixelBox]], bytes]
"""Encodes a picture anew, with boxes covered. :raises InputInvalid: it is none, or none that can be decoded."""
Allowed = Mapping[str, "Allowed | None"]
"""Fields that may leave: whole (None), or of the maps in them those fields."""

MAX_FOUND: Final = 64
"""Boxes that one field lists. They may come from a neighbour, and each is drawn."""
_FARTHEST: Final = 1_000_000
"""Pixels from the corner of a picture, beyond which nothing was found. No picture is as wide."""
_SIDES: Final = ("left", "top", "right", "bottom")
_START, _END, _UNTIL, _COUNT = "start_ns", "end_ns", "until_ns", "count"
_ENCODED_SHAPE: Final = 1
"""Dimensions of an array that holds an encoded picture."""


@lru_cache(maxsize=1_024)
def allowed_fields(paths: frozenset[str]) -> Allowed:
    """The fields that paths name: ``a``, or ``a.b`` for the field ``b`` of what is in ``a``. Rules have few such sets,
    and each reading asks for one."""
    tree: dict[str, Any] = {}
    for path in sorted(paths):  # "a" comes before "a.b", and allows all of it
        *parents, last = path.split(".")
        inner: dict[str, Any] | None = tree
        for name in parents:
            inner = None if inner is None else inner.setdefault(name, {})
        if inner is not None:
            inner[last] = None
    return tree | {path: None for path in paths if "." in path}  # a field may have such a name


def with_fields(value: Any, allowed: Allowed) -> dict[str, Any] | None:
    """The allowed fields of a map, which is the map itself if there are no others; None: there are none, or it is no
    map."""
    if type(value) is not dict:
        return None
    kept: dict[str, Any] = {}
    for name, item in value.items():
        if name in allowed:
            inner = allowed[name]
            left = item if inner is None else _inner_fields(item, inner)
            if inner is None or left is not None:
                kept[name] = left
    is_whole = len(kept) == len(value) and all(kept[name] is value[name] for name in kept)
    return value if is_whole else kept or None


def _inner_fields(item: Any, allowed: Allowed) -> Any:
    """The allowed fields of a map or of each map in a list; None: there are none."""
    if type(item) is not list:
        return with_fields(item, allowed)
    kept = [left for element in item if (left := with_fields(element, allowed)) is not None]
    is_whole = len(kept) == len(item) and all(one is other for one, other in zip(kept, item, strict=True))
    return item if is_whole and item else kept or None


def has_count(value: Any, least: int) -> bool:
    """Whether a value is a map that says that it was made of enough readings."""
    if type(value) is not dict:
        return False
    count = value.get(_COUNT)
    return type(count) is int and count >= least


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


def redrawn(value: Any, redraw: Redraw, cover_field: str = "") -> Any:
    """The value with all of its pictures encoded anew, and covered where the field ``cover_field`` of the innermost map
    around them that has it says so. Empty: there is no such field.

    A picture is bytes, or an array of bytes of one dimension. Other arrays could be pictures too, which nobody can
    tell, so they may not leave.

    :raises InputInvalid: when bytes or an array are no picture that can be decoded, or when there is no such field
        around a picture, or it lists no boxes.
    """
    return _redrawn(value, redraw, cover_field, None if cover_field else ())


def _redrawn(value: Any, redraw: Redraw, cover_field: str, found: Sequence[PixelBox] | None) -> Any:
    """``found``: the boxes of the field around the value; None: it was not there."""
    match value:
        case bytes():
            return redraw(value, _known(found, cover_field))
        case Tensor(dtype="u1", shape=shape) if len(shape) == _ENCODED_SHAPE:
            picture = redraw(bytes(value.data), _known(found, cover_field))
            return Tensor("u1", (len(picture),), memoryview(picture))
        case Tensor():
            raise InputInvalid(
                f"an array {value.dtype} {list(value.shape)} is not an encoded picture: send JPEG or PNG"
            )
        case dict():
            if cover_field in value:
                found = _boxes(value[cover_field], cover_field)
            return {name: _redrawn(item, redraw, cover_field, found) for name, item in value.items()}
        case list():
            return [_redrawn(item, redraw, cover_field, found) for item in value]
        case _:
            return value


def _known(found: Sequence[PixelBox] | None, cover_field: str) -> Sequence[PixelBox]:
    if found is None:
        raise InputInvalid(f"a picture has no field {cover_field!r} beside it: list the boxes in it there, or []")
    return found


def _boxes(listed: Any, cover_field: str) -> list[PixelBox]:
    """The boxes that a field lists: maps with ``left``, ``top``, ``right`` and ``bottom``."""
    if type(listed) is not list or len(listed) > MAX_FOUND:
        raise InputInvalid(f"{cover_field!r} is no list of at most {MAX_FOUND} boxes")
    boxes: list[PixelBox] = []
    for box in listed:
        sides = [box.get(side) if type(box) is dict else None for side in _SIDES]
        numbers = [
            float(side) for side in sides
            if isinstance(side, (int, float)) and not isinstance(side, bool) and abs(side) <= _FARTHEST
        ]  # fmt: skip
        if len(numbers) < len(_SIDES) or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
            raise InputInvalid(f"{str(box)[:100]} in {cover_field!r} is no box: give {', '.join(_SIDES)} in pixels")
        boxes.append((numbers[0], numbers[1], numbers[2], numbers[3]))
    return boxes
