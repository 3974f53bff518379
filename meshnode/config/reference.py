"""The reference page of the configuration, made from its declarations. ``python -m meshnode.cli.reference`` prints it.

Invariant: the page names every key with its type, unit, range and default, because the declarations also check them.
"""

import types
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from meshnode.config.loading import own_tables
from meshnode.config.parsing import Section, description_of, hints_of
from meshnode.config.sections import NodeSection, PartSection
from meshnode.links.transport import Address
from protocols.base.ids import NodeId

_UNITS: Final = {
    "bytes_per_s": "bytes per second",
    "_ms": "milliseconds",
    "_s": "seconds",
    "_mib": "MiB",
    "_deg": "degrees",
    "_m": "metres",
}
_NAMES: Final = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
_WIRE_FIELDS: Final = {
    "latitude_deg": "North is positive.",
    "longitude_deg": "East is positive.",
    "accuracy_m": "Radius of the 68 % circle.",
    "altitude_m": "Above the ellipsoid.",
    "heading_deg": "Clockwise from true north.",
    "role": "Role in the certificate of the node that asks.",
    "verb": "What it may do.",
    "keys": "Key expression; for `infer` and `offer` a model name or an expression, for `release` a path or an "
    "expression, for `carry` the id of a node or an expression.",
}
"""Structs of the wire describe their fields in ``docs/reference/wire.md``; these descriptions fit into a cell."""
_OPENING: Final = """\
# Configuration

<!-- Made from the declarations of the sections by `python -m meshnode.cli.reference`; edit those. -->

A node reads one TOML file: `meshnode run vehicle.toml`. Two lines are enough:

```toml
[node]
id = "vehicle-1"
```

Relative paths are relative to the file. A file with mistakes is refused with all of them, one line each; an unknown key
is a mistake. Durations and sizes carry their unit in the name of the key.
"""
_CLOSING: Final = """\
## From Python

```python
from pathlib import Path

from meshnode.config.sections import IdentitySection, NodeConfig, NodeSection
from meshnode.http.section import HttpSection
from protocols.base.ids import NodeId

config = NodeConfig(
    node=NodeSection(id=NodeId("vehicle-1"), state_dir=Path("state")),
    identity=IdentitySection.in_folder(Path("certificates"), "vehicle-1"),
    sections=(HttpSection(port=0),),
)
```

The node's own sections are arguments of their own; those of its parts go into `sections`, each at most once. Values are
checked in the same way, and `ConfigError` names all that are wrong. Whether files exist is checked only when a TOML
file is read.
"""


def reference_page(sections: Iterable[type[PartSection]]) -> str:
    """The page as Markdown: the node's own sections, then those of its parts."""
    page = [_OPENING]
    for table, section in {**own_tables(), **{section.table: section for section in sections}}.items():
        rows, heading = _rows_of(table, section)
        page.append(described_table(heading, rows))
        if section is NodeSection:
            page.append("\n".join(["### `position`", "", *_rows(_struct_in(hints_of(section)["position"]))]) + "\n")
        if table == "access":
            rules = _struct_in(hints_of(section)["rules"])
            page.append(described_table("### `rules`", rules))
    return "\n".join([*page, _CLOSING])


def described_table(heading: str, rows: type[Struct]) -> str:
    """What a table of a TOML file is for, and its keys, as Markdown."""
    return "\n".join([heading, "", _first_sentences(rows), "", *_rows(rows)]) + "\n"


def _rows_of(table: str, section: type[Section]) -> tuple[type[Struct], str]:
    """The struct whose fields are the keys of a table, and the heading of the table."""
    named, listed = section.free_keys, section.listed
    if listed is not None:
        return _struct_in(hints_of(section)[listed]), f"## `[[{table}]]`"
    if named is not None and len(section.__struct_fields__) == 1:
        return _struct_in(hints_of(section)[named]), f"## `[{table}.<name>]`"
    return section, f"## `[{table}]`"


def _rows(section: type[Struct]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    defaults = {field.name: field for field in msgspec.structs.fields(section)}
    for name, hint in hints_of(section).items():
        if name == getattr(section, "free_keys", None):
            yield f"| … | any | none | {description_of(hint)} |"
            continue
        meaning = description_of(hint) or _WIRE_FIELDS[name]
        cells = (f"`{name}`", _type_text(name, hint), _default_text(defaults[name], hint), meaning)
        yield f"| {' | '.join(cells)} |"


def _type_text(name: str, hint: Any) -> str:
    metas = list(_metas(hint))
    text = _bare_type_text(_bare(hint))
    unit = next((word for ending, word in _UNITS.items() if name.endswith(ending)), None)
    lows = [f"{meta.ge:_}" for meta in metas if meta.ge is not None]
    highs = [f"{meta.le:_}" for meta in metas if meta.le is not None]
    highs += [f"less than {meta.lt:_}" for meta in metas if meta.lt is not None]
    text += f", {unit}" if unit else ""
    if lows and highs:
        return f"{text}, {lows[0]} to {highs[0]}"
    text += f", at least {lows[0]}" if lows else ""
    counts = [meta.max_length for meta in metas if meta.max_length is not None]
    return f"{text}, at most {counts[0]:_}{' characters' if 'text' in text[:5] else ''}" if counts else text


def _bare_type_text(hint: Any) -> str:
    if get_origin(hint) is tuple:
        inner = _bare(get_args(hint)[0])
        if isinstance(inner, type) and issubclass(inner, Struct):
            return "list of tables"
        return f"list of {_bare_type_text(_bare(get_args(hint)[0]))}"
    if get_origin(hint) is Literal:
        return " or ".join(f'`"{word}"`' for word in get_args(hint))
    if hint is NodeId:
        return "text: lower-case letters, digits, inner hyphens, at most 63"
    if hint is Address:
        return "text `host:port`"
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return " or ".join(f'`"{member.value}"`' for member in hint)
    return "any" if hint is Any else _NAMES.get(hint, "table")


def _default_text(field: msgspec.structs.FieldInfo, hint: Any) -> str:
    for meta in _metas(hint):
        if meta.extra and "default" in meta.extra:
            return str(meta.extra["default"])
    if field.required:
        return "**required**"
    value = field.default if field.default is not msgspec.NODEFAULT else None
    if value is None:
        return "none"
    if isinstance(value, Section):
        return "as its keys say"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (str, Path)):
        return f'`"{value}"`'
    return "`[]`" if value == () else f"`{value}`"


def _bare(hint: Any) -> Any:
    """The annotation without its metadata and without ``| None``."""
    while True:
        if get_origin(hint) is Annotated:
            hint = hint.__origin__
        elif get_origin(hint) in (Union, types.UnionType):
            (hint,) = (option for option in get_args(hint) if option is not type(None))
        else:
            return hint


def _metas(hint: Any) -> Iterator[Meta]:
    if get_origin(hint) is Annotated:
        yield from (meta for meta in hint.__metadata__ if isinstance(meta, Meta))
        yield from _metas(hint.__origin__)
    elif get_origin(hint) in (Union, types.UnionType):
        for option in get_args(hint):
            yield from _metas(option)


def _struct_in(hint: Any) -> type[Struct]:
    bare = _bare(hint)
    if isinstance(bare, type) and issubclass(bare, Struct):
        return bare
    inner = get_args(bare)[1 if get_origin(bare) is Mapping else 0]
    return _struct_in(inner)


def _first_sentences(section: type[Struct]) -> str:
    text = " ".join((section.__doc__ or "").split())
    return text if issubclass(section, Section) else text.replace("``", "`")
