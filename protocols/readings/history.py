"""The last known values that neighbours asked for, sent in slices.

Matching many streams with many expressions takes long, and readings must not wait for it. So one call looks at a part
of the streams for one neighbour, and the neighbours take turns. Each neighbour pays for its own part. What reaches a
neighbour since it asked is not sent to it again.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.readings.matching import KeyPattern
from protocols.readings.queueing import Queueing
from protocols.readings.streams import Asked, Peer, Stream, one_hop_less
from protocols.wire.readings import expiry_utc_ns

_SENT_STEPS = 64
"""What it costs to encode and queue a small value, in steps of matching …"""
_BYTES_PER_STEP = 256
"""… and how many bytes of a larger one cost a step."""


class NewlyWanted(NamedTuple):
    """What last values a neighbour wants: those of this node, and those of others."""

    own: list[KeyPattern]
    others: list[KeyPattern]


def newly_wanted(before: Sequence[Asked], held: Sequence[Asked]) -> NewlyWanted:
    """The last values that were not asked for ``before`` and are now. Who asked for an expression without history, or
    without hops, has not had all of its last values yet."""
    had_own = {want.expression for _, want, _ in before if want.history}
    had_others = {want.expression for _, want, _ in before if want.history and want.hops}
    asked = [one for one in held if one.want.history]
    return NewlyWanted(
        [pattern for pattern, want, _ in asked if want.expression not in had_own],
        [pattern for pattern, want, _ in asked if want.hops and want.expression not in had_others],
    )


class _Question:
    """What one neighbour asked for, and how far the answer is."""

    __slots__ = ("peer", "since_ns", "steps", "streams", "utc_less_now", "wanted")

    def __init__(self, peer: Peer, wanted: NewlyWanted, streams: Iterator[Stream], now: int, utc_now: int) -> None:
        self.peer, self.wanted, self.streams, self.since_ns = peer, wanted, streams, now
        self.utc_less_now = utc_now - now
        self.steps = 1 + max(sum(pattern.steps for pattern in patterns) for patterns in wanted)


class History:
    """Sends the last values of one router."""

    def __init__(self, node: NodeId, queueing: Queueing) -> None:
        self._node, self._queueing = node, queueing
        self._questions: dict[NodeId, _Question] = {}  # who waits longest comes first
        self.due_ns = NEVER
        """When :meth:`serve` has to be called next."""

    def __len__(self) -> int:
        return len(self._questions)

    def ask(self, peer: Peer, wanted: NewlyWanted, streams: list[Stream], now: int, utc_now: int) -> None:
        """Note that a neighbour asked for the last values of ``streams`` that match. What it asked before and did not
        get yet is asked anew."""
        before = self._questions.pop(peer.node, None)
        if before is not None:
            held = {pattern for pattern, _, _ in peer.held}
            wanted = NewlyWanted(*(
                list(dict.fromkeys([*new, *(pattern for pattern in old if pattern in held)]))
                for new, old in zip(wanted, before.wanted, strict=True)
            ))  # fmt: skip
        self._questions[peer.node] = _Question(peer, wanted, iter(streams), now, utc_now)
        self.due_ns = now

    def forget(self, node: NodeId) -> None:
        """Send nothing more to a neighbour that is gone."""
        self._questions.pop(node, None)

    def serve(self, now: int) -> None:
        """Send one slice to the neighbour that waits longest among those that may be sent more."""
        pause_ns = limits.HISTORY_PATIENCE_NS
        for node, question in list(self._questions.items()):
            if self._is_ready(question, now):
                del self._questions[node]
                if not self._answer(question, now):
                    self._questions[node] = question
                pause_ns = limits.HISTORY_PAUSE_NS
                break
        self.due_ns = now + pause_ns if self._questions else NEVER

    def _is_ready(self, question: _Question, now: int) -> bool:
        """Whether a neighbour may be sent more: its allowance lasts, and its lanes have room. The first slice
        does not wait for the lanes."""
        peer = question.peer
        if peer.work.left(now) <= 0:
            return False
        if now == question.since_ns:
            return True
        waiting_readings = peer.realtime.waiting_readings + peer.bulk.waiting_readings
        waiting_bytes = peer.realtime.waiting_bytes + peer.bulk.waiting_bytes
        return waiting_readings < limits.MAX_QUEUE_READINGS // 2 and waiting_bytes < limits.MAX_QUEUE_BYTES // 2

    def _answer(self, question: _Question, now: int) -> bool:
        """Send a slice. Returns whether that was all."""
        peer, since_ns = question.peer, question.since_ns
        utc_now = now + question.utc_less_now
        left = limits.HISTORY_STEPS
        is_over = False
        while left > 0:
            stream = next(question.streams, None)
            if stream is None:
                is_over = True
                break
            left -= 1
            reading = stream.last
            own = stream.origin == self._node
            if reading is None or stream.last_ns > since_ns or not (own or reading.hops):
                continue
            if stream.origin == peer.node or stream.payer == peer.node:
                continue
            left -= question.steps
            chunks = stream.key.split("/")
            patterns = question.wanted.own if own else question.wanted.others
            if any(pattern.matches(stream.key, chunks) for pattern in patterns):
                if not reading.lifespan_ms or utc_now < expiry_utc_ns(reading):
                    left -= _SENT_STEPS + stream.held_bytes // _BYTES_PER_STEP
                    self._queueing.put_past(peer, reading if own else one_hop_less(reading), now, utc_now)
        peer.work.fine(limits.HISTORY_STEPS - left)
        return is_over
