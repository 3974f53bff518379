"""Batches that are divided among this node and its neighbours: shards, each an ordinary request.

    waiting ──a node has a place──▶ under way ──answer──▶ joined, in order ──▶ one answer when all are
                                        │ a node is idle, nothing waits: the shard that would end last is begun
                                        └ there as well; the first answer wins, and the other run is cancelled

Rules:

1. Who gets a shard, and how large shards are, is the business of :mod:`protocols.inference.split.batches.sharing`.
2. When nothing waits, an idle node begins the shard that is predicted to end last, if it would end clearly sooner
   there. A run that is late by its own prediction is expected to take as long again.
3. All runs have the size that was chosen at the beginning, and the last one may be smaller. A run of one row may take
   another kernel than a run of many: equal runs give equal bits. A shard is one run, whose size is in the answer; of a
   model that takes a fixed number of rows at a time, it is several.
4. A shard that fails is tried elsewhere by :mod:`protocols.inference.asking`. What fails everywhere fails the batch. If
   it has several runs, each of them is tried by itself before: the answer may be too large, and an error names a run.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from math import ceil
from typing import Final

from msgspec import structs

from protocols.base import limits
from protocols.base.errors import BoundExceeded, InputInvalid, ModelUnknown
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.inference.asking import Asking
from protocols.inference.costs import Demand, Services
from protocols.inference.events import Answered, PartReport, RunReport
from protocols.inference.loads import OwnQueue
from protocols.inference.placement import GAIN_NS
from protocols.inference.requests import OwnRun
from protocols.inference.signature import outputs_of_each
from protocols.inference.split.batches.rows import MAX_SHARDS, Joined, Room, Rows, zeroed_room
from protocols.inference.split.batches.sharing import (
    MAX_SHARD_BYTES,
    AbleNode,
    Sharing,
    in_order,
    next_node,
    with_runs,
)
from protocols.wire.tensors import NamedTensor

MAX_COPIES: Final = 3
"""Nodes that may run one shard at the same time: a neighbour that stalls, another one that does, and this node."""
MAX_SHARDED: Final = 16
"""Batches under way …"""
MAX_SHARDED_BYTES: Final = 1024 * 1024 * 1024
"""… and what their inputs and outputs take."""
HANDED_AT_ONCE: Final = 16
HANDED_BYTES_AT_ONCE: Final = 4 * 1024 * 1024
"""Shards that are handed out in one call, and their inputs, which are encoded. See
:mod:`protocols.inference.moves`; the next ones follow …"""
HAND_PAUSE_NS: Final = 1 * limits.MS
"""… after this."""
LOOK_NS: Final = 50 * limits.MS
"""How often nodes are looked at when nothing ends: one may have come, or may be asked again."""


class _Shard:
    """A part of a batch."""

    __slots__ = ("attempts", "began_ns", "children", "count", "doubted", "first", "runs")

    def __init__(self, first: int, count: int, runs: int) -> None:
        """``first``: its first row. ``count``: its rows."""
        self.first, self.count, self.runs = first, count, runs
        self.began_ns = 0
        self.children: set[int] = set()
        """The requests under way for it."""
        self.attempts: list[RunReport] = []
        self.doubted: NodeId | None = None
        """The neighbour whose outputs do not follow the batch: either it lies, or the model can't be divided."""


class _Sharded:
    """A batch under way."""

    __slots__ = (
        "again", "asked_ns", "attempts", "deadline_ns", "demand", "doubted", "grows", "hedge", "held_bytes", "joined",
        "joined_rows", "look_ns", "model", "next_row", "number", "outputs", "parts", "rows", "size", "under_way",
    )  # fmt: skip

    def __init__(
        self, number: int, model: str, digest: str, rows: Rows, size: int, outputs: tuple[str, ...], now: int,
        budget_ns: int, hedge: bool, room: Room, grows: bool,
    ) -> None:  # fmt: skip
        """``size``: rows of a run. ``room``: for its outputs. ``grows``: whether a shard may have several runs."""
        self.number, self.model, self.rows, self.size, self.outputs = number, model, rows, size, outputs
        self.demand = Demand(digest, rows.shard_bytes(min(size, rows.count)))
        """Of one run."""
        self.asked_ns, self.deadline_ns, self.hedge, self.grows = now, now + budget_ns, hedge, grows
        self.next_row = 0
        """The first one that is in no shard yet."""
        self.again: deque[_Shard] = deque()
        """Shards that have to be begun once more."""
        self.under_way: dict[int, _Shard] = {}
        """By their first row, in the order in which they were begun."""
        self.joined = Joined(rows.count, room)
        self.joined_rows = 0
        self.doubted: set[NodeId] = set()
        """Those that get no more of it, see :meth:`Shards._doubt`."""
        self.parts: dict[int, PartReport] = {}
        """By their first row."""
        self.attempts: list[RunReport] = []
        self.held_bytes = rows.count * rows.row_bytes + rows.same_bytes
        self.look_ns = now

    @property
    def waits(self) -> bool:
        """Whether there is something that nobody has begun."""
        return bool(self.again) or self.next_row < self.rows.count

    def runs_of(self, rows: int) -> int:
        """How many runs so many rows are."""
        return ceil(rows / self.size)

    def next_shard(self, runs: int) -> _Shard:
        """What is to be begun next, of at most so many runs; :meth:`begun` tells that it was."""
        if self.again:
            return self.again[0]
        first, left = self.next_row, self.rows.count - self.next_row
        if runs > 1:
            runs = self.rows.fitting(first, min(runs, self.runs_of(left)), MAX_SHARD_BYTES)
        return _Shard(first, min(runs * self.size, left), runs)

    def begun(self, shard: _Shard) -> None:
        """A shard that waited is under way."""
        if self.again and self.again[0] is shard:
            self.again.popleft()
        else:
            self.next_row = shard.first + shard.count

    def misfit(self, shard: _Shard, outputs: Sequence[NamedTensor]) -> str:
        """Why ``outputs`` can't be those of a shard; empty: they can."""
        rows = shard.count // shard.runs
        each = (self.joined.misfit(rows, given) for given in outputs_of_each(outputs, shard.runs))
        return next(filter(None, each), "")

    def in_order(self) -> tuple[PartReport, ...]:
        """The reports of the shards that have ended, numbered by their place among them."""
        return tuple(
            structs.replace(self.parts[first], index=index) for index, first in enumerate(sorted(self.parts))
        )  # fmt: skip


class Shards:
    """The batches under way."""

    def __init__(
        self, node: NodeId, asking: Asking, services: Services, own_queue: OwnQueue, numbers: Iterator[int]
    ) -> None:  # fmt: skip
        """``services``: what runs on this node have taken."""
        self._node, self._asking, self._numbers = node, asking, numbers
        self._sharing = Sharing(node, asking, services, own_queue)
        self.room: Room = zeroed_room
        """Memory for the joined outputs of a batch. A driver may give its own."""
        self._sharded: dict[int, _Sharded] = {}
        self._of_child: dict[int, tuple[_Sharded, _Shard]] = {}
        self._strays: set[int] = set()
        """Children of batches that are gone, whose ends are on their way."""
        self._ended: list[Answered] = []
        self.counters = {"sharded": 0, "sharded_failed": 0, "shards_joined": 0, "shards_stolen": 0}

    # --- begun -----------------------------------------------------------------------------------------------------
    def begin(
        self, model: str, inputs: tuple[NamedTensor, ...], outputs: tuple[str, ...], budget_ns: int, hedge: bool,
        now: int, divided: Sequence[str] = (), size: int = 0,
    ) -> tuple[int, list[Answered]]:  # fmt: skip
        """See :meth:`protocols.inference.machine.Inference.ask_batch`. Returns the number of the batch, and its answer
        if it ended at once."""
        digest = self._asking.require_digest(model)
        rows = Rows(model, self._asking.signature_of(model), inputs, outputs, divided)
        held = sum(sharded.held_bytes for sharded in self._sharded.values())
        size_bytes = rows.count * rows.row_bytes + rows.same_bytes
        if len(self._sharded) >= MAX_SHARDED or held + size_bytes > MAX_SHARDED_BYTES:
            raise BoundExceeded(
                f"{len(self._sharded)} batches with {held} bytes are in flight, and one of {size_bytes} bytes would be "
                f"too much (at most {MAX_SHARDED}, and {MAX_SHARDED_BYTES} bytes): wait for answers, or give fewer rows"
            )
        number = next(self._numbers)
        grows = rows.unit > 0 and not size
        size = self._checked(model, rows, size) if size else self._sharing.size(model, digest, rows, budget_ns, now)
        if ceil(rows.count / size) > MAX_SHARDS:
            raise InputInvalid(
                f"{rows.count} rows of model {model!r} in shards of {size} are more than {MAX_SHARDS} shards: give "
                f"{MAX_SHARDS * size} rows at a time"
            )
        sharded = _Sharded(number, model, digest, rows, size, outputs, now, budget_ns, hedge, self.room, grows)
        self._sharded[number] = sharded
        self.counters["sharded"] += 1
        self._hand_out(sharded, now)
        return number, self._answers()

    def _checked(self, model: str, rows: Rows, size: int) -> int:
        if size < 0 or (rows.unit and size != rows.unit):
            can = f"takes {rows.unit} rows at a time" if rows.unit else "needs at least one row in each"
            raise InputInvalid(f"shards of {size} rows are wrong: model {model!r} {can}")
        return size

    # --- handed out ------------------------------------------------------------------------------------------------
    def _busy(self, sharded: _Sharded) -> "Counter[NodeId]":
        """How many shards of a batch each node has."""
        return Counter(run.node for shard in sharded.under_way.values() for run in self._runs(shard))

    def _runs(self, shard: _Shard) -> Iterator[OwnRun]:
        for child in shard.children:
            request = self._asking.requests.get(child)
            if request is not None:
                yield from request.runs.values()

    def _hand_out(self, sharded: _Sharded, now: int) -> None:
        """Give shards to the nodes that have places."""
        sharded.look_ns = now + LOOK_NS
        every = self._sharing.able(sharded.model, sharded.demand, self._busy(sharded), sharded.deadline_ns, now)
        if sharded.grows and sharded.joined_rows:  # it is known what the outputs of a run take
            waiting = sharded.runs_of(sharded.rows.count - sharded.next_row)
            every = with_runs(every, waiting, sharded.joined.most_runs(sharded.size, MAX_SHARD_BYTES))
        able = {each.node: self._when_late(sharded, each, now) for each in every if each.node not in sharded.doubted}
        handed_bytes = 0
        for _ in range(HANDED_AT_ONCE):
            if handed_bytes >= HANDED_BYTES_AT_ONCE:
                break
            begun = self._hand_one(sharded, list(able.values()), now)
            if begun is None:
                return
            node, runs = begun
            handed_bytes += runs * sharded.demand.size_bytes
            if node in able:
                able[node] = able[node].with_one_more(runs)
        sharded.look_ns = now + HAND_PAUSE_NS

    def _when_late(self, sharded: _Sharded, able: AbleNode, now: int) -> AbleNode:
        """A node that is late with a shard by its own prediction is not done with the next one as soon as predicted.
        Others are asked again when a shard becomes late."""
        late_ns = 0
        for shard in sharded.under_way.values():
            for run in self._runs(shard):
                if run.node != able.node:
                    continue
                if run.late_at <= now:
                    late_ns = max(late_ns, _end_ns(run, now) - now)
                else:
                    sharded.look_ns = min(sharded.look_ns, run.late_at)
        return able._replace(first_ns=max(able.first_ns, late_ns + able.pace_ns)) if late_ns else able

    def _hand_one(self, sharded: _Sharded, able: Sequence[AbleNode], now: int) -> tuple[NodeId, int] | None:
        """Begin a shard once more or for the first time. Returns where, and how many runs it has; None: there is none
        to begin now."""
        if not sharded.waits:
            return self._steal(sharded, able, now) if sharded.hedge else None
        chosen = next_node(able, sharded.runs_of(sharded.rows.count - sharded.joined_rows))
        if chosen is None and sharded.under_way:
            return None
        node, runs = (chosen.node, chosen.runs) if chosen is not None else (self._node, 1)  # asking says why nobody is
        shard = sharded.next_shard(runs)
        if not self._start(sharded, shard, node, now):
            return None
        sharded.begun(shard)
        return node, shard.runs

    def _start(self, sharded: _Sharded, shard: _Shard, node: NodeId, now: int) -> bool:
        """Begin a run of a shard. False: that is not possible now, or the batch has failed by it."""
        if sharded.number not in self._sharded:
            return False
        model, budget_ns = sharded.model, max(sharded.deadline_ns - now, 0)
        digest = sharded.demand.digest
        if not self._asking.means(model, digest):
            self._fail(sharded, shard, "failed", f"{model!r} stands for another file now: ask again", now)
            return False
        inputs = sharded.rows.shard(shard.first, shard.count)
        try:
            if self._asking.digest_of(model) is None:
                digest = ""  # it says who is known
            child = self._asking.ask(model, inputs, sharded.outputs, budget_ns, False, now, node, digest)
        except BoundExceeded:
            return False  # others have all places for requests
        except ModelUnknown as error:
            self._fail(sharded, shard, "unknown", str(error), now)
            return False
        shard.began_ns = shard.began_ns or now
        shard.children.add(child)
        sharded.under_way[shard.first] = shard
        self._of_child[child] = (sharded, shard)
        return True

    # --- the tail --------------------------------------------------------------------------------------------------
    def _steal(self, sharded: _Sharded, able: Sequence[AbleNode], now: int) -> tuple[NodeId, int] | None:
        """Have an idle node begin the shard that would end last. Returns which one, and how many runs that has; None:
        none has."""
        ends: list[tuple[int, _Shard, set[NodeId]]] = []
        for shard in sharded.under_way.values():
            runs = list(self._runs(shard))
            late_ns = [run.late_at for run in runs if run.late_at > now]
            sharded.look_ns = min(sharded.look_ns, *late_ns) if late_ns else sharded.look_ns
            if runs and len(shard.children) < MAX_COPIES:
                ends.append((min(_end_ns(run, now) for run in runs), shard, {run.node for run in runs}))
        for thief in in_order([each for each in able if each.is_idle]):
            theirs = [
                (end_ns, shard) for end_ns, shard, nodes in ends
                if thief.node not in nodes and shard.runs <= thief.most_runs
            ]  # fmt: skip
            if not theirs:
                continue
            end_ns, shard = max(theirs, key=lambda each: (each[0], each[1].first))
            last_ns = min(end_ns, sharded.deadline_ns) - GAIN_NS
            done_ns = now + thief.done_with_ns(shard.runs)
            if done_ns <= last_ns and self._start(sharded, shard, thief.node, now):
                self.counters["shards_stolen"] += 1
                return thief.node, shard.runs
        return None

    # --- ended -----------------------------------------------------------------------------------------------------
    def owns(self, child: int) -> bool:
        """Whether a request is a shard of a batch."""
        return child in self._of_child or child in self._strays

    def child_ended(self, event: Answered, now: int) -> list[Answered]:
        """A run of a shard has ended. Returns the answer of the batch if it has ended with it."""
        if event.request in self._strays:
            self._strays.discard(event.request)
            return []
        sharded, shard = self._of_child.pop(event.request)
        shard.children.discard(event.request)
        shard.attempts += event.attempts
        if event.winner is None:
            if event.failure == "invalid" or not shard.children:
                if shard.runs > 1:
                    self._divide(sharded, shard, now)
                else:
                    self._fail(sharded, shard, event.failure, event.detail, now)
        elif wrong := sharded.misfit(shard, event.outputs):
            self._doubt(sharded, shard, event.winner.node, wrong, now)
        else:
            self._join(sharded, shard, event.winner, event.outputs, now)
        if sharded.number in self._sharded:
            self._hand_out(sharded, now)
        return self._answers()

    def _divide(self, sharded: _Sharded, shard: _Shard, now: int) -> None:
        """Try the runs of a shard that has failed one by one."""
        self._drop_children(shard, now)
        del sharded.under_way[shard.first]
        sharded.attempts += shard.attempts
        starts = range(shard.first, shard.first + shard.count, sharded.size)
        sharded.again.extendleft(_Shard(first, sharded.size, 1) for first in reversed(starts))

    def _doubt(self, sharded: _Sharded, shard: _Shard, node: NodeId, wrong: str, now: int) -> None:
        """The outputs of a shard can't be joined: this node looks itself, if it can, before it blames the model."""
        can_look = node != self._node and self._asking.candidates.computes(sharded.model, sharded.demand)
        if not can_look:
            self._fail(sharded, shard, "invalid", wrong, now)
            return
        shard.doubted = node
        sharded.doubted.add(node)
        if not shard.children and not self._start(sharded, shard, self._node, now) and sharded.number in self._sharded:
            del sharded.under_way[shard.first]
            sharded.again.appendleft(shard)

    def _join(
        self, sharded: _Sharded, shard: _Shard, winner: RunReport, outputs: tuple[NamedTensor, ...], now: int
    ) -> None:
        if not sharded.parts:
            sharded.held_bytes += sharded.joined.bytes_with(shard.count, outputs)
            if sum(each.held_bytes for each in self._sharded.values()) > MAX_SHARDED_BYTES:
                self._fail(sharded, shard, "failed", f"all outputs would take more than {MAX_SHARDED_BYTES} bytes", now)
                return
        if shard.doubted is not None and winner.node == self._node:
            self._asking.was_wrong(shard.doubted, sharded.model, now)
        for run, given in enumerate(outputs_of_each(outputs, shard.runs)):
            sharded.joined.add(shard.first + run * sharded.size, given)
        self._drop_children(shard, now)
        del sharded.under_way[shard.first]
        self.counters["shards_joined"] += 1
        sharded.attempts += shard.attempts
        sharded.joined_rows += shard.count
        sharded.parts[shard.first] = PartReport(
            "shard", 0, winner.node, now - shard.began_ns, winner.queued_us, winner.compute_us,
            _size_bytes(sharded.rows.shard(shard.first, shard.count)), _size_bytes(outputs), len(shard.attempts) - 1,
            shard.count,
        )  # fmt: skip
        if sharded.joined_rows == sharded.rows.count:
            self._end(sharded, winner.node, now)

    def _drop_children(self, shard: _Shard, now: int) -> None:
        for child in shard.children:
            del self._of_child[child]
            request = self._asking.requests.get(child)
            if request is None:
                self._strays.add(child)  # it has ended too, and its end comes next
            else:
                self._asking.abandon(child, now)
                shard.attempts += request.attempts
        shard.children.clear()

    def _end(self, sharded: _Sharded, last: NodeId, now: int) -> None:
        parts = sharded.in_order()
        took_ns = now - sharded.asked_ns
        winner = RunReport(
            last, "done", took_ns, sum(part.queued_us for part in parts), sum(part.compute_us for part in parts)
        )
        del self._sharded[sharded.number]
        self._ended.append(Answered(
            sharded.number, winner, sharded.joined.tensors(), tuple(sharded.attempts), took_ns, model=sharded.model,
            parts=parts,
        ))  # fmt: skip

    def _fail(self, sharded: _Sharded, shard: _Shard | None, failure: str, detail: str, now: int) -> None:
        where = ""
        if failure == "late":
            done = f"{sharded.joined_rows} of {sharded.rows.count} rows of {sharded.model!r} were done"
            detail = f"{done}, and the others can't be in time: give it a later deadline, or fewer rows"
        elif shard is not None:
            last = shard.first + shard.count - 1
            which = f"row {last}" if shard.count == 1 else f"rows {shard.first} to {last}"
            where = f"{which} of {sharded.rows.count} of {sharded.model!r}: "
        self._forget(sharded, now)
        self.counters["sharded_failed"] += 1
        self._ended.append(Answered(
            sharded.number, None, (), tuple(sharded.attempts), now - sharded.asked_ns, failure, f"{where}{detail}",  # type: ignore[arg-type]
            sharded.model, sharded.in_order(),
        ))  # fmt: skip

    def _forget(self, sharded: _Sharded, now: int) -> None:
        del self._sharded[sharded.number]
        for shard in sharded.under_way.values():
            self._drop_children(shard, now)
            sharded.attempts += shard.attempts

    def _answers(self) -> list[Answered]:
        ended, self._ended = self._ended, []
        return ended

    def abandon(self, number: int, now: int) -> bool:
        """The caller no longer wants the answer. Returns whether it was a batch."""
        sharded = self._sharded.get(number)
        if sharded is not None:
            self._forget(sharded, now)
        return sharded is not None

    # --- time ------------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> list[Answered]:
        """End what is past its deadline, and look who can take a shard. Returns the answers of those that ended."""
        for sharded in list(self._sharded.values()):
            if now >= sharded.deadline_ns:
                self._fail(sharded, None, "late", "", now)
            elif now >= sharded.look_ns:
                self._hand_out(sharded, now)
        return self._answers()

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return min((min(each.deadline_ns, each.look_ns) for each in self._sharded.values()), default=NEVER)


def _end_ns(run: OwnRun, now: int) -> int:
    """When a run is expected to end."""
    if now < run.late_at:
        return run.started_ns + run.candidate.expected_ns
    return now + (now - run.started_ns)


def _size_bytes(tensors: Sequence[NamedTensor]) -> int:
    return sum(len(named.tensor.data) for named in tensors)
