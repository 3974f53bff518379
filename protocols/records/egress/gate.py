"""The gate through which records leave: it lets a reading through, changes it, or keeps it back.

Invariant: what it lets through holds nothing of the original that its rule does not let through. In doubt a reading is
kept back: when no rule matches it, when it may have been sensed where it may not, when a value can't be judged.

Under a rule with pseudonyms, of the key only those chunks stay that the key expression of the rule spells out: whatever
``*`` and ``**`` stand for may name somebody, and so may sensor, calibration and lineage, which are left out.

It leaves out: pictures, which are slow. Whoever calls it finishes them with :meth:`WithPictures.finished`, on a thread
of its choice.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from protocols.base.errors import InputInvalid
from protocols.base.ids import NodeId
from protocols.base.limits import MAX_CACHED_KEYS, MAX_KEY_BYTES
from protocols.records.egress.coarse import coarsened_position, coarsened_time
from protocols.records.egress.pseudonyms import Pseudonyms
from protocols.records.egress.rules import EgressPolicy, EgressRule
from protocols.records.egress.values import (
    Redraw,
    allowed_fields,
    has_count,
    redrawn,
    sizes_bytes,
    with_fields,
    with_wide_window,
)
from protocols.records.egress.veil import NotVeiled, Veil
from protocols.wire.readings import Reading


@dataclass(frozen=True, slots=True)
class KeptBack:
    """A reading does not leave."""

    rule: str
    """The rule that decided; empty: none matched."""
    reason: str
    """``no rule``, ``dropped``, ``place``, ``count``, ``fields``, ``described``, ``key`` or ``picture``."""


@dataclass(frozen=True, slots=True)
class WithPictures:
    """A reading that may leave once its pictures have been encoded anew."""

    rule: EgressRule
    reading: Reading
    size_bytes: int
    """Of its pictures."""

    def finished(self, redraw: Redraw) -> Reading | KeptBack:
        """The reading as it leaves."""
        try:
            return replace(self.reading, value=redrawn(self.reading.value, redraw, self.rule.cover_field))
        except InputInvalid:
            return KeptBack(self.rule.name, "picture")


class EgressGate:
    """The gate of one node. Not thread-safe."""

    def __init__(self, policy: EgressPolicy, node: NodeId, keyed_hash: Callable[[bytes], bytes]) -> None:
        """``keyed_hash``: see :class:`Pseudonyms`."""
        self.policy = policy
        self._node, self._pseudonyms = node, Pseudonyms(keyed_hash)
        self._spelled_out = {rule.name: frozenset(rule.keys.split("/")) - {"*", "**"} for rule in policy.rules}
        self._keeps_values_back = any(rule.keeps_values_back for rule in policy.rules)
        self._rules: OrderedDict[str, EgressRule | None] = OrderedDict()
        self.released: Counter[str] = Counter()
        self.kept_back: Counter[tuple[str, str]] = Counter()
        """By rule and reason."""

    def rule_for(self, key: str) -> EgressRule | None:
        """The rule that decides on readings of a key."""
        if key in self._rules:
            self._rules.move_to_end(key)
            return self._rules[key]
        rule = self._rules[key] = self.policy.rule_for(key)
        if len(self._rules) > MAX_CACHED_KEYS:
            self._rules.popitem(last=False)
        return rule

    def looks_at_values(self, rule: EgressRule) -> bool:
        """Whether it matters what is in the value of a reading on which this rule decides."""
        return rule.changes_values or self._keeps_values_back

    def judged(self, reading: Reading) -> Reading | WithPictures | KeptBack:
        """What becomes of a reading. One that leaves as it is, is returned itself. Whenever the rule looks at values,
        the value has to be plain."""
        rule = self.rule_for(reading.key)
        if rule is None:
            return KeptBack("", "no rule")
        if reason := _why_not(rule, reading):
            return KeptBack(rule.name, reason)
        changes: dict[str, Any] = {}
        if rule.cell_m is not None:
            changes["where"] = coarsened_position(reading.where, rule.cell_m)
        if rule.time_s is not None:
            changes["when"] = coarsened_time(reading.when, rule.time_s)
            changes["value"] = with_wide_window(reading.value, rule.time_s)
        if self.looks_at_values(rule):
            try:
                veil = Veil(rule, self._pseudonyms, self._node, self.rule_for)
                changes["value"] = veil.over(changes.get("value", reading.value), self._said_by(reading))
            except NotVeiled:
                return KeptBack(rule.name, "described")
        if rule.time_s is not None or rule.pseudonym_s is not None:
            changes["sequence"] = self._pseudonyms.of_sequence(
                reading.origin, reading.key, reading.sequence, rule.pseudonym_s, reading.when.utc_ns
            )
        if rule.pseudonym_s is not None:
            changes |= self._without_names(rule, rule.pseudonym_s, reading)
            if len(changes["key"].encode()) > MAX_KEY_BYTES:
                return KeptBack(rule.name, "key")
        if rule.fields is not None:  # last: what tells a described reading may be among the fields that don't leave
            changes["value"] = with_fields(changes.get("value", reading.value), allowed_fields(rule.fields))
            if changes["value"] is None:
                return KeptBack(rule.name, "fields")
        if changes.get("value") is reading.value:
            changes.pop("value", None)
        released = replace(reading, **changes) if changes else reading
        if rule.redraws_pictures and (sizes := sizes_bytes(released.value)):
            return WithPictures(rule, released, sum(sizes))
        return released

    def payer(self, reading: Reading, utc_now: int) -> str:
        """Who pays for the record of a reading that came at ``utc_now``. A pseudonym of its origin, where it must not
        be named: of the present period, because a reading says of which period it is, and an origin that had a name
        for each day since 1970 would have a share of the outbox for each."""
        rule = self.rule_for(reading.key)
        if rule is None or rule.pseudonym_s is None:
            return reading.origin
        return self._pseudonyms.of_name(reading.origin, rule.pseudonym_s, utc_now)

    def count(self, rule: str, kept_back: KeptBack | None) -> None:
        """Count what became of a reading in the end."""
        if kept_back is None:
            self.released[rule] += 1
        else:
            self.kept_back[kept_back.rule, kept_back.reason] += 1

    def _said_by(self, reading: Reading) -> str:
        """See :meth:`Pseudonyms.of_name`."""
        return "" if reading.origin == self._node else reading.origin

    def _without_names(self, rule: EgressRule, period_s: int, reading: Reading) -> dict[str, Any]:
        spelled_out = self._spelled_out[rule.name] - {self._node, reading.origin}

        def named(name: str) -> str:
            return self._pseudonyms.of_name(name, period_s, reading.when.utc_ns, self._said_by(reading))

        chunks = [chunk if chunk in spelled_out else named(chunk) for chunk in reading.key.split("/")]
        return {
            "key": "/".join(chunks),
            "origin": named(reading.origin),
            "how": replace(reading.how, sensor="", calibration="", lineage=()),
        }


def _why_not(rule: EgressRule, reading: Reading) -> str:
    """Why a reading may not leave; empty: it may."""
    if rule.drop:
        return "dropped"
    if rule.drop_inside is not None and rule.drop_inside.may_hold(reading.where):
        return "place"
    if rule.drop_outside is not None and not rule.drop_outside.surely_holds(reading.where):
        return "place"
    if rule.min_count is not None and not has_count(reading.value, rule.min_count):
        return "count"
    return ""
