"""Rules of curation: which readings become records for the relay, and how often."""

from dataclasses import dataclass
from typing import Final, Literal

from protocols.base.errors import BoundExceeded, LocalProtocolError
from protocols.base.keys import checked_expression
from protocols.base.limits import MAX_LIFESPAN_MS, MAX_RECORD_LIFESPAN_S, MAX_TEXT_CHARS

Source = Literal["own", "any"]
MAX_RECORD_LIFESPAN_MS: Final = 1_000 * MAX_RECORD_LIFESPAN_S


@dataclass(frozen=True, slots=True)
class CurationRule:
    """One curation rule.

    :raises InvalidKey: when ``keys`` is not a key expression.
    :raises LocalProtocolError: when another field is out of range; names field and value.
    """

    name: str
    keys: str
    """Key expression of the readings that the rule is about."""
    min_interval_ns: int = 0
    """Shortest time between two records of one key; 0: every reading."""
    source: Source = "own"
    """``own``: readings sensed here; ``any``: those of neighbours too."""
    lifespan_ms: int = MAX_LIFESPAN_MS
    """A record that is not delivered this long after it was chosen expires; 0: never."""
    priority: int | None = None
    """0 to 7, the lowest is evicted first; None: that of the reading."""

    def __post_init__(self) -> None:
        checked_expression(self.keys)
        if not 0 < len(self.name) <= MAX_TEXT_CHARS:
            raise BoundExceeded(
                f"rule name {self.name[:80]!r} has {len(self.name)} characters: use 1 to {MAX_TEXT_CHARS}"
            )
        if self.min_interval_ns < 0:
            raise LocalProtocolError(f"rule {self.name!r}: min_interval_ns is {self.min_interval_ns}: use 0 or more")
        if self.source not in ("own", "any"):
            raise LocalProtocolError(f"rule {self.name!r}: source is {self.source!r}: use 'own' or 'any'")
        if not 0 <= self.lifespan_ms <= MAX_RECORD_LIFESPAN_MS:
            raise BoundExceeded(
                f"rule {self.name!r}: lifespan_ms is {self.lifespan_ms}: use 0 to {MAX_RECORD_LIFESPAN_MS}"
            )
        if self.priority is not None and not 0 <= self.priority <= 7:
            raise LocalProtocolError(f"rule {self.name!r}: priority is {self.priority}: use 0 to 7")
