"""What all patterns have in common: which readings they take, and the context of what they derive.

A reading is left out, and counted, when no source takes it, when it came before (``doubled``), when it is ``late`` or
from the ``future`` (see :class:`Nearness`), or when it is ``unfit``: it takes too much memory, or its lineage is full.

What is derived from several readings covers them: its position is a circle that holds all of theirs, its time is the
interval that holds all of theirs, its quality is that of the worst, and its lineage holds all of theirs, each step
once. A lineage that is too long would have to lose steps, and with them the promise that a pattern never sees what it
derived; so readings whose lineages don't fit together are not put together.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from msgspec.structs import replace

from protocols.base.errors import BoundExceeded
from protocols.base.ids import NodeId
from protocols.base.limits import MAX_LINEAGE
from protocols.records.curation import ReadingDerived
from protocols.records.deriving.output import Output
from protocols.records.deriving.places import enclosing_circle
from protocols.records.deriving.rule import DerivingRule, Partition
from protocols.records.deriving.sources import NOT_TAKEN, ExpressionFailed, Seen, Source
from protocols.records.patterns.held import MAX_HELD_BYTES, held_bytes
from protocols.records.patterns.nearness import Nearness
from protocols.records.windows.rule import MAX_PARTITIONS, MAX_STATE_BYTES, MAX_UNCERTAINTY_NS, MIB, undivided
from protocols.wire.readings import EventTime, Position, Provenance, Reading

MAX_HELD: Final = 1_024
"""Readings of one partition that are held. Each that comes may be compared with all of them, which takes 1 µs each with
a distance."""
AT_ONCE: Final = 128
"""What is derived in one timer at most, so that nobody waits for a hundred thousand of them."""
_PARTITION_CHARS: Final = 200
"""More would not fit into what travels: whoever says so says nothing."""


class PatternRule(DerivingRule):
    """The common part of the rules. ``max_held``: how many readings of one partition are held, of each source."""

    of_many: ClassVar[bool] = False
    """Whether readings of several nodes are put together, so that the lineage that one of them claims must not count:
    a rule is not shown what has its own name in its lineage, and a neighbour could silence rules for all by it."""

    def __init__(
        self, name: str, node: NodeId, sources: Sequence[Source], nearness: Nearness, output: Output,
        partition: Partition, max_partitions: int, max_held: int,
    ) -> None:  # fmt: skip
        if not 1 <= max_partitions <= MAX_PARTITIONS:
            raise BoundExceeded(f"max_partitions is {max_partitions}: use 1 to {MAX_PARTITIONS}")
        if not 1 <= max_held <= MAX_HELD:
            raise BoundExceeded(f"max_held is {max_held}: use 1 to {MAX_HELD}")
        super().__init__(name, node, sources, output, partition)
        self.nearness = nearness
        self.max_partitions = 1 if partition is undivided else max_partitions
        self._seen = Seen()

    def counters(self) -> Mapping[str, int]:
        """Readings taken and left out, by reason; readings that gave way (``evicted``); and what was derived."""
        evicted = self._evicted()
        return self._counts | Counter({"evicted": evicted} if evicted else {})

    def _evicted(self) -> int:
        raise NotImplementedError

    def _check_state(self, state_bytes: int, max_held: int) -> int:
        """What the state may take. :raises BoundExceeded: when that is more than a rule may have."""
        if state_bytes > MAX_STATE_BYTES:
            raise BoundExceeded(
                f"{self.max_partitions} partitions that hold {max_held} readings of each source need up to "
                f"{state_bytes // MIB} MiB, and a rule may have {MAX_STATE_BYTES // MIB}: allow fewer partitions "
                "(max_partitions) or fewer readings (max_held)"
            )
        return state_bytes

    def _taken(self, reading: Reading, is_own: bool, utc_now: int) -> tuple[str, list[Reading | None]] | None:
        """The partition of a reading, and for each source what it takes: the reading with the value that counts."""
        counts = self._counts
        reasons: Counter[str] = Counter()
        parts: list[Reading | None] = []
        for source in self.sources:
            value = source.taken(reading, reasons) if source.considers(reading.key, is_own) else NOT_TAKEN
            if value is NOT_TAKEN:
                parts.append(None)
            else:
                parts.append(reading if source.value is None else replace(reading, value=value))
        if all(part is None for part in parts):
            counts.update(list(reasons)[:1])
            return None
        try:
            partition = str(self._partition(reading))[:_PARTITION_CHARS]
        except ExpressionFailed:
            counts["failed"] += 1
            return None
        if not self._seen.is_new(reading):
            counts["doubled"] += 1
            return None
        if self.of_many and not is_own and reading.how.lineage:
            how = replace(reading.how, lineage=())
            reading = replace(reading, how=how)
            parts = [None if part is None else replace(part, how=how) for part in parts]
        fault = self.nearness.fault(reading, utc_now)
        if not fault and (len(reading.how.lineage) >= MAX_LINEAGE or not _are_small(parts, partition)):
            fault = "unfit"
        counts[fault or "taken"] += 1
        return None if fault else (partition, parts)

    def _derived(
        self, partition: str, readings: Sequence[Reading], value: Any, when: EventTime | None = None
    ) -> list[ReadingDerived]:
        """What follows from readings: one derived reading, or none when their lineages don't fit together."""
        lineage = tuple(dict.fromkeys(step for reading in readings for step in reading.how.lineage))
        if len(lineage) >= MAX_LINEAGE:
            self._counts["lineage_full"] += 1
            return []
        self._counts["derived"] += 1
        output = self.output
        quality = min(reading.how.quality for reading in readings)
        how = Provenance(f"rule {self.name}", output.unit, quality, "", lineage)
        key = output.filled(self._node, partition)
        where, when = _where_all(readings), when or _when_all(readings)
        return [ReadingDerived(self.name, key, value, where, when, how, output.priority, output.lifespan_ms)]


def _are_small(parts: Sequence[Reading | None], partition: str) -> bool:
    return all(part is None or held_bytes(part, partition) <= MAX_HELD_BYTES for part in parts)


DESCRIBED: Final = frozenset({"key", "origin", "sequence", "utc_ns", "value"})
"""The fields of :func:`described`."""


def described(reading: Reading) -> dict[str, Any]:
    """How a derived value names a reading that it follows from."""
    return {
        "key": reading.key, "origin": reading.origin, "sequence": reading.sequence, "utc_ns": reading.when.utc_ns,
        "value": reading.value,
    }  # fmt: skip


def fit_together(one: Reading, other: Reading) -> bool:
    """Whether something may be derived from two readings: their lineages have room in one."""
    steps, others = one.how.lineage, other.how.lineage
    return not steps or not others or steps == others or len({*steps, *others}) < MAX_LINEAGE


def _where_all(readings: Sequence[Reading]) -> Position:
    if len(readings) == 1:
        return readings[0].where
    norths_deg = [reading.where.latitude_deg for reading in readings]
    easts_deg = [reading.where.longitude_deg for reading in readings]
    accuracy_m = max(reading.where.accuracy_m for reading in readings)
    return enclosing_circle(min(norths_deg), min(easts_deg), max(norths_deg), max(easts_deg), accuracy_m)


def _when_all(readings: Sequence[Reading]) -> EventTime:
    whens = [(reading.when.utc_ns, min(reading.when.uncertainty_ns, MAX_UNCERTAINTY_NS)) for reading in readings]
    first_ns = min(utc_ns - wrong_ns for utc_ns, wrong_ns in whens)
    last_ns = max(utc_ns + wrong_ns for utc_ns, wrong_ns in whens)
    half_ns = -((first_ns - last_ns) // 2)
    return EventTime(max(0, first_ns + half_ns), half_ns)
