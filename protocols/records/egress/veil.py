"""The readings that patterns describe in the value of a reading, as these readings themselves would leave.

A neighbour writes what it likes into a value, so a description is judged like anything else from outside: one that
describes no reading, or more names than patterns of patterns come to, is not understood, and what is not understood
does not leave.
"""

from typing import Any, Final

from protocols.base.limits import MAX_KEY_BYTES, MAX_KEY_CHUNKS
from protocols.records.egress.coarse import coarsened_time
from protocols.records.egress.pseudonyms import Pseudonyms
from protocols.records.egress.rules import EgressRule
from protocols.records.egress.values import with_wide_window
from protocols.wire.readings import EventTime

MAX_HASHES: Final = 512
"""Names and sequences that are hashed for the value of one reading, which takes 4 ms: everybody who publishes or
receives on this node waits for it. Sixteen readings, as a repetition has at most, take a hundred. Without a bound one
key of 8 MB, all slashes, took 76 s."""
_MAX_ID_CHARS: Final = 63


class NotVeiled(Exception):
    """A value describes what is no reading, or too many names."""


class Veil:
    """The veil over the value of one reading."""

    def __init__(self, rule: EgressRule, pseudonyms: Pseudonyms) -> None:
        self._rule, self._pseudonyms = rule, pseudonyms
        self._known: dict[tuple[str, int], str] = {}
        """Pseudonyms by name and time."""
        self._hashes = 0

    def veiled(self, described: dict[str, Any]) -> dict[str, Any]:
        """A description, as the reading itself would leave.

        :raises NotVeiled: it can't be veiled, so the value must not leave.
        """
        key, origin, sequence, utc_ns = (described[field] for field in ("key", "origin", "sequence", "utc_ns"))
        is_reading = _is_text(key, MAX_KEY_BYTES) and _is_text(origin, _MAX_ID_CHARS) and _is_count(sequence, utc_ns)
        if not is_reading or key.count("/") >= MAX_KEY_CHUNKS:
            raise NotVeiled
        rule = self._rule
        self._count()
        veiled = described | {"sequence": self._pseudonyms.of_sequence(origin, key, sequence)}
        if rule.time_s is not None:
            veiled["utc_ns"] = coarsened_time(EventTime(utc_ns, 0), rule.time_s).utc_ns
            veiled["value"] = with_wide_window(described["value"], rule.time_s)
        if (period_s := rule.pseudonym_s) is not None:
            veiled["key"] = "/".join([self._named(chunk, period_s, utc_ns) for chunk in key.split("/")])
            veiled["origin"] = self._named(origin, period_s, utc_ns)
        return veiled

    def _named(self, name: str, period_s: int, utc_ns: int) -> str:
        known = self._known.get((name, utc_ns))
        if known is None:
            self._count()
            known = self._known[name, utc_ns] = self._pseudonyms.of_name(name, period_s, utc_ns)
        return known

    def _count(self) -> None:
        self._hashes += 1
        if self._hashes > MAX_HASHES:
            raise NotVeiled


def _is_text(value: object, most: int) -> bool:
    return type(value) is str and 0 < len(value) <= most


def _is_count(*values: object) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
