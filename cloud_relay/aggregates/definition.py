"""What the relay keeps aggregates of, as the tables ``[[aggregate]]`` of its configuration say it.

[[aggregate]]
name = "speed"
key = "veh/*/speed"         # which readings, a key expression
field = ""                  # which part of a value, as in "position.0"; default: the value itself
rule = "moving"             # only records that this rule chose; default: all
by = ["key", "rule"]        # what has groups of its own beside cell, bucket and unit: key, rule, origin
cell_deg = 0.01             # default: no cells
bucket = "1h"               # the span of time of a group
percentiles = [50, 90, 99]
groups = 100000             # at most; beyond, the oldest buckets are let go
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from cloud_relay.spans import untrusted_span_s
from protocols.base.errors import InvalidKey, LocalProtocolError
from protocols.base.keys import checked_expression
from protocols.base.limits import MAX_TEXT_CHARS, SECOND

MAX_AGGREGATES: Final = 32
"""Each costs every record of its key a few microseconds of the writer."""
MAX_GROUPS: Final = 200_000
"""What one aggregate may keep: up to 10 KB each. A bucket with all of them is let go in 50 ms."""
MAX_PERCENTILES: Final = 16
MAX_FIELD_CHUNKS: Final = 16
GROUPINGS: Final = ("key", "rule", "origin")
_KNOWN: Final = ("name", "key", "field", "rule", "by", "cell_deg", "bucket", "percentiles", "groups")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_UNITS_PER_DEGREE: Final = 10_000_000
_FINEST_CELL_E7: Final = 1_000


@dataclass(frozen=True, slots=True)
class AggregateDefinition:
    """One aggregate."""

    name: str
    key: str
    bucket_ns: int
    field: tuple[str, ...] = ()
    rule: str | None = None
    by: tuple[str, ...] = ("key", "rule")
    cell_e7: int | None = None
    """The side of a cell in 1e-7°; None: there are no cells."""
    percentiles: tuple[float, ...] = (50, 90, 99)
    max_groups: int = 100_000

    @property
    def identity(self) -> str:
        """What its groups depend on, as text: with another one it is another aggregate. The percentiles and the
        allowance are not part of it."""
        return json.dumps(
            {
                "key": self.key, "field": list(self.field), "rule": self.rule, "by": list(self.by),
                "cell_e7": self.cell_e7, "bucket_ns": self.bucket_ns,
            }
        )  # fmt: skip

    @property
    def shown(self) -> str:
        """Which percentiles are told, as JSON."""
        return json.dumps(self.percentiles)


def stored_definition(name: str, identity: str, percentiles: str, max_groups: int) -> AggregateDefinition:
    """The definition that a store has kept: ``identity`` as above, ``percentiles`` as JSON."""
    kept = json.loads(identity)
    return AggregateDefinition(
        name, kept["key"], kept["bucket_ns"], tuple(kept["field"]), kept["rule"], tuple(kept["by"]), kept["cell_e7"],
        tuple(json.loads(percentiles)), max_groups,
    )  # fmt: skip


def untrusted_definitions(tables: object) -> tuple[AggregateDefinition, ...]:
    """The definitions in the tables of a configuration.

    :raises LocalProtocolError: names the value that is wrong, and the way out.
    """
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise LocalProtocolError("aggregate is not a list of tables: write [[aggregate]] above each")
    if len(tables) > MAX_AGGREGATES:
        raise LocalProtocolError(f"there are {len(tables)} tables [[aggregate]]: use at most {MAX_AGGREGATES}")
    found = tuple(_definition(table) for table in tables)
    names = [definition.name for definition in found]
    for name in names:
        if names.count(name) > 1:
            raise LocalProtocolError(f"two aggregates have the name {name!r}: give each its own")
    return found


def span_ns(what: str, text: object) -> int:
    """A span of time such as ``10m``. :raises LocalProtocolError: it is none."""
    span_s = untrusted_span_s(text)
    if span_s is None:
        raise LocalProtocolError(f"{what} is {_shown(text)}, which is no span of time: use one as in 10m, 1h or 1d")
    return span_s * SECOND


def _definition(table: Mapping[str, Any]) -> AggregateDefinition:
    name = table.get("name")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise LocalProtocolError(
            f"aggregate.name is {_shown(name)}: use up to 63 of a-z, 0-9, '-' and '_', beginning with a letter or digit"
        )
    of = f"aggregate {name!r}: "
    for given in table:
        if given not in _KNOWN:
            near = get_close_matches(given, _KNOWN, 1)
            way_out = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(_KNOWN)}"
            raise LocalProtocolError(f"{of}unknown key {given[:40]!r}: {way_out}")
    try:
        key = checked_expression(_text(of, table, "key"))
    except InvalidKey as error:
        raise LocalProtocolError(f"{of}key: {error}") from error
    groups = table.get("groups", 100_000)
    if type(groups) is not int or not 1 <= groups <= MAX_GROUPS:
        raise LocalProtocolError(f"{of}groups is {_shown(groups)}: use a whole number from 1 to {MAX_GROUPS}")
    return AggregateDefinition(
        name, key, span_ns(f"{of}bucket", table.get("bucket", "1h")), _field(of, table.get("field", "")),
        _text(of, table, "rule") if "rule" in table else None, _by(of, table.get("by", ["key", "rule"])),
        _cell_e7(of, table["cell_deg"]) if "cell_deg" in table else None,
        _percentiles(of, table.get("percentiles", [50, 90, 99])), groups,
    )  # fmt: skip


def _text(of: str, table: Mapping[str, Any], name: str) -> str:
    text = table.get(name)
    if not isinstance(text, str) or not 0 < len(text) <= MAX_TEXT_CHARS or not text.isprintable():
        raise LocalProtocolError(f"{of}{name} is {_shown(text)}: write 1 to {MAX_TEXT_CHARS} printable characters")
    return text


def _field(of: str, text: object) -> tuple[str, ...]:
    chunks = text.split(".") if isinstance(text, str) and text else []
    if not isinstance(text, str) or "" in chunks or len(chunks) > MAX_FIELD_CHUNKS or len(text) > MAX_TEXT_CHARS:
        raise LocalProtocolError(
            f"{of}field is {_shown(text)}: write names and places in lists, joined by dots, at most "
            f"{MAX_FIELD_CHUNKS}, as in 'position.0'"
        )
    return tuple(chunks)


def _by(of: str, given: object) -> tuple[str, ...]:
    if isinstance(given, list) and all(name in GROUPINGS and given.count(name) == 1 for name in given):
        return tuple(name for name in GROUPINGS if name in given)
    raise LocalProtocolError(f"{of}by is {_shown(given)}: use some of {', '.join(GROUPINGS)}, each once")


def _cell_e7(of: str, degrees: object) -> int:
    if type(degrees) in (int, float) and math.isfinite(degrees):  # type: ignore[arg-type]
        side = round(degrees * _UNITS_PER_DEGREE)  # type: ignore[operator]
        is_exact = abs(degrees * _UNITS_PER_DEGREE - side) < 1e-3  # type: ignore[operator]
        if is_exact and side >= _FINEST_CELL_E7 and 180 * _UNITS_PER_DEGREE % side == 0:
            return side
    raise LocalProtocolError(
        f"{of}cell_deg is {_shown(degrees)}: use a part of 180 degrees, at least 0.0001, as in 0.001, 0.01, 0.5 or 10"
    )


def _percentiles(of: str, given: object) -> tuple[float, ...]:
    if isinstance(given, list) and len(given) <= MAX_PERCENTILES and all(_is_share(share) for share in given):
        return tuple(sorted({float(share) if share % 1 else int(share) for share in given}))
    raise LocalProtocolError(
        f"{of}percentiles is {_shown(given)}: list at most {MAX_PERCENTILES} numbers from 0 to 100 with up to three "
        "decimals"
    )


def _is_share(share: object) -> bool:
    return type(share) in (int, float) and 0 <= share <= 100 and abs(round(share * 1_000) - share * 1_000) < 1e-6  # type: ignore[operator]


def _shown(value: object) -> str:
    return f"{str(value)[:60]!r}"
