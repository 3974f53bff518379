"""One reading, then another one: *A then B within t*, and within a distance if that is wanted.

It is derived as soon as both readings are there, in whatever order they come. A *B* takes the nearest *A* before it; an
*A* that comes after its *B* takes the nearest *B* after it. A reading takes part in one sequence at most. Order goes by
the middles of their times, also when their clocks are so uncertain that the intervals overlap; with ``certain``, such
two are no sequence. See :mod:`protocols.records.patterns.nearness`.

The value of a derived reading is a map with the readings ``first`` and ``then``: key, origin, sequence, time and value
of each.
"""

from collections.abc import Sequence

from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.time import NEVER
from protocols.records.curation import CurationOutput
from protocols.records.deriving.output import Output
from protocols.records.deriving.rule import Partition
from protocols.records.deriving.sources import Source
from protocols.records.patterns.base import PatternRule, described, fit_together
from protocols.records.patterns.held import HeldReadings, bytes_for
from protocols.records.patterns.nearness import Nearness
from protocols.records.windows.rule import undivided
from protocols.wire.readings import Reading


class SequenceRule(PatternRule):
    """See the module. Fulfils :class:`protocols.records.curation.Pattern`."""

    def __init__(
        self, name: str, node: NodeId, first: Source, then: Source, nearness: Nearness, output: Output,
        partition: Partition = undivided, max_partitions: int = 1_000, max_held: int = 32,
    ) -> None:  # fmt: skip
        """``partition`` gives the name of the partition of a reading; :raises BoundExceeded: when what it holds could
        need more than ``MAX_STATE_BYTES``."""
        super().__init__(name, node, (first, then), nearness, output, partition, max_partitions, max_held)
        self.max_state_bytes = self._check_state(2 * bytes_for(self.max_partitions, max_held), max_held)
        self._firsts = HeldReadings(self.max_partitions, max_held)
        self._thens = HeldReadings(self.max_partitions, max_held)

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        """See ``Pattern.receive``."""
        taken = self._taken(reading, is_own, utc_now)
        if taken is None:
            return ()
        partition, (first, then) = taken
        self._firsts.forget_due(now)
        self._thens.forget_due(now)
        utc_ns, span_ns = reading.when.utc_ns, self.nearness.span_ns
        if then is not None:
            for held in reversed(self._firsts.between(partition, utc_ns - span_ns, utc_ns - 1)):
                if self._is_sequence(held.reading, then):
                    self._firsts.drop(held)
                    if held.twin is not None:
                        self._thens.drop(held.twin)
                    return self._complete(partition, held.reading, then)
        if first is not None:
            for held in self._thens.between(partition, utc_ns + 1, utc_ns + span_ns):
                if self._is_sequence(first, held.reading):
                    self._thens.drop(held)
                    if held.twin is not None:
                        self._firsts.drop(held.twin)
                    return self._complete(partition, first, held.reading)
        due_ns = now + utc_ns + self.nearness.kept_ns - utc_now
        as_first = None if first is None else self._firsts.put(partition, first, due_ns)
        as_then = None if then is None else self._thens.put(partition, then, due_ns)
        if as_first is not None and as_then is not None:
            as_first.twin, as_then.twin = as_then, as_first
        return ()

    def handle_timer(self, _: MonotonicNs) -> Sequence[CurationOutput]:
        """Nothing is ever due."""
        return ()

    def next_timer_at(self) -> int:
        """``NEVER``."""
        return NEVER

    def _evicted(self) -> int:
        return self._firsts.evicted + self._thens.evicted

    def _is_sequence(self, first: Reading, then: Reading) -> bool:
        return self.nearness.follows(first, then) and fit_together(first, then)

    def _complete(self, partition: str, first: Reading, then: Reading) -> Sequence[CurationOutput]:
        return self._derived(partition, (first, then), {"first": described(first), "then": described(then)})
