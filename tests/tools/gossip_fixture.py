"""Seals for tests, and small worlds of nodes that gossip."""

import hashlib
from random import Random
from typing import Any

from msgspec.structs import replace

from protocols.base import limits
from protocols.base.ids import Incarnation, NodeId, Role
from protocols.gossip.entries import Seal
from protocols.gossip.events import EntryAccepted, EntryRefused
from protocols.gossip.machine import Gossip
from protocols.gossip.settings import GossipSettings
from protocols.settings import NodeSettings
from protocols.wire.entries import encode_entry, entry_statement
from protocols.wire.gossip import Carried, Entry, GossipEntries, GossipFrame
from sims.virtual.driver import SimDriver

MS, SECOND = limits.MS, limits.SECOND
DAY_S = 86_400


def signature(author: str, statement: bytes) -> bytes:
    """The signature of ``author``. Tests must not ask for it in the name of another node."""
    return hashlib.blake2b(statement, key=author.encode(), digest_size=16).digest()


def seal(node: str) -> Seal:
    """A seal that signs as ``node`` and checks the signatures of all authors."""
    return Seal(
        lambda statement: (b"", signature(node, statement)),
        lambda entry: signature(entry.author, entry_statement(entry)) == entry.signature,
        lambda data: hashlib.sha256(data).digest(),
    )


def entry(author: str, version: int, body: bytes = b"", kind: str = "address", lifetime_s: int = DAY_S) -> Entry:
    """An entry signed by ``author``."""
    draft = Entry(author, kind, version, lifetime_s, body, b"", b"")
    return replace(draft, signature=signature(author, entry_statement(draft)))


def handed(*entries: Entry, age_ms: int = 0) -> GossipEntries:
    """The frame that carries these entries."""
    return GossipEntries(tuple(Carried(age_ms, encode_entry(one)) for one in entries))


class Alone:
    """One machine of gossip, and the frames that it sent."""

    def __init__(self, node: str = "me", seed: int = 1, **settings: Any) -> None:
        self.now = 0
        self.node = NodeId(node)
        self.gossip = Gossip(self.node, Incarnation(7), seal(node), GossipSettings(**settings), Random(seed))
        self.sent: list[tuple[int, NodeId, GossipFrame]] = []
        self.told: list[EntryAccepted | EntryRefused] = []
        self._said: dict[str, int] = {}

    def meet(self, *peers: str, role: Role = Role.VEHICLE) -> None:
        """Make these its neighbours. The frames that it sends them first are not kept."""
        for peer in peers:
            self.gossip.neighbour_met(NodeId(peer), role, self.now)
        self.gossip.messages()

    def get(self, frame: GossipFrame, peer: str = "peer") -> list[GossipFrame]:
        """Have it receive a frame from a neighbour. Returns the frames that it sends back at once."""
        self.gossip.receive(frame, NodeId(peer), Role.VEHICLE, self.now)
        return [frame for to, frame in self._take() if to == peer]

    def run_for(self, duration_ns: int) -> list[tuple[NodeId, GossipFrame]]:
        """Let time pass. Returns the frames that it sent meanwhile."""
        before, end_ns = len(self.sent), self.now + duration_ns
        while (due_ns := self.gossip.next_timer_at()) <= end_ns:
            self.now = max(self.now, due_ns)
            self.gossip.handle_timer(self.now)
            self._take()
        self.now = end_ns
        return [(to, frame) for _, to, frame in self.sent[before:]]

    def said_to(self, peer: str) -> list[GossipFrame]:
        """The frames to a neighbour since the last call for that neighbour."""
        self._take()
        begin, self._said[peer] = self._said.get(peer, 0), len(self.sent)
        return [frame for _, to, frame in self.sent[begin:] if to == peer]

    def held(self) -> dict[tuple[str, str], int]:
        """The versions that it holds, by author and kind."""
        return {(view.author, view.kind): view.version for view in self.gossip.entries(self.now)}

    def _take(self) -> list[tuple[NodeId, GossipFrame]]:
        messages = self.gossip.messages()
        self.sent.extend((self.now, to, frame) for to, frame in messages)
        self.told.extend(self.gossip.events())
        return messages


def checks(alone: Alone) -> list[Entry]:
    """The entries whose signatures ``alone`` checks from now on."""
    checked: list[Entry] = []
    before = alone.gossip._seal
    assert before is not None

    def verify(entry: Entry) -> bool:
        checked.append(entry)
        return before.verify(entry)

    alone.gossip._seal = replace(before, verify=verify)
    return checked


def world(seed: int = 1, delay_ns: int = 5 * MS) -> SimDriver:
    """A simulation whose nodes have seals."""

    def adjust(settings: NodeSettings) -> NodeSettings:
        return replace(settings, seal=seal(settings.node))

    return SimDriver(seed, delay_ns, adjust=adjust)


def put(sim: SimDriver, name: str, body: bytes = b"here", kind: str = "address", lifetime_s: int = DAY_S) -> None:
    """A node authors an entry."""
    sim.act(sim.nodes[NodeId(name)], lambda engine, now: engine.gossip.put(kind, body, lifetime_s, now))


def authors(sim: SimDriver, name: str) -> list[str]:
    """The nodes whose addresses a node holds."""
    return [view.author for view in sim.nodes[NodeId(name)].engine.gossip.entries(sim.now)]


def roots(sim: SimDriver, *names: str) -> set[int]:
    """The roots of these nodes: one element when all hold the same entries."""
    return {sim.nodes[NodeId(name)].engine.gossip.root for name in names or tuple(sim.nodes)}
