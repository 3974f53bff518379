"""What became of promises, and figures of what was seen."""

from dataclasses import dataclass
from enum import StrEnum

Span = tuple[float, float]
"""The begin and the end of a timing that was missed."""


class Outcome(StrEnum):
    """What became of a promise."""

    KEPT = "kept"
    TOO_SLOW = "too slow"
    """The machine was too slow for the timing, so the mesh is not at fault."""
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise and what was seen."""

    name: str
    outcome: Outcome
    seen: str


def about_mesh(name: str, kept: bool, seen: str) -> Promise:
    """A promise that does not depend on how fast the machine is."""
    return Promise(name, Outcome.KEPT if kept else Outcome.BROKEN, seen)


def percentile(values: list[float], share: float) -> float | None:
    """The percentile by nearest rank; None when there are no values."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None
