"""What is on simulated pipes: frames in order, none lost, where a late frame holds up those behind it.

While its ends are out of reach a pipe stands still. It goes on when TCP tries again (RFC 6298: after 200 ms, doubled
each time, as Linux does). ``_WINDOW_FRAMES`` may be under way before a sender is held back.

Arrivals are rounded to a grid of ``TICK_NS`` and wait in the inbox of their receiver. Most of them cause nothing that
can be observed: they are readings that are not passed on, and signs of life. Such *calm* frames do not wake their
receiver. It takes them in later, each with the time of its arrival, before anything else happens to it. What waits for
its processor is handled in the order in which it came. All other frames wake their receiver in their tick. So do the
frames of a neighbour that it suspects, heartbeats that name suspects while it suspects a neighbour itself, and every
frame when it has subscriptions with deadlines.
"""

from collections.abc import Callable
from heapq import heappush
from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.links.flow import LATE_NS
from protocols.links.queues import LaneQueue
from sims.media.radio import Air
from sims.virtual.frames import END, SharedDecoder, SimFrame, readings_in
from sims.virtual.inbox import all_of, drop
from sims.virtual.node import Coming, Pipe, SimNode
from sims.virtual.simulation import Simulation

TICK_NS: Final = 50_000
"""Arrivals are rounded up to a multiple of it: a fortieth of the usual latency of a radio."""
FIRST_RETRY_NS: Final = 200 * limits.MS
_LONGEST_RETRY_NS: Final = 120 * limits.SECOND
BREAK_NS: Final = 924 * limits.SECOND
"""After this time Linux gives up a connection (tcp_retries2 = 15) …"""
_ORPHAN_NS: Final = 50 * limits.SECOND
"""… and one whose process is gone (tcp_orphan_retries = 8)."""
_WINDOW_FRAMES: Final = 64
"""The number of frames that may be under way on one pipe before the sender has to wait."""
_TLS_BYTES: Final = 22
"""What a TLS record adds to what it holds."""
_LOOK_NS: Final = 4 * limits.MS
"""A sender that waits looks that often whether more was confirmed."""
_LENGTH_BYTES: Final = 8
"""NNG puts its length before each frame."""


class Pipes:
    """All pipes of a simulation."""

    def __init__(self, simulation: Simulation, decoder: SharedDecoder) -> None:
        self._simulation, self._decoder = simulation, decoder
        self._processors = simulation.processors
        self._newest = END
        self.radio: Air | None = None
        """When it is set, all frames go through it. It gives the same times as the simulation's links, and faster."""
        self.on_shared: Callable[[SimNode], None] | None = None
        """Sends what waits for all listeners of a node."""
        self.woken: dict[int, list[SimNode]] = {}
        """The nodes that take in their frames in each tick …"""
        self.ticks: list[int] = []
        """… and the heap of these ticks."""
        self.standing: dict[int, Pipe] = {}
        """The pipes that stand still, by number."""
        self.frames = 0
        """How many frames were taken in."""
        self.late = 0
        """How many calm frames caused something all the same, which then happened too late."""
        self.readings_lost = 0
        """How many readings were on pipes when these broke. No engine could count them."""

    def flush(  # noqa: C901, PLR0912, PLR0915  # calls cost too much here
        self, node: SimNode, lanes: list[LaneQueue], lone: bool = False, calm: bool = False
    ) -> None:
        """Send what an engine has for some lanes, as far as their windows are open. ``lone``: it has exactly one frame
        of readings for each lane. ``calm``: these readings are not passed on. This is the hot path, so it is one long
        method."""
        now = self._simulation.now
        full = False
        pace = node.engine.lanes.pace
        local = now + node.offset_ns if not node.drift_ppb else node.local(now)
        processors = self._processors
        for lane in lanes:
            pipe = lane.link
            if not isinstance(pipe, Pipe):
                pipe = lane.link = node.dialled.get(lane.dial)
                if pipe is None:  # the lane is not open
                    if lane.dial < 0 and self.on_shared is not None:
                        self.on_shared(node)
                    continue
                pipe.replaceable = node.engine.lanes.is_realtime(lane.dial)
            if pipe.aside or pipe.full:
                self._flush_aside(pipe)
                continue
            full = pipe.replaceable and bool(pipe.unconfirmed) and self._is_held(pipe, now, local)
            data = lane.take(local, full)
            while data is not None:
                frame = self._newest  # usually one neighbour after another gets the same frame
                if frame.data is not data:
                    frame = self._newest = self._decoder.frame_of(data, node.name)
                along = lane.take_along(len(data), local) if pace.active and pipe.replaceable else None
                size_bytes = len(data) + _LENGTH_BYTES
                if along:
                    size_bytes += sum(len(other) + _LENGTH_BYTES for other in along)
                came_ns = self._came_ns(pipe, size_bytes, now)
                if came_ns is None:
                    self._stand_still(pipe, frame)
                    for other in along or ():
                        self._put_aside(pipe, self._decoder.frame_of(other, node.name))
                    self._flush_aside(pipe)
                    break
                at_ns = came_ns + (pipe.cost_ns if not frame.sealed else frame.sealed * pipe.cost_ns)
                if processors is not None:
                    at_ns += processors.occupy(now, node.frame_ns + processors.packets_ns)
                if at_ns < pipe.last_ns:
                    at_ns = pipe.last_ns
                else:
                    pipe.last_ns = at_ns
                tick_ns = at_ns - at_ns % -TICK_NS
                pipe.under_way += 1
                pipe.inbox.append(Coming(tick_ns, pipe, frame))
                if pipe.replaceable:
                    self._under_way(pipe, at_ns, size_bytes + _TLS_BYTES, now)
                if along:
                    self._bring_along(pipe, along, tick_ns)
                receiver = pipe.receiver
                if not (calm or frame.calm) or receiver.attentive:
                    self._wake_at(receiver, tick_ns)
                elif receiver.suspects_any:
                    if frame.accuses or pipe.from_name in receiver.suspects:
                        self._wake_at(receiver, tick_ns)
                if pipe.under_way >= _WINDOW_FRAMES and self._is_full(pipe):
                    break
                if lone:
                    break
                full = pipe.flow.is_full(pipe.unconfirmed_bytes, local)
                data = lane.take(local, full)
            if full and lane and not pipe.looks:
                self._look_later(pipe)
        if (pace.active or node.engine.lanes.room.is_awaited) and node.engine.lanes.next_turn_at() != NEVER:
            self._simulation.arm(node)

    def _bring_along(self, pipe: Pipe, along: list[bytes], tick_ns: int) -> None:
        """Put frames on a pipe that are in one segment with the frame before them."""
        for data in along:
            frame = self._decoder.frame_of(data, pipe.from_name)
            pipe.under_way += 1
            pipe.inbox.append(Coming(tick_ns, pipe, frame))
            if not frame.calm or pipe.receiver.attentive or pipe.receiver.suspects_any:
                self._wake_at(pipe.receiver, tick_ns)

    # --- what is confirmed -----------------------------------------------------------------------------------------
    def _under_way(self, pipe: Pipe, at_ns: int, size_bytes: int, now: int) -> None:
        """Note that a frame which arrives at ``at_ns`` is under way until it is confirmed."""
        confirmed_ns = at_ns
        way = pipe.way
        if way is not None and way.far.free_ns > at_ns:  # the confirmation waits for what the receiver sends
            confirmed_ns += way.far.free_ns - at_ns
        pipe.unconfirmed.append((confirmed_ns, size_bytes))
        pipe.unconfirmed_bytes += size_bytes
        flow, node = pipe.flow, pipe.sender
        flow.sent_bytes += size_bytes
        if not flow.marked_ns:
            flow.measure(node.local(now))
            if node.engine.lanes.pace.active:
                self._simulation.push(min(confirmed_ns, now + flow.base_ns + LATE_NS) + 1, self._look, pipe)

    def _is_held(self, pipe: Pipe, now: int, local: int) -> bool:
        """Take in what was confirmed until now. Returns whether the sender hands over nothing more."""
        unconfirmed = pipe.unconfirmed
        while unconfirmed and unconfirmed[0][0] <= now:
            pipe.unconfirmed_bytes -= unconfirmed.popleft()[1]
        flow, lanes = pipe.flow, pipe.sender.engine.lanes
        sample = flow.confirmed(pipe.unconfirmed_bytes, local)
        if sample is not None:
            lanes.confirmed(pipe.dial, sample, local)
        return not lanes.pace.ended and flow.is_full(pipe.unconfirmed_bytes, local)

    def _look(self, pipe: Pipe) -> None:
        """A sender looks whether the frame that it measures was confirmed."""
        if pipe.sends and pipe.sender.running:
            self._is_held(pipe, self._simulation.now, pipe.sender.local(self._simulation.now))

    def _look_later(self, pipe: Pipe) -> None:
        pipe.looks = True
        self._simulation.push(max(pipe.unconfirmed[0][0], self._simulation.now + _LOOK_NS), self._look_again, pipe)

    def _look_again(self, pipe: Pipe) -> None:
        pipe.looks = False
        if pipe.sends and pipe.sender.running and pipe.sender.dialled.get(pipe.dial) is pipe:
            lane = pipe.sender.engine.lanes.of_dial.get(pipe.dial)
            if lane is not None:
                self.flush(pipe.sender, [lane])

    def _came_ns(self, pipe: Pipe, size_bytes: int, now: int) -> int | None:
        """See :meth:`sims.media.contract.Links.stream_ns`."""
        radio = self.radio
        if radio is None:
            return self._simulation.links.stream_ns(pipe.from_number, pipe.to_number, size_bytes, now)
        if pipe.way is None:
            pipe.way = radio.way(pipe.from_number, pipe.to_number)
        return radio.stream_along_ns(pipe.way, size_bytes, now)

    def send(self, pipe: Pipe, data: bytes) -> None:
        """Put a frame on its way behind everything that is on the pipe, whatever its window."""
        if self._newest.data is not data:
            self._newest = self._decoder.frame_of(data, pipe.from_name)
        self._send(pipe, self._newest)

    def send_end(self, pipe: Pipe) -> None:
        """Put the end of a pipe on its way behind everything that is on it."""
        self._send(pipe, END)

    def _send(self, pipe: Pipe, frame: SimFrame) -> None:
        if pipe.aside:
            self._put_aside(pipe, frame)
            return
        data = frame.data
        size_bytes = len(data) + _LENGTH_BYTES if data is not None else 0
        at_ns = self._simulation.links.stream_ns(pipe.sender.number, pipe.to_number, size_bytes, self._simulation.now)
        if at_ns is None:
            self._stand_still(pipe, frame)
            return
        cost_ns = pipe.cost_ns if not frame.sealed else frame.sealed * pipe.cost_ns
        if self._processors is not None and data is not None:
            work_ns = pipe.sender.frame_ns + self._processors.packets_ns
            cost_ns += self._processors.occupy(self._simulation.now, work_ns)
        pipe.last_ns = at_ns = max(at_ns + cost_ns, pipe.last_ns)
        tick_ns = at_ns - at_ns % -TICK_NS
        pipe.under_way += 1
        pipe.inbox.append(Coming(tick_ns, pipe, frame))
        self._wake_at(pipe.receiver, tick_ns)

    def _wake_at(self, node: SimNode, tick_ns: int) -> None:
        woken = self.woken.get(tick_ns)
        if woken is not None:
            woken.append(node)
        else:
            self.woken[tick_ns] = [node]
            heappush(self.ticks, tick_ns)

    def attend(self, node: SimNode, suspected: NodeId) -> None:
        """A node begins to suspect a neighbour. Frames on their way to it wake it from now on: those of that neighbour
        and, when it suspects nobody else, all others, because some may accuse the same neighbour."""
        for coming in all_of(node):
            if not node.suspects_any or coming.pipe.from_name == suspected:
                self._wake_for(coming)

    def _wake_for(self, coming: Coming) -> None:
        """Make a frame that is on its way wake its receiver."""
        node, tick_ns = coming.pipe.receiver, max(coming.tick_ns, self._simulation.now)
        woken = self.woken.get(tick_ns)
        if woken is None or node not in woken:
            self._wake_at(node, tick_ns)

    def _is_full(self, pipe: Pipe) -> bool:
        """Whether the sender has to wait. If so, it is told of each frame that is taken in from then on."""
        self._simulation.look(pipe.receiver)
        if pipe.under_way >= _WINDOW_FRAMES:
            pipe.full = True
            for coming in all_of(pipe.receiver):
                if coming.pipe is pipe:
                    self._wake_for(coming)
        return pipe.full

    def _put_aside(self, pipe: Pipe, frame: SimFrame) -> None:
        """The pipe stands still, or its far end is closed and the sender does not know it yet."""
        pipe.held.append(frame)
        if not pipe.hears:
            self.count_lost(pipe)

    def _flush_aside(self, pipe: Pipe) -> None:
        """The slow way of :meth:`flush`, for a pipe that stands still, whose far end is closed, or whose window was
        full."""
        node = pipe.sender
        local = node.local(self._simulation.now)
        while pipe.under_way + len(pipe.held) < _WINDOW_FRAMES:
            full = pipe.replaceable and bool(pipe.held) and pipe.flow.is_full(1, local)
            data = node.engine.next_frame(pipe.dial, local, full)
            if data is None:
                # Until it is empty, each frame put on it wakes the receiver. Otherwise a pipe that is full again and
                # again would have everything on its way to the receiver looked through each time.
                pipe.full = pipe.full and pipe.under_way > 0
                return
            pipe.flow.sent_bytes += len(data) + _LENGTH_BYTES + _TLS_BYTES
            if not pipe.flow.marked_ns:
                pipe.flow.measure(local)
            self.send(pipe, data)
        pipe.full = True

    def flush_one(self, pipe: Pipe) -> None:
        """Send what the engine has for one lane, if the sender's end is still open."""
        if pipe.sends:
            self._flush_aside(pipe)

    def _stand_still(self, pipe: Pipe, frame: SimFrame) -> None:
        pipe.aside = True
        pipe.held.append(frame)
        pipe.stalled_ns, pipe.wait_ns = self._simulation.now, FIRST_RETRY_NS
        self.standing[pipe.number] = pipe
        self.retry(pipe, self._resume_later)

    def retry(self, pipe: Pipe, action: Callable[[Pipe], None]) -> None:
        """Do something later, and after a longer pause each time."""
        self._simulation.push(self._simulation.now + pipe.wait_ns, action, pipe)
        pipe.wait_ns = min(2 * pipe.wait_ns, _LONGEST_RETRY_NS)

    def _resume_later(self, pipe: Pipe) -> None:
        if pipe.number not in self.standing or self.resume(pipe):
            return
        if self._simulation.now - pipe.stalled_ns < (BREAK_NS if pipe.sends else _ORPHAN_NS):
            self.retry(pipe, self._resume_later)
            return
        del self.standing[pipe.number]
        self.count_lost(pipe)
        if pipe.sends:
            self._simulation.give_up(pipe)

    def resume(self, pipe: Pipe) -> bool:
        """Send again what stands still. Returns False when it still stands."""
        sender, receiver, held = pipe.sender, pipe.receiver, pipe.held
        if self._simulation.links.stream_ns(sender.number, receiver.number, 0, self._simulation.now) is None:
            return False
        del self.standing[pipe.number]
        frames = list(held)
        held.clear()
        pipe.aside = False
        for frame in frames:
            self._send(pipe, frame)
        if sender.running:
            self.flush_one(pipe)
        return True

    def count_lost(self, pipe: Pipe) -> None:
        """What is on a pipe will never arrive. It still fills the window of a sender that does not know it yet."""
        if pipe.under_way:
            self.readings_lost += readings_in(drop(pipe))
        self.readings_lost += readings_in(pipe.held)
        unanswered = pipe.under_way + len(pipe.held) if pipe.sends and not pipe.hears else 0
        pipe.under_way = 0
        pipe.held.clear()
        pipe.held.extend([END] * unanswered)
