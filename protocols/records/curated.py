"""A record before it has a sequence: what curation hands to an outbox."""

from dataclasses import dataclass
from typing import Final

from protocols.base.errors import BoundExceeded
from protocols.base.ids import UtcNs
from protocols.base.limits import MAX_RECORD_BYTES, MAX_TEXT_CHARS, MS
from protocols.records.pending import OWN

RECORD_OVERHEAD_BYTES: Final = 64
"""Bytes that a record counts beside its reading and rule: row, keys and index pages of storage."""


@dataclass(frozen=True, slots=True)
class Curated:
    """A reading that a rule chose.

    :raises BoundExceeded: when it is too large, or another field is out of range.
    """

    rule: str
    """Name of the rule that chose it."""
    reading: bytes
    """Result of ``encode_reading``."""
    priority: int = 3
    """0 to 7; the lowest is evicted first."""
    lifespan_ms: int = 0
    """The record expires when it is not delivered this long after it was put; 0: never."""
    payer: str = OWN
    """The node that sensed the reading, which pays for the record; ``OWN``: this one."""

    def __post_init__(self) -> None:
        if len(self.reading) > MAX_RECORD_BYTES:
            raise BoundExceeded(
                f"a record of {len(self.reading)} bytes by rule {self.rule!r} is too large: at most {MAX_RECORD_BYTES}"
            )
        if not 0 <= self.priority <= 7 or len(self.rule) > MAX_TEXT_CHARS or self.lifespan_ms < 0:
            raise BoundExceeded(
                f"a record by rule {self.rule[:80]!r} has priority {self.priority} and lifespan_ms "
                f"{self.lifespan_ms}: use a priority of 0 to 7, a lifespan of 0 or more and at most {MAX_TEXT_CHARS} "
                "characters for the rule"
            )

    @property
    def size_bytes(self) -> int:
        """What it counts towards the bounds of an outbox."""
        return len(self.reading) + len(self.rule) + len(self.payer) + RECORD_OVERHEAD_BYTES

    def expires_utc_ns(self, utc_now: UtcNs) -> int:
        """When it expires if it is put now; 0: never."""
        return utc_now + self.lifespan_ms * MS if self.lifespan_ms else 0
