"""The contract of checks: what a check is, what it may see, and how it is registered.

A check is a promise of the project that is judged while a simulation runs.

A check overrides the hooks that it needs and judges with ``self.judge``; the world calls nothing else (see
:func:`overridden`). *Safety* checks judge as things happen. *Liveness* checks judge at the end, when the last fault is
long enough ago. A check decides nothing and changes nothing: with and without it a seed has the same digest.

``@register`` makes a check known, and scenarios choose checks by name. ``sims.runs.run`` imports the modules that bring
checks. A check that never judged anything is listed with 0 of 0, because it proved nothing.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from protocols.base import limits
from protocols.base.effects import Event
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import PeerIdentity
from protocols.engine import Engine
from protocols.inference.events import Answered
from protocols.membership.neighbour import Neighbour
from protocols.membership.settings import MembershipSettings
from protocols.peers import PeerView
from protocols.readings.events import Put
from protocols.records.ledger import Ledger
from protocols.wire.readings import Reading
from protocols.wire.tensors import NamedTensor, tensor_of
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
    """Any hash of the signed bytes; empty when it is not known."""


class WorldView(Protocol):
    """What checks may look at. They must not change it."""

    scenario: Scenario
    settings: MembershipSettings
    """The settings of membership, which all nodes share."""

    @property
    def now(self) -> int:
        """Virtual nanoseconds since the start of the run."""

    @property
    def names(self) -> Sequence[str]:
        """The names of all nodes, in the order of their numbers."""

    def running(self, name: str) -> bool:
        """Whether the process is there."""

    def since(self, name: str) -> int:
        """When its present (or last) life began."""

    def engine(self, name: str) -> Engine:
        """The engine of its present (or last) life."""

    def peers(self, name: str) -> Sequence[PeerView]:
        """``Engine.peers`` of a node at the present instant of its own clock."""

    def neighbours(self, name: str) -> Sequence[Neighbour]:
        """The neighbours of a node now. Unlike :meth:`peers`, this is cheap enough to ask for many nodes often."""

    def in_range(self, name: str) -> Sequence[str]:
        """The nodes with which a node has a good link both ways now, in order, whether they run or not. A link is good
        by wire, and by air when at least nine of ten frames get through with their retries. Both ends are on the map,
        and no fault cuts or loses anything between them. It is the same list as long as they stay the same."""

    def heard_ns(self, name: str, other: str) -> int | None:
        """When the newest frame from a pipe of ``other`` reached the present life of ``name``; None when none did."""

    def slowed(self, name: str) -> bool:
        """Whether a fault takes CPU from it now."""

    def entries(self, name: str) -> Sequence[KnownEntry]:
        """The gossip entries that a node holds now."""

    def ledger(self, name: str) -> Ledger | None:
        """The ledger of its records; None when it sends none."""

    def stored(self, name: str) -> Sequence[int]:
        """The sequences of its records that the relay has on disk, each as often as it was stored."""

    def records_complaints(self, name: str) -> Sequence[str]:
        """What does not add up between its ledgers, the relay, and what the node was told of its records, in words."""

    def waiting_since_ns(self, name: str) -> int | None:
        """When the oldest of its waiting records was made; None when none waits."""

    def covered(self, name: str) -> bool:
        """Whether its link to the relay is open now. The relay itself may be down all the same."""

    def readings_under_way(self) -> int:
        """How many readings wait in queues of running engines (both lanes) or are on pipes between running nodes
        now."""

    def readings_lost(self) -> int:
        """How many readings were lost so far that no engine could count: in frames on pipes when these broke, and in
        queues of engines when their processes crashed. Readings that ``Engine.frame_lost`` was told of are not among
        them."""


class Check:
    """The base class of checks. ``node`` is always a name, and times are virtual nanoseconds since the start."""

    name: ClassVar[str] = ""
    """The name that scenarios and reports use."""
    judges: ClassVar[bool] = True
    """Whether it judges. A check that only takes notes is left out of the verdict."""

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        self.world, self._recorder = world, recorder

    def judge(self, kept: bool, detail: str = "", times: int = 1) -> None:
        """Make one judgement, or several alike."""
        self._recorder.judge(self.name, kept, detail, self.world.now, times)

    def occurred(self, what: str, node: str, other: str = "", detail: str = "") -> None:
        """Note that something happened that ought to happen sometimes."""
        self._recorder.occurred(what, self.world.now, node, other, detail)

    # --- life ------------------------------------------------------------------------------------------------------
    def started(self, node: str) -> None:
        """A life began. Its engine has done nothing yet."""

    def crashing(self, node: str) -> None:
        """The process of a node is about to end without a word. Everything is still as it was."""

    # --- links and readings ----------------------------------------------------------------------------------------
    def frame_accepted(self, node: str, source: PeerIdentity, verified: bool) -> None:
        """The engine of ``node`` took readings from a frame on a pipe of ``source``. ``verified``: that identity is of
        our mesh, and a Hello of that id was the first frame of the pipe. It is called for the first such frame of a
        pipe, and for each such frame of a pipe that is not verified."""

    def published(self, node: str, key: str, put: Put) -> None:
        """``node`` published a reading."""

    def delivered(self, node: str, arrivals: Sequence[Arrival]) -> None:
        """Readings reached subscriptions of ``node``, its own readings too, in this order. This is hot."""

    def event(self, node: str, event: Event) -> None:
        """The engine of ``node`` reported an event. ``Answered`` comes here too."""

    # --- inference -------------------------------------------------------------------------------------------------
    def asked(
        self, node: str, request: int, inputs: tuple[NamedTensor, ...], deadline_ns: int, model: str
    ) -> None:  # fmt: skip
        """``node`` asked its engine for an inference, to be answered at ``deadline_ns`` at the latest. It is called
        before any event of that request, and before ``request_sent``."""

    def answered(self, node: str, answer: Answered) -> None:
        """That request ended, as its caller sees it."""

    def request_sent(self, node: str, model: str, inputs: tuple[NamedTensor, ...]) -> None:
        """``node`` sends a neighbour a request to run a model, or a stage of one."""

    # --- gossip ----------------------------------------------------------------------------------------------------
    def authored(self, node: str, entry: KnownEntry) -> None:
        """``node`` made an entry of its own (``EntryAccepted`` of itself). It is called before ``entry``."""

    def entry(self, node: str, entry: KnownEntry) -> None:
        """The engine of ``node`` holds an entry now that it did not hold before (``EntryAccepted``), also one of its
        own."""

    # --- records ---------------------------------------------------------------------------------------------------
    def record_stored(self, node: str, rule: str, reading: Reading) -> None:
        """The relay has a record of ``node`` that it did not have before, made by a rule of that name."""

    # --- releases --------------------------------------------------------------------------------------------------
    def chunk_kept(self, node: str, digest: bytes, data: bytes, is_genuine: bool) -> None:
        """``node`` keeps a chunk of a release that it did not hold before. ``is_genuine``: the publisher made it."""

    def release_staged(self, node: str, path: str, counter: int, is_whole: bool) -> None:
        """``node`` puts the files of a release together. ``is_whole``: it holds all chunks that the publisher made for
        it."""

    def release_served(self, node: str, path: str, counter: int, is_canary: bool, liars_decide: bool) -> None:
        """``node`` begins to serve a release. ``is_canary``: its order names the node as a canary. ``liars_decide``:
        as many of the canaries lie as promote or halt a release."""

    # --- time ------------------------------------------------------------------------------------------------------
    def sampled(self, now: int) -> None:
        """It is called about once a virtual second, at an instant without an event under way."""

    def finished(self, now: int, faults_end_ns: int) -> None:
        """The run is over. The last fault was over at ``faults_end_ns`` (0: there was none). It is called once, after
        the last ``sampled``."""


_known: dict[str, type[Check]] = {}


def register(check: type[Check]) -> type[Check]:
    """Make a check known by its name; a decorator. :raises LocalProtocolError: when the name is empty or taken."""
    if not check.name or _known.get(check.name, check) is not check:
        raise LocalProtocolError(f"{check.__name__} can't be called {check.name!r}: the name is empty or taken")
    _known[check.name] = check
    return check


def known_checks() -> list[str]:
    """Names of all registered checks, in alphabetical order."""
    return sorted(_known)


def make_checks(names: Sequence[str], world: WorldView, recorder: Recorder) -> list[Check]:
    """Make the checks of a run; no names means all. :raises ScenarioError: when a name is not known."""
    unknown = [name for name in names if name not in _known]
    if unknown:
        raise ScenarioError(f"no check is called {unknown[0]!r}; known: {', '.join(known_checks())}")
    return [_known[name](world, recorder) for name in (names or known_checks())]


def overridden(checks: Sequence[Check], hook: str) -> tuple[Callable[..., Any], ...]:
    """The ``hook`` methods of those checks that override it, to be called in this order."""
    return tuple(getattr(check, hook) for check in checks if getattr(type(check), hook) is not getattr(Check, hook))


INPUT = "x"
"""The name of the input of every simulated model."""


def computed_from(inputs: tuple[NamedTensor, ...], output_bytes: int, steps: Iterable[str] = ()) -> bytes:
    """What every simulated model computes: the first 32 bytes of its first input, repeated. By it the check of answers
    knows whether an answer belongs to its request, so callers put something unique there.

    ``steps``: those of a model that can be cut (:func:`steps_of`), or of a part of it. Each step turns the 32 bytes
    into their hash together with its own name. So the result shows that each step ran once, in order, on what the step
    before it gave, however the model was cut.
    """
    seed = bytes(inputs[0].tensor.data[:32]) if inputs else b"\0"
    for step in steps:
        seed = hashlib.sha256(step.encode() + seed).digest()
    return repeated(seed, output_bytes)


def computed_rows(rows: int, inputs: tuple[NamedTensor, ...], output_bytes: int) -> bytes:
    """What a model gives for a batch, or for a part of one: what it computes from each row of its first input.
    ``output_bytes``: of one row."""
    data = inputs[0].tensor.data
    size_bytes = len(data) // rows
    return b"".join(
        computed_from(
            (NamedTensor(INPUT, tensor_of(bytes(data[row * size_bytes : row * size_bytes + 32]))),), output_bytes
        )
        for row in range(rows)
    )


def repeated(seed: bytes, size_bytes: int) -> bytes:
    """A seed again and again, until it fills ``size_bytes``; zeros when it is empty."""
    return (seed * (size_bytes // len(seed) + 1))[:size_bytes] if seed else bytes(size_bytes)


def steps_of(model: str, cuts: int) -> tuple[str, ...]:
    """The steps of a model with that many cuts: one before each cut, and one behind the last. A model without cuts has
    none."""
    return tuple(f"{model}/{number}" for number in range(cuts + 1)) if cuts else ()


SAMPLE_INTERVAL_NS = limits.SECOND
"""How often ``sampled`` is called."""
