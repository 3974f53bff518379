"""A rule whose readings are noted one by one: who sent each, and whether an expression had no value for it.

So a set of rules that is being tried can be judged, and by more than what one neighbour sends to it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from protocols.base.ids import MonotonicNs, UtcNs
from protocols.records.curation import CurationOutput, Pattern
from protocols.wire.readings import Reading

Note = Callable[[str | None, bool], None]
"""Told of a reading that came to a rule: who sent it, None when it was this node, and whether the rule failed on it."""


class Failing(Pattern, Protocol):
    """A rule that counts its failures."""

    @property
    def failed(self) -> int:
        """Readings for which an expression had no value."""


class NotedRule:
    """See the module. Fulfils :class:`protocols.records.curation.Pattern`."""

    def __init__(self, rule: Failing, note: Note) -> None:
        self._rule, self._note = rule, note
        self.name, self.expressions, self.record_lifespan_ms = rule.name, rule.expressions, rule.record_lifespan_ms
        self.recording = rule.recording
        self.considers, self.counters = rule.considers, rule.counters
        self.handle_timer, self.next_timer_at = rule.handle_timer, rule.next_timer_at
        self.predicted = rule.predicted

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        """See ``Pattern.receive``."""
        before = self._rule.failed
        outputs = self._rule.receive(reading, is_own, now, utc_now)
        self._note(None if is_own else reading.origin, self._rule.failed != before)
        return outputs
