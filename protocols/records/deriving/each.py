"""A rule that derives a reading from each reading that it takes: a filter, or another value out of the same reading.

What it derives was sensed where, when and as well as the reading that it comes from.
"""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.limits import MAX_LINEAGE
from protocols.base.time import NEVER
from protocols.records.curation import CurationOutput, ReadingDerived
from protocols.records.deriving.output import Output
from protocols.records.deriving.rule import DerivingRule, Partition
from protocols.records.deriving.sources import Source
from protocols.wire.readings import Reading


class EachRule(DerivingRule):
    """See the module. Fulfils :class:`protocols.records.curation.Pattern`."""

    max_state_bytes = 0

    def __init__(self, name: str, node: NodeId, source: Source, output: Output, partition: Partition) -> None:
        """``partition`` gives what stands for ``{partition}`` in the key of the output."""
        super().__init__(name, node, (source,), output, partition)

    def counters(self) -> Mapping[str, int]:
        """Readings derived, and readings left out by reason."""
        return self._counts

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        """See ``Pattern.receive``."""
        taken = self._taken_for(reading)
        if taken is None:
            return ()
        value, key = taken
        output, how = self.output, reading.how
        if len(how.lineage) >= MAX_LINEAGE:
            self._counts["unfit"] += 1
            return ()
        self._counts["derived"] += 1
        how = replace(how, unit=output.unit or how.unit)
        return (
            ReadingDerived(
                self.name, key, value, reading.where, reading.when, how, output.priority, output.lifespan_ms
            ),
        )

    def handle_timer(self, now: MonotonicNs) -> Sequence[CurationOutput]:
        """Nothing is ever due."""
        return ()

    def next_timer_at(self) -> int:
        """See ``Pattern.next_timer_at``."""
        return NEVER
