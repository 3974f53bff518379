"""What each parameter of a question may be, as JSON Schema: what it allows, the server takes.

The patterns are in the dialect of OpenAPI (ECMA-262). They spell out what :mod:`cloud_relay.query.selection` and
:mod:`cloud_relay.query.aggregating` parse, in its usual forms; a test asks a server whatever they allow.
"""

from typing import Any, Final

from cloud_relay.query.aggregating import AGGREGATING, GROUPINGS
from cloud_relay.query.kept import KEPT_FILTERS, KEPT_NAME, MAX_CURSOR_CHARS, TEXT_OF_CURSOR
from cloud_relay.query.selection import FILTERS, MAX_PAGE_RECORDS, PAGING
from cloud_relay.query.series import CHARTING, DEFAULT_POINTS, MAX_POINTS
from protocols.base.limits import MAX_DOUBLE_WILDCARDS, MAX_KEY_BYTES, MAX_KEY_CHUNKS, MAX_TEXT_CHARS

_SHOWN: Final = r"[^\x00-\x1f\x7f]"
_NAME: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PLAIN: Final = r"[^\x00-\x1f\x7f*/#?$]+"
"""A chunk of a key."""
_FEW_WILDCARDS: Final = rf"(?!(?:.*\*\*){{{MAX_DOUBLE_WILDCARDS + 1}}})"
_KEY: Final = rf"^{_PLAIN}(?:/{_PLAIN}){{0,{MAX_KEY_CHUNKS - 1}}}$"
_EXPRESSION: Final = (
    rf"^{_FEW_WILDCARDS}(?:\*\*?|{_PLAIN})(?:/(?:\*\*?|{_PLAIN})){{0,{MAX_KEY_CHUNKS - 1}}}$"
)  # fmt: skip

_YEAR: Final = r"(?!0000)[0-9]{4}"
_LEAP_YEAR: Final = r"(?!0000)(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE: Final = (
    rf"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    rf"|{_LEAP_YEAR}-02-29)"
)
_CLOCK: Final = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_INSTANT: Final = rf"^{_DATE}(?:T{_CLOCK}(?::[0-5][0-9](?:\.[0-9]{{1,6}})?)?(?:Z|[+-]{_CLOCK})?)?$"
_SECONDS: Final = r"^[0-9]{1,10}(?:\.[0-9]{1,9})?$"
_AGE: Final = r"^[0-9]{1,9}(?:ms|s|m|h|d)$"

_LATITUDE: Final = r"-?(?:90(?:\.0{1,9})?|[1-8]?[0-9](?:\.[0-9]{1,15})?)"
_LONGITUDE: Final = r"-?(?:180(?:\.0{1,9})?|(?:1[0-7][0-9]|[1-9]?[0-9])(?:\.[0-9]{1,15})?)"
_INTEGER: Final = r"(?:[0-9]{1,18}|[1-8][0-9]{18})"
"""Below 2⁶³."""


def _text(pattern: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern, **more}


def _key(pattern: str) -> dict[str, Any]:
    """A key has a bound in bytes; one of as many wide characters is of the right form, and none."""
    return _text(pattern, minLength=1, maxLength=MAX_KEY_BYTES)


_TIME: Final = {"type": "string", "anyOf": [{"pattern": _INSTANT}, {"pattern": _SECONDS}, {"pattern": _AGE}]}
_SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "key": _key(_EXPRESSION),
    "origin": _text(f"^{_NAME}$", maxLength=63),
    "rule": _text(f"^{_SHOWN}+$", minLength=1, maxLength=MAX_TEXT_CHARS),
    "since": _TIME,
    "until": _TIME,
    "box": _text(f"^{_LATITUDE},{_LONGITUDE},{_LATITUDE},{_LONGITUDE}$"),
    "min_quality": {"type": "number", "minimum": 0, "maximum": 1},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_RECORDS, "default": 100},
    "order": {"type": "string", "enum": ["newest", "oldest"], "default": "newest"},
    "cursor": _text(rf"^{_INTEGER}\.{_INTEGER}\.{_NAME}$"),
    "by": {
        "type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string", "enum": list(GROUPINGS)},
        "default": ["key"],
    },
    "unit": _text(f"^{_SHOWN}+$", minLength=1, maxLength=MAX_TEXT_CHARS),
    "points": {"type": "integer", "minimum": 1, "maximum": MAX_POINTS, "default": DEFAULT_POINTS},
    "bucket": _text("^[1-9][0-9]{0,5}[smhd]$"),
}  # fmt: skip
_JOINED: Final = ("by",)
"""Lists that are joined by commas."""


CURSORS: Final = {
    "record": _SCHEMAS["cursor"],
    "key": _key(_KEY),
    "group": _text(
        rf"^{_INTEGER}\.-?[0-9]{{1,10}}\.-?[0-9]{{1,10}}(?:\.{TEXT_OF_CURSOR}){{4}}$", maxLength=MAX_CURSOR_CHARS
    ),
}
"""What the cursor of a page may be, by what pages go along."""


def parameter(name: str, along: str = "record") -> dict[str, Any]:
    """The description of a parameter of the URL. ``along``: see :data:`CURSORS`."""
    described = {
        "name": name,
        "in": "query",
        "description": {**FILTERS, **PAGING, **AGGREGATING, **CHARTING, **KEPT_FILTERS}[name],
        "schema": CURSORS[along] if name == "cursor" else _SCHEMAS[name],
    }
    return described | ({"style": "form", "explode": False} if name in _JOINED else {})


def name_in_path() -> dict[str, Any]:
    """The description of the name of a kept aggregate, as a part of the path."""
    return {
        "name": "name",
        "in": "path",
        "required": True,
        "description": KEPT_NAME,
        "schema": _text("^[a-z0-9][a-z0-9_-]{0,62}$"),
    }
