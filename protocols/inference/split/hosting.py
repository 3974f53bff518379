"""The stages that this node runs for neighbours: parts of models that they have cut.

The life of one:

    asked ──▶ finding ──on the disk──▶ loading ──▶ ready ──▶ dropped
                 └─ not there ─▶ fetching ──▲       (idle for a while, or its place is needed)

Rules:

1. A stage is taken only when the configuration says so, and when the table of access lets the neighbour have the whole
   model computed here.
2. Whoever asked for a stage first pays for its place and its bytes. When these are used up, the payer that holds most
   gives way with the stage that was asked for longest ago; a stage that is being run ends with an error, and its caller
   goes on elsewhere.
3. This node fetches the bytes chunk by chunk, in order, at most ``WINDOW`` ahead, and from one neighbour at a time. So
   a neighbour can neither fill the memory nor write what was not asked for. A short rest is asked for alone, because a
   small frame travels by the realtime lane and overtakes large ones. The digest decides at the end.
4. A stage that nobody has used or asked for within ``IDLE_NS`` is dropped, because it takes memory.
"""

from typing import Final

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.ids import NodeId, Role
from protocols.base.shares import Shares
from protocols.base.time import NEVER
from protocols.inference.events import Decided
from protocols.inference.split.events import DropStage, FindStage, LoadStage, StoreChunk, stage_name
from protocols.inference.split.views import HostedView
from protocols.links.drops import Drops
from protocols.wire.inference import StageAsked, StageChunk, StageState, StageWanted

MAX_HOSTED: Final = 16
"""Stages held for neighbours, unless the configuration says fewer. Each that is ready is a process with a part of a
model."""
MAX_HOSTED_BYTES: Final = 2 * limits.MAX_STAGE_BYTES
WINDOW: Final = 4
"""Chunks that were asked for and have not come."""
FETCH_TIMEOUT_NS: Final = 10 * limits.SECOND
"""A fetch without a new chunk for this long has failed. A chunk takes a second at 1 Mb/s."""
LOAD_TIMEOUT_NS: Final = 120 * limits.SECOND
"""Two gigabytes from a slow memory card; afterwards the place is needed for others."""
IDLE_NS: Final = 60 * limits.SECOND
FRAMES_PER_S: Final = 100
MAX_FRAME_BURST: Final = 200
"""Frames about stages of one neighbour that are looked at, beside the chunks that were asked for."""
_LOOK_NS: Final = limits.SECOND


class _Hosted:
    __slots__ = (
        "askers", "asked_ns", "compute_ns", "digest", "have", "model", "payer", "source", "state", "used_ns", "wanted",
        "size_bytes", "whole",
    )  # fmt: skip

    def __init__(self, frame: StageAsked, source: NodeId, now: int) -> None:
        self.digest, self.model, self.whole, self.size_bytes = frame.digest, frame.model, frame.whole, frame.size_bytes
        self.payer = self.source = source
        self.askers: dict[NodeId, str] = {source: frame.model}
        """Those in reach that want it, and what they call the whole model."""
        self.state = "finding"
        self.asked_ns = self.used_ns = now
        self.have = self.wanted = 0
        """Bytes that have come, and bytes that were asked for."""
        self.compute_ns = 0


class Hosting:
    """The stages of neighbours at this node."""

    def __init__(self, node: NodeId, access: AccessTable, drops: Drops, decided: Decided) -> None:
        self._node, self._access, self._drops, self._decided = node, access, drops, decided
        self.accepts = False
        """Whether this node takes stages at all …"""
        self.places = MAX_HOSTED
        """… and how many at the same time."""
        self.hosted: dict[str, _Hosted] = {}
        """By digest, the one that was asked for longest ago first."""
        self._places: Shares[NodeId] = Shares()
        self._bytes: Shares[NodeId] = Shares()
        self._allowances: dict[NodeId, Allowance] = {}
        self._look_ns = NEVER
        self.taken = self.refused = self.dropped = 0
        """Counters: stages that became ready, that were refused, and that gave way or were no longer used."""

    # --- frames ----------------------------------------------------------------------------------------------------
    def asked(self, frame: StageAsked, source: NodeId, role: Role, now: int) -> None:
        """A neighbour wants to have a stage run here."""
        if not self._may_ask(source, now):
            return
        hosted = self.hosted.get(frame.digest)
        why = self._why_not(frame, source, role)
        if why:
            self.refused += 1
            self._tell(source, StageState(frame.digest, "refused", why[: limits.MAX_TEXT_CHARS]))
        elif hosted is not None:
            hosted.askers[source] = frame.model
            hosted.used_ns = now
            self.hosted[frame.digest] = self.hosted.pop(frame.digest)
            if hosted.state == "ready":
                self._tell(source, _ready(hosted))
        elif not self._make_room(source, frame.size_bytes):
            self.refused += 1
            self._tell(source, StageState(frame.digest, "busy", f"{self._node} holds {len(self.hosted)} stages"))
        else:
            self.hosted[frame.digest] = _Hosted(frame, source, now)
            self._places.add(source)
            self._bytes.add(source, frame.size_bytes)
            self._look_ns = min(self._look_ns, now + _LOOK_NS)
            self._decided.effects.append(FindStage(frame.digest, frame.model, frame.whole, frame.size_bytes))

    def _why_not(self, frame: StageAsked, source: NodeId, role: Role) -> str:
        if not self.accepts:
            return f"{self._node} takes no stages: set 'accept_stages' in [inference] there"
        if not self._access.permits_infer(role, source, frame.model):
            return f"{self._node} may not compute {frame.model!r} for {source}"
        if frame.size_bytes > limits.MAX_STAGE_BYTES:
            return f"a stage may have {limits.MAX_STAGE_BYTES} bytes, not {frame.size_bytes}: cut the model more often"
        return ""

    def chunk(self, frame: StageChunk, source: NodeId, now: int) -> None:
        """The bytes that were wanted come in."""
        hosted = self.hosted.get(frame.digest)
        if hosted is None or not self.expects(frame, source):
            if self._may_ask(source, now):
                self._drops.count(source, "", "stage_not_wanted")
            return
        hosted.have += len(frame.data)
        hosted.asked_ns = now
        self._decided.effects.append(StoreChunk(frame.digest, frame.offset, frame.data))
        if hosted.have == hosted.size_bytes:
            hosted.state = "loading"
            self._decided.effects.append(LoadStage(hosted.digest, hosted.model))
        else:
            self._fetch(hosted)

    def expects(self, frame: StageChunk, source: NodeId) -> bool:
        """Whether this chunk is the next that this neighbour was asked for."""
        hosted = self.hosted.get(frame.digest)
        if hosted is None or hosted.state != "fetching" or hosted.source != source or frame.offset != hosted.have:
            return False
        return len(frame.data) == min(limits.STAGE_CHUNK_BYTES, hosted.size_bytes - hosted.have)

    def _fetch(self, hosted: _Hosted) -> None:
        """Ask for the next chunks."""
        ahead_bytes = WINDOW * limits.STAGE_CHUNK_BYTES
        while hosted.wanted < hosted.size_bytes and hosted.wanted - hosted.have < ahead_bytes:
            if hosted.size_bytes - hosted.wanted < limits.STAGE_CHUNK_BYTES and hosted.have < hosted.wanted:
                break
            self._tell(hosted.source, StageWanted(hosted.digest, hosted.wanted))
            hosted.wanted += limits.STAGE_CHUNK_BYTES

    # --- what the driver found -------------------------------------------------------------------------------------
    def found(self, digest: str, is_there: bool, now: int) -> None:
        """The driver has looked for the bytes of a stage on the disk."""
        hosted = self.hosted.get(digest)
        if hosted is None or hosted.state != "finding":
            return
        hosted.asked_ns = now
        if is_there:
            hosted.state = "loading"
            self._decided.effects.append(LoadStage(digest, hosted.model))
        elif not hosted.askers:
            self._drop(hosted)
        else:
            if hosted.source not in hosted.askers:
                hosted.source = next(iter(hosted.askers))
            hosted.state = "fetching"
            self._fetch(hosted)

    def loaded(self, digest: str, compute_ns: int, now: int) -> None:
        """A stage is loaded, and runs of it take ``compute_ns``."""
        hosted = self.hosted.get(digest)
        if hosted is not None and hosted.state == "loading":
            hosted.state, hosted.compute_ns, hosted.used_ns = "ready", compute_ns, now
            self.taken += 1
            for asker in hosted.askers:
                self._tell(asker, _ready(hosted))

    def failed(self, digest: str, why: str) -> None:
        """A stage can't be stored or loaded."""
        hosted = self.hosted.get(digest)
        if hosted is not None:
            self._drop(hosted, "failed", f"{self._node}: {why}")

    def used(self, digest: str, now: int) -> None:
        """A run of a stage was asked for."""
        hosted = self.hosted.get(digest)
        if hosted is not None:
            hosted.used_ns = now

    # --- places ----------------------------------------------------------------------------------------------------
    def _may_ask(self, source: NodeId, now: int) -> bool:
        allowance = self._allowances.get(source)
        if allowance is None:
            allowance = self._allowances[source] = Allowance(FRAMES_PER_S, MAX_FRAME_BURST, now)
        if allowance.take(now):
            return True
        self._drops.count(source, "", "too_many_stages")
        return False

    def _make_room(self, source: NodeId, size_bytes: int) -> bool:
        """Whether there is room now. The largest holder gives way if it holds more than ``source`` would."""
        while True:
            if self._places.total >= self.places:
                shares, more = self._places, 1
            elif self._bytes.total + size_bytes > MAX_HOSTED_BYTES:
                shares, more = self._bytes, size_bytes
            else:
                return True
            largest = shares.largest()
            if largest != source and shares.held(largest) <= shares.held(source) + more:
                return False
            self._drop(next(each for each in self.hosted.values() if each.payer == largest), "dropped", (
                f"{self._node} needs its place"
            ))  # fmt: skip

    def _drop(self, hosted: _Hosted, state: str = "", detail: str = "") -> None:
        """Forget a stage. ``state``: what those who asked for it are told; empty: nothing."""
        del self.hosted[hosted.digest]
        self._places.remove(hosted.payer)
        self._bytes.remove(hosted.payer, hosted.size_bytes)
        self.dropped += 1
        self._decided.effects.append(DropStage(hosted.digest))
        if state:
            for asker in hosted.askers:
                self._tell(asker, StageState(hosted.digest, state, detail[: limits.MAX_TEXT_CHARS]))  # type: ignore[arg-type]

    def _tell(self, node: NodeId, frame: StageState | StageWanted) -> None:
        self._decided.messages.append((node, frame))

    # --- neighbours and time ---------------------------------------------------------------------------------------
    def neighbour_gone(self, node: NodeId) -> None:
        """A neighbour is gone. What it asked for stays until it is idle; a fetch from it ends."""
        self._allowances.pop(node, None)
        for hosted in list(self.hosted.values()):
            hosted.askers.pop(node, None)
            if hosted.state == "fetching" and hosted.source == node:
                self._drop(hosted, "failed", f"{node} left before all bytes had come: ask again")

    def handle_timer(self, now: int) -> None:
        """Drop what is idle, and what does not get on."""
        if now < self._look_ns:
            return
        for hosted in list(self.hosted.values()):
            if hosted.state == "ready":
                if now - hosted.used_ns >= IDLE_NS:
                    self._drop(hosted, "dropped", f"{self._node} was not asked for it for {IDLE_NS // limits.SECOND} s")
            elif hosted.state == "fetching":
                if now - hosted.asked_ns >= FETCH_TIMEOUT_NS:
                    self._drop(hosted, "failed", f"{hosted.source} sent no bytes of it")
            elif now - hosted.asked_ns >= LOAD_TIMEOUT_NS:
                self._drop(hosted, "failed", f"{self._node} has not loaded it in time")
        self._look_ns = now + _LOOK_NS if self.hosted else NEVER

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return self._look_ns

    def name_of(self, digest: str) -> str:
        """By which name a stage is loaded; empty: it is not held."""
        hosted = self.hosted.get(digest)
        return stage_name(hosted.model, digest) if hosted is not None else ""

    def whole_of(self, digest: str, source: NodeId) -> str:
        """What a neighbour calls the model of a stage that it has asked for; empty: it has not."""
        hosted = self.hosted.get(digest)
        return hosted.askers.get(source, "") if hosted is not None else ""

    def view(self, now: int) -> list[HostedView]:
        """Each stage, the one that was asked for longest ago first."""
        return [
            HostedView(
                hosted.model, hosted.digest, hosted.state, tuple(hosted.askers), hosted.payer, hosted.size_bytes,
                hosted.have if hosted.state in ("finding", "fetching") else hosted.size_bytes, hosted.compute_ns,
                max(now - hosted.used_ns, 0),
            )
            for hosted in self.hosted.values()
        ]  # fmt: skip


def _ready(hosted: _Hosted) -> StageState:
    return StageState(hosted.digest, "ready", "", hosted.compute_ns // 1_000)
