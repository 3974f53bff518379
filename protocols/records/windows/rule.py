"""A rule that summarises: it takes readings, puts each into the windows of its partition, and derives a reading when a
window is over.

The value of a derived reading is a map: ``start_ns`` and ``end_ns`` of the window in UTC, and what its functions came
to. It was sensed in the middle of the window, with half of the window and the largest uncertainty of a reading as its
uncertainty. See :mod:`protocols.records.windows.summary` for the rest of its context.

A timer closes at most ``_AT_ONCE`` windows, so that nobody waits for a hundred thousand of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from protocols.base.errors import BoundExceeded
from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.limits import MAX_LINEAGE
from protocols.records.curation import CurationOutput, ReadingDerived
from protocols.records.deriving.output import Output
from protocols.records.deriving.rule import DerivingRule, Partition
from protocols.records.deriving.sources import NOT_TAKEN, ExpressionFailed, Seen, Source
from protocols.records.windows.kinds import Window
from protocols.records.windows.open import ClosedWindow
from protocols.records.windows.saving import SavedState, WindowTally
from protocols.records.windows.stores import open_windows_for
from protocols.records.windows.summary import Functions
from protocols.wire.readings import EventTime, Provenance, Reading

MAX_PARTITIONS: Final = 100_000
MIB: Final = 1 << 20
MAX_STATE_BYTES: Final = 256 * MIB
"""The most memory that the windows of one rule may need."""
MAX_UNCERTAINTY_NS: Final = 1 << 62
"""A neighbour may claim any; a sum that no frame can carry would never be published."""
_AT_ONCE: Final = 128
_PARTITION_CHARS: Final = 200


def by_key(reading: Reading) -> str:
    """A partition for each key."""
    return reading.key


def by_origin(reading: Reading) -> str:
    """A partition for each node that sensed."""
    return reading.origin


def undivided(_: Reading) -> str:
    """One partition for all."""
    return "all"


class WindowRule(DerivingRule):
    """See the module. Fulfils :class:`protocols.records.curation.Pattern`."""

    def __init__(
        self, name: str, node: NodeId, source: Source, window: Window, functions: Functions, output: Output,
        partition: Partition = undivided, max_partitions: int = 1_000,
    ) -> None:  # fmt: skip
        """``partition`` gives the name of the partition of a reading; :raises BoundExceeded: when the windows could
        need more than ``MAX_STATE_BYTES``."""
        super().__init__(name, node, (source,), output, partition)
        self.window, self.functions = window, functions
        self.max_rows = (1 if partition is undivided else max_partitions) * window.max_open
        self._seen = Seen(max_streams=4 * max_partitions)
        self.max_state_bytes = self.max_rows * functions.max_bytes + self._seen.max_bytes
        self.definition = repr((window, functions.names))  # saved windows are useless when it changes
        if not 1 <= max_partitions <= MAX_PARTITIONS:
            raise BoundExceeded(f"max_partitions is {max_partitions}: use 1 to {MAX_PARTITIONS}")
        if self.max_state_bytes > MAX_STATE_BYTES:
            raise BoundExceeded(
                f"{max_partitions} partitions of {window.max_open} open windows need up to "
                f"{self.max_state_bytes // MIB} MiB, and a rule may have {MAX_STATE_BYTES // MIB}: allow fewer "
                "partitions, or use longer steps or fewer functions (percentiles and distinct need most)"
            )
        self._open = open_windows_for(window, functions, self.max_rows)

    @property
    def has_changed(self) -> bool:
        """Whether there are rows that have changed."""
        return self._open.has_changed

    def changed(self, most: int) -> list[tuple[str, bytes | None]]:
        """See ``Restorable``."""
        return self._open.changed(most)

    def restore(self, rows: Iterable[bytes], state: SavedState, now: MonotonicNs, utc_now: UtcNs) -> None:
        """Take the windows of the life before, see ``Restorable``. :raises LocalProtocolError: a row is damaged."""
        self._open.restore(rows, state, now, utc_now)

    def track(self, is_on: bool) -> None:
        """See ``Restorable``."""
        self._open.track(is_on)

    def share(self, tally: WindowTally) -> None:
        """Count readings in ``tally`` from now on. Called before the first one comes."""
        self._open.tally = tally

    def give_up(self) -> int:
        """Its open windows are not derived any more: whoever uses it does so no longer. Returns how many readings were
        in them, which count as held no more."""
        lost = self._open.held
        self._open.tally.held -= lost
        return lost

    def counters(self) -> Mapping[str, int]:
        """Readings taken and left out, by reason, and windows derived."""
        return self._counts | Counter({"evicted": self._open.evicted} if self._open.evicted else {})

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        """See ``Pattern.receive``."""
        counts = self._counts
        value = self.sources[0].taken(reading, counts)
        if value is NOT_TAKEN:
            return ()
        try:
            partition = self._partition(reading)
        except ExpressionFailed:
            counts["failed"] += 1
            return ()
        if type(partition) is not str:
            partition = str(partition)
        if not self._seen.is_new(reading):
            counts["doubled"] += 1
            return ()
        counts[self._open.put(partition[:_PARTITION_CHARS], reading, value, is_own, now, utc_now) or "taken"] += 1
        return self.handle_timer(now) if self._open.due_ns() <= now else ()

    def handle_timer(self, now: MonotonicNs) -> Sequence[CurationOutput]:
        """See ``Pattern.handle_timer``."""
        return [self._derived(closed) for closed in islice(self._open.closed(now), _AT_ONCE)]

    def next_timer_at(self) -> int:
        """See ``Pattern.next_timer_at``."""
        return self._open.due_ns()

    def _derived(self, closed: ClosedWindow) -> ReadingDerived:
        self._counts["derived"] += 1
        summary, output = closed.summary, self.output
        half_ns = (closed.end_ns - closed.start_ns) // 2
        when = EventTime(closed.start_ns + half_ns, min(half_ns + summary.uncertainty_ns, MAX_UNCERTAINTY_NS))
        how = Provenance(f"rule {self.name}", output.unit, summary.quality, "", summary.lineage[: MAX_LINEAGE - 1])
        value = {"start_ns": closed.start_ns, "end_ns": closed.end_ns} | summary.results(self.functions)
        key = output.filled(self._node, closed.partition)
        return ReadingDerived(self.name, key, value, summary.where, when, how, output.priority, output.lifespan_ms)
