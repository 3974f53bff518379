"""Which neighbour is asked for which entry.

An entry is asked of one neighbour at a time, and of another when that one does not send it. A neighbour is asked for no
more entries at a time than its allowance lets this node check.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.gossip.admission import Admission
from protocols.gossip.peer import GossipPeer
from protocols.gossip.store import EntryStore
from protocols.wire.entries import encode_fingerprints
from protocols.wire.gossip import GossipPull

_LEAST_PULL: Final = 8
"""A pull asks for at least this many entries, unless fewer are left to ask for."""
_ANSWER_GAPS: Final = 12
"""On a full channel a pull waits for its turn, and entries for three or four, behind others. Whoever asks another
neighbour meanwhile gets them twice."""


class Pulls:
    """The pulls of one node."""

    def __init__(self, store: EntryStore, admission: Admission, pause_ns: int) -> None:
        """``pause_ns``: after that, a neighbour whose allowance is used up is asked again."""
        self._store, self._admission, self._pause_ns = store, admission, pause_ns
        self._asked: dict[int, list[NodeId]] = {}  # who is asked for it, and who else has it
        self.due_ns = NEVER
        """When :meth:`time_out` has something to do."""
        self.sent = self.timed_out = 0

    def coming(self, fingerprint: int, node: NodeId) -> None:
        """An entry comes from ``node`` without a pull: no neighbour needs to be asked for it."""
        self._asked.setdefault(fingerprint, [node])

    def done(self, fingerprint: int) -> Sequence[NodeId]:
        """An entry has come, or is not wanted any more. Returns the neighbours that are known to have it."""
        return self._asked.pop(fingerprint, ())

    def next_of(self, peer: GossipPeer, gap_ns: int, now: int) -> GossipPull | None:
        """The pull for what a neighbour offered; None when there is nothing to ask for, or it has to wait. ``gap_ns``:
        how far apart frames on one lane are on a full channel; 0: it is not full."""
        if not peer.offers:
            return None
        # A pull for each token of the allowance would be a frame for each entry.
        least = min(_LEAST_PULL, len(peer.offers))
        room = min(limits.MAX_PULL, peer.checks.left(now)) - len(peer.asked)
        held = self._store.fingerprints
        looked_at: list[int] = []
        wanted: list[int] = []
        for fingerprint in peer.offers:
            if room < least or len(wanted) >= room:
                break
            looked_at.append(fingerprint)
            if fingerprint in held or self._admission.is_refused(fingerprint, now):
                continue
            others = self._asked.get(fingerprint)
            if others is None:
                self._asked[fingerprint] = [peer.node]
                wanted.append(fingerprint)
            elif peer.node not in others:
                others.append(peer.node)
        for fingerprint in looked_at:
            del peer.offers[fingerprint]
        if wanted:
            until_ns = now + limits.PULL_TIMEOUT_NS + _ANSWER_GAPS * gap_ns
            peer.asked.update(dict.fromkeys(wanted, until_ns))
            self.sent += 1
        if peer.asked:
            self.due_ns = min(self.due_ns, next(iter(peer.asked.values())))
        elif peer.offers:  # its allowance is used up
            self.due_ns = min(self.due_ns, now + self._pause_ns)
        return GossipPull(encode_fingerprints(wanted)) if wanted else None

    def ask_another(self, fingerprint: int, asked: NodeId, peers: Mapping[NodeId, GossipPeer]) -> None:
        """Have other neighbours asked for an entry, because the one that was asked does not send it."""
        others = self._asked.get(fingerprint)
        if others is None or others[0] != asked:
            return
        del self._asked[fingerprint]
        for node in others[1:]:
            peer = peers.get(node)
            if peer is not None:
                peer.offers[fingerprint] = None

    def time_out(self, peers: Mapping[NodeId, GossipPeer], now: int) -> None:
        """Give up pulls that were not answered in time. Pulls of all neighbours may follow."""
        self.due_ns = NEVER
        for peer in peers.values():
            late = [fingerprint for fingerprint, until_ns in peer.asked.items() if until_ns <= now]
            for fingerprint in late:
                del peer.asked[fingerprint]
                self.ask_another(fingerprint, peer.node, peers)
            self.timed_out += bool(late)
            if peer.asked:
                self.due_ns = min(self.due_ns, next(iter(peer.asked.values())))
