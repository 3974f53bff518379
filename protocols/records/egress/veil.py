"""The readings that patterns describe in the value of a reading, as these readings themselves would leave.

A neighbour writes what it likes into a value, so a description is judged like anything else from outside: one that
describes no reading, or more names than patterns of patterns come to, is not understood, and what is not understood
does not leave.

The value of a described reading is kept back where the rule for that reading would keep it back. Its place is not
described, so a rule about places always does. A reading that no rule matches is left to the rule for what was derived.
"""

from collections.abc import Callable
from operator import is_not
from typing import Any, Final

from protocols.base.ids import NodeId
from protocols.base.limits import MAX_KEY_BYTES, MAX_KEY_CHUNKS
from protocols.records.egress.coarse import coarsened_time
from protocols.records.egress.pseudonyms import Pseudonyms
from protocols.records.egress.rules import EgressRule
from protocols.records.egress.values import allowed_fields, has_count, sizes_bytes, with_fields, with_wide_window
from protocols.records.patterns.base import DESCRIBED
from protocols.wire.readings import EventTime

MAX_HASHES: Final = 512
"""Names and sequences that are hashed for the value of one reading, which takes 4 ms: everybody who publishes or
receives on this node waits for it. Sixteen readings, as a repetition has at most, take a hundred. Without a bound one
key of 8 MB, all slashes, took 76 s."""
_MAX_ID_CHARS: Final = 63
_CONTAINERS: Final = frozenset((dict, list))


class NotVeiled(Exception):
    """A value describes what is no reading, or too many names."""


class Veil:
    """The veil over the value of one reading."""

    def __init__(
        self, rule: EgressRule, pseudonyms: Pseudonyms, node: NodeId, rule_for: Callable[[str], EgressRule | None]
    ) -> None:  # fmt: skip
        """``rule_for``: see :meth:`EgressPolicy.rule_for`."""
        self._rule, self._pseudonyms, self._node, self._rule_for = rule, pseudonyms, node, rule_for
        self._known: dict[tuple[str, str, int], str] = {}
        """Pseudonyms by name, who said it, and time."""
        self._hashes = 0

    def over(self, value: Any, said_by: str) -> Any:
        """The value with each reading that it describes as that reading itself would leave. ``said_by``: the neighbour
        that says all this; empty: this node does. It is returned itself if that changes nothing.

        :raises NotVeiled: it must not leave.
        """
        match value:
            case dict():
                if value.keys() == DESCRIBED:
                    return self._veiled(value, said_by)
                fields = {name: self.over(item, said_by) for name, item in value.items()}
                return fields if any(fields[name] is not item for name, item in value.items()) else value
            case list() if not _CONTAINERS.isdisjoint(map(type, value)):
                items = [self.over(item, said_by) for item in value]
                return items if any(map(is_not, items, value)) else value
            case _:
                return value

    def _veiled(self, described: dict[str, Any], said_by: str) -> dict[str, Any]:
        key, origin, sequence, utc_ns = (described[field] for field in ("key", "origin", "sequence", "utc_ns"))
        is_reading = _is_text(key, MAX_KEY_BYTES) and _is_text(origin, _MAX_ID_CHARS) and _is_count(sequence, utc_ns)
        if not is_reading or key.count("/") >= MAX_KEY_CHUNKS:
            raise NotVeiled
        rule = self._rule
        within = said_by or ("" if origin == self._node else origin)  # who chose the key and the value
        self._count()
        value = _released(self._rule_for(key), self.over(described["value"], within))
        veiled = described if value is described["value"] else described | {"value": value}
        if rule.time_s is None and rule.pseudonym_s is None:
            return veiled
        veiled = veiled | {"sequence": self._pseudonyms.of_sequence(origin, key, sequence, rule.pseudonym_s, utc_ns)}
        if rule.time_s is not None:
            veiled["utc_ns"] = coarsened_time(EventTime(utc_ns, 0), rule.time_s).utc_ns
            veiled["value"] = with_wide_window(value, rule.time_s)
        if (period_s := rule.pseudonym_s) is not None:
            veiled["key"] = "/".join([self._named(chunk, period_s, utc_ns, within) for chunk in key.split("/")])
            veiled["origin"] = self._named(origin, period_s, utc_ns, said_by)
        return veiled

    def _named(self, name: str, period_s: int, utc_ns: int, said_by: str) -> str:
        known = self._known.get((name, said_by, utc_ns))
        if known is None:
            self._count()
            known = self._known[name, said_by, utc_ns] = self._pseudonyms.of_name(name, period_s, utc_ns, said_by)
        return known

    def _count(self) -> None:
        self._hashes += 1
        if self._hashes > MAX_HASHES:
            raise NotVeiled


def _released(rule: EgressRule | None, value: Any) -> Any:
    """What of the value of a reading its rule lets through, without its place; None: nothing."""
    if rule is None:
        return value
    is_of_some_place = rule.drop_inside is not None or rule.drop_outside is not None
    is_of_too_few = rule.min_count is not None and not has_count(value, rule.min_count)
    if rule.drop or is_of_some_place or is_of_too_few or (rule.redraws_pictures and sizes_bytes(value)):
        return None
    return value if rule.fields is None else with_fields(value, allowed_fields(rule.fields))


def _is_text(value: object, most: int) -> bool:
    return type(value) is str and 0 < len(value) <= most


def _is_count(*values: object) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
