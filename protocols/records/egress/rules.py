"""Rules of egress: what of a record may leave for the relay.

The first rule whose key expression matches the key of a reading decides alone. Under a policy, a reading that no rule
matches does not leave.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from msgspec import msgpack

from protocols.base.errors import BoundExceeded, LocalProtocolError
from protocols.base.keys import checked_expression, matches
from protocols.base.limits import MAX_TEXT_CHARS
from protocols.records.egress.area import Area

MAX_RULES: Final = 256
MAX_COVERED: Final = 64
"""Boxes that are covered in one picture."""
LEAST_CELL_M: Final = 10
MAX_CELL_M: Final = 100_000
MAX_BUCKET_S: Final = 86_400
_DIGEST_DOMAIN: Final = b"meshnode egress 1\0"

CoveredBox = tuple[float, float, float, float]
"""Left, top, right and bottom of a box in a picture, as shares of its width and height from the upper left corner."""


@dataclass(frozen=True, slots=True)
class EgressRule:
    """What of the readings with matching keys may leave.

    :raises InvalidKey: when ``keys`` is not a key expression.
    :raises LocalProtocolError: when another field is out of range; names rule, field and value.
    """

    name: str
    keys: str
    """Key expression."""
    drop: bool = False
    """Whether nothing of them may."""
    fields: frozenset[str] | None = None
    """Of values that are maps, the fields that may; other values may not. ``a.b`` is the field ``b`` of the map ``a``,
    or of each map in the list ``a``. None: values may as they are."""
    cell_m: int | None = None
    """Positions become the centre of a cell of this size; None: they stay."""
    time_s: int | None = None
    """Times become the middle of a bucket of this length; None: they stay."""
    pseudonym_s: int | None = None
    """Names become pseudonyms, which change after this time in UTC; None: they stay."""
    drop_inside: Area | None = None
    """What may have been sensed in here may not leave."""
    drop_outside: Area | None = None
    """What may have been sensed outside of here may not leave."""
    min_count: int | None = None
    """Only maps whose ``count`` is at least this may leave."""
    strip_pictures: bool = False
    """Whether bytes leave only as pictures that were encoded anew."""
    cover: tuple[CoveredBox, ...] = ()
    """Boxes that are covered in these pictures."""
    cover_field: str = ""
    """The field beside a picture that lists boxes which are covered in it, too; a picture without it may not leave.
    Empty: there is none."""

    def __post_init__(self) -> None:
        checked_expression(self.keys)
        if not 0 < len(self.name) <= MAX_TEXT_CHARS:
            raise BoundExceeded(
                f"the name {self.name[:80]!r} of an egress rule has {len(self.name)} characters: use 1 to "
                f"{MAX_TEXT_CHARS}"
            )
        self._check_range("cell_m", self.cell_m, LEAST_CELL_M, MAX_CELL_M)
        self._check_range("time_s", self.time_s, 1, MAX_BUCKET_S)
        self._check_range("pseudonym_s", self.pseudonym_s, 1, 366 * 86_400)
        self._check_range("min_count", self.min_count, 2, 1 << 53)
        if self.fields is not None and not self.fields:
            raise LocalProtocolError(f"egress rule {self.name!r}: fields is empty: name some, or use drop")
        for path in self.fields or ():
            if "" in path.split("."):
                raise LocalProtocolError(
                    f"egress rule {self.name!r}: {path!r} in fields names no field: write 'a', or 'a.b' for the field "
                    "b of the map a"
                )
        if len(self.cover) > MAX_COVERED:
            raise BoundExceeded(f"egress rule {self.name!r} covers {len(self.cover)} boxes: use at most {MAX_COVERED}")
        for left, top, right, bottom in self.cover:
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise LocalProtocolError(
                    f"egress rule {self.name!r}: [{left:g}, {top:g}, {right:g}, {bottom:g}] is no box: use [left, top, "
                    "right, bottom] from 0 to 1, with left below right and top below bottom"
                )

    def _check_range(self, field: str, value: int | None, least: int, most: int) -> None:
        if value is not None and not least <= value <= most:
            raise BoundExceeded(f"egress rule {self.name!r}: {field} is {value}: use {least} to {most}")

    @property
    def redraws_pictures(self) -> bool:
        """Whether bytes leave only as pictures that were encoded anew."""
        return self.strip_pictures or bool(self.cover) or bool(self.cover_field)

    @property
    def keeps_values_back(self) -> bool:
        """Whether something of the values of its readings may not leave, also where others describe these readings."""
        places = self.drop_inside, self.drop_outside
        kept = self.fields, self.min_count, *places
        return self.drop or self.redraws_pictures or any(part is not None for part in kept)

    @property
    def changes_values(self) -> bool:
        """Whether what leaves of its readings depends on their values."""
        return self.keeps_values_back or self.time_s is not None or self.pseudonym_s is not None

    def plain(self) -> dict[str, Any]:
        """All fields that are not the default, as plain data, in a fixed order. So a field that a later version adds
        does not change the digest of a policy without it."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self)}
        return {
            name: _plain(value) for name, value in sorted(given.items()) if value != defaults[name] or name == "name"
        }


def _plain(value: object) -> object:
    match value:
        case Area():
            return [float(side) for side in (value.south_deg, value.west_deg, value.north_deg, value.east_deg)]
        case frozenset():
            return sorted(value)
        case tuple():
            return [[float(side) for side in box] for box in value]
        case _:
            return value


class EgressPolicy:
    """Rules in their order."""

    def __init__(self, rules: Iterable[EgressRule]) -> None:
        """:raises LocalProtocolError: when there is none, there are too many, or two have one name."""
        self.rules: Sequence[EgressRule] = tuple(rules)
        names = [rule.name for rule in self.rules]
        if not 1 <= len(names) <= MAX_RULES:
            raise BoundExceeded(f"a policy has {len(names)} egress rules: use 1 to {MAX_RULES}")
        for name in names:
            if names.count(name) > 1:
                raise LocalProtocolError(f"two egress rules are named {name!r}: give each its own name")

    def rule_for(self, key: str) -> EgressRule | None:
        """The rule that decides on readings of a valid key; None: they do not leave."""
        return next((rule for rule in self.rules if matches(rule.keys, key)), None)

    def digest(self, hash_of: Callable[[bytes], bytes]) -> bytes:
        """The hash of the policy. Equal rules in the same order have the same, wherever they were read."""
        return hash_of(_DIGEST_DOMAIN + msgpack.encode([rule.plain() for rule in self.rules]))
