"""What a record has to be, in the SQL of PostgreSQL."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from cloud_relay.query.selection import Place, Query
from cloud_relay.query.sources import ALL, SqlCondition, all_filters, stream_names
from cloud_relay.store.postgres.texts import stored_text

_CHUNK: Final = "[^/]+/"


class SqlStatement:
    """A statement that is put together of conditions, whose marks become numbers."""

    def __init__(self) -> None:
        self.values: list[object] = []

    def put(self, condition: SqlCondition) -> str:
        """The text of a condition, once its values are among those of the statement."""
        pieces = condition.text.split("?")
        assert len(pieces) == len(condition.values) + 1, "our texts have no other question marks"
        text = pieces[0]
        for value, piece in zip(condition.values, pieces[1:], strict=True):
            text += self.value(value) + piece
        return text

    def value(self, value: object) -> str:
        """The mark of a value."""
        self.values.append(value)
        return f"${len(self.values)}"


def record_filters(query: Query) -> SqlCondition:
    """All that a record has to be, but for its time."""
    return all_filters(_without_key(query)) & key_filters(query.key)


def stream_filters(query: Query) -> SqlCondition:
    """What streams the records of a question are in."""
    return stream_names(_without_key(query)) & key_filters(query.key)


def key_filters(key: str | None) -> SqlCondition:
    """What a key has to be: within what an index knows, and then by the expression itself."""
    found = stream_names(Query(key=key))
    if key is None or "*" not in key or key == "**":
        return found
    return found & SqlCondition("key || '/' ~ ?", (_pattern(key),))


def after_place(place: Place | None, *, newest_first: bool) -> SqlCondition:
    """What comes after a place. The bound of time beside it is one that an index seeks by."""
    if place is None:
        return ALL
    sign = "<" if newest_first else ">"
    names = SqlCondition(f"(event_utc_ns, origin, sequence) {sign} (?, ?, ?)", place)
    return names & SqlCondition(f"event_utc_ns {sign}= ?", (place[0],))


def in_time(query: Query) -> SqlCondition:
    """``since`` and ``until``, as far as a column can hold them."""
    found, least, most = ALL, -(2**63), 2**63 - 1
    if query.since_utc_ns is not None:
        found &= SqlCondition("event_utc_ns >= ?", (min(max(query.since_utc_ns, least), most),))
    if query.until_utc_ns is not None:
        found &= SqlCondition("event_utc_ns < ?", (min(max(query.until_utc_ns, least), most),))
    return found


def stored_rule(query: Query) -> str | None:
    """The rule of a question as the store has it."""
    return None if query.rule is None else stored_text(query.rule)


def _without_key(query: Query) -> Query:
    return replace(query, key=None, rule=stored_rule(query))


def _pattern(expression: str) -> str:
    """A regular expression for keys that end with a slash."""
    return "^" + "".join(_patterns(expression.split("/"))) + "$"


def _patterns(chunks: Iterable[str]) -> Iterable[str]:
    for chunk in chunks:
        if chunk == "**":
            yield f"({_CHUNK})*"
        else:
            yield _CHUNK if chunk == "*" else re.sub(r"(\W)", r"\\\1", chunk) + "/"
