"""Getting one release ready at one node: its chunks are fetched, then its files are staged and tried.

missing ──► staging ──► ready
               └──────► unfit
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from msgspec import Struct

from protocols.base.limits import SECOND
from protocols.base.time import NEVER

STAGING_PATIENCE_NS: Final = 1_800 * SECOND
"""A release that is not staged by then hangs. Copying 2 GiB on the flash of a vehicle takes a few minutes."""
MAX_STAGING_CRASHES: Final = 3
"""So many unclean ends of the node while it staged a release count as the fault of the release."""


class Readiness(StrEnum):
    """How far a release is prepared."""

    MISSING = "missing"
    STAGING = "staging"
    READY = "ready"
    UNFIT = "unfit"


class PreparedState(Struct, frozen=True, array_like=True):
    """What a node keeps of a preparation over a restart."""

    counter: int
    readiness: str
    crashes: int
    failure: str


@dataclass(slots=True)
class Preparation:
    """One release at one node."""

    counter: int
    readiness: Readiness = Readiness.MISSING
    since_ns: int = 0
    """When it got there."""
    crashes: int = 0
    failure: str = ""
    """Why it is unfit."""
    is_proven: bool = False
    """Whether it was staged or served in this life of the node. What a former life staged may be gone from the disk."""

    @classmethod
    def restored(cls, state: PreparedState, is_clean: bool, now: int) -> "Preparation":
        """The preparation that a former life of the node kept. Staging is begun again, but not for ever."""
        readiness = Readiness(state.readiness) if state.readiness in frozenset(Readiness) else Readiness.MISSING
        crashes, failure = state.crashes, state.failure
        if readiness is Readiness.STAGING:
            crashes += not is_clean
            readiness = Readiness.MISSING
        if crashes >= MAX_STAGING_CRASHES and readiness is Readiness.MISSING:
            readiness, failure = Readiness.UNFIT, f"crashed: the node ended {crashes} times while it staged the release"
        return cls(state.counter, readiness, now, crashes, failure)

    def state(self) -> PreparedState:
        """What to keep over a restart."""
        return PreparedState(self.counter, self.readiness, self.crashes, self.failure)

    def enter(self, readiness: Readiness, now: int, failure: str = "") -> None:
        """Go on to a state."""
        self.readiness, self.since_ns, self.failure = readiness, now, failure

    @property
    def due_ns(self) -> int:
        """When staging has taken too long; NEVER when the release is not being staged."""
        return self.since_ns + STAGING_PATIENCE_NS if self.readiness is Readiness.STAGING else NEVER
