"""A rule that derives a reading from each reading that it takes: a filter, or another value out of the same reading.

What it derives was sensed where, when and as well as the reading that it comes from.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.limits import MAX_LINEAGE
from protocols.base.time import NEVER
from protocols.records.curation import CurationOutput, ReadingDerived
from protocols.records.deriving.output import Output
from protocols.records.deriving.sources import NOT_TAKEN, ExpressionFailed, Source
from protocols.wire.readings import Reading


class EachRule:
    """See the module. Fulfils :class:`protocols.records.curation.Pattern`."""

    max_state_bytes = 0

    def __init__(
        self, name: str, node: NodeId, source: Source, output: Output, partition: Callable[[Reading], object]
    ) -> None:
        """``partition`` gives what stands for ``{partition}`` in the key of the output."""
        self.name = name
        self._node, self.source, self.output, self._partition = node, source, output, partition
        self._counts: Counter[str] = Counter()

    @property
    def expressions(self) -> tuple[str, ...]:
        """The key expression of its source, when it takes readings of neighbours."""
        return (self.source.keys,) if self.source.source == "any" else ()

    @property
    def record_lifespan_ms(self) -> int | None:
        """That of its output."""
        return self.output.record_lifespan_ms

    def considers(self, key: str, is_own: bool) -> bool:
        """Whether its source does."""
        return self.source.considers(key, is_own)

    def counters(self) -> Mapping[str, int]:
        """Readings derived, and readings left out by reason."""
        return self._counts

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        """See ``Pattern.receive``."""
        value = self.source.taken(reading, self._counts)
        if value is NOT_TAKEN:
            return ()
        try:
            key = self.output.filled(self._node, str(self._partition(reading)))
        except ExpressionFailed:
            self._counts["failed"] += 1
            return ()
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
