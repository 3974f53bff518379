"""When a node says how its rollouts get on, and what of it.

A report is an entry of gossip, which costs every node of the mesh a kilobyte. So a node that is no canary says only how
an order ended at it, and seldom. A canary says a little more, and its verdicts at once.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from protocols.base import limits
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.releases.rollout.adoption import Adoption
from protocols.releases.rollout.health import REASONS, STATES, encode_health
from protocols.wire.releases import ReportedRelease, RolloutHealth

CANARY_PAUSE_NS: Final = 30 * SECOND
"""Pause between two reports of a canary, unless there is a verdict to tell …"""
QUIET_PAUSE_NS: Final = 300 * SECOND
"""… and of another node."""
_ENDS: Final = frozenset({"serving", "failed", "rolled_back"})
_TRIED: Final = _ENDS | {"staged", "shadowing", "starting", "soaking", "healthy"}
"""The steps that others are told of: of a node, how it ended, and of a canary, what it does too."""


class Progress(NamedTuple):
    """How far a node has got with one order."""

    adoption: Adoption
    step: str
    is_canary: bool
    """Whether the order names this node as a canary …"""
    is_open: bool
    """… and whether nodes still count what canaries say of it: it was neither promoted nor aborted by hand."""

    @property
    def is_told(self) -> bool:
        """Whether others are told of it."""
        return self.step in (_TRIED if self.is_canary else _ENDS) or (self.is_canary and self.adoption.verdicts > 0)

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """What is told first is smallest: verdicts that are counted, and then what is newest."""
        return not self.is_canary, not (self.is_open and self.adoption.verdicts), -self.adoption.serial

    def reported(self) -> ReportedRelease:
        """As it travels."""
        adoption = self.adoption
        reason = adoption.reason if adoption.reason in REASONS else "other"
        return ReportedRelease(
            adoption.serial, adoption.counter, STATES.index(self.step), adoption.verdicts, REASONS.index(reason)
        )


class Reporting:
    """What one node has said, and what it says next."""

    def __init__(self) -> None:
        self._said = RolloutHealth(())
        self._verdicts: tuple[tuple[int, int], ...] = ()
        self._said_ns = -NEVER
        self._body: bytes | None = None

    def take(self, progress: Iterable[Progress], now: int) -> int:
        """Note how far the node has got with all its orders. Returns when this has to be called again."""
        told = sorted((one for one in progress if one.is_told), key=lambda one: one.rank)
        told = told[: limits.MAX_REPORTED_RELEASES]
        health = RolloutHealth(tuple(one.reported() for one in told))
        if health == self._said:
            return NEVER
        verdicts = tuple((one.adoption.serial, one.adoption.verdicts) for one in told if one.is_canary)
        pause_ns = CANARY_PAUSE_NS if any(one.is_canary for one in told) else QUIET_PAUSE_NS
        has_new_verdict = any(said and (serial, said) not in self._verdicts for serial, said in verdicts)
        if now < self._said_ns + pause_ns and not has_new_verdict:
            return self._said_ns + pause_ns
        self._said, self._verdicts, self._said_ns = health, verdicts, now
        self._body = encode_health(health)
        return NEVER

    def body(self) -> bytes | None:
        """The body of the entry to sign, once for each change; None: the last one still holds."""
        body, self._body = self._body, None
        return body
