"""Turns plain data into structs. The error for bad data says where it is, what it is and what would be right.

msgspec checks types and bounds. Before that, the data is walked along the struct's own description, because a misspelt
name deserves its nearest known one, and a bound would let an infinite number pass.
"""

import difflib
import math
import re
from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec
from msgspec import inspect

from sims.errors import ScenarioError

T = TypeVar("T")

MAX_SHOWN_CHARS = 60
MAX_LISTED_NAMES = 16
_AT = re.compile(r"(.*) - at `(?:key in )?\$(.*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|\[\.\.\.\]")

_RENAMED: Final = {"swarm": "random_faults"}
"""Old names of keys, so that a file of an older version says what to change."""


def nearest(what: str, known: Iterable[str]) -> str:
    """The end of a message about a misspelt name: the nearest known name, or the names that are known."""
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(what, names, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    if not names:
        return ": there is none"
    more = ", …" if len(names) > MAX_LISTED_NAMES else ""
    return f": known are {', '.join(names[:MAX_LISTED_NAMES])}{more}"


def shown(value: object) -> str:
    """A value for a message, cut to a length that can be read."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"


def struct_from(data: object, kind: type[T]) -> T:
    """Convert ``data`` (dicts, lists, texts, numbers) to the struct ``kind``.

    :raises ScenarioError: names the place (``faults[2].at_s``), the value and what is expected.
    """
    _walk(data, inspect.type_info(kind), "")
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ScenarioError(_explained(str(error), data)) from error


def _explained(message: str, data: object) -> str:
    match = _AT.fullmatch(message)
    if match is None:  # the error is at the top
        return message.removeprefix("Object ")
    fault, path = match[1], match[2].removeprefix(".")
    value = data
    for name, index in _STEP.findall(match[2]):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list | tuple) and index:
            value = value[int(index)]
        else:
            return f"{path}: {fault}"
    if fault.startswith("Object missing"):
        return f"{path}: {fault.removeprefix('Object ')}"
    return f"{path} is {shown(value)}: {fault[0].lower()}{fault[1:]}"


def _walk(data: object, kind: inspect.Type, place: str) -> None:
    """Refuse unknown names and numbers that are not finite. Wrong types are left to msgspec."""
    match kind:
        case inspect.Metadata():
            _walk(data, kind.type, place)
        case inspect.StructType() if isinstance(data, dict):
            _walk_struct(data, kind, place)
        case inspect.UnionType():
            _walk_union(data, kind, place)
        case inspect.VarTupleType() if isinstance(data, list | tuple):
            for number, item in enumerate(data):
                _walk(item, kind.item_type, f"{place}[{number}]")
        case inspect.TupleType() if isinstance(data, list | tuple):
            for number, (item, item_kind) in enumerate(zip(data, kind.item_types, strict=False)):
                _walk(item, item_kind, f"{place}[{number}]")
        case inspect.LiteralType() if isinstance(data, str) and data not in kind.values:
            raise ScenarioError(f"{place} is {shown(data)}{nearest(data, map(str, kind.values))}")
        case _ if isinstance(data, float) and not math.isfinite(data):
            raise ScenarioError(f"{place} is {data}: expected a finite number")


def _walk_struct(data: dict[object, object], kind: inspect.StructType, place: str) -> None:
    kinds = {field.encode_name: field.type for field in kind.fields}
    for key, value in data.items():
        inner = f"{place}.{key}" if place else f"{key}"
        if key in kinds:
            _walk(value, kinds[str(key)], inner)
        elif key != kind.tag_field:
            renamed = _RENAMED.get(inner)
            hint = f": it is called {renamed} now" if renamed is not None else nearest(str(key), kinds)
            raise ScenarioError(f"{inner} is unknown{hint}")


def _walk_union(data: object, kind: inspect.UnionType, place: str) -> None:
    """Walk a union of structs that a tag tells apart, or of something and None."""
    structs = [member for member in kind.types if isinstance(member, inspect.StructType)]
    tagged = {str(member.tag): member for member in structs if member.tag_field is not None}
    if not isinstance(data, dict) or not structs:
        for member in kind.types:
            if not isinstance(member, inspect.StructType | inspect.NoneType):
                _walk(data, member, place)
        return
    if not tagged:
        _walk_struct(data, structs[0], place)
        return
    field = str(structs[0].tag_field)
    tag = data.get(field)
    if tag is None:
        raise ScenarioError(f"{place} has no {field!r}: give one of {', '.join(tagged)}")
    if not isinstance(tag, str) or tag not in tagged:
        raise ScenarioError(f"{place}.{field} is {shown(tag)}{nearest(str(tag), tagged)}")
    _walk_struct(data, tagged[tag], place)
