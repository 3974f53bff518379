"""Getting one release ready at one node: its chunks are fetched, then its files are staged and tried.

missing ──► staging ──► ready
   └───────────┴──────► unfit
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from msgspec import Struct

from protocols.base.limits import SECOND
from protocols.base.time import NEVER

STAGING_PATIENCE_NS: Final = 1_800 * SECOND
"""A release that is not staged so long after that was begun hangs. Copying 2 GiB on the flash of a vehicle takes a few
minutes. The time in which it waits for others to be staged does not count."""
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
    is_begun: bool = False
    """Whether it is being staged. Otherwise it may wait for others."""
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
        self.readiness, self.since_ns, self.failure, self.is_begun = readiness, now, failure, False

    @property
    def due_ns(self) -> int:
        """When staging has taken too long; NEVER when the release is not being staged."""
        is_under_way = self.readiness is Readiness.STAGING and self.is_begun
        return self.since_ns + STAGING_PATIENCE_NS if is_under_way else NEVER


class Preparations:
    """The releases of one path that are ready, or are to be."""

    def __init__(self) -> None:
        self.listed: frozenset[int] = frozenset()
        """The releases that the metadata lists."""
        self.is_expired = False
        """Whether the metadata has expired, so that nothing new may be begun."""
        self._of: dict[int, Preparation] = {}

    def restore(self, states: Iterable[PreparedState], is_clean: bool, now: int) -> None:
        """Take what a former life of the node kept."""
        self._of = {kept.counter: Preparation.restored(kept, is_clean, now) for kept in states}

    def state(self) -> tuple[PreparedState, ...]:
        """What to keep over a restart."""
        return tuple(prepared.state() for prepared in self._of.values())

    # --- what is asked -----------------------------------------------------------------------------------------------
    def get(self, counter: int) -> Preparation | None:
        """A release; None: nobody wants it."""
        return self._of.get(counter)

    def readiness(self, counter: int) -> Readiness:
        """How far a release is."""
        prepared = self._of.get(counter)
        return Readiness.MISSING if prepared is None else prepared.readiness

    def may_begin(self, counter: int) -> bool:
        """Whether the metadata permits to fetch a release, or to begin to serve it."""
        return counter in self.listed and not self.is_expired

    def counters(self) -> Collection[int]:
        """All of them."""
        return self._of.keys()

    def wanted(self) -> Iterator[int]:
        """Those whose chunks are to be fetched."""
        for counter, prepared in self._of.items():
            if prepared.readiness is Readiness.MISSING and self.may_begin(counter):
                yield counter

    def dues_ns(self) -> Iterator[int]:
        """When staging has taken too long, of each."""
        return (prepared.due_ns for prepared in self._of.values())

    # --- what happens ------------------------------------------------------------------------------------------------
    def want(self, counter: int, now: int) -> Preparation:
        """Have a release made ready, if it is not."""
        prepared = self._of.get(counter)
        if prepared is None:
            prepared = self._of[counter] = Preparation(counter, since_ns=now)
        return prepared

    def found(self, counters: Iterable[int], now: int) -> None:
        """Take releases that are on the disk for ready, unless more is known of them."""
        for counter in counters:
            self._of.setdefault(counter, Preparation(counter, Readiness.READY, now))

    def begin_again(self, counter: int, now: int) -> None:
        """Have a release fetched, as far as it is missing, and staged again."""
        if counter in self._of:
            self._of[counter].enter(Readiness.MISSING, now)

    def completed(self, counter: int, now: int) -> bool:
        """All chunks of a release are held. Returns whether it is to be staged now."""
        is_wanted = self.readiness(counter) is Readiness.MISSING and counter in self._of and self.may_begin(counter)
        if is_wanted:
            self._of[counter].enter(Readiness.STAGING, now)
        return is_wanted

    def begun(self, counter: int, now: int) -> None:
        """A release that was to be staged has its turn."""
        prepared = self._of.get(counter)
        if prepared is not None and prepared.readiness is Readiness.STAGING:
            prepared.since_ns, prepared.is_begun = now, True

    def refused(self, counter: int, failure: str, now: int) -> None:
        """A release that is missing can't be fetched."""
        if counter in self._of and self.readiness(counter) is Readiness.MISSING:
            self._of[counter].enter(Readiness.UNFIT, now, failure)

    def staged(self, counter: int, failure: str, now: int) -> bool:
        """A release was staged, or could not be. Returns whether it was waited for."""
        prepared = self._of.get(counter)
        if prepared is None or prepared.readiness is not Readiness.STAGING:
            return False
        prepared.enter(Readiness.UNFIT if failure else Readiness.READY, now, failure)
        prepared.is_proven = not failure
        return True

    def served(self, counter: int, now: int) -> None:
        """A release is served, so it is ready."""
        prepared = self.want(counter, now)
        prepared.enter(Readiness.READY, now)
        prepared.is_proven = True

    def time_out(self, now: int) -> None:
        """Give up what takes too long."""
        for prepared in self._of.values():
            if now >= prepared.due_ns:
                prepared.enter(Readiness.UNFIT, now, "hung: staging the release did not end")

    def keep_only(self, needed: Collection[int]) -> list[int]:
        """Let go of all others, and return them: of one that is missing there may be chunks on the disk, and files that
        were staged before. One that is being staged is let go when that has ended."""
        gone = [
            counter
            for counter, prepared in self._of.items()
            if counter not in needed and prepared.readiness is not Readiness.STAGING
        ]
        for counter in gone:
            del self._of[counter]
        return gone
