"""One node, to which anything happens in any order: there is always one release that serves, and it may be served.

Three releases and their orders come and go and change, with and without canaries. The installer answers late, fails at
any step, loses files, and is asked for nothing that it can't do. Metadata expires, nodes restart, operators pin.
"""

from hashlib import sha256

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.releases.catalogue import Order
from protocols.releases.events import DropRelease, Measures, ServeRelease, ShadowRelease, StageRelease
from protocols.releases.rollout.rollouts import Rollouts, RolloutsState
from tests.protocols.releases.rollout.fleet import BAD, GOOD, PATH, listed, order, said

COUNTERS = (1, 2, 3)
SERIALS = (1, 2, 3, 4)
STATES = ("running", "running", "running", "paused", "aborted", "promoted")
FAILURES = ("", "", "", "golden: output 0 differs", "no_room: full", "crashed: signal 11")
ME = NodeId("c1")


class AnyOrder(RuleBasedStateMachine):
    """The node, its installer, and what the world has told it."""

    @initialize()
    def begin(self) -> None:
        self.now = 0
        self.served, self.staged, self.shadowed = 0, set[int](), set[int]()
        self.waiting: list[StageRelease | ServeRelease] = []
        self.listed, self.is_expired = frozenset(COUNTERS), False
        self.orders: dict[int, Order] = {}
        self.went_back = 0
        self.rollouts = self._life()
        self._metadata()

    def _life(self) -> Rollouts:
        return Rollouts(ME, Role.VEHICLE, (), ("**",), lambda data: sha256(data).digest())

    def _metadata(self) -> None:
        self.rollouts.expired(self.is_expired, self.now)
        self.rollouts.releases(listed(*self.listed), self.now)
        self.rollouts.orders(tuple(self.orders.values()), self.now)
        self._take()

    def _take(self) -> None:
        for effect in self.rollouts.outgoing():
            match effect:
                case StageRelease(counter=counter):
                    assert counter in self.listed
                    assert not self.is_expired
                    self.waiting.append(effect)
                case ServeRelease(counter=counter):
                    assert not any(isinstance(other, ServeRelease) for other in self.waiting), "two swaps at once"
                    self.waiting.append(effect)
                case ShadowRelease(counter=counter):
                    assert counter in self.listed
                    assert not self.is_expired
                    self.shadowed.add(counter)
                case DropRelease(counter=counter):
                    assert counter != self.served, "the release that serves is never dropped"
                    assert ServeRelease(PATH, counter) not in self.waiting
                    self.staged.discard(counter)
                    self.shadowed.discard(counter)
        self.rollouts.events()
        self.rollouts.health_body()

    # --- what may happen ---------------------------------------------------------------------------------------------
    @rule(
        serial=st.sampled_from(SERIALS), counter=st.sampled_from(COUNTERS), state=st.sampled_from(STATES),
        canaries=st.sampled_from(((), ("c1",), ("c1", "c2", "c3"), ("c2", "c3", "c4"))),
    )  # fmt: skip
    def sign(self, serial: int, counter: int, state: str, canaries: tuple[str, ...]) -> None:
        """An order is signed, or signed again."""
        self.orders[serial] = order(serial, counter, canaries, state=state)
        self._metadata()

    @rule(serial=st.sampled_from(SERIALS))
    def withdraw(self, serial: int) -> None:
        """The metadata lists an order no longer."""
        self.orders.pop(serial, None)
        self._metadata()

    @rule(counters=st.sets(st.sampled_from(COUNTERS)), is_expired=st.booleans())
    def relist(self, counters: set[int], is_expired: bool) -> None:
        """The metadata lists other releases, or expires."""
        self.listed, self.is_expired = frozenset(counters) | {1}, is_expired
        self._metadata()

    @rule()
    def complete(self) -> None:
        """Everything that is wanted has come."""
        for path, counter in sorted(self.rollouts.wanted()):
            self.rollouts.complete(path, counter, self.now)
        self._take()

    @precondition(lambda self: self.waiting)
    @rule()
    def begin_staging(self) -> None:
        """What waited for others has its turn."""
        for effect in self.waiting:
            if isinstance(effect, StageRelease):
                self.rollouts.staging(PATH, effect.counter, self.now)
        self._take()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), failure=st.sampled_from(FAILURES))
    def answer(self, data: st.DataObject, failure: str) -> None:
        """The installer answers one of the things that it was asked for."""
        effect = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        counter = effect.counter
        if isinstance(effect, StageRelease):
            if not failure:
                self.staged.add(counter)
            self.rollouts.staged(PATH, counter, failure, self.now)
        else:
            if counter and counter not in self.staged:
                failure = failure or "digest: it is not on the disk"
            if not failure:
                self.served = counter
                self.shadowed.discard(counter)
            self.rollouts.serving(PATH, counter, failure, self.now)
        self._take()

    @rule()
    def lose(self) -> None:
        """Somebody cleans the disk of what does not serve."""
        self.staged &= {self.served}

    @rule(failure=st.sampled_from(FAILURES[3:]))
    def crash(self, failure: str) -> None:
        """The release that serves, or one that is shadowed, stops."""
        self.rollouts.serving(PATH, self.served, failure, self.now)
        for counter in sorted(self.shadowed):
            self.rollouts.not_shadowed(PATH, counter, failure, self.now)
        self._take()

    @rule(measures=st.sampled_from((GOOD, GOOD, BAD, Measures(0, 0, 0, 0, 0, 0))))
    def measure(self, measures: Measures) -> None:
        """What runs is measured."""
        for counter in sorted({self.served, *self.shadowed}):
            self.rollouts.measured(PATH, counter, measures, self.now)
        self._take()

    @rule(seconds=st.sampled_from((1, 10, 100, 700, 5_000)))
    def wait(self, seconds: int) -> None:
        """Time passes, with all timers that are due in it."""
        until = self.now + seconds * SECOND
        for _ in range(200):
            due_ns = self.rollouts.next_timer_at()
            assert due_ns > self.now, "a timer that is due in the past takes a whole processor"
            self.now = min(due_ns, until)
            self.rollouts.handle_timer(self.now)
            self._take()
            if self.now == until:
                return
        raise AssertionError("its timer never rests")

    @rule(author=st.sampled_from(("c2", "c3", "c4")), serial=st.sampled_from(SERIALS), verdicts=st.integers(0, 3))
    def hear(self, author: str, serial: int, verdicts: int) -> None:
        """A canary says something."""
        counter = self.orders[serial].counter if serial in self.orders else 1
        self.rollouts.heard(said(author, verdicts, serial, counter), self.now)
        self._take()

    @rule(counter=st.sampled_from((None, 0, *COUNTERS)))
    def pin(self, counter: int | None) -> None:
        """The operator of the node has a wish."""
        self.rollouts.pin(PATH, counter, self.now)
        self._take()

    @rule(is_clean=st.booleans())
    def restart(self, is_clean: bool) -> None:
        """The node ends, with whatever it was doing, and starts."""
        kept = msgspec.json.encode(self.rollouts.state(self.now, is_clean))
        self.waiting.clear()
        self.shadowed.clear()
        self.rollouts = self._life()
        self.rollouts.restored(msgspec.json.decode(kept, type=RolloutsState), self.now)
        self.rollouts.serving(PATH, self.served, "", self.now)
        self._take()
        self._metadata()

    # --- what must hold ----------------------------------------------------------------------------------------------
    @invariant()
    def knows_what_serves(self) -> None:
        """What the installer serves is what the node believes, and it is kept."""
        assert self.rollouts.serves(PATH) == self.served
        if self.served:
            assert (PATH, self.served) in self.rollouts.kept()

    @invariant()
    def wants_only_what_is_listed(self) -> None:
        """Nothing else may be fetched."""
        wanted = self.rollouts.wanted()
        assert not (self.is_expired and wanted)
        assert {counter for _, counter in wanted} <= self.listed

    def teardown(self) -> None:
        """In the end the operator promotes release 1 for all, nothing fails any more, and it is served."""
        if not hasattr(self, "rollouts"):
            return
        self.orders = {9: order(9, 1, (), state="promoted")}
        self.listed, self.is_expired = frozenset(COUNTERS), False
        self.rollouts.pin(PATH, None, self.now)
        self._metadata()
        for _ in range(30):
            self.complete()
            while self.waiting:
                effect = self.waiting.pop(0)
                if isinstance(effect, StageRelease):
                    self.staged.add(effect.counter)
                    self.rollouts.staged(PATH, effect.counter, "", self.now)
                elif effect.counter and effect.counter not in self.staged:
                    self.rollouts.serving(PATH, effect.counter, "digest: it is not on the disk", self.now)
                else:
                    self.served = effect.counter
                    self.rollouts.serving(PATH, effect.counter, "", self.now)
                self._take()
            self.wait(100)
        assert self.served == 1


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
