"""How far one node has got with the release of one order.

    readying ──► starting ──► serving                              a node of the cohort, once the order is promoted
    readying ──► shadowing ──► starting ──► soaking ──► healthy ──► serving      a canary
        │            │             │           │           │
        └────────────┴─────────────┴───────────┴───────────┴──► failed ──► rolled_back

In ``readying`` the node fetches and stages the release, or waits. A canary judges the release while it shadows and
soaks, and for one more soak time after it has called it healthy. Then it judges no more, so that a camera that breaks a
year later takes no release back. A release that others gave up goes from any state to ``rolled_back``.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from msgspec import Struct

from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.releases.catalogue import Gates, Order
from protocols.releases.events import Measures
from protocols.releases.rollout.health import broken_gate, has_compared_enough, has_run_enough, is_early_to_judge

SHADOW_SHARE: Final = 10
"""A canary shadows a release for this part of the soak time."""
WATCH_FACTOR: Final = 2
"""It goes on to judge until it has served the release for this many soak times."""
MAX_CRASHES: Final = 3
"""So many unclean ends of the node while it tried a release count as the fault of the release."""


class Phase(StrEnum):
    """The states of an adoption."""

    READYING = "readying"
    SHADOWING = "shadowing"
    STARTING = "starting"
    SOAKING = "soaking"
    HEALTHY = "healthy"
    SERVING = "serving"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


SERVED: Final = frozenset({Phase.SOAKING, Phase.HEALTHY, Phase.SERVING})
"""The phases in which the node serves the release."""
JUDGED: Final = frozenset({Phase.SHADOWING, Phase.SOAKING, Phase.HEALTHY})
"""The phases in which a canary judges the release."""
TRYING: Final = frozenset({Phase.SHADOWING, Phase.STARTING, Phase.SOAKING})
"""The phases in which the end of the node may be the fault of the release."""


class AdoptionState(Struct, frozen=True, array_like=True):
    """What a node keeps of an adoption over a restart."""

    serial: int
    counter: int
    phase: str
    served_s: int
    crashes: int
    reason: str
    verdicts: int
    gave_up: bool
    measures: Measures | None = None


@dataclass(slots=True)
class Adoption:
    """One order at one node."""

    serial: int
    counter: int
    phase: Phase = Phase.READYING
    since_ns: int = 0
    """When the phase began."""
    served_ns: int = 0
    """How long the release was served before that, in former lives of the node too."""
    crashes: int = 0
    reason: str = ""
    """Why it failed or was taken back."""
    verdicts: int = 0
    """Bits of what this node has ever said of it, see :mod:`protocols.releases.tally`."""
    gave_up: bool = False
    """Whether this node does not try it any more."""
    retry_ns: int = NEVER
    """When it tries again after all."""
    measures: Measures | None = None
    """The newest ones of this phase, in this life of the node."""
    earlier: Measures | None = None
    """What former lives have measured while they served the release."""

    @classmethod
    def restored(cls, state: AdoptionState, is_clean: bool, now: int) -> "Adoption":
        """The adoption that a former life of the node kept. What that life was doing is begun again."""
        phase = Phase(state.phase) if state.phase in frozenset(Phase) else Phase.READYING
        crashes = state.crashes + (phase in TRYING and not is_clean)
        if phase is Phase.SHADOWING or phase is Phase.STARTING:
            phase = Phase.READYING
        return cls(
            state.serial, state.counter, phase, now, state.served_s * SECOND, crashes, state.reason, state.verdicts,
            state.gave_up, earlier=state.measures if phase in SERVED else None,
        )  # fmt: skip

    def state(self, now: int) -> AdoptionState:
        """What to keep over a restart."""
        served_s = self.served(now) // SECOND
        measures = (self._measured() or self.earlier) if self.phase in SERVED else None
        return AdoptionState(
            self.serial, self.counter, self.phase, served_s, self.crashes, self.reason, self.verdicts, self.gave_up,
            measures,
        )  # fmt: skip

    def enter(self, phase: Phase, now: int) -> None:
        """Go on to a phase."""
        self.served_ns = self.served(now)
        if phase is Phase.READYING or phase is Phase.SHADOWING:
            self.served_ns = 0
        if phase is not Phase.HEALTHY and phase is not Phase.SERVING:
            self.measures = self.earlier = None
        self.phase, self.since_ns = phase, now

    def served(self, now: int) -> int:
        """For how long the node has served the release, in nanoseconds."""
        return self.served_ns + (now - self.since_ns if self.phase in SERVED else 0)

    def broken_gate(self, gates: Gates, is_over: bool) -> str:
        """The gate that the release breaks; nothing when it breaks none, or it is too early to say."""
        measures = self._measured()
        if measures is None or (not is_over and is_early_to_judge(gates, measures)):
            return ""
        return broken_gate(gates, measures)

    def _measured(self) -> Measures | None:
        """What this life and former ones have measured together; None: this one has measured nothing yet. A 95th
        percentile is that of the last life that has one, since they can't be added."""
        now, before = self.measures, self.earlier
        if now is None or before is None:
            return now
        return Measures(
            now.runs + before.runs, now.errors + before.errors, now.p95_ns or before.p95_ns,
            now.before_p95_ns or before.before_p95_ns, now.compared + before.compared, now.agreed + before.agreed,
        )  # fmt: skip

    def is_time_over(self, order: Order, now: int) -> bool:
        """Whether the time of this phase is over."""
        return now >= self.due_ns(order)

    def has_enough(self, order: Order) -> bool:
        """Whether there was enough to judge in this phase."""
        if self.phase is Phase.SHADOWING:
            return has_compared_enough(order.gates, self._measured())
        return has_run_enough(order.gates, self._measured())

    def due_ns(self, order: Order) -> int:
        """When the time of this phase is over; NEVER when it has none."""
        soak_ns = order.soak_s * SECOND
        match self.phase:
            case Phase.SHADOWING:
                return self.since_ns + soak_ns // SHADOW_SHARE
            case Phase.SOAKING:
                return self.since_ns + soak_ns - self.served_ns
            case Phase.HEALTHY:
                return self.since_ns + WATCH_FACTOR * soak_ns - self.served_ns
            case _:
                return NEVER
