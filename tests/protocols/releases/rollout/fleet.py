"""A few nodes with rollouts, each with an installer that does at once what it is told, and gossip by hand."""

from collections.abc import Iterable
from hashlib import sha256

import msgspec
from msgspec.structs import replace

from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.machine import HeardEntry
from protocols.releases.catalogue import Listed, Order
from protocols.releases.events import (
    DropRelease,
    Measures,
    ReleaseState,
    RolloutState,
    ServeRelease,
    ShadowRelease,
    StageRelease,
)
from protocols.releases.rollout.health import encode_health
from protocols.releases.rollout.rollouts import Rollouts, RolloutsState
from protocols.releases.rollout.tally import FAILED, HEALTHY
from protocols.wire.releases import HEALTH_KIND, ReportedRelease, RolloutHealth

PATH = "models/plate"
GOOD = Measures(runs=100, errors=0, p95_ns=10, before_p95_ns=10, compared=100, agreed=100)
BAD = Measures(runs=100, errors=50, p95_ns=10, before_p95_ns=10, compared=100, agreed=10)
SOAK_S = 100
SILENCE_S = 1_000
CANARIES = tuple(NodeId(f"c{number}") for number in range(1, 6))


def order(serial: int, counter: int, canaries: Iterable[str] = CANARIES, **fields: object) -> Order:
    """An order for everybody. ``fields`` are those of :class:`Order`."""
    made = Order(
        serial=serial, path=PATH, counter=counter, canaries=tuple(NodeId(canary) for canary in canaries),
        soak_s=SOAK_S, silence_s=SILENCE_S,
    )  # fmt: skip
    return replace(made, **fields)


def listed(*counters: int, path: str = PATH) -> tuple[Listed, ...]:
    """What metadata lists of a path."""
    return tuple(Listed(path, counter, bytes(32), 100) for counter in counters)


def said(author: str, verdicts: int, serial: int = 2, counter: int = 2, version: int = 1) -> HeardEntry:
    """What somebody says of one release."""
    body = encode_health(RolloutHealth((ReportedRelease(serial, counter, 0, verdicts, 0),)))
    return HeardEntry(NodeId(author), HEALTH_KIND, version, 0, body, NodeId(author))


class Installer:
    """One node: its rollouts, and an installer whose answers a test may hold back or turn into failures."""

    def __init__(self, name: str, role: Role = Role.VEHICLE, now_s: float = 0) -> None:
        self.name, self.role = NodeId(name), role
        self.now = int(now_s * SECOND)
        self.stage_failures: dict[int, str] = {}
        self.serve_failures: dict[int, str] = {}
        self.measures: dict[int, Measures] = {}
        self.holds: frozenset[type] = frozenset()
        """The effects that are not answered: ``StageRelease``, ``ServeRelease``."""
        self.served = 0
        self.staged: set[int] = set()
        self.shadowed: int | None = None
        self.dropped: list[int] = []
        self.waiting: list[StageRelease | ServeRelease] = []
        self.events: list[ReleaseState | RolloutState] = []
        self.version = 0
        self.body = b""
        self.rollouts = self._new_life()

    def _new_life(self) -> Rollouts:
        return Rollouts(self.name, self.role, (), ("models/*",), lambda data: sha256(data).digest())

    # --- metadata and gossip -----------------------------------------------------------------------------------------
    def learn(self, *orders: Order, counters: Iterable[int] = range(1, 10)) -> None:
        """The newest metadata."""
        self.rollouts.releases(listed(*counters), self.now)
        self.rollouts.orders(orders, self.now)
        self.settle()

    def entry(self) -> HeardEntry:
        """What it says now."""
        return HeardEntry(self.name, HEALTH_KIND, self.version, 0, self.body, self.name)

    def hear(self, *others: "Installer") -> None:
        """Hear what others say now."""
        for other in others:
            if other.body:
                self.rollouts.heard(other.entry(), self.now)
        self.settle()

    # --- time --------------------------------------------------------------------------------------------------------
    def pass_s(self, seconds: float) -> None:
        """Let time pass. What runs is measured at the end of it, and whenever something is due."""
        until = self.now + int(seconds * SECOND)
        for _ in range(1_000):
            due = self.rollouts.next_timer_at()
            assert due > self.now or due == self.now, "due in the past"
            self.now = min(max(due, self.now), until)
            self._measure()
            self.rollouts.handle_timer(self.now)
            self.settle()
            if self.now == until:
                return
        raise AssertionError("its timer never rests")

    def _measure(self) -> None:
        for counter in (self.shadowed, self.served):
            if counter:
                self.rollouts.measured(PATH, counter, self.measures.get(counter, GOOD), self.now)
                self.settle()

    # --- the installer -----------------------------------------------------------------------------------------------
    def settle(self) -> None:
        """Do all that the rollouts ask for."""
        for _ in range(1_000):
            effects = self.rollouts.outgoing()
            for path, counter in sorted(self.rollouts.wanted()):
                if path == PATH:
                    self.rollouts.complete(path, counter, self.now)
                    effects += self.rollouts.outgoing()
            self.events += self.rollouts.events()
            if (body := self.rollouts.health_body()) is not None:
                self.body, self.version = body, self.version + 1
                assert len(body) <= 200
            if not effects:
                return
            for effect in effects:
                self._perform(effect)
        raise AssertionError("it never rests")

    def _perform(self, effect: StageRelease | ShadowRelease | ServeRelease | DropRelease) -> None:
        match effect:
            case ServeRelease() if any(isinstance(other, ServeRelease) for other in self.waiting):
                raise AssertionError("two swaps at once")
            case StageRelease() | ServeRelease() if type(effect) in self.holds:
                self.waiting.append(effect)
                if isinstance(effect, StageRelease):
                    self.rollouts.staging(PATH, effect.counter, self.now)
            case StageRelease() | ServeRelease():
                self.answer(effect)
            case ShadowRelease(counter=counter):
                assert counter in self.staged, "only a staged release can be shadowed"
                self.shadowed = counter
            case DropRelease(counter=counter):
                assert counter != self.served, "the release that serves is never dropped"
                self.dropped.append(counter)
                self.staged.discard(counter)
                self.shadowed = None if self.shadowed == counter else self.shadowed

    def answer(self, effect: StageRelease | ServeRelease) -> None:
        """The answer to an effect."""
        counter = effect.counter
        if isinstance(effect, StageRelease):
            failure = self.stage_failures.get(counter, "")
            if not failure:
                self.staged.add(counter)
            self.rollouts.staged(PATH, counter, failure, self.now)
            return
        failure = self.serve_failures.get(counter, "")
        if not failure:
            assert counter == 0 or counter in self.staged, f"{counter} is served without having been staged"
            self.shadowed = self.shadowed if self.served == counter else None  # as a swap ends what runs beside
            self.served = counter
        self.rollouts.serving(PATH, counter, failure, self.now)

    def answer_all(self) -> None:
        """Answer what was held back."""
        waiting, self.waiting = self.waiting, []
        for effect in waiting:
            self.answer(effect)
            self.settle()

    # --- lives -------------------------------------------------------------------------------------------------------
    def restart(self, *orders: Order, is_clean: bool = False, counters: Iterable[int] = range(1, 10)) -> None:
        """End, and begin anew with what was kept and with the same metadata. Staged files and what serves stay."""
        data = msgspec.msgpack.encode(self.rollouts.state(self.now, is_clean))
        self.rollouts = self._new_life()
        self.waiting, self.shadowed = [], None
        self.now += 7 * SECOND
        self.rollouts.restored(msgspec.msgpack.decode(data, type=RolloutsState), self.now)
        self.rollouts.serving(PATH, self.served, "", self.now)
        self.rollouts.installed(PATH, self.staged, self.now)
        self.learn(*orders, counters=counters)

    # --- what a test looks at ----------------------------------------------------------------------------------------
    def states(self, counter: int) -> list[str]:
        """The states of a release that were told, in order."""
        return [one.state for one in self.events if isinstance(one, ReleaseState) and one.counter == counter]

    def concluded(self, serial: int) -> list[str]:
        """What it concluded about an order, in order."""
        return [one.state for one in self.events if isinstance(one, RolloutState) and one.serial == serial]

    def verdicts(self, serial: int) -> int:
        """What it says of an order."""
        return next((said.verdicts for said in self.said() if said.serial == serial), 0)

    def said(self) -> tuple[ReportedRelease, ...]:
        """All that it says."""
        return msgspec.msgpack.decode(self.body, type=RolloutHealth).releases if self.body else ()


ALL = order(1, 1, ())
"""Everybody serves release 1."""
NEW = order(2, 2)
"""Release 2 is tried by the canaries."""


def canary(*orders: object, name: str = "c1") -> Installer:
    """A canary that serves release 1, and knows the orders."""
    node = Installer(name)
    node.learn(ALL)
    assert node.served == 1
    if orders:
        node.learn(*orders)  # type: ignore[arg-type]
    return node


def speak(node: Installer, *, healthy: int = 0, failed: int = 0, serial: int = 2, counter: int = 2) -> None:
    """Canaries other than ``c1`` say what they think."""
    words = [HEALTHY] * healthy + [FAILED] * failed
    for name, verdict in zip(CANARIES[1:], words, strict=False):
        node.rollouts.heard(said(name, verdict, serial, counter), node.now)
    node.settle()
