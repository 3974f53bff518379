"""Heartbeats: when they are sent, what they say, and what follows from those that are received.

While readings flow to a neighbour most heartbeats are left out, because any frame is a sign of life. A neighbour under
suspicion is asked for an answer at once.
"""

from collections.abc import Iterable
from random import Random
from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.links.queues import LaneQueue
from protocols.membership.neighbour import Neighbour
from protocols.wire.codec import encode_heartbeat
from protocols.wire.membership import Heartbeat

_LEAST_JITTER: Final = 0.9
_MOST_JITTER: Final = 1.1
"""Shares of the interval, so that the heartbeats of neighbours don't fall together."""
HEARTBEATS_A_ROUND: Final = 4
"""While readings flow to a neighbour, only one heartbeat in this many is sent; at 10 Hz the heartbeats would otherwise
be a third of all frames."""
_QUIET_GAPS: Final = 2
"""On a full channel a heartbeat is sent to a neighbour that got nothing for so many times the usual gap …"""
_ECHO_RESTS: Final = 4
"""… and in any case after so many times that time, because it carries an echo."""
_CASTS_REST: Final = 2
"""When nothing went to all listeners for so many intervals, each gets heartbeats again."""
_MOST_BEATS: Final = limits.MAX_HEARTBEATS_A_ROUND  # looked up once, because each heartbeat is compared with it
_LONGEST_ROUND_TRIP_NS: Final = 60 * limits.SECOND


class Heartbeats:
    """The heartbeats of one node."""

    def __init__(self, interval_ns: int, random: Random) -> None:
        self._interval_ns, self._random = interval_ns, random
        self.due_ns = NEVER
        """When :meth:`round` is due; ``NEVER`` before :meth:`start`."""
        self.gap_ns = 0
        """How far apart frames to one neighbour are, because this node keeps a pace; 0: it does not."""
        self.line_ns = 0
        """How long a lane waits for its turn then; 0 as above."""
        self.listeners: frozenset[NodeId] = frozenset()
        """Neighbours that hear what is sent once for all …"""
        self.cast_ns = -NEVER
        """… and when something was. It proves to them that this node lives."""
        self.suspected: dict[NodeId, Neighbour] = {}
        """Neighbours under suspicion. Membership adds and removes them."""
        self.flooding: list[Neighbour] = []
        """Neighbours that sent too many heartbeats. The caller of :meth:`receive` clears the list."""
        self.touched: list[LaneQueue] = []
        """The queues that got a heartbeat. The caller that flushes them clears the list."""

    def start(self, now: int) -> None:
        """Plan the first round, because there is a neighbour now. Does nothing when heartbeats are already planned."""
        if self.due_ns == NEVER:
            self.due_ns = now + int(self._interval_ns * self._random.random())

    def round(self, neighbours: Iterable[Neighbour], now: int) -> None:
        """Send a heartbeat to each neighbour that needs one, and plan the next round."""
        jitter = _LEAST_JITTER + (_MOST_JITTER - _LEAST_JITTER) * self._random.random()
        self.due_ns = now + int(self._interval_ns * jitter)
        suspects = tuple(self.suspected)[:8] if self.suspected else ()
        for neighbour in neighbours:
            neighbour.beats = 0
            if not neighbour.realtime:
                continue
            if neighbour.suspicion is not None and neighbour.since_ns == now:
                continue  # a heartbeat that asks it for an answer waits in its queue, and this one would replace it
            if neighbour.node in self.listeners and not self._is_owed(neighbour, now):
                continue
            if self.gap_ns and not self._is_needed(neighbour, now):
                continue
            # Any frame is a sign of life, and only few heartbeats have to carry echoes.
            if not suspects and (neighbour.heartbeat_sent + 1) % HEARTBEATS_A_ROUND:
                queue = neighbour.queue
                if queue is not None and now - queue.taken_ns < self._interval_ns:
                    neighbour.heartbeat_sent += 1
                    continue
            self.send(neighbour, now, suspects)

    def _is_owed(self, neighbour: Neighbour, now: int) -> bool:
        """Whether a neighbour that hears what is sent once for all needs a heartbeat of its own: nothing was sent to
        all, or it has had no echo for long. All listeners together get four a second."""
        if now - self.cast_ns > _CASTS_REST * self._interval_ns:
            return True
        rest_ns = max(_ECHO_RESTS * HEARTBEATS_A_ROUND * self._interval_ns, len(self.listeners) * self._interval_ns)
        return now - neighbour.beat_ns >= rest_ns

    def _is_needed(self, neighbour: Neighbour, now: int) -> bool:
        """Whether a heartbeat to a neighbour is worth its place on a full channel: nothing else went there lately, or
        it has had none for long."""
        queue = neighbour.queue
        last_ns = neighbour.beat_ns if queue is None else max(neighbour.beat_ns, queue.taken_ns)
        rest_ns = max(_QUIET_GAPS * self.gap_ns, self._interval_ns)
        return now - last_ns >= rest_ns or now - neighbour.beat_ns >= _ECHO_RESTS * rest_ns

    def send(self, neighbour: Neighbour, now: int, suspects: tuple[NodeId, ...] = (), answer: bool = False) -> None:
        """Queue a heartbeat for one neighbour. ``answer``: ask it for one at once."""
        queue = neighbour.queue
        neighbour.heartbeat_sent += 1
        neighbour.beat_ns = now
        if queue is not None:
            queue.put_heartbeat(encode_heartbeat(
                neighbour.heartbeat_sent, now, neighbour.heartbeat_received, neighbour.echo_sent_ns,
                now - neighbour.echo_came_ns, suspects, answer,
            ), answer)  # fmt: skip
            self.touched.append(queue)

    def receive(self, beat: Heartbeat, neighbour: Neighbour, now: int) -> bool:
        """Take a heartbeat of a neighbour that is not suspected. True: it asks for an answer, it shortened the
        time-out of another suspect, or it is one too many. False: there is nothing to do because of it."""
        neighbour.last_heard_ns = now
        beats = neighbour.beats
        if beats > _MOST_BEATS:
            self.flooding.append(neighbour)
            return True
        neighbour.beats = beats + 1
        sequence, echo_sequence, suspects, answer = beat.sequence, beat.echo_sequence, beat.suspects, beat.answer
        if sequence > neighbour.heartbeat_received:
            neighbour.heartbeat_received = sequence
            neighbour.echo_sent_ns, neighbour.echo_came_ns = beat.sent_ns, now
        newest = neighbour.heartbeat_sent - echo_sequence <= 2 * HEARTBEATS_A_ROUND
        neighbour.heard_by_peer = newest if echo_sequence else False
        if echo_sequence > neighbour.echoed:
            neighbour.echoed, neighbour.heard_ns = echo_sequence, now
        if 0 < echo_sequence <= neighbour.heartbeat_sent:
            sample_ns = now - beat.echo_sent_ns - beat.echo_held_ns
            if 0 <= sample_ns < _LONGEST_ROUND_TRIP_NS:
                old = neighbour.round_trip_ns
                neighbour.round_trip_ns = sample_ns if not old else old + (sample_ns - old) // 8
        decided = answer
        if suspects and self.suspected:
            for suspect in suspects:
                accused = self.suspected.get(NodeId(suspect))
                if accused is not None and accused.suspicion is not None and accused is not neighbour:
                    decided = accused.suspicion.confirm(neighbour.node) or decided
        if answer and now - neighbour.answered_ns >= limits.HEARTBEAT_ANSWER_PAUSE_NS:
            neighbour.answered_ns = now
            self.send(neighbour, now)
        return decided
