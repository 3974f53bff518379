"""What is on simulated pipes: frames in order, none lost, and what is late holds up what is behind it.

While the ends are out of reach a pipe stands still, and it goes on when TCP tries again (RFC 6298: after 200 ms,
doubled each time, as Linux does). ``_WINDOW_FRAMES`` may be under way before a sender is held back.

Arrivals are put on a grid of ``TICK_NS``, and all that arrives in one tick, anywhere, is one entry of a heap. The hot
path asks an engine for lanes to flush only, and for all the rest when it says that there is something.
"""

from collections.abc import Callable, Iterable, Sequence
from heapq import heappush
from typing import TYPE_CHECKING

from protocols import limits
from protocols.codec import decode_untrusted_node_frame, readings_in_own_frame
from protocols.errors import RemoteProtocolError
from protocols.messages import Heartbeat, Hello, NodeFrame, Readings
from protocols.queues import NEVER
from sims.node import MESH, Pipe, SimNode

if TYPE_CHECKING:
    from sims.driver import SimDriver

TICK_NS = 50_000
"""Arrivals are rounded up to this: a fortieth of the usual latency of a radio."""
FIRST_RETRY_NS = 200 * limits.MS
_LONGEST_RETRY_NS = 120 * limits.SECOND
BREAK_NS = 924 * limits.SECOND
"""Linux gives up a connection after so long (tcp_retries2 = 15) …"""
_ORPHAN_NS = 50 * limits.SECOND
"""… and one whose process is gone after so long (tcp_orphan_retries = 8)."""
_WINDOW_FRAMES = 64
"""Frames under way on one pipe before the sender is held back."""
_LENGTH_BYTES = 8
"""NNG's length before each frame."""
_NOTES = 1_024
_SHARED_FRAMES = 4_096
_SHARED_FRAME_BYTES = 4_096
_READINGS_TAG = 6
_ENTRIES_TAG = 14
_SEALED_COST = 6
"""How much more a frame with signed gossip entries costs than others. In the emulator 0.45 ms passed from putting an
entry in to the first frame, and 0.5 ms from a frame's arrival to telling others of its entry."""


class SharedDecoder:
    """Neighbours get the same bytes, and frames are frozen: one of them serves all."""

    def __init__(self) -> None:
        self.calm = False
        """Whether the last frame was one that can't bring a timer of its engine forward, but for the deadline of a
        subscription: readings, or a heartbeat that accuses nobody."""
        self._shared: dict[bytes | bytearray, NodeFrame] = {}

    def __call__(self, data: bytes | bytearray) -> NodeFrame:
        """As :func:`protocols.codec.decode_untrusted_node_frame`."""
        frame = self._shared.get(data)
        if frame is not None:
            self.calm = True
            return frame
        frame = decode_untrusted_node_frame(data)
        if type(frame) is Readings:
            self.calm = True
            if len(data) <= _SHARED_FRAME_BYTES:
                if len(self._shared) >= _SHARED_FRAMES:
                    self._shared.clear()
                self._shared[data] = frame
        else:
            self.calm = isinstance(frame, Heartbeat) and not frame.suspects
        return frame


class Pipes:
    """All pipes of a driver."""

    def __init__(self, driver: "SimDriver") -> None:
        self._driver = driver
        self.decoder = SharedDecoder()
        self.stream_ns = driver.links.stream_ns
        """Looked up once for the hot path; whoever knows a shorter way to the same answer may set it."""
        self.batches: dict[int, list[Pipe]] = {}
        """Pipes on which a frame arrives, by tick …"""
        self.ticks: list[int] = []
        """… and the heap of these ticks."""
        self.standing: dict[int, Pipe] = {}
        """Those that stand still."""
        self.frames = 0
        """That arrived."""
        self.readings_lost = 0
        """In frames on pipes when these broke, which no engine could count."""

    def flush(self, node: SimNode, dials: Iterable[int], once: bool = False) -> None:
        """Send what an engine has for some lanes, as far as their windows are open. ``once``: it has no more than one
        frame for each. Hot: written out in one piece."""
        now = self._driver.now
        local = now + node.offset_ns if not node.drift_ppb else node.local(now)
        next_frame, dialled, from_number = node.engine.next_frame, node.dialled, node.number
        stream_ns, batches = self.stream_ns, self.batches
        for dial in dials:
            pipe = dialled.get(dial)
            if pipe is None:
                continue
            if pipe.aside or pipe.full:
                self._flush_aside(pipe)
                continue
            under_way = pipe.under_way
            frame = next_frame(dial, local)
            while frame is not None:
                at_ns = stream_ns(from_number, pipe.to_number, len(frame) + _LENGTH_BYTES, now)
                if at_ns is None:
                    self._stand_still(pipe, frame)
                    self._flush_aside(pipe)
                    break
                at_ns += pipe.cost_ns if frame[1] != _ENTRIES_TAG else _SEALED_COST * pipe.cost_ns
                if at_ns < pipe.last_ns:
                    at_ns = pipe.last_ns
                else:
                    pipe.last_ns = at_ns
                under_way.append(frame)
                tick_ns = at_ns - at_ns % -TICK_NS
                batch = batches.get(tick_ns)
                if batch is not None:
                    batch.append(pipe)
                else:
                    batches[tick_ns] = [pipe]
                    heappush(self.ticks, tick_ns)
                if len(under_way) >= _WINDOW_FRAMES:
                    pipe.full = True
                    break
                if once:
                    break
                frame = next_frame(dial, local)

    def send(self, pipe: Pipe, frame: bytes | None) -> None:
        """Put a frame, or the end, on its way, behind all that is; windows don't matter."""
        if pipe.aside:
            self._put_aside(pipe, frame)
            return
        size_bytes = len(frame) + _LENGTH_BYTES if frame is not None else 0
        at_ns = self._driver.links.stream_ns(pipe.sender.number, pipe.to_number, size_bytes, self._driver.now)
        if at_ns is None:
            self._stand_still(pipe, frame)
            return
        cost_ns = pipe.cost_ns if frame is None or frame[1] != _ENTRIES_TAG else _SEALED_COST * pipe.cost_ns
        pipe.last_ns = at_ns = max(at_ns + cost_ns, pipe.last_ns)
        pipe.under_way.append(frame)
        tick_ns = at_ns - at_ns % -TICK_NS
        if tick_ns not in self.batches:
            self.batches[tick_ns] = []
            heappush(self.ticks, tick_ns)
        self.batches[tick_ns].append(pipe)

    def _put_aside(self, pipe: Pipe, frame: bytes | None) -> None:
        """The pipe stands still, or its far end is closed, which the sender does not know yet."""
        pipe.held.append(frame)
        if not pipe.hears:
            self.count_lost(pipe)

    def _flush_aside(self, pipe: Pipe) -> None:
        """The slow way, for a pipe that stands still, that nobody hears, or whose window was full."""
        node = pipe.sender
        local = node.local(self._driver.now)
        while len(pipe.under_way) + len(pipe.held) < _WINDOW_FRAMES:
            frame = node.engine.next_frame(pipe.dial, local)
            if frame is None:
                pipe.full = False
                return
            self.send(pipe, frame)
        pipe.full = True

    def _flush_one(self, pipe: Pipe) -> None:
        if pipe.sends:
            self._flush_aside(pipe)

    def _stand_still(self, pipe: Pipe, frame: bytes | None) -> None:
        pipe.aside = True
        pipe.held.append(frame)
        pipe.stalled_ns, pipe.wait_ns = self._driver.now, FIRST_RETRY_NS
        self.standing[pipe.number] = pipe
        self.retry(pipe, self._resume_later)

    def retry(self, pipe: Pipe, action: Callable[[Pipe], None]) -> None:
        """Do it later, and the next time later still."""
        self._driver.push(self._driver.now + pipe.wait_ns, action, pipe)
        pipe.wait_ns = min(2 * pipe.wait_ns, _LONGEST_RETRY_NS)

    def _resume_later(self, pipe: Pipe) -> None:
        if pipe.number not in self.standing or self.resume(pipe):
            return
        if self._driver.now - pipe.stalled_ns < (BREAK_NS if pipe.sends else _ORPHAN_NS):
            self.retry(pipe, self._resume_later)
            return
        del self.standing[pipe.number]
        self.count_lost(pipe)
        if pipe.sends:
            self._driver.when_awake(pipe.sender, self._driver.now, self._driver.connections.tell_dialler, pipe)

    def resume(self, pipe: Pipe) -> bool:
        """Send again what stands still. False: it still does."""
        sender, receiver, held = pipe.sender, pipe.receiver, pipe.held
        if self._driver.links.stream_ns(sender.number, receiver.number, 0, self._driver.now) is None:
            return False
        del self.standing[pipe.number]
        frames = list(held)
        held.clear()
        pipe.aside = False
        for frame in frames:
            self.send(pipe, frame)
        if pipe.full and sender.running:
            self._flush_one(pipe)
        return True

    def receive(self, pipes: Sequence[Pipe], tick_ns: int) -> None:  # noqa: C901, PLR0912  # calls cost too much here
        """Receivers take the next frame of each of these pipes, in this order: all that arrive in a tick. Hot: written
        out in one piece."""
        driver, decoder = self._driver, self.decoder
        observer, arrivals = driver.observer, driver.arrivals
        self.frames += len(pipes)
        for pipe in pipes:
            node = pipe.receiver
            if node.stalled_until_ns > tick_ns and pipe.hears:
                if node.stalled_until_ns > tick_ns + TICK_NS or node.backlog:
                    self._driver.wait(node, self._take, pipe)
                    continue
                busy_ns = node.stalled_until_ns  # for less than a tick: it waits its turn, in the same tick
            else:
                busy_ns = tick_ns
            if not pipe.hears or not pipe.greeted:
                self._take(pipe)
                continue
            data = pipe.under_way.popleft()
            if data is None:
                driver.connections.tell_listener(pipe)
                continue
            node.heard_ns[pipe.from_name] = tick_ns
            engine = node.engine
            local = tick_ns + node.offset_ns if not node.drift_ppb else node.local(tick_ns)
            decoder.calm = False
            deliveries = engine.receive(data, pipe.number, local, local + node.utc_less_mono_ns)
            if node.frame_ns:
                node.stalled_until_ns = busy_ns + node.frame_ns
            if deliveries:
                if not pipe.used or not pipe.verified:
                    pipe.used = True
                    observer.frame_accepted(node, pipe)
                for delivery in deliveries:
                    arrivals.append((tick_ns, node, delivery.reading))
            if not decoder.calm:
                driver.perform(node)
            else:
                flushes = engine.flushes()
                if flushes:
                    self.flush(node, flushes)
                elif flushes is None:
                    driver.perform(node)
                if node.has_deadlines and engine.deadline_at() != NEVER:
                    driver.arm_deadline(node)
            if pipe.full and pipe.sends:
                self._go_on(pipe)
        if len(arrivals) >= _NOTES:
            driver.tell()

    def _take(self, pipe: Pipe) -> None:
        """The receiver takes the next frame of a pipe: one that waited, or the first."""
        if not pipe.hears or not pipe.under_way:
            return
        if pipe.under_way[0] is not None and not pipe.greeted:
            self._greeted(pipe, pipe.under_way[0])
        self.frames -= 1  # counted when it came
        self.receive((pipe,), self._driver.now)

    def _go_on(self, pipe: Pipe) -> None:
        if pipe.sender.stalled_until_ns > self._driver.now:
            self._driver.wait(pipe.sender, self._flush_one, pipe)
        else:
            self._flush_one(pipe)

    def _greeted(self, pipe: Pipe, frame: bytes) -> None:
        pipe.greeted = True
        identity = pipe.identity
        try:
            hello = decode_untrusted_node_frame(frame)
        except RemoteProtocolError:
            return
        pipe.verified = identity.mesh == MESH and type(hello) is Hello and hello.node == identity.node

    def count_lost(self, pipe: Pipe) -> None:
        """What is on a pipe will never arrive. It fills the window of a sender that doesn't know yet."""
        self.readings_lost += readings_on(pipe)
        for frames in (pipe.under_way, pipe.held):
            unanswered = len(frames) if pipe.sends and not pipe.hears else 0
            frames.clear()
            frames.extend([None] * unanswered)


def readings_on(pipe: Pipe) -> int:
    """Under way, or standing still."""
    return sum(
        readings_in_own_frame(frame)
        for frame in (*pipe.under_way, *pipe.held)
        if frame is not None and len(frame) > 2 and frame[1] == _READINGS_TAG
    )
