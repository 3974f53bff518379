"""Promises that are judged while a simulation runs: what a check is, what it may see, and how it gets known by name.

A check overrides the hooks that it needs and judges with ``self.judge``; the world calls nothing else (see
:func:`overridden`). *Safety* checks judge as things happen, *liveness* checks at the end, when the last fault is long
enough ago. A check decides nothing and changes nothing: with and without it a seed has the same digest.

A check plugs in by ``@register``; scenarios choose by name. Modules that bring their own are imported by
``sims.runs.run``. A check that was never judged shows up with 0 of 0: it proved nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from protocols.base import limits
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import PeerIdentity
from protocols.engine import Engine
from protocols.inference.events import Answered
from protocols.machine import Event
from protocols.membership.neighbour import Neighbour
from protocols.membership.settings import MembershipSettings
from protocols.peers import PeerView
from protocols.readings.events import Put
from protocols.records.ledger import Ledger
from protocols.wire.tensors import NamedTensor
from sims.errors import ScenarioError
from sims.results.result import Recorder
from sims.scenario.file import Scenario
from sims.virtual.arrivals import Arrival


@dataclass(frozen=True, slots=True)
class KnownEntry:
    """One gossip entry as a node holds it, or as its author put it in."""

    author: str
    kind: str
    version: int
    digest: str = ""
    """Of the signed bytes, any hash; empty: not known."""


class WorldView(Protocol):
    """What checks may look at; read-only."""

    scenario: Scenario
    settings: MembershipSettings
    """Of membership, of all nodes."""

    @property
    def now(self) -> int:
        """Virtual nanoseconds since the start of the run."""

    @property
    def names(self) -> Sequence[str]:
        """Of all nodes, in the order of their numbers."""

    def running(self, name: str) -> bool:
        """Whether the process is there."""

    def since(self, name: str) -> int:
        """When its present (or last) life began."""

    def engine(self, name: str) -> Engine:
        """Of its present (or last) life."""

    def peers(self, name: str) -> Sequence[PeerView]:
        """``Engine.peers`` of it at the present instant of its own clock."""

    def neighbours(self, name: str) -> Sequence[Neighbour]:
        """``Engine.neighbours`` of it now: what of :meth:`peers` can be asked of many nodes often."""

    def in_range(self, name: str) -> Sequence[str]:
        """Nodes, in order, running or not, with which it has a good link both ways now: by wire, or by air where at
        least nine of ten frames get through with their retries; not cut, not lossy by a fault, on the map. The same
        object as long as they stay the same."""

    def heard_ns(self, name: str, other: str) -> int | None:
        """When the newest frame from a pipe of ``other`` reached the present life of ``name``; None: never."""

    def slowed(self, name: str) -> bool:
        """Whether a fault takes CPU from it now."""

    def entries(self, name: str) -> Sequence[KnownEntry]:
        """Gossip entries that it holds now."""

    def ledger(self, name: str) -> Ledger | None:
        """Of its records; None: it sends none."""

    def stored(self, name: str) -> Sequence[int]:
        """Sequences of its records that the relay has on disk, each as often as it was stored."""

    def records_complaints(self, name: str) -> Sequence[str]:
        """What does not add up between its ledgers, the relay and what was told of its records, in words."""

    def waiting_since_ns(self, name: str) -> int | None:
        """When the oldest of its records that wait was made; None: none waits."""

    def covered(self, name: str) -> bool:
        """Whether its way to the relay is open now; the relay may be out all the same."""

    def readings_under_way(self) -> int:
        """Readings that wait in queues of running engines (both lanes) or are on pipes between running nodes, now."""

    def readings_lost(self) -> int:
        """Readings so far that no engine could count: in frames on pipes when these broke, and in queues of engines
        when their processes crashed. What ``Engine.frame_lost`` was told is not among them."""


class Check:
    """Base class. ``node`` is always a name, times are virtual nanoseconds since the start."""

    name: ClassVar[str] = ""
    """As scenarios and reports call it."""
    judges: ClassVar[bool] = True
    """False: it only takes notes, and is left out of the verdict."""

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        self.world, self._recorder = world, recorder

    def judge(self, kept: bool, detail: str = "", times: int = 1) -> None:
        """One judgement, or so many alike."""
        self._recorder.judge(self.name, kept, detail, self.world.now, times)

    def occurred(self, what: str, node: str, other: str = "", detail: str = "") -> None:
        """Something that ought to happen sometimes did."""
        self._recorder.occurred(what, self.world.now, node, other, detail)

    # --- life ------------------------------------------------------------------------------------------------------
    def started(self, node: str) -> None:
        """A life began; its engine has done nothing yet."""

    def crashing(self, node: str) -> None:
        """Its process is about to end without a word; everything is still as it was."""

    # --- links and readings ----------------------------------------------------------------------------------------
    def frame_accepted(self, node: str, source: PeerIdentity, verified: bool) -> None:
        """``node``'s engine took readings from a frame on a pipe of ``source``; ``verified``: that identity is of our
        mesh and a Hello of that id was the first frame of the pipe. Called for the first such frame of a pipe, and for
        each of a pipe that is not verified."""

    def published(self, node: str, key: str, put: Put) -> None:
        """``node`` published a reading."""

    def delivered(self, node: str, arrivals: Sequence[Arrival]) -> None:
        """Readings reached ``node``'s subscriptions (own ones of ``node`` too), in this order. Hot."""

    def event(self, node: str, event: Event) -> None:
        """``node``'s engine told its driver something; ``Answered`` comes here too."""

    # --- inference -------------------------------------------------------------------------------------------------
    def asked(self, node: str, request: int, inputs: tuple[NamedTensor, ...], deadline_ns: int) -> None:
        """``node`` asked its engine for an inference, to be answered at ``deadline_ns`` at the latest. Called before
        any event of that request."""

    def answered(self, node: str, answer: Answered) -> None:
        """That request ended, as its caller sees it."""

    # --- gossip ----------------------------------------------------------------------------------------------------
    def authored(self, node: str, entry: KnownEntry) -> None:
        """``node`` made an entry of its own (``EntryAccepted`` of itself). Called before ``entry``."""

    def entry(self, node: str, entry: KnownEntry) -> None:
        """``node``'s engine holds an entry now that it did not hold before (``EntryAccepted``); its own too."""

    # --- time ------------------------------------------------------------------------------------------------------
    def sampled(self, now: int) -> None:
        """About once a virtual second, at an instant without an event under way."""

    def finished(self, now: int, faults_end_ns: int) -> None:
        """The run is over; the last fault was over at ``faults_end_ns`` (0: there was none). Once, after the last
        ``sampled``."""


_known: dict[str, type[Check]] = {}


def register(check: type[Check]) -> type[Check]:
    """Decorator: makes a check known by its name. :raises LocalProtocolError: when the name is empty or taken."""
    if not check.name or _known.get(check.name, check) is not check:
        raise LocalProtocolError(f"{check.__name__} can't be called {check.name!r}: the name is empty or taken")
    _known[check.name] = check
    return check


def known_checks() -> list[str]:
    """Names of all registered checks, in alphabetical order."""
    return sorted(_known)


def make_checks(names: Sequence[str], world: WorldView, recorder: Recorder) -> list[Check]:
    """The checks of a run; no names: all. :raises ScenarioError: when a name is not known."""
    unknown = [name for name in names if name not in _known]
    if unknown:
        raise ScenarioError(f"no check is called {unknown[0]!r}; known: {', '.join(known_checks())}")
    return [_known[name](world, recorder) for name in (names or known_checks())]


def overridden(checks: Sequence[Check], hook: str) -> tuple[Callable[..., Any], ...]:
    """The ``hook`` methods of those checks that do something in it, to be called in this order."""
    return tuple(getattr(check, hook) for check in checks if getattr(type(check), hook) is not getattr(Check, hook))


def computed_from(inputs: tuple[NamedTensor, ...], output_bytes: int) -> bytes:
    """What every simulated model computes: the first 32 bytes of its first input, repeated. The check of answers knows
    by it whether an answer belongs to its request; callers put something unique there."""
    seed = bytes(inputs[0].tensor.data[:32]) if inputs else b"\0"
    return (seed * (output_bytes // len(seed) + 1))[:output_bytes] if seed else bytes(output_bytes)


SAMPLE_INTERVAL_NS = limits.SECOND
"""How often ``sampled`` is called."""
