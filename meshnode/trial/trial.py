"""A field trial: a node that publishes test readings by plan and writes down what it sees.

The journal is one JSON array a line: ``[what, instant, …]``, the instant in nanoseconds of the monotonic clock, which
all processes of one computer share. Lines are gathered in memory and written twice a second by a thread of their own,
so that writing disturbs no latency. ``docs/howto/emulate-a-topology.md`` lists them.

It compares nothing between nodes: whoever has all journals does that.
"""

import asyncio
import threading
import time
import tomllib
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta, Struct

from meshnode.node import Node
from meshnode.trial.node import ECHOED_BYTES, INPUT, MAX_TIMED_BYTES, OUTPUT, TrialModel, TrialNode, echoed
from protocols.base import limits
from protocols.base.effects import Event
from protocols.base.errors import (
    BudgetExhausted,
    ConfigError,
    InputInvalid,
    InvalidKey,
    MeshError,
    ModelUnknown,
    NotPermitted,
)
from protocols.base.ids import NodeId
from protocols.gossip.events import EntryAccepted, EntryRefused
from protocols.inference.events import Answered
from protocols.membership.events import (
    NeighbourDead,
    NeighbourLeft,
    NeighbourMet,
    NeighbourRefuted,
    NeighbourSuspected,
    PeerRefused,
)
from protocols.wire.readings import Reading
from protocols.wire.tensors import tensor_of

ENTRY_KIND = "spread"
"""The kind of the gossip entries that a trial authors."""
_ENTRY_LIFETIME_S = 3_600
_WRITE_EVERY_S = 0.5
_MAX_WAITING = 1_000_000
"""Lines kept in memory at most: a disk that does not take them must not bring down the node."""


class TrialReadings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Readings that a trial publishes."""

    key: str
    rate_hz: Annotated[float, Meta(gt=0, le=1_000)] = 10.0
    size_bytes: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    """The size of the value."""
    priority: Annotated[int, Meta(ge=0, le=7)] = 3
    lifespan_ms: Annotated[int, Meta(ge=0, le=limits.MAX_LIFESPAN_MS)] = 0
    hops: Annotated[int, Meta(ge=0, le=limits.MAX_HOPS)] = 0
    phase_s: Annotated[float, Meta(ge=0)] = 0.0
    """When the first reading is due, after the node is ready."""


class TrialEntry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A gossip entry that a trial authors."""

    at_s: Annotated[float, Meta(ge=0)]
    """Age of the trial at which it is authored. It is left out when the node opens later."""
    size_bytes: Annotated[int, Meta(ge=1, le=900)] = 200


class TrialRequests(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Inferences that a trial asks for, of a model of ``[[models]]`` here or at neighbours."""

    model: Annotated[str, Meta(min_length=1, max_length=limits.MAX_TEXT_CHARS)]
    rate_hz: Annotated[float, Meta(gt=0, le=1_000)] = 1.0
    input_bytes: Annotated[int, Meta(ge=1, le=MAX_TIMED_BYTES)] = 30_000
    deadline_ms: Annotated[int, Meta(ge=1, le=limits.MAX_BUDGET_MS)] = 500
    phase_s: Annotated[float, Meta(ge=0)] = 0.0
    """Age of the trial at the first request. Requests due before the node is open are left out."""


class TrialPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a trial does."""

    subscribe: tuple[str, ...] = ()
    """Key expressions; each delivery is written down."""
    publish: Annotated[tuple[TrialReadings, ...], Meta(max_length=64)] = ()
    spread: Annotated[tuple[TrialEntry, ...], Meta(max_length=64)] = ()
    models: Annotated[tuple[TrialModel, ...], Meta(max_length=limits.MAX_OFFERS)] = ()
    infer: Annotated[tuple[TrialRequests, ...], Meta(max_length=64)] = ()


def load_plan(path: Path) -> TrialPlan:
    """Read a plan, TOML. :raises ConfigError: it can't be read, or a value in it is wrong."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), TrialPlan)
    except OSError as error:
        raise ConfigError(f"the plan {path} can't be read ({error.strerror}): check its path and mode") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"the plan {path} is wrong: {error}") from error


class Journal:
    """The journal of a trial. :meth:`note` may be called on any thread and costs less than a microsecond."""

    def __init__(self, path: Path) -> None:
        """:raises ConfigError: the file can't be written."""
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"the journal {path} can't be written ({error.strerror}): choose another path") from error
        self._lines: list[tuple[Any, ...]] = []
        self._encoder = msgspec.json.Encoder()
        self._ended = threading.Event()
        self._writer = threading.Thread(target=self._write_on, name="journal", daemon=True)
        self.lost = 0

    def __enter__(self) -> Self:
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._writer.join()
        self._file.close()

    def note(self, what: str, *rest: Any) -> None:
        """Note a line with the present instant."""
        self.note_at(time.monotonic_ns(), what, *rest)

    def note_at(self, instant_ns: int, what: str, *rest: Any) -> None:
        """Note a line with an earlier instant."""
        if len(self._lines) < _MAX_WAITING:
            self._lines.append((what, instant_ns, *rest))
        else:
            self.lost += 1

    def _write_on(self) -> None:
        while not self._ended.wait(_WRITE_EVERY_S):
            if self._lines:
                self.note("cpu", time.process_time_ns())
            self._write()
        self._write()

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            self._file.write(self._encoder.encode_lines(lines))
        except OSError:
            self.lost += len(lines)


class Trial:
    """Listens to a node under trial, and publishes and asks in its name between :meth:`begin` and :meth:`end`."""

    def __init__(self, configured: TrialNode, plan: TrialPlan, journal: Journal, age_s: float = 0.0) -> None:
        """``age_s`` is the age of the trial now; what it should have done earlier is left out."""
        self._plan, self._journal = plan, journal
        self._node: Node
        self._began_s = time.monotonic() - age_s
        self._spread = sorted((entry for entry in plan.spread if entry.at_s >= age_s), key=lambda entry: entry.at_s)
        self._ended = threading.Event()
        self._publishing = threading.Thread(target=self._publish_on, name="trial", daemon=True)
        self._asked = 0
        self._asking: set[asyncio.Task[None]] = set()
        configured.on_event(self._happened)
        configured.on_advert(self._found)

    def begin(self, node: Node) -> None:
        """Called on the event loop when the node is open. :raises InvalidKey: a key of the plan is invalid."""
        self._node = node
        for expression in self._plan.subscribe:
            self._node.subscribe(expression, callback=self._delivered, own=False, history=False)
        self._publishers = [
            self._node.publisher(
                stream.key, sensor="trial", priority=stream.priority, lifespan_ms=stream.lifespan_ms, hops=stream.hops
            )
            for stream in self._plan.publish
        ]
        self._publishing.start()
        for requests in self._plan.infer:
            self._run(self._ask_on(requests))
        self._journal.note("ready", self._node.id, self._node.port, time.process_time_ns())

    def end(self, node: Node) -> None:
        """Write the node's counters into the journal; called before the node is closed."""
        self._ended.set()
        for task in tuple(self._asking):
            task.cancel()
        self._publishing.join()
        drops = [[peer, key, reason, count] for (peer, key, reason), count in node.drops()]
        self._journal.note("ended", node.id, time.process_time_ns(), node.statistics(), drops, self._journal.lost)

    def _publish_on(self) -> None:
        streams = self._plan.publish
        values = [bytes(stream.size_bytes) for stream in streams]
        ready_s = time.monotonic()
        dues_s = [ready_s + stream.phase_s for stream in streams]
        while dues_s or self._spread:
            entry_s = [self._began_s + self._spread[0].at_s] if self._spread else []
            if self._ended.wait(max(0.0, min(dues_s + entry_s) - time.monotonic())):
                return
            self._put_entries()
            for index, stream in enumerate(streams):
                if dues_s[index] > time.monotonic():
                    continue
                before_ns = time.monotonic_ns()
                try:
                    put = self._publishers[index].put(values[index])
                except (InvalidKey, NotPermitted) as error:
                    self._journal.note("failed", stream.key, str(error))
                    return
                self._journal.note_at(before_ns, "published", stream.key, put.sequence, put.queued, put.dropped)
                # A sender that was held up skips what is late and does not make up for it in a burst.
                behind = max(0.0, time.monotonic() - dues_s[index]) * stream.rate_hz
                dues_s[index] += (int(behind) + 1) / stream.rate_hz

    def _put_entries(self) -> None:
        while self._spread and self._began_s + self._spread[0].at_s <= time.monotonic():
            before_ns = time.monotonic_ns()
            size_bytes = self._spread.pop(0).size_bytes
            try:
                version = self._node.put_entry(ENTRY_KIND, bytes(size_bytes), _ENTRY_LIFETIME_S)
            except MeshError as error:  # beside a long certificate fewer bytes fit
                self._journal.note("failed", ENTRY_KIND, str(error))
                continue
            self._journal.note_at(before_ns, "entry", self._node.id, ENTRY_KIND, version, self._node.id)

    # --- inferences: on the event loop -----------------------------------------------------------------------------
    def _run(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(what)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask_on(self, requests: TrialRequests) -> None:
        due_s = self._began_s + requests.phase_s
        while True:
            behind = (time.monotonic() - due_s) * requests.rate_hz
            if behind > 0:
                due_s += (int(behind) + 1) / requests.rate_hz
            await asyncio.sleep(due_s - time.monotonic())
            self._run(self._ask(requests))

    async def _ask(self, requests: TrialRequests) -> None:
        self._asked += 1
        number, note = self._asked, self._journal.note
        stamp = f"{self._node.id} {self._node.incarnation} {number} ".encode()[-ECHOED_BYTES:].rjust(ECHOED_BYTES)
        data = (stamp + bytes(requests.input_bytes))[: requests.input_bytes]
        note("asked", number, requests.model, requests.deadline_ms)
        try:
            result = await self._node.infer(
                requests.model, {INPUT: tensor_of(data)}, deadline_ms=requests.deadline_ms, hedge=True
            )
        except MeshError as error:
            note("result", number, "", 0, _failure(error), None)
            return
        answer = result.outputs[OUTPUT].tobytes()
        right = bool(answer) and answer == echoed(data, len(answer))
        note("result", number, result.ran_on, int(result.took_ms * limits.MS), "", right)

    # --- what happens: any thread ----------------------------------------------------------------------------------
    def _delivered(self, reading: Reading) -> None:
        self._journal.note("delivered", reading.origin, reading.key, reading.sequence)

    def _found(self, node: NodeId) -> None:
        self._journal.note("found", node)

    def _happened(self, event: Event) -> None:
        note = self._journal.note
        match event:
            case NeighbourMet():
                note("met", event.node, event.took_ns)
            case NeighbourSuspected():
                note("suspected", event.node, event.because)
            case NeighbourRefuted():
                note("refuted", event.node)
            case NeighbourDead():
                note("dead", event.node, event.silent_ns)
            case NeighbourLeft():
                note("left", event.node, event.reason)
            case PeerRefused():
                note("refused", event.who, event.code, event.detail)
            case EntryAccepted():
                note("entry", event.author, event.kind, event.version, event.source)
            case Answered():
                runs = [(run.node, run.outcome, run.took_ns) for run in event.attempts]
                note("answered", event.winner.node if event.winner else "", event.took_ns, event.failure, runs)
            case EntryRefused():
                note("entry_refused", event.source, event.author, event.kind, event.version, event.because)
            case _:
                note("event", type(event).__name__)


def _failure(error: MeshError) -> str:
    """The failure in the words of ``protocols.inference.events.Answered``."""
    match error:
        case BudgetExhausted():
            return "late"
        case InputInvalid():
            return "invalid"
        case ModelUnknown():
            return "unknown"
        case _:
            return "failed"
