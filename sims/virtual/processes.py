"""The processes of simulated nodes: they take in frames, wait for CPU, and wake up for their timers.

While a process is busy, or gets no CPU, everything that comes in waits in line. Frames that wake no node (see
:mod:`sims.virtual.pipes`) are taken in before anything else happens to their node.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from protocols.base.time import NEVER
from protocols.wire.membership import Hello
from sims.media.contract import Links
from sims.virtual.arrivals import marked
from sims.virtual.connections import Connections
from sims.virtual.frames import Decode, SharedDecoder, SimFrame
from sims.virtual.inbox import put_back, taken
from sims.virtual.multicast.casts import Casts
from sims.virtual.node import MESH, Pipe, SimNode
from sims.virtual.pipes import TICK_NS, Pipes
from sims.virtual.processors import Processors
from sims.virtual.simulation import Observer, Simulation

_NOTES: Final = 256
"""The number of arrivals at a node that may wait until they are reported to the observer."""
_CHECKS_SHARE: Final = 2
"""One part in this of what a frame costs because of signatures is for checking them: 240 µs for signed entries, and
80 µs for signed readings, where other frames cost 80 µs."""


class Processes(Simulation):
    """All processes of a simulation, and the pipes and connections between them."""

    def __init__(self, links: Links, observer: Observer | None, processors: Processors | None, decode: Decode) -> None:
        """``decode`` has to know all frames of the simulation."""
        super().__init__(links, observer, processors)
        self.decoder = SharedDecoder(decode)
        self.pipes = Pipes(self, self.decoder)
        self.connections = Connections(self, self.pipes)
        self.casts = Casts(self, self.decoder)
        self.pipes.on_shared = self.casts.flush

    # --- what comes in ---------------------------------------------------------------------------------------------
    def wake(self, nodes: Iterable[SimNode]) -> None:
        """Nodes take in their frames, in the order in which the frames were sent that wake them."""
        for node in nodes:
            if not self.take_in(node, self.now):
                self.wait(node, None, None)

    def take_in(self, node: SimNode, until_ns: int, *, awakes: bool = False) -> bool:  # noqa: C901, PLR0912, PLR0915  # calls cost too much here
        """See :class:`Simulation`. This is the hot path, so it is one long method."""
        inbox = node.inbox
        if not inbox and not node.crowd:
            return True
        due = taken(node, until_ns)
        pipes, now, processors = self.pipes, self.now, self.processors
        engine, arrived, decoder = node.engine, node.arrived, self.decoder
        while due:
            for index, coming in enumerate(due):
                pipe, frame = coming.pipe, coming.frame
                at_ns = busy_ns = coming.tick_ns
                if node.stalled_until_ns > at_ns and pipe.hears:
                    busy_ns = node.stalled_until_ns
                    if busy_ns > at_ns + TICK_NS:  # otherwise it waits for its turn in the same tick
                        if busy_ns > now or (busy_ns == now and not awakes):
                            put_back(node, due[index:])
                            return False
                        at_ns = busy_ns
                if not pipe.hears:  # the pipe was closed meanwhile
                    pipes.readings_lost += frame.readings
                    continue
                if processors is not None and processors.free_ns > now:
                    node.stalled_until_ns = max(node.stalled_until_ns, processors.free_ns)
                    put_back(node, due[index:])
                    return False
                pipes.frames += 1
                pipe.under_way -= 1
                data = frame.data
                if data is None:
                    self.connections.tell_listener(pipe)
                    continue
                if not pipe.greeted:
                    self._greeted(pipe, frame)
                pipe.heard_ns = at_ns
                local = at_ns + node.offset_ns if not node.drift_ppb else node.local(at_ns)
                decoder.arriving = frame
                deliveries = engine.receive(data, pipe.number, local, local + node.utc_less_mono_ns)
                if node.frame_ns:
                    node.stalled_until_ns = busy_ns + node.frame_ns
                    if processors is not None:
                        checks = frame.sealed // _CHECKS_SHARE
                        processors.occupy(now, node.frame_ns, checks * node.frame_ns)
                if deliveries:
                    if not pipe.used or not pipe.verified:
                        pipe.used = True
                        self.observer.frame_accepted(node, pipe)
                    for _, reading in deliveries:
                        issue = frame.issue
                        if issue is None or issue.reading is not reading:
                            issue = self.issue_in(frame, reading)
                        arrived.append((at_ns, issue))
                if not engine.is_settled():
                    pipes.late += at_ns < now - TICK_NS
                    flushes = engine.flushes()
                    if flushes is None:
                        self.perform(node)
                    else:
                        pipes.flush(node, flushes)
                if node.attentive and engine.readings.next_timer_at() != NEVER:
                    self.arm_deadline(node)
                if pipe.full and pipe.sends:
                    self._go_on(pipe)
            if not node.crowd:
                break
            due = taken(node, until_ns)
        if len(arrived) >= _NOTES or (node.prompt and arrived):
            self.tell(node)
        return True

    def _go_on(self, pipe: Pipe) -> None:
        if pipe.sender.stalled_until_ns > self.now:
            self.wait(pipe.sender, self.pipes.flush_one, pipe)
        else:
            self.pipes.flush_one(pipe)

    def _greeted(self, pipe: Pipe, frame: SimFrame) -> None:
        pipe.greeted = True
        identity, hello = pipe.identity, frame.decoded
        pipe.verified = identity.mesh == MESH and type(hello) is Hello and hello.node == identity.node

    def give_up(self, pipe: Pipe) -> None:
        """See :class:`Simulation`."""
        self.when_awake(pipe.sender, self.now, self.connections.tell_dialler, pipe)

    # --- the line for the CPU --------------------------------------------------------------------------------------
    def when_awake(self, node: SimNode, due_ns: int, handler: Callable[[Any], None], argument: Any) -> None:
        """See :class:`Simulation`."""
        self.push(due_ns, self._awake, (node, node.lives, handler, argument))

    def _awake(self, waiting: tuple[SimNode, int, Callable[[Any], None], Any]) -> None:
        node, life, handler, argument = waiting
        if node.running and node.lives == life:
            if self.is_awake(node):
                handler(argument)
            else:
                self.wait(node, handler, argument)

    def is_awake(self, node: SimNode) -> bool:
        """Whether a node has CPU, once it has taken in its frames."""
        self.take_in(node, self.now)
        if self.processors is not None:
            node.stalled_until_ns = max(node.stalled_until_ns, self.processors.free_ns)
        return node.stalled_until_ns <= self.now

    def wait(self, node: SimNode, handler: Callable[[Any], None] | None, argument: Any) -> None:
        """Put something in line for the CPU of a node, behind everything that has come."""
        if not node.backlog:
            self.push(node.stalled_until_ns, self._wake, node)
        node.backlog.append((self.now, handler, argument))

    def _wake(self, node: SimNode) -> None:
        backlog = node.backlog
        while backlog and self.take_in(node, backlog[0][0], awakes=True) and node.stalled_until_ns <= self.now:
            _, handler, argument = backlog.popleft()
            if handler is not None:
                handler(argument)
        if backlog:
            self.push(max(node.stalled_until_ns, self.now), self._wake, node)

    # --- timers ----------------------------------------------------------------------------------------------------
    def arm(self, node: SimNode) -> None:
        """Schedule the timer of a node for the instant that its engine asks for."""
        due_local = node.engine.next_timer_at()
        if due_local >= NEVER:
            return
        due_ns = max(node.virtual(due_local), self.now)
        if node.timer_ns is None or due_ns < node.timer_ns:
            node.timer_ns = due_ns
            self.push(due_ns, self._ring, (node, node.lives, due_ns))

    def arm_deadline(self, node: SimNode) -> None:
        """Schedule the timer again after a reading came: only the deadline of a subscription may be earlier now."""
        if node.timer_ns is None or node.virtual(node.engine.readings.next_timer_at()) < node.timer_ns:
            self.arm(node)

    def _ring(self, ringing: tuple[SimNode, int, int]) -> None:
        node, life, due_ns = ringing
        if node.timer_ns != due_ns or node.lives != life or not node.running:  # a sooner one superseded it
            return
        if self.is_awake(node):
            self._ring_now(ringing)
        else:
            self.wait(node, self._ring_now, ringing)

    def _ring_now(self, ringing: tuple[SimNode, int, int]) -> None:
        node, life, due_ns = ringing
        if node.timer_ns != due_ns or node.lives != life or not node.running:  # what came before it superseded it
            return
        node.timer_ns = None
        if node.frame_ns:
            node.stalled_until_ns = self.now + node.frame_ns
            if self.processors is not None:
                self.processors.occupy(self.now, node.frame_ns)
        node.engine.handle_timer(node.local(self.now))
        self.perform(node)

    # --- whoever watches -------------------------------------------------------------------------------------------
    def settle(self) -> None:
        """Every node takes in its frames, and the observer is told."""
        for node in self.numbered:
            self.look(node)

    def look(self, node: SimNode) -> None:
        """See :class:`Simulation`."""
        if node.inbox or node.crowd:
            self.take_in(node, self.now - 1)
        if node.arrived:
            self.tell(node)

    def tell(self, node: SimNode) -> None:
        """Add the arrivals at a node since the last call to its mark, and tell the observer."""
        arrivals = node.arrived[:]
        node.arrived.clear()
        mark = node.mark
        for at_ns, issue in arrivals:
            mark = marked(mark, at_ns, issue)
        node.mark = mark
        self.observer.delivered(node, arrivals)
