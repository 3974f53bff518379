"""How simulated pipes are opened and closed: dials, handshakes, resets, and connections of strangers.

A dial sends SYNs until the other host hears one or its time is up. The medium decides how long the trips of the
handshake take; the work at both ends waits for their processors. When a sender's end is closed, its kernel sends what
it has and then the end of the stream. When a receiver's end is closed, its kernel sends resets, again and again while
the sender is out of reach; the sender may also learn of it when it sends again.
"""

from collections.abc import Sequence
from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId, PeerIdentity
from protocols.membership.events import Dial
from protocols.wire.codec import encode_frame
from sims.virtual.node import Attempt, Pipe, SimNode
from sims.virtual.pipes import BREAK_NS, FIRST_RETRY_NS, Pipes
from sims.virtual.simulation import Simulation

_SYN_INTERVAL_NS: Final = limits.SECOND
"""Linux since 6.5 sends the first SYNs once a second, and a dial takes no longer than a few seconds."""


class Connections:
    """All connections of a simulation."""

    def __init__(self, simulation: Simulation, pipes: Pipes) -> None:
        self._simulation, self._pipes = simulation, pipes
        self._opened = 0
        self.resets: dict[int, Pipe] = {}
        """Pipes whose senders don't know yet that they are closed."""

    def dial(self, node: SimNode, effect: Dial) -> None:
        """A node's engine wants a lane."""
        attempt = Attempt(node, effect.dial, effect.host, self._simulation.now + effect.timeout_ns)
        node.attempts[effect.dial] = attempt
        self._try(attempt)

    def _try(self, attempt: Attempt) -> None:
        """Send a SYN, and try again later when the other host can't hear it."""
        node = attempt.node
        if node.attempts.get(attempt.dial) is not attempt:
            return
        target = self._simulation.nodes.get(NodeId(attempt.host))
        at_ns = (
            None
            if target is None
            else self._simulation.links.connect_ns(
                node.number, target.number, self._simulation.now, answers=target.running
            )
        )
        if at_ns is None:
            again_ns = self._simulation.now + _SYN_INTERVAL_NS
            if again_ns < attempt.deadline_ns:
                self._simulation.push(again_ns, self._try, attempt)
            else:
                self._simulation.when_awake(node, attempt.deadline_ns, self._fail, (attempt, "no connection in time"))
        elif at_ns < attempt.deadline_ns:
            self._simulation.push(at_ns, self._shake_hands, attempt)
        else:
            self._simulation.when_awake(node, attempt.deadline_ns, self._fail, (attempt, "no handshake in time"))

    def _fail(self, failed: tuple[Attempt, str], refused: bool = False) -> None:
        attempt, reason = failed
        node = attempt.node
        if node.attempts.get(attempt.dial) is attempt:
            del node.attempts[attempt.dial]
            node.engine.lane_closed(attempt.dial, reason, refused, node.local(self._simulation.now))
            self._simulation.perform(node)

    def _shake_hands(self, attempt: Attempt) -> None:
        """The trips are over. What remains is the work of both ends, which waits for their CPU."""
        node, target, now = attempt.node, self._simulation.nodes[NodeId(attempt.host)], self._simulation.now
        self._simulation.take_in(node, now)
        self._simulation.take_in(target, now)
        if node.attempts.get(attempt.dial) is not attempt:
            return
        if not target.running:
            self._simulation.when_awake(node, now, self._fail, (attempt, "connection refused"))
            return
        done_ns = now
        for end in (node, target):
            if end.stalled_until_ns > now or end.handshake_ns:
                free_ns = now
                if self._simulation.processors is not None:
                    free_ns += self._simulation.processors.occupy(now, 0, end.handshake_ns)
                end_ns = max(free_ns, end.stalled_until_ns) + end.handshake_ns  # waits for both at once
                if end.handshake_ns:
                    end.stalled_until_ns = end_ns
                done_ns = max(done_ns, end_ns)
        if done_ns >= attempt.deadline_ns:  # the kernel accepts, but the process does not do the handshake in time
            self._simulation.when_awake(node, attempt.deadline_ns, self._fail, (attempt, "no handshake in time"))
        elif done_ns > now:
            self._simulation.when_awake(node, done_ns, self._open, attempt)
        else:
            self._open(attempt)

    def _open(self, attempt: Attempt) -> None:
        node, target, dial = attempt.node, self._simulation.nodes[NodeId(attempt.host)], attempt.dial
        if node.attempts.get(dial) is not attempt:
            return
        if not target.running:
            self._fail((attempt, "connection refused"))
            return
        local = node.local(self._simulation.now)
        refused = node.engine.membership.admit(target.identity, local)
        pipe = None if refused else self.accept(node, dial, target, node.identity)
        if pipe is None:
            self._fail((attempt, refused or "refused by the peer"), True)
            return
        del node.attempts[dial]
        node.dialled[dial] = pipe
        self._pipes.send(pipe, encode_frame(node.engine.membership.greeting(dial)))
        node.engine.lane_opened(dial, target.identity, local)
        self._simulation.perform(node)

    def accept(self, host: SimNode, dial: int, target: SimNode, identity: PeerIdentity) -> Pipe | None:
        """Open a pipe from a process on ``host`` with that identity into the inbox of ``target``; None when the target
        refuses it."""
        self._simulation.take_in(target, self._simulation.now)
        local = target.local(self._simulation.now)
        refused = target.engine.membership.admit(identity, local)
        pipe = None
        if not refused:
            self._opened += 1
            pipe = Pipe(self._opened, host, dial, target, identity)
            target.inbound[pipe.number] = pipe
            target.engine.membership.inbound_opened(pipe.number, identity, host.name, local)
        self._simulation.perform(target)
        return pipe

    def knock(self, host: SimNode, target: SimNode, identity: PeerIdentity, frames: Sequence[bytes]) -> None:
        """A process on ``host`` that is not a node opens a pipe and sends ``frames``, if the target admits it."""
        at_ns = self._simulation.links.connect_ns(host.number, target.number, self._simulation.now)
        if at_ns is not None:
            self._simulation.push(at_ns, self._knocked, (host, target, identity, frames))

    def _knocked(self, knock: tuple[SimNode, SimNode, PeerIdentity, Sequence[bytes]]) -> None:
        host, target, identity, frames = knock
        if target.running:
            pipe = self.accept(host, 0, target, identity)
            if pipe is not None:
                for frame in frames:
                    self._pipes.send(pipe, frame)

    def slip_in(self, node: SimNode, frame: bytes) -> None:
        """A node sends all its neighbours a frame that its engine knows nothing of."""
        told: dict[int, None] = {}
        for pipe in node.dialled.values():
            if pipe.receiver.number not in told:
                told[pipe.receiver.number] = None
                self._pipes.send(pipe, frame)

    def close_sender(self, pipe: Pipe) -> None:
        """The sender's end is closed; its kernel sends what it has, and then the end of the stream."""
        if pipe.sends:
            pipe.sends = False
            if pipe.hears:
                self._pipes.send_end(pipe)
            else:
                self._pipes.count_lost(pipe)

    def close_receiver(self, pipe: Pipe) -> None:
        """The receiver's end is closed: frames on the pipe are lost, and the sender is told, as by a TCP reset."""
        if pipe.hears:
            pipe.hears, pipe.aside = False, True
            self._pipes.count_lost(pipe)
            self._pipes.standing.pop(pipe.number, None)
            if pipe.sends:
                pipe.stalled_ns, pipe.wait_ns = self._simulation.now, FIRST_RETRY_NS
                self.send_reset(pipe)

    def send_reset(self, pipe: Pipe) -> None:
        """Tell a sender that the far end is closed, as soon as it can be reached."""
        if not pipe.sends:
            self.resets.pop(pipe.number, None)
            return
        at_ns = self._simulation.links.stream_ns(pipe.receiver.number, pipe.sender.number, 0, self._simulation.now)
        if at_ns is not None:
            self.resets.pop(pipe.number, None)
            self._simulation.when_awake(pipe.sender, at_ns, self.tell_dialler, pipe)
        elif self._simulation.now - pipe.stalled_ns < BREAK_NS:  # it learns of the reset when it sends something again
            self.resets[pipe.number] = pipe
            self._pipes.retry(pipe, self.send_reset)

    def tell_dialler(self, pipe: Pipe) -> None:
        """The sender learns that its lane is closed."""
        if pipe.sends:
            pipe.sends = False
            self._pipes.count_lost(pipe)
            node = pipe.sender
            if node.dialled.pop(pipe.dial, None) is not None:
                node.engine.lane_closed(pipe.dial, "the peer closed it", False, node.local(self._simulation.now))
                self._simulation.perform(node)

    def tell_listener(self, pipe: Pipe) -> None:
        """The receiver learns that a pipe into its inbox is gone."""
        node = pipe.receiver
        pipe.hears, pipe.aside = False, True
        node.drop_inbound(pipe.number)
        node.engine.inbound_closed(pipe.number, node.local(self._simulation.now))
        self._simulation.perform(node)
