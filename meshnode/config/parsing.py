"""Turns TOML tables into frozen sections, and collects every problem on the way.

A section is a struct whose annotations are its schema: ``Annotated[int, Meta(ge=0, le=65_535, description=…)]``.
The same annotations check what Python code constructs and make the reference page, so the three can't drift apart.
``Meta(extra={…})`` may hold ``check`` (it takes the value and returns a complaint, or None), ``file`` (the file must
exist; the text says how to get it) and ``default`` (the default in words, when it is not a constant).

Invariant: a section that exists is valid. Values are parsed once, here, into ids, addresses and paths.
"""

import difflib
import math
import re
import types
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from meshnode.config.kinds import parse_address
from meshnode.links.transport import Address
from protocols.base.errors import ConfigError, InvalidName, MeshError
from protocols.base.ids import NodeId, node_id

MAX_PROBLEMS_SHOWN: Final = 40
"""Lines of one error: a binary file renamed to .toml could otherwise fill the journal."""
MAX_TABLE_ENTRIES: Final = 1_000
"""Entries of one list or of one table with free names: nobody writes more by hand, so more is a mistake."""


class Section(Struct, frozen=True, kw_only=True):
    """A table of the configuration. :raises ConfigError: constructed with values out of range, all of them named."""

    table: ClassVar[str] = ""
    """Name of the table in the file; empty for a section that stands inside another one."""
    free_keys: ClassVar[str | None] = None
    """The field that takes all keys not declared, if any."""
    listed: ClassVar[str | None] = None
    """The field that takes the whole value, if the file has a list of tables, ``[[table]]``."""

    def __post_init__(self) -> None:
        reader = TableReader()
        for name, hint in hints_of(type(self)).items():
            reader.read(hint, getattr(self, name), name)
        # a conflict between values that are wrong on their own would say the same thing twice
        problems = tuple(reader.problems) or tuple(self.conflicts())
        if problems:
            raise SectionInvalid(type(self).__name__, problems)

    def conflicts(self) -> "Iterator[Problem]":
        """Problems that show only when fields are seen together."""
        return iter(())


class Problem(Struct, frozen=True):
    """One thing wrong with one key."""

    key: str
    """Dotted, as in ``models.plate.path``; empty for the whole file."""
    value: str | None
    """The value as a person sees it; None when the key is missing."""
    text: str
    """What is wrong and what to do."""

    def __str__(self) -> str:
        if not self.key:
            return self.text
        return f"{self.key}: {self.text}" if self.value is None else f"{self.key} = {self.value}: {self.text}"


class SectionInvalid(ConfigError):
    """A section was constructed with wrong values."""

    def __init__(self, place: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(problem_report(place, problems))
        self.problems = problems

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigError, (str(self),)


def problem_report(place: str, problems: tuple[Problem, ...]) -> str:
    """All problems of one file, one line each."""
    if len(problems) == 1:
        return f"{place}: {problems[0]}"
    lines = [f"{place}: {len(problems)} problems"]
    lines += [f"  {problem}" for problem in problems[:MAX_PROBLEMS_SHOWN]]
    if len(problems) > MAX_PROBLEMS_SHOWN:
        lines.append(f"  and {len(problems) - MAX_PROBLEMS_SHOWN} more")
    return "\n".join(lines)


def shown(value: object) -> str:
    """A value as its author wrote it in TOML, cut to one short line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, Path, Address)):
        text = repr(str(value))
        return f"{text[:80]}…" if len(text) > 81 else text
    if isinstance(value, dict):
        return "{…}"
    text = " ".join(str(value)[:200].split())
    return f"{text[:80]}…" if len(text) > 81 else text


class Unreadable:
    """Stands for a value that was wrong and has been reported."""


UNREADABLE: Final = Unreadable()


class TableReader:
    """Reads values by their annotations and keeps the problems.

    Relative paths start at ``folder``; None: values come from Python, and no file is looked at.
    ``tables`` are all tables of the file by name, to tell where a misplaced key belongs.
    """

    def __init__(self, folder: Path | None = None, tables: Mapping[str, type[Section]] | None = None) -> None:
        self.problems: list[Problem] = []
        self._folder = folder
        self._tables = tables or {}

    def report(self, key: str, value: object, text: str) -> Unreadable:
        """Keep a problem."""
        self.problems.append(Problem(key, shown(value), text))
        return UNREADABLE

    def read(self, hint: Any, raw: Any, key: str) -> Any:
        """The value of ``raw`` as ``hint`` wants it, or ``UNREADABLE`` after a report."""
        metas: list[Meta] = []
        while get_origin(hint) is Annotated:
            metas += [meta for meta in hint.__metadata__ if isinstance(meta, Meta)]
            hint = hint.__origin__
        if raw is UNREADABLE:
            return raw
        value = self._read_bare(hint, raw, key)
        if value is UNREADABLE or value is None:
            return value
        for meta in metas:
            if complaint := self._complaint(meta, value):
                return self.report(key, raw, complaint)
        return value

    def _read_bare(self, hint: Any, raw: Any, key: str) -> Any:
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            (inner,) = [option for option in get_args(hint) if option is not type(None)]
            return None if raw is None else self.read(inner, raw, key)
        if origin is tuple:
            return self._read_list(get_args(hint)[0], raw, key)
        if origin is Mapping:
            names, tables = get_args(hint)
            return self._read_named_tables(names, tables, raw, key)
        if origin is Literal:
            return self._read_word(get_args(hint), raw, key)
        if hint is Any:
            return raw
        if isinstance(hint, type) and issubclass(hint, StrEnum):
            word = self._read_word(tuple(member.value for member in hint), raw, key)
            return word if word is UNREADABLE else hint(word)
        if isinstance(hint, type) and issubclass(hint, Struct):
            if not isinstance(raw, hint):
                return self.read_table(hint, raw, key)
            if not isinstance(raw, Section):  # a struct of the wire, which checks itself only when decoded
                for name, inner in hints_of(hint).items():
                    self.read(inner, getattr(raw, name), f"{key}.{name}")
            return raw
        return self._read_scalar(hint, raw, key)

    def _read_scalar(self, hint: Any, raw: Any, key: str) -> Any:
        if hint is bool:
            return raw if isinstance(raw, bool) else self.report(key, raw, "is not true or false: write it bare")
        if hint is int:
            if isinstance(raw, int) and not isinstance(raw, bool):
                return raw
            return self.report(key, raw, f"is {_kind(raw)}: write a whole number, without quotes")
        if hint is float:
            if isinstance(raw, (int, float)) and not isinstance(raw, bool) and _is_finite(raw):
                return float(raw)
            return self.report(key, raw, f"is {_kind(raw)}: write a finite number, without quotes")
        if isinstance(raw, hint if isinstance(hint, type) else str) and hint not in (str, NodeId):
            return raw
        if not isinstance(raw, str):
            return self.report(key, raw, f"is {_kind(raw)}: write text in quotes")
        if hint is str:
            return raw
        try:
            if hint is NodeId:
                return node_id(raw)
            if hint is Path and self._folder is not None:
                return self._folder / raw if raw else self.report(key, raw, "is empty: name a path")
            if hint is Address and self._folder is not None:
                return parse_address(raw)
        except (InvalidName, ValueError) as error:
            return self.report(key, raw, str(error))
        return self.report(key, raw, f"is text: give an instance of {hint.__name__}")

    def _read_word(self, words: tuple[str, ...], raw: Any, key: str) -> Any:
        if isinstance(raw, str) and raw in words:
            return raw
        near = difflib.get_close_matches(raw, words, 1) if isinstance(raw, str) and len(raw) < 100 else []
        hint = f"did you mean {near[0]!r}? Use one of" if near else "use one of"
        return self.report(key, raw, f"is not known: {hint} {', '.join(repr(word) for word in words)}")

    def _read_list(self, hint: Any, raw: Any, key: str) -> Any:
        if not isinstance(raw, (list, tuple)):
            return self.report(key, raw, f"is {_kind(raw)}: write a list, as in [ … ]")
        if len(raw) > MAX_TABLE_ENTRIES:
            return self.report(key, f"{len(raw)} entries", f"is too long: use at most {MAX_TABLE_ENTRIES}")
        values = tuple(self.read(hint, item, f"{key}[{index}]") for index, item in enumerate(raw))
        return UNREADABLE if UNREADABLE in values else values

    def _read_named_tables(self, names: Any, hint: Any, raw: Any, key: str) -> Any:
        if not isinstance(raw, Mapping):
            return self.report(key, raw, f"is {_kind(raw)}: write a table [{key}.<name>]")
        if len(raw) > MAX_TABLE_ENTRIES:
            return self.report(key, f"{len(raw)} entries", f"is too large: use at most {MAX_TABLE_ENTRIES}")
        if hint is Any:
            return dict(raw)
        values: dict[Any, Any] = {}
        for name, item in raw.items():
            place = f"{key}.{_quoted(name)}"
            values[self.read(names, name, place)] = self.read(hint, item, place)
        return UNREADABLE if UNREADABLE in values or UNREADABLE in values.values() else values

    def read_table(self, section: type[Struct], raw: Any, key: str) -> Any:
        """A TOML table as a struct, or ``UNREADABLE`` after a report of everything wrong in it."""
        listed = getattr(section, "listed", None)
        if listed is not None:
            rows = self.read(hints_of(section)[listed], raw, key)
            return UNREADABLE if rows is UNREADABLE else self.build(section, {listed: rows}, key, key)
        if not isinstance(raw, Mapping):
            shape = f"[{key}]" if issubclass(section, Section) else "{ … }"
            return self.report(key, raw, f"is {_kind(raw)}: write a table {shape}")
        prefix = f"{key}." if key else ""
        hints, free = hints_of(section), getattr(section, "free_keys", None)
        values: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for name, item in raw.items():
            if name in hints and name != free:
                values[name] = self.read(hints[name], item, prefix + name)
            elif free is not None:
                rest[name] = item
            else:
                self.report_unknown(name, item, prefix, list(hints))
        missing = [field for field in msgspec.structs.fields(section) if field.required and field.name not in raw]
        for field in missing:
            self.report_missing(field.name, hints[field.name], prefix)
        if free is not None:
            values[free] = self.read(hints[free], rest, key)
        if missing or UNREADABLE in values.values():
            return UNREADABLE
        return self.build(section, values, key, prefix)

    def build(self, section: type[Struct], values: Mapping[str, Any], key: str, prefix: str) -> Any:
        """A section of values that are valid one by one, or ``UNREADABLE`` after a report of those that conflict."""
        try:
            return section(**values)
        except SectionInvalid as error:
            self.problems += [Problem(prefix + p.key if p.key else key, p.value, p.text) for p in error.problems]
        except MeshError as error:
            self.problems.append(Problem(key, None, str(error)))
        return UNREADABLE

    def report_unknown(self, name: str, item: object, prefix: str, known: list[str]) -> None:
        """Keep the problem of an undeclared key, with what its author may have meant."""
        self.problems.append(Problem(prefix + _quoted(name), shown(item), self._unknown_key(name, known)))

    def report_missing(self, name: str, hint: Any, prefix: str) -> None:
        """Keep the problem of a key that must be given."""
        is_table = isinstance(hint, type) and issubclass(hint, Section)
        way_out = f"add a table [{prefix}{name}]" if is_table else f"add it. {description_of(hint)}".rstrip(". ")
        self.problems.append(Problem(prefix + name, None, f"is missing: {way_out}"))

    def _unknown_key(self, name: str, known: list[str]) -> str:
        text = "is not a key of this table"
        if near := difflib.get_close_matches(name.lower().replace("-", "_")[:100], known, 1, 0.6):
            return f"{text}: did you mean {near[0]!r}?"
        homes = [f"[{table}]" for table, section in self._tables.items() if name in _own_keys(section)]
        if homes:
            return f"{text}: move it to {' or '.join(homes)}"
        return f"{text}: remove it, or use one of {', '.join(known)}"

    def _complaint(self, meta: Meta, value: Any) -> str | None:
        limit = _limit_complaint(meta, value)
        if limit is not None:
            return limit
        extra = meta.extra or {}
        if "check" in extra:
            complaint: str | None = extra["check"](value)
            if complaint:
                return complaint
        if "file" in extra and self._folder is not None:
            try:
                exists = value.is_file()
            except (OSError, ValueError) as error:
                return f"can't be examined ({error}): check the path and its mode"
            if not exists:
                what = "is not a file" if value.is_dir() else "does not exist"
                return f"{value} {what}: {extra['file']}"
        return None


@lru_cache(maxsize=64)
def hints_of(section: type[Struct]) -> dict[str, Any]:
    """Field names and annotations of a section, without class variables."""
    hints = get_type_hints(section, include_extras=True)
    return {name: hints[name] for name in section.__struct_fields__}


def _own_keys(section: type[Section]) -> frozenset[str]:
    """Keys that stand directly in a table of the file."""
    return frozenset(section.__struct_fields__) - {section.free_keys, section.listed}


def description_of(hint: Any) -> str:
    """What an annotation says about its field, or nothing."""
    if get_origin(hint) is Annotated:
        for meta in hint.__metadata__:
            if isinstance(meta, Meta) and meta.description:
                return meta.description
    return ""


def _limit_complaint(meta: Meta, value: Any) -> str | None:
    if (meta.ge is not None and value < meta.ge) or (meta.le is not None and value > meta.le):
        if meta.le is None:
            return f"is out of range: use at least {meta.ge:_}"
        least = "at most" if meta.ge is None else f"{meta.ge:_} to"
        return f"is out of range: use {least} {meta.le:_}"
    if meta.lt is not None and value >= meta.lt:
        return f"is out of range: use less than {meta.lt:_}"
    if meta.min_length is not None and len(value) < meta.min_length:
        return "is empty: write something" if meta.min_length == 1 else f"is too short: use at least {meta.min_length}"
    if meta.max_length is not None and len(value) > meta.max_length:
        return f"is too long: use at most {meta.max_length}"
    return None


def _quoted(name: object) -> str:
    return name if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) else shown(name)


def _is_finite(raw: float) -> bool:
    try:
        return math.isfinite(raw)
    except OverflowError:
        return False


def _kind(raw: Any) -> str:
    if isinstance(raw, bool):
        return "a truth value"
    names = {str: "text", int: "a whole number", float: "a number", list: "a list", tuple: "a list", dict: "a table"}
    return names.get(type(raw), "a date or time" if type(raw).__module__ == "datetime" else f"a {type(raw).__name__}")
