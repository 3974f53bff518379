"""One path at one node: which release it serves, which it gets ready, and to which it goes back.

Of the orders for a path whose cohort the node is in, it follows the one with the highest serial that is neither aborted
nor halted nor given up here. An order for another release takes over in any state. Only a swap that is under way is
waited for, so that no two go on at once.

Invariants:

1. At most one ``ServeRelease`` waits for its answer, and what the driver says that it serves is what counts.
2. ``before`` is the last release that proved itself, or the one that the node had at first. It stays ready until a
   later one has proved itself, so a node that goes back never goes to another release on trial.
3. Nothing is begun with expired metadata, or with a release that the metadata does not list. Going back needs neither.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from protocols.base.ids import NodeId
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.releases.catalogue import Order
from protocols.releases.events import (
    DropRelease,
    Measures,
    ReleaseState,
    ServeRelease,
    ShadowRelease,
    StageRelease,
)
from protocols.releases.rollout.adoption import JUDGED, MAX_CRASHES, SERVED, Adoption, AdoptionState, Phase
from protocols.releases.rollout.health import GATE_REASONS, reason_of
from protocols.releases.rollout.preparing import Preparations, PreparedState, Readiness
from protocols.releases.rollout.tally import FAILED, HEALTHY, Decision, Tally

OWN_MODEL: Final = 0
"""The counter that stands for the model that the node's own file names, or for none."""
RETRY_PAUSE_NS: Final = 60 * SECOND
"""The pause before a swap back is tried again."""
ROOM_PAUSE_NS: Final = 600 * SECOND
"""The pause before a node that had no room tries again."""
MEND_PAUSE_NS: Final = 3_600 * SECOND
"""The pause before a node tries a release again that had proved itself and then failed here."""

RolloutEffect = StageRelease | ShadowRelease | ServeRelease | DropRelease


class PathState(Struct, frozen=True, array_like=True):
    """What a node keeps of a path over a restart."""

    path: str
    current: int
    before: int
    serial: int
    is_proven: bool
    pinned: int | None
    prepared: tuple[PreparedState, ...]
    adoptions: tuple[AdoptionState, ...]


class Following:
    """One path at one node."""

    def __init__(self, path: str, node: NodeId) -> None:
        self.path = path
        self.current = self.before = OWN_MODEL
        self.pinned: int | None = None
        self.prepared = Preparations()
        self.effects: list[RolloutEffect] = []
        self.events: list[ReleaseState] = []
        self._node = node
        self._serial = 0  # of the order by which the current release is served
        self._is_proven = True  # the current release
        self._orders: tuple[tuple[Order, Tally], ...] = ()
        self._followed: tuple[Order, Tally, Adoption] | None = None
        self._adoptions: dict[int, Adoption] = {}
        self._starting: int | None = None
        self._starting_serial = 0  # 0: it goes back
        self._retry_ns = -NEVER  # no swap back or to a pinned release before this
        self._now = 0
        self._failed = False
        self._is_informed = False  # of the orders in this life of the node

    # --- over a restart ----------------------------------------------------------------------------------------------
    def restore(self, state: PathState, is_clean: bool, now: int) -> None:
        """Take what a former life of the node kept."""
        self.current, self.before, self.pinned = state.current, state.before, state.pinned
        self._serial, self._is_proven = state.serial, state.is_proven
        self.prepared.restore(state.prepared, is_clean, now)
        self._adoptions = {kept.serial: Adoption.restored(kept, is_clean, now) for kept in state.adoptions}

    def state(self, now: int) -> PathState:
        """What to keep over a restart."""
        return PathState(
            self.path, self.current, self.before, self._serial, self._is_proven, self.pinned,
            self.prepared.state(),
            tuple(adoption.state(now) for adoption in self._adoptions.values()),
        )  # fmt: skip

    # --- what is asked of it -----------------------------------------------------------------------------------------
    def kept(self) -> Iterator[int]:
        """The releases whose chunks must stay."""
        return (counter for counter in self._needed() if counter != OWN_MODEL)

    def adoptions(self) -> Iterable[Adoption]:
        """What this node does, or did, about each of its orders."""
        return self._adoptions.values()

    def is_ready(self, counter: int) -> bool:
        """Whether a release can be served at once."""
        return counter == OWN_MODEL or self.prepared.readiness(counter) is Readiness.READY

    def is_judging(self, counter: int) -> bool:
        """Whether measures of a release are of any use now."""
        return self._followed is not None and self._followed[2].counter == counter and self._followed[2].phase in JUDGED

    def step_of(self, adoption: Adoption) -> str:
        """How far an adoption has got, as ``ReleaseState.state`` names it; empty when nothing is done about it: its
        order is not the one that is followed, or its release may not be begun."""
        if adoption.phase is not Phase.READYING:
            return adoption.phase.value
        match self.prepared.readiness(adoption.counter):
            case Readiness.READY:
                return "staged"
            case Readiness.STAGING:
                return "fetched"
            case _:
                return "fetching" if adoption.counter in self.prepared.wanted() else ""

    def due_ns(self) -> int:
        """When :meth:`advance` has something to do at the latest."""
        dues = [self._retry_ns, *self.prepared.dues_ns()]
        dues += [adoption.retry_ns for adoption in self._adoptions.values()]
        dues += [tally.silent_at() for _, tally in self._orders]
        if self._followed is not None:
            order, _, adoption = self._followed
            dues.append(adoption.due_ns(order))
        return min((due_ns for due_ns in dues if due_ns > self._now), default=NEVER)

    # --- what it is told ---------------------------------------------------------------------------------------------
    def follow(self, orders: tuple[tuple[Order, Tally], ...], now: int) -> None:
        """Take the orders for this path and this node, the highest serial first, with their tallies."""
        self._orders, self._is_informed = orders, True
        listed = {order.serial: order.counter for order, _ in orders}
        for serial, adoption in list(self._adoptions.items()):
            if listed.get(serial) != adoption.counter:
                del self._adoptions[serial]
        self._overrule(now)
        self.advance(now)

    def _overrule(self, now: int) -> None:
        """An order that was promoted by hand is served even where a gate was broken."""
        for order, _ in self._orders:
            adoption = self._adoptions.get(order.serial)
            if order.state == "promoted" and adoption is not None and adoption.reason in GATE_REASONS:
                adoption.gave_up, adoption.reason = False, ""
                adoption.enter(Phase.READYING, now)

    def pin(self, counter: int | None, now: int) -> None:
        """Serve this release whatever the orders say; None: follow them again."""
        self.pinned = counter
        if counter is not None and self.prepared.readiness(counter) is Readiness.UNFIT:
            self.prepared.begin_again(counter, now)
        self.advance(now)

    def completed(self, counter: int, now: int) -> None:
        """All chunks of a wanted release are held."""
        if self.prepared.completed(counter, now):
            self.effects.append(StageRelease(self.path, counter))

    def incomplete(self, counter: int, now: int) -> None:
        """A release that was to be staged lacks chunks after all."""
        if self.prepared.readiness(counter) is Readiness.STAGING:
            self.prepared.begin_again(counter, now)
            self.advance(now)

    def staged(self, counter: int, failure: str, now: int) -> None:
        """A release was staged and tried, or could not be."""
        if not self.prepared.staged(counter, failure, now):
            if counter not in self._needed():
                self.effects.append(DropRelease(self.path, counter))
            return
        if not failure:
            self._tell(counter, "staged")
        self.advance(now)

    def measured(self, counter: int, measures: Measures, now: int) -> None:
        """A release that is shadowed or served was measured."""
        if self._followed is not None and self._followed[2].counter == counter:
            self._followed[2].measures = measures
            self.advance(now)

    def serving(self, counter: int, failure: str, now: int) -> None:
        """The driver serves a release, or could not, or can't any more."""
        asked = self._starting == counter
        serial = self._starting_serial if asked else 0
        if asked:
            self._starting = None
        if not failure:
            self._serves(counter, serial, now)
        elif not asked and counter != self.current:
            pass  # it serves no more, and nobody waits for it
        elif self.pinned == counter:
            self.pinned = None  # better an older release than none
            self._tell(counter, "failed", failure)
        elif adoption := self._adoptions.get(serial if asked else self._serial):
            prepared = self.prepared.get(counter)
            if asked and prepared is not None and not prepared.is_proven and counter in self.prepared.listed:
                self.prepared.begin_again(counter, now)  # no fault of the release: it is not on the disk any more
                adoption.enter(Phase.READYING, now)
            else:
                self._fail(adoption, failure, now)
        else:
            self._retry_ns = now + RETRY_PAUSE_NS
            if counter in self.prepared.listed:
                self.prepared.begin_again(counter, now)  # damaged perhaps
            self._tell(counter, "failed", failure)
        self.advance(now)

    def not_shadowed(self, counter: int, failure: str, now: int) -> None:
        """The driver could not shadow a release. If it is being swapped in meanwhile, the answer to that counts."""
        if self._followed is not None and self._followed[2].counter == counter:
            if self._followed[2].phase is Phase.SHADOWING:
                self._fail(self._followed[2], failure, now)
                self.advance(now)

    def _serves(self, counter: int, serial: int, now: int) -> None:
        left, left_serial = self.current, self._serial
        if counter != OWN_MODEL:
            self.prepared.served(counter, now)
        if counter != left:
            goes_back = counter == self.before and not serial
            if goes_back:
                self.before, self._is_proven = OWN_MODEL, True
            elif self._is_proven:
                self.before = left
            elif self.before == counter:
                self.before = OWN_MODEL
            self.current, self._serial = counter, serial
            self._is_proven = goes_back or self.pinned == counter
            if (adoption := self._adoptions.get(left_serial)) is not None and adoption.counter == left:
                self._left(adoption, goes_back, now)
            for adoption in self._adoptions.values():
                if adoption.phase is Phase.SHADOWING and adoption.counter != counter:
                    adoption.enter(Phase.READYING, now)  # a swap ends what runs beside
        if serial and (adoption := self._adoptions.get(serial)) is not None:
            self._began(adoption, now)

    def _left(self, adoption: Adoption, goes_back: bool, now: int) -> None:
        if not goes_back and not adoption.gave_up:
            adoption.enter(Phase.READYING, now)  # superseded: it may come to count again
            return
        if not adoption.reason:
            decision = next(
                (tally.decide(now) for order, tally in self._orders if order.serial == adoption.serial), None
            )
            is_halted = decision is not None and decision.is_halt
            adoption.reason = str(decision) if is_halted else "other" if self.pinned is None else "pinned"
        adoption.enter(Phase.ROLLED_BACK, now)
        self._tell(adoption.counter, "rolled_back", adoption.reason)

    def _began(self, adoption: Adoption, now: int) -> None:
        """The node serves the release of an order from now on."""
        order = next((order for order, _ in self._orders if order.serial == adoption.serial), None)
        adoption.reason = ""
        if order is None or not self._judges(order, adoption):
            adoption.enter(Phase.SERVING, now)
        else:
            adoption.enter(Phase.HEALTHY if adoption.verdicts & HEALTHY else Phase.SOAKING, now)
        self._tell(adoption.counter, adoption.phase.value)

    # --- deciding ----------------------------------------------------------------------------------------------------
    def advance(self, now: int) -> None:
        """Do what follows from all that is known, and what is due."""
        self._now = now
        if now >= self._retry_ns:
            self._retry_ns = -NEVER
        self._look_after_preparations(now)
        self._failed = True
        while self._failed:  # each turn gives an order up
            self._failed = False
            self._decide(now)
        self._drop()

    def _decide(self, now: int) -> None:
        rejected = self._choose(now)
        if self.pinned is not None:
            self._serve_pinned(self.pinned, now)
        else:
            if self._followed is not None:
                self._adopt(*self._followed, now)
            if self._must_leave(rejected, now):
                self._go_back(now)
                if self._followed is not None and self._followed[2].counter == self.before:
                    return  # it is on its way there, and a swap that fails now is no fault of that order
            if self._followed is not None:
                self._get_on(*self._followed, now)

    def _look_after_preparations(self, now: int) -> None:
        self.prepared.time_out(now)
        for adoption in self._adoptions.values():
            if now >= adoption.retry_ns:
                adoption.retry_ns, adoption.gave_up, adoption.reason = NEVER, False, ""
                adoption.enter(Phase.READYING, now)
                self.prepared.begin_again(adoption.counter, now)

    def _choose(self, now: int) -> frozenset[int]:
        """Choose the order to follow. Returns the releases of the orders above it, which were given up."""
        rejected: set[int] = set()
        was, self._followed = self._followed, None
        for order, tally in self._orders:
            adoption = self._adoptions.get(order.serial)
            if tally.decide(now).is_final or (adoption is not None and adoption.gave_up):
                rejected.add(order.counter)
            elif order.counter not in rejected:
                if adoption is None:
                    adoption = self._adoptions[order.serial] = Adoption(order.serial, order.counter, since_ns=now)
                self._followed = (order, tally, adoption)
                break
        if was is not None and (self._followed is None or self._followed[2] is not was[2]):
            self._set_aside(was[2], now)
        return frozenset(rejected)

    def _set_aside(self, adoption: Adoption, now: int) -> None:
        """Another order is followed now."""
        if adoption.phase is Phase.SHADOWING:
            adoption.enter(Phase.READYING, now)

    def _judges(self, order: Order, adoption: Adoption) -> bool:
        """Whether this node is a canary that has yet to judge, or may still change its mind."""
        return self._node in order.canaries and order.state != "promoted" and not adoption.verdicts & FAILED

    def _adopt(self, order: Order, tally: Tally, adoption: Adoption, now: int) -> None:
        """Note that the release that is served is the one of this order too, or that it proved itself."""
        decision = tally.decide(now)
        if self.current == order.counter and self._starting is None and adoption.phase not in SERVED:
            if decision is Decision.WAITING or decision is Decision.PROMOTED:
                self._serial = order.serial
                self._began(adoption, now)
        if self.current == order.counter and self._serial == order.serial:
            if decision is Decision.PROMOTED or adoption.phase is Phase.SERVING:
                self._is_proven = True
            if adoption.phase in SERVED and not self._judges(order, adoption) and adoption.phase is not Phase.SERVING:
                adoption.enter(Phase.SERVING, now)

    def _must_leave(self, rejected: frozenset[int], now: int) -> bool:
        if self.current in rejected:
            return True
        if (adoption := self._adoptions.get(self._serial)) is not None and adoption.gave_up:
            return adoption.counter == self.current
        return any(
            order.serial == self._serial and order.counter == self.current and tally.decide(now).is_halt
            for order, tally in self._orders
        )

    def _go_back(self, now: int) -> None:
        if self.before == self.current or now < self._retry_ns:
            return
        if self.is_ready(self.before):
            self._start(self.before, 0)
            return
        if self.prepared.want(self.before, now).readiness is Readiness.UNFIT:
            self.prepared.begin_again(self.before, now)
            self._retry_ns = now + ROOM_PAUSE_NS

    def _serve_pinned(self, counter: int, now: int) -> None:
        if counter == self.current:
            return
        if self.is_ready(counter):
            if now >= self._retry_ns:
                self._start(counter, 0)
            return
        prepared = self.prepared.want(counter, now)
        if prepared.readiness is Readiness.UNFIT:
            self.pinned = None
            self._tell(counter, "failed", prepared.failure)

    def _get_on(self, order: Order, tally: Tally, adoption: Adoption, now: int) -> None:
        """Take the next step with the release of the order that is followed."""
        if self.prepared.get(order.counter) is None and not self.prepared.may_begin(order.counter):
            return
        prepared = self.prepared.want(order.counter, now)
        if prepared.readiness is Readiness.UNFIT and adoption.phase not in SERVED:
            self._fail(adoption, prepared.failure, now)
            return
        if adoption.crashes >= MAX_CRASHES and adoption.phase not in (Phase.HEALTHY, Phase.SERVING):
            self._fail(adoption, f"crashed: the node ended {adoption.crashes} times while it tried the release", now)
            return
        match adoption.phase:
            case Phase.READYING | Phase.ROLLED_BACK:
                if prepared.readiness is Readiness.READY and self.prepared.may_begin(order.counter):
                    self._try(order, tally.decide(now), adoption, now)
            case Phase.SHADOWING | Phase.SOAKING | Phase.HEALTHY:
                self._judge(order, tally, adoption, now)
            case _:
                pass

    def _try(self, order: Order, decision: Decision, adoption: Adoption, now: int) -> None:
        """Begin with a release that is ready, if the time has come."""
        if decision is not Decision.WAITING and decision is not Decision.PROMOTED:
            return
        if not self._judges(order, adoption):
            if decision is Decision.PROMOTED:
                self._begin(adoption, now)
        elif adoption.verdicts & HEALTHY:
            self._begin(adoption, now)
        else:
            adoption.enter(Phase.SHADOWING, now)
            adoption.reason = ""
            self.effects.append(ShadowRelease(self.path, order.counter))
            self._tell(order.counter, "shadowing")

    def _begin(self, adoption: Adoption, now: int) -> None:
        if self._starting is None:
            adoption.enter(Phase.STARTING, now)
            adoption.reason = ""
            self._start(adoption.counter, adoption.serial)

    def _start(self, counter: int, serial: int) -> None:
        if self._starting is None:
            self._starting, self._starting_serial = counter, serial
            self.effects.append(ServeRelease(self.path, counter))

    def _judge(self, order: Order, tally: Tally, adoption: Adoption, now: int) -> None:
        """Judge a release that a canary tries."""
        if not self._judges(order, adoption):
            if adoption.phase is Phase.SHADOWING and tally.decide(now) is Decision.PROMOTED:
                self._begin(adoption, now)
            return
        is_over = adoption.is_time_over(order, now)
        if gate := adoption.broken_gate(order.gates, is_over):
            self._fail(adoption, gate, now)
            return
        if not is_over or not adoption.has_enough(order) or tally.decide(now).is_halt or order.state == "paused":
            return
        if adoption.phase is Phase.SHADOWING:
            if not self.prepared.is_expired:
                self._begin(adoption, now)
        elif adoption.phase is Phase.SOAKING:
            adoption.enter(Phase.HEALTHY, now)
            adoption.verdicts |= HEALTHY
            tally.say(self._node, HEALTHY)
            self._tell(order.counter, "healthy")
        else:
            adoption.enter(Phase.SERVING, now)
            self._tell(order.counter, "serving")

    def _fail(self, adoption: Adoption, failure: str, now: int) -> None:
        """Give a release up. A verdict is given for ever. A release that has proved itself gets none any more: what
        fails then may be this node."""
        self._failed = True
        adoption.reason, adoption.gave_up = reason_of(failure), True
        if adoption.phase is Phase.SERVING:
            adoption.retry_ns = now + MEND_PAUSE_NS
        else:
            adoption.verdicts |= FAILED
            for order, tally in self._orders:
                if order.serial == adoption.serial:
                    tally.say(self._node, FAILED)
            if adoption.reason == "no_room":
                adoption.retry_ns = now + ROOM_PAUSE_NS
        adoption.enter(Phase.FAILED, now)
        self._tell(adoption.counter, "failed", failure)

    # --- tidying -----------------------------------------------------------------------------------------------------
    def _needed(self) -> frozenset[int]:
        needed = {self.current, self.before}
        needed.update(counter for counter in (self.pinned, self._starting) if counter is not None)
        if self._followed is not None:
            needed.add(self._followed[2].counter)
        if not self._is_informed:  # after a restart the orders come a moment later
            needed.update(self.prepared.counters())
        return frozenset(needed)

    def _drop(self) -> None:
        """Let go of releases that nothing needs any more."""
        gone = self.prepared.keep_only(self._needed())
        self.effects += [DropRelease(self.path, counter) for counter in gone]

    def _tell(self, counter: int, state: str, detail: str = "") -> None:
        self.events.append(ReleaseState(self.path, counter, state, detail))
