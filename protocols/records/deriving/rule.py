"""What all rules that derive readings have in common: which readings they consider, and what becomes of those."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from protocols.base.ids import MonotonicNs, NodeId
from protocols.records.curation import CurationOutput
from protocols.records.deriving.output import Output
from protocols.records.deriving.sources import NOT_TAKEN, ExpressionFailed, Source
from protocols.records.recordings import Recording
from protocols.records.wanted import PredictionWanted
from protocols.wire.readings import Reading

Partition = Callable[[Reading], object]
"""Gives the name of the partition of a reading. :raises ExpressionFailed: it has none."""


class DerivingRule:
    """The common part of the rules. With the rest they fulfil :class:`protocols.records.curation.Pattern`."""

    def __init__(
        self, name: str, node: NodeId, sources: Sequence[Source], output: Output, partition: Partition
    ) -> None:  # fmt: skip
        self.name, self.sources, self.output = name, tuple(sources), output
        self._node, self._partition = node, partition
        self._counts: Counter[str] = Counter()
        self.recording: Recording | None = None
        """What is recorded when it derives something."""
        self.definition = ""
        """All that it says, so that two can be compared; empty: nobody has given it. Whoever compiles a rule does."""

    @property
    def expressions(self) -> tuple[str, ...]:
        """The key expressions of its sources, and of its recording, that take readings of neighbours."""
        keys = [source.keys for source in self.sources if source.source == "any"]
        if self.recording is not None and self.recording.source == "any":
            keys += self.recording.keys
        return tuple(dict.fromkeys(keys))

    @property
    def record_lifespan_ms(self) -> int | None:
        """That of its output."""
        return self.output.record_lifespan_ms

    @property
    def failed(self) -> int:
        """Readings for which an expression had no value."""
        return self._counts["failed"]

    def is_like(self, other: "DerivingRule") -> bool:
        """Whether the other one says the same, so that what one has kept is of use to the other."""
        same = (type(self), self.name, self.definition) == (type(other), other.name, other.definition)
        return same and bool(self.definition)

    def _taken_for(self, reading: Reading) -> tuple[Any, str] | None:
        """The value that the first source makes of a reading, and the key of what is derived from it; None: it is left
        out, and counted."""
        value = self.sources[0].taken(reading, self._counts)
        if value is NOT_TAKEN:
            return None
        try:
            return value, self.output.filled(self._node, str(self._partition(reading)))
        except ExpressionFailed:
            self._counts["failed"] += 1
            return None

    def predicted(
        self, number: int, value: Any, failure: Literal["", "late", "not_predicted"], now: MonotonicNs
    ) -> Sequence[CurationOutput]:  # fmt: skip
        """See ``Pattern.predicted``. Most rules ask for no prediction."""
        return ()

    def waits_for(self, wanted: PredictionWanted) -> bool:
        """Whether it has asked for that, and not been answered yet."""
        return False

    def considers(self, key: str, is_own: bool) -> bool:
        """Whether one of its sources does."""
        return any(source.considers(key, is_own) for source in self.sources)
