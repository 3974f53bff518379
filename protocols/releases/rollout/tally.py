"""The count of what the canaries of one order said, and what follows from it.

The decision of a node about an order is a function of the order, of what its canaries ever signed, and of time:

    aborted     the order says so
    promoted    the order says so, or it has no canaries, or enough canaries called the release healthy and none of
                these called it failed; it stays promoted unless enough canaries call it failed later
    halted      enough canaries called it failed, at any time; that is for ever
    silent      enough canaries called it failed or have given no verdict when they are due; it is halted until they do
    paused      the order says so: nobody begins to serve it, and no canary is late meanwhile
    waiting     none of this

What was said is only ever added, so nodes that have heard the same entries decide the same, whatever the order in which
they came. A canary that called a release healthy and failed counts as failed: it contradicted itself, or found out
late. When its first word was the one that promoted the release, nodes that heard it in time serve the release, and
those that did not wait for another canary. Neither goes back for it.

One canary never decides when there are three or more, because both quorums are at least 2 then. With two canaries, one
can halt and both are needed to promote. With one canary, it decides alone: use that where a canary is as trusted as
the signer of the order.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from msgspec import Struct

from protocols.base.ids import NodeId
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.releases.catalogue import Order

HEALTHY: Final = 1
FAILED: Final = 2
"""The bits of ``ReportedRelease.verdicts``."""
_LEAST_OF_MANY: Final = 2
_MANY_CANARIES: Final = 3


class Decision(StrEnum):
    """What a node concludes about an order."""

    WAITING = "waiting"
    PROMOTED = "promoted"
    HALTED = "halted"
    SILENT = "silent"
    PAUSED = "paused"
    ABORTED = "aborted"

    @property
    def is_final(self) -> bool:
        """Whether the release is given up, unless another version of the order says otherwise."""
        return self is Decision.HALTED or self is Decision.ABORTED

    @property
    def is_halt(self) -> bool:
        """Whether those who serve the release go back."""
        return self.is_final or self is Decision.SILENT


class Quorums(NamedTuple):
    """How many canaries decide."""

    promote: int
    halt: int


def quorums_of(order: Order) -> Quorums:
    """The quorums of an order as they are counted. Unset, the first is a majority of the canaries, and the second is
    one more than can fail while the first is still met. Of three or more canaries, at least two decide. A first quorum
    that is larger than the number of canaries promotes never."""
    canaries = len(frozenset(order.canaries))
    least = _LEAST_OF_MANY if canaries >= _MANY_CANARIES else 1
    promote = max(order.promote_quorum or canaries // 2 + 1, least)
    halt = max(order.halt_quorum or canaries - promote + 1, least)
    return Quorums(promote, halt)


class CountState(Struct, frozen=True, array_like=True):
    """What a node keeps of a tally over a restart."""

    serial: int
    counter: int
    waited_s: int
    """How long it has been counting. The time that the node was off is not silence of others."""
    is_promoted: bool
    said: tuple[tuple[str, int], ...]
    """Canaries and the bits of their verdicts."""


class Tally:
    """The count of one order at one node."""

    def __init__(self, order: Order, now: int, state: CountState | None = None) -> None:
        self._said: dict[str, int] = {}
        self._waited_ns, self._is_promoted = 0, False
        if state is not None:
            self._said = dict(state.said)
            self._waited_ns, self._is_promoted = state.waited_s * SECOND, state.is_promoted
        self._since_ns, self._is_running = now, False
        self.renew(order, now)

    def renew(self, order: Order, now: int) -> None:
        """Take another version of the order: of the same serial and release, with another state perhaps."""
        self._waited_ns, self._since_ns = self._waited(now), now
        self._order, self._is_running = order, order.state == "running"
        self._quorums = quorums_of(order)
        self._canaries = frozenset(order.canaries)

    def _waited(self, now: int) -> int:
        return self._waited_ns + (now - self._since_ns if self._is_running else 0)

    def is_about(self, order: Order) -> bool:
        """Whether an order is another version of the one that is counted."""
        return (order.serial, order.path, order.counter) == (self._order.serial, self._order.path, self._order.counter)

    def say(self, author: NodeId, verdicts: int) -> bool:
        """Count what an author signed about this serial and release. Returns whether that is news of a canary."""
        if author not in self._canaries:
            return False
        before = self._said.get(author, 0)
        self._said[author] = before | verdicts & (HEALTHY | FAILED)
        return self._said[author] != before

    def decide(self, now: int) -> Decision:
        """What follows from all that was said until now."""
        match self._order.state:
            case "aborted":
                return Decision.ABORTED
            case "promoted":
                return Decision.PROMOTED
            case "paused":
                return Decision.HALTED if self._is_halted() else Decision.PAUSED
            case "running":
                return self._decide_by_canaries(now)

    def _is_halted(self) -> bool:
        return bool(self._canaries) and self.failed >= self._quorums.halt

    def _decide_by_canaries(self, now: int) -> Decision:
        if self._is_halted():
            return Decision.HALTED
        if not self._is_promoted:
            self._is_promoted = not self._canaries or self.healthy >= self._quorums.promote
        if self._is_promoted:
            return Decision.PROMOTED
        if now >= self.silent_at() and self.failed + len(self.silent) >= self._quorums.halt:
            return Decision.SILENT
        return Decision.WAITING

    def _of_canaries(self) -> Iterator[int]:
        return (self._said.get(canary, 0) for canary in self._canaries)

    @property
    def healthy(self) -> int:
        """How many canaries call the release healthy and have never called it failed."""
        return sum(1 for said in self._of_canaries() if said == HEALTHY)

    @property
    def failed(self) -> int:
        """How many canaries have called it failed."""
        return sum(1 for said in self._of_canaries() if said & FAILED)

    @property
    def silent(self) -> tuple[str, ...]:
        """The canaries without a verdict, sorted."""
        return tuple(sorted(canary for canary in self._canaries if not self._said.get(canary)))

    def silent_at(self) -> int:
        """When canaries without a verdict count as failed; NEVER while the order is not running."""
        if not self._is_running or not self._canaries:
            return NEVER
        return self._since_ns + self._order.silence_s * SECOND - self._waited_ns

    def state(self, now: int) -> CountState:
        """What to keep over a restart."""
        said = tuple(sorted((canary, bits) for canary, bits in self._said.items() if canary in self._canaries))
        waited_s = self._waited(now) // SECOND
        return CountState(self._order.serial, self._order.counter, waited_s, self._is_promoted, said)

    def __str__(self) -> str:
        if not self._canaries:
            return "no canaries"
        silent = f", {len(self.silent)} without a verdict" if self.silent else ""
        return (
            f"{self.healthy} of {len(self._canaries)} canaries healthy ({self._quorums.promote} promote), "
            f"{self.failed} failed ({self._quorums.halt} halt){silent}"
        )
