"""The same thing several times within a span: *n matching readings within t*, of different nodes and near one another
if that is wanted. "Two vehicles within 150 m brake within 3 s" is one.

It is derived as soon as a reading completes it, in whatever order they come. All of its readings are near one another,
each to each: by the middles of their times and by their positions, unless it is to be ``certain`` (see
:mod:`protocols.records.patterns.nearness`). Of several groups that a reading completes, the one whose other readings
come first in time is taken. Its readings are used up: a reading takes part in one repetition at most, and the rule
waits for new ones.

To find readings that are all near one another among many may take very long. A search ends after ``_MAX_COMPARISONS``
comparisons of two readings, which take 2 ms, and counts as ``gave_up``; the reading is kept for others.

The value of a derived reading is a map: ``count``, and ``readings`` in the order of their times with key, origin,
sequence, time and value of each.
"""

from collections.abc import Sequence
from typing import Final

from protocols.base.errors import BoundExceeded
from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.time import NEVER
from protocols.records.curation import CurationOutput
from protocols.records.deriving.output import Output
from protocols.records.deriving.rule import Partition
from protocols.records.deriving.sources import Source
from protocols.records.patterns.base import PatternRule, described, fit_together
from protocols.records.patterns.held import HeldReading, HeldReadings, bytes_for, time_order
from protocols.records.patterns.nearness import Nearness
from protocols.records.windows.rule import undivided
from protocols.wire.readings import Reading

MAX_TIMES: Final = 16
_MAX_COMPARISONS: Final = 2_048


class RepetitionRule(PatternRule):
    """See the module. Fulfils :class:`protocols.records.curation.Pattern`."""

    of_many = True

    def __init__(
        self, name: str, node: NodeId, source: Source, times: int, nearness: Nearness, output: Output,
        distinct_origins: bool = False, partition: Partition = undivided, max_partitions: int = 1_000,
        max_held: int = 32,
    ) -> None:  # fmt: skip
        """``partition`` gives the name of the partition of a reading; ``distinct_origins``: its readings are all of
        different nodes. :raises BoundExceeded: when what it holds could need more than ``MAX_STATE_BYTES``, or when
        ``times`` can't be reached."""
        super().__init__(name, node, (source,), nearness, output, partition, max_partitions, max_held)
        if not 2 <= times <= MAX_TIMES:
            raise BoundExceeded(f"a repetition of {times} readings: use 2 to {MAX_TIMES}")
        if times > max_held + 1:
            raise BoundExceeded(
                f"a repetition of {times} readings, of which a partition holds {max_held}: allow max_held to be "
                f"{times - 1} at least"
            )
        self.times, self.distinct_origins = times, distinct_origins
        self.max_state_bytes = self._check_state(bytes_for(self.max_partitions, max_held), max_held)
        self._held = HeldReadings(self.max_partitions, max_held)
        self._comparisons = 0

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        """See ``Pattern.receive``."""
        taken = self._taken(reading, is_own, utc_now)
        if taken is None:
            return ()
        partition, (new,) = taken
        assert new is not None, "its only source takes it"
        self._held.forget_due(now)
        utc_ns, span_ns = reading.when.utc_ns, self.nearness.span_ns
        others = self._held.between(partition, utc_ns - span_ns, utc_ns + span_ns)
        group = self._group(new, others) if len(others) >= self.times - 1 else None
        if group is None:
            self._held.put(partition, new, now + utc_ns + self.nearness.kept_ns - utc_now)
            return ()
        for held in group:
            self._held.drop(held)
        readings = sorted((new, *(held.reading for held in group)), key=time_order)
        value = {"count": self.times, "readings": [described(one) for one in readings]}
        return self._derived(partition, readings, value)

    def handle_timer(self, _: MonotonicNs) -> Sequence[CurationOutput]:
        """Nothing is ever due."""
        return ()

    def next_timer_at(self) -> int:
        """``NEVER``."""
        return NEVER

    def _evicted(self) -> int:
        return self._held.evicted

    def _group(self, new: Reading, others: Sequence[HeldReading]) -> list[HeldReading] | None:
        """The others that make a repetition with a new reading; None: it completes none."""
        self._comparisons = 0
        group = self._all_near(self._near(new, others), self.times - 1)
        if group is None and self._comparisons > _MAX_COMPARISONS:
            self._counts["gave_up"] += 1
        return group

    def _all_near(self, others: list[HeldReading], number: int) -> list[HeldReading] | None:
        """The first ``number`` of ``others``, in their order, that are all near one another; None: there are not so
        many."""
        if number == 1:
            return others[:1] or None
        if self.distinct_origins and len({held.reading.origin for held in others}) < number:
            return None
        for at in range(len(others) - number + 1):
            rest = self._all_near(self._near(others[at].reading, others[at + 1 :]), number - 1)
            if rest is not None:
                return [others[at], *rest]
            if self._comparisons > _MAX_COMPARISONS:
                return None
        return None

    def _near(self, one: Reading, others: Sequence[HeldReading]) -> list[HeldReading]:
        self._comparisons += len(others)
        is_near, distinct = self.nearness.is_near, self.distinct_origins
        return [
            held for held in others
            if not (distinct and held.reading.origin == one.origin)
            and is_near(one, held.reading) and fit_together(one, held.reading)
        ]  # fmt: skip
