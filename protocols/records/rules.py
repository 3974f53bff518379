"""Curation: which readings become records for the relay, and how often.

A rule names keys by expression and a shortest interval between two records of one key. Rules are tried in order and the
first whose expression and source match decides alone: when its interval has not passed, no later rule is asked.
Invariant: the memory is bounded by ``MAX_CACHED_KEYS`` whatever keys neighbours invent; of a key that was forgotten the
next reading is chosen, so pressure on the memory can add records but never suppress them.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from protocols.base.errors import BoundExceeded, LocalProtocolError
from protocols.base.ids import MonotonicNs
from protocols.base.keys import checked_expression, matches
from protocols.base.limits import MAX_CACHED_KEYS, MAX_LIFESPAN_MS, MAX_TEXT_CHARS
from protocols.wire.readings import Reading

Source = Literal["own", "any"]


@dataclass(frozen=True, slots=True)
class CurationRule:
    """One curation rule.

    :raises InvalidKey: when ``keys`` is not a key expression.
    :raises LocalProtocolError: when another field is out of range; names field and value.
    """

    name: str
    keys: str
    """Key expression of the readings it is about."""
    min_interval_ns: int = 0
    """Shortest time between two records of one key; 0: every reading."""
    source: Source = "own"
    """``own``: readings sensed here; ``any``: those of neighbours too."""
    lifespan_ms: int = MAX_LIFESPAN_MS
    """A record that is not delivered this long after it was chosen expires; 0: never."""
    priority: int | None = None
    """0 to 7, the lowest is evicted first; None: that of the reading."""

    def __post_init__(self) -> None:
        checked_expression(self.keys)
        if not 0 < len(self.name) <= MAX_TEXT_CHARS:
            raise BoundExceeded(
                f"rule name {self.name[:80]!r} has {len(self.name)} characters: use 1 to {MAX_TEXT_CHARS}"
            )
        if self.min_interval_ns < 0:
            raise LocalProtocolError(f"rule {self.name!r}: min_interval_ns is {self.min_interval_ns}: use 0 or more")
        if self.source not in ("own", "any"):
            raise LocalProtocolError(f"rule {self.name!r}: source is {self.source!r}: use 'own' or 'any'")
        if not 0 <= self.lifespan_ms <= MAX_LIFESPAN_MS:
            raise BoundExceeded(f"rule {self.name!r}: lifespan_ms is {self.lifespan_ms}: use 0 to {MAX_LIFESPAN_MS}")
        if self.priority is not None and not 0 <= self.priority <= 7:
            raise LocalProtocolError(f"rule {self.name!r}: priority is {self.priority}: use 0 to 7")


class Curator:
    """Chooses readings by rules."""

    def __init__(self, rules: Iterable[CurationRule]) -> None:
        """:raises LocalProtocolError: when two rules have one name: nobody could tell their records apart."""
        self._rules = tuple(rules)
        names = [rule.name for rule in self._rules]
        for name in names:
            if names.count(name) > 1:
                raise LocalProtocolError(f"two curation rules are named {name!r}: give each its own name")
        self._deciding: OrderedDict[tuple[str, bool], CurationRule | None] = OrderedDict()
        self._last_ns: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._chosen = dict.fromkeys(names, 0)
        self._limited = dict.fromkeys(names, 0)

    @property
    def rules(self) -> tuple[CurationRule, ...]:
        """The rules, in the order in which they are tried."""
        return self._rules

    def choose(self, reading: Reading, is_own: bool, now: MonotonicNs) -> CurationRule | None:
        """The rule by which ``reading`` becomes a record, or None.

        ``is_own``: sensed at this node. ``now``: monotonic; it starts the interval when the answer is a rule.
        """
        rule = self._rule_for(reading.key, is_own)
        if rule is None:
            return None
        if rule.min_interval_ns:
            name = (rule.name, reading.key)
            last_ns = self._last_ns.get(name)
            if last_ns is not None and now - last_ns < rule.min_interval_ns:
                self._limited[rule.name] += 1
                return None
            self._last_ns[name] = now
            self._last_ns.move_to_end(name)
            if len(self._last_ns) > MAX_CACHED_KEYS:
                self._last_ns.popitem(last=False)
        self._chosen[rule.name] += 1
        return rule

    def statistics(self) -> dict[str, dict[str, int]]:
        """By rule: readings ``chosen`` and readings left out because the interval had not passed (``limited``)."""
        return {name: {"chosen": self._chosen[name], "limited": self._limited[name]} for name in self._chosen}

    def _rule_for(self, key: str, is_own: bool) -> CurationRule | None:
        asked = (key, is_own)
        if asked in self._deciding:
            self._deciding.move_to_end(asked)
            return self._deciding[asked]
        found = next((r for r in self._rules if (is_own or r.source == "any") and matches(r.keys, key)), None)
        self._deciding[asked] = found
        if len(self._deciding) > MAX_CACHED_KEYS:
            self._deciding.popitem(last=False)
        return found
