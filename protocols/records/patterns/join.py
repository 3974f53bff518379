"""Two streams joined by time: each left reading with the nearest right one within *t*, which with ``certain`` holds
the intervals of both (see :mod:`protocols.records.patterns.nearness`).

Nearest is by the middles of their times; of two that are equally near, the earlier one counts, and of one moment the
one whose origin, key and sequence come first. A join is derived when nothing nearer can come: at once when both were
sensed at the same nanosecond, and otherwise ``late_ns`` after ``t`` has passed since the left one was sensed. A right
reading may be joined with several left ones, and a reading never with itself. A left reading without a right one is
counted as ``unmatched``.

The value of a derived reading is what ``value`` makes of both, or a map with ``left`` and ``right``: key, origin,
sequence, time and value of each.
"""

from collections.abc import Callable, Sequence
from typing import Any

from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.records.curation import CurationOutput
from protocols.records.deriving.output import Output
from protocols.records.deriving.rule import Partition
from protocols.records.deriving.sources import ExpressionFailed, Source
from protocols.records.patterns.base import AT_ONCE, PatternRule, described, fit_together
from protocols.records.patterns.held import HeldReadings, bytes_for
from protocols.records.patterns.nearness import Nearness
from protocols.records.windows.rule import undivided
from protocols.wire.readings import Reading

JoinValue = Callable[[Reading, Reading], Any]
"""A compiled expression over a left and a right reading. :raises ExpressionFailed: it has no value for them."""


def both_described(left: Reading, right: Reading) -> Any:
    """A map that names both readings."""
    return {"left": described(left), "right": described(right)}


class JoinRule(PatternRule):
    """See the module. Fulfils :class:`protocols.records.curation.Pattern`."""

    def __init__(
        self, name: str, node: NodeId, left: Source, right: Source, nearness: Nearness, output: Output,
        value: JoinValue = both_described, partition: Partition = undivided, max_partitions: int = 1_000,
        max_held: int = 32,
    ) -> None:  # fmt: skip
        """``partition`` gives the name of the partition of a reading; ``value`` is given both readings with what their
        sources take as value. :raises BoundExceeded: when what it holds could need more than ``MAX_STATE_BYTES``."""
        super().__init__(name, node, (left, right), nearness, output, partition, max_partitions, max_held)
        self.max_state_bytes = self._check_state(2 * bytes_for(self.max_partitions, max_held), max_held)
        self._value = value
        self._lefts = HeldReadings(self.max_partitions, max_held)
        self._rights = HeldReadings(self.max_partitions, max_held)

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        """See ``Pattern.receive``."""
        derived = self.handle_timer(now) if self._lefts.due_ns() <= now else []
        taken = self._taken(reading, is_own, utc_now)
        if taken is None:
            return derived
        partition, (left, right) = taken
        self._rights.forget_due(now)
        utc_ns, nearness = reading.when.utc_ns, self.nearness
        is_waiting = left is not None
        if left is not None:
            exact = self._nearest(partition, left, 0)
            if exact is not None:
                derived += self._joined(partition, left, exact)
                is_waiting = False
        if right is not None:
            for held in self._lefts.between(partition, utc_ns, utc_ns):
                if self._may_join(held.reading, right):
                    self._lefts.drop(held)
                    derived += self._joined(partition, held.reading, right)
            self._rights.put(partition, right, now + utc_ns + nearness.kept_ns - utc_now)
        if left is not None and is_waiting:
            self._lefts.put(partition, left, now + utc_ns + nearness.span_ns + nearness.late_ns - utc_now)
        return derived

    def handle_timer(self, now: MonotonicNs) -> list[CurationOutput]:
        """See ``Pattern.handle_timer``."""
        derived: list[CurationOutput] = []
        for _ in range(AT_ONCE):
            held = self._lefts.take_due(now)
            if held is None:
                break
            right = self._nearest(held.partition, held.reading, self.nearness.span_ns)
            if right is None:
                self._counts["unmatched"] += 1
            else:
                derived += self._joined(held.partition, held.reading, right)
        return derived

    def next_timer_at(self) -> int:
        """See ``Pattern.next_timer_at``."""
        return self._lefts.due_ns()

    def _evicted(self) -> int:
        return self._lefts.evicted + self._rights.evicted

    def _nearest(self, partition: str, left: Reading, span_ns: int) -> Reading | None:
        """The right reading that is nearest to ``left``, at most ``span_ns`` away; None: there is none."""
        utc_ns = left.when.utc_ns
        nearest: Reading | None = None
        for held in self._rights.between(partition, utc_ns - span_ns, utc_ns + span_ns):
            apart_ns = abs(held.reading.when.utc_ns - utc_ns)
            if nearest is not None and apart_ns >= abs(nearest.when.utc_ns - utc_ns):
                continue
            if self._may_join(left, held.reading):
                nearest = held.reading
        return nearest

    def _may_join(self, left: Reading, right: Reading) -> bool:
        is_same = left.sequence == right.sequence and left.key == right.key and left.origin == right.origin
        return not is_same and self.nearness.is_near(left, right) and fit_together(left, right)

    def _joined(self, partition: str, left: Reading, right: Reading) -> Sequence[CurationOutput]:
        try:
            value = self._value(left, right)
        except ExpressionFailed:
            self._counts["failed"] += 1
            return ()
        return self._derived(partition, (left, right), value)
