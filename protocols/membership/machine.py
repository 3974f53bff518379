"""Which neighbours there are, and whether they live.

``contacts`` decides where to dial. A *neighbour* is a node whose certificate and Hello were checked. Its life:

    (unknown) ──Hello──▶ alive ──silence, pipes gone──▶ suspect ──time is up──▶ dead ──Hello──▶ alive
                           ▲                               │
                           └──any frame, a new Hello───────┘        alive, suspect ──Goodbye──▶ left ──Hello──▶ alive

Rules:
1. Only frames on a pipe whose certificate names the neighbour count as life. Hints never do.
2. A node that did not run accuses nobody. When our own timer is late, every silence is counted from now (local health,
   after Lifeguard), and neighbours whose pipes are gone by then have given us up, and need not be dead.
3. Pipes gone in both directions, without a Goodbye, mean that the peer's kernel ended them: suspicion starts at once
   and is short. Silence on open pipes may be a radio shadow: suspicion starts late and is long.
4. When two nodes use one id, the one with the larger incarnation is right. The other is refused while it is alive.
5. A node that refused us, or that we refused, is not dialled again for ``REFUSAL_MEMORY_NS``.
6. Whoever comes with a certificate of another role begins a new life, and the links of the life before end.

Suspicion is not passed on beyond one hop, because links exist only between nodes in range.
"""

from random import Random
from typing import Final

from protocols.access import LINK_ROLES
from protocols.base import limits
from protocols.base.errors import RemoteProtocolError, UnknownFrame
from protocols.base.ids import Incarnation, Lane, MeshName, NodeId, PeerIdentity, Role
from protocols.base.reach import Reach
from protocols.base.sequences import MAX_INCARNATION
from protocols.base.time import NEVER
from protocols.events import DuplicateIdentity
from protocols.links.drops import Drops
from protocols.membership.contacts import Contacts, HostPort
from protocols.membership.crowd import gaps_ns
from protocols.membership.events import (
    MembershipEffect,
    MembershipEvent,
    NeighbourDead,
    NeighbourLeft,
    NeighbourMet,
    NeighbourRefuted,
    NeighbourSuspected,
)
from protocols.membership.hearing import Hearing
from protocols.membership.heartbeats import Heartbeats
from protocols.membership.neighbour import Neighbour, State
from protocols.membership.pipes import AdmittedPipe, AdmittedPipes
from protocols.membership.refusals import Refusals
from protocols.membership.settings import MembershipSettings
from protocols.membership.suspicion import Suspicion
from protocols.wire.codec import untrusted_other_major
from protocols.wire.frame import Frame
from protocols.wire.membership import FRAMES, MAJOR, MINOR, Goodbye, Heartbeat, Hello, Refusal

_ALIVE: Final = State.ALIVE  # looked up once, because looking into an enumeration is slow


class Membership:
    """The machine of one node. It also deals with pipes and dials, before there are neighbours, so the engine calls it
    directly and asks it before the other machines."""

    name: Final = "membership"
    frames: Final = FRAMES

    def __init__(
        self,
        mesh: MeshName,
        node: NodeId,
        incarnation: Incarnation,
        inbox_port: int,
        settings: MembershipSettings,
        random: Random,
        drops: Drops,
    ) -> None:
        self._mesh, self._node, self._incarnation, self.inbox_port = mesh, node, incarnation, inbox_port
        self._settings, self._random = settings, random
        self._local_stall_ns = settings.local_stall_ns
        self._suspect_after_ns = settings.suspect_after_silence_ns
        self.neighbours: dict[NodeId, Neighbour] = {}
        self._contacts = Contacts(node, settings.dial_timeout_ns, random)
        self._pipes = AdmittedPipes()
        self.neighbour_of = self._pipes.neighbour_of
        """The neighbours by inbound pipe that has said Hello. Others must not change it."""
        self.heartbeats = Heartbeats(settings.heartbeat_interval_ns, random)
        self._hearing = Hearing(settings, self._contacts, self.heartbeats)
        self.network_changed = self._hearing.network_changed
        self.forgot = False
        """Whether a neighbour was forgotten. The caller that acts on it clears it."""
        self._suspected = self.heartbeats.suspected
        self._promised_ns = NEVER
        self._forgiven_ns = -NEVER
        self._leaving = False
        self._events: list[MembershipEvent] = []
        self.refusals = Refusals(self._contacts, self._pipes, self._events, drops)
        self._refuse = self.refusals.refuse
        self._messages: list[tuple[NodeId, Frame]] = []
        self._counters = {"local_stalls": 0, "suspicions": 0, "refutations": 0, "deaths": 0}

    # --- what the driver reads -------------------------------------------------------------------------------------
    def outgoing(self) -> list[MembershipEffect]:
        """Effects decided since the last call."""
        effects, self._pipes.effects = self._pipes.effects, []
        return [*effects, *self._contacts.outgoing()]

    def has_outgoing(self) -> bool:
        """Whether :meth:`outgoing` would return any effects."""
        return bool(self._pipes.effects) or self._contacts.has_outgoing()

    def has_news(self) -> bool:
        """Whether :meth:`messages` or :meth:`events` would return anything."""
        return bool(self._messages or self._events)

    def counters(self) -> dict[str, int]:
        """Counters by name, which only grow."""
        return {
            "pipes_opened": self._pipes.opened_in_all, **self.refusals.counters, **self._counters,
            **self._contacts.counters, **self._hearing.counters,
        }  # fmt: skip

    def messages(self) -> list[tuple[NodeId, Frame]]:
        """Control frames to queue for neighbours, decided since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def events(self) -> list[MembershipEvent]:
        """Events decided since the last call."""
        events = self._events[:]
        self._events.clear()
        return events

    def lane_of(self, dial: int) -> tuple[NodeId, Lane] | None:
        """The node and the lane behind an open dial; None when the dial is not open."""
        dialling = self._contacts.dialling(dial)
        return None if dialling is None or dialling.identity is None else (dialling.identity.node, dialling.lane)

    def greeting(self, dial: int) -> Hello:
        """The Hello that opens a lane."""
        dialling = self._contacts.dialling(dial)
        lane = Lane.REALTIME if dialling is None else dialling.lane
        return Hello(MAJOR, MINOR, self._node, self._incarnation, self.inbox_port, lane.value)

    # --- hints -----------------------------------------------------------------------------------------------------
    def hint(self, name: str, node: NodeId | None, addresses: tuple[HostPort, ...], now: int) -> None:
        """Take note of an advert (``node`` is given) or a seed (``node`` is None); see :meth:`Contacts.hint`."""
        self._contacts.hint(name, node, addresses, now)

    def withdraw(self, name: str) -> None:
        """Note that a hint was withdrawn. That does not mean that the node is dead, so an open link stays."""
        self._contacts.withdraw(name)

    def duplicate_hint(self, host: str) -> None:
        """Report an advert with our own id and another incarnation."""
        self._events.append(DuplicateIdentity(self._node, True, host))

    # --- pipes and lanes -------------------------------------------------------------------------------------------
    def admit(self, identity: PeerIdentity, now: int) -> str | None:
        """Decide whether a peer with this certificate may have a link. Returns None, or the reason for refusal."""
        if identity.mesh != self._mesh:
            detail = f"it belongs to mesh {identity.mesh!r}, not {self._mesh!r}"
            return self._refuse(identity.node, "identity", detail, now)
        if identity.role not in LINK_ROLES:
            return self._refuse(identity.node, "identity", f"role {identity.role.value!r} may not be a neighbour", now)
        most = self._settings.max_neighbours
        full = self._living() >= most or len(self.neighbours) >= 4 * most
        if identity.node not in self.neighbours and full:
            return self._refuse(identity.node, "full", f"this node has {most} neighbours", now)
        if not self.refusals.may_open(identity.node, now):
            return self._refuse(identity.node, "crowded", "it opens too many links, or sent malformed frames", now)
        return None

    def refused_before_identity(self, who: str, detail: str, now: int) -> None:
        """Count a peer that TLS turned away, or that has no identity of this mesh."""
        self._refuse(who, "identity", detail, now)

    def inbound_opened(self, pipe: int, identity: PeerIdentity, host: str, now: int) -> None:
        """Note that an admitted pipe into our inbox is open."""
        self.refusals.opened(identity.node, now)
        self._pipes.opened(pipe, identity, host, now)
        self.heartbeats.start(now)  # each round closes pipes that stay mute

    def inbound_closed(self, pipe: int, now: int) -> None:
        """Note that a pipe into our inbox is gone."""
        known = self._pipes.closed(pipe)
        neighbour = self.neighbours.get(known.identity.node) if known is not None else None
        if neighbour is not None:
            neighbour.inbound.discard(pipe)
            self._check_pipes(neighbour, now)

    def lane_opened(self, dial: int, identity: PeerIdentity, now: int) -> None:
        """Note that a dialled lane is open and has accepted our Hello."""
        dialling = self._contacts.answered(dial, identity, now)
        if dialling is None:
            return
        contact, neighbour = dialling.contact, self.neighbours.get(identity.node)
        if identity.node == self._node:  # a seed led to ourselves
            self._contacts.hang_up(dial, NEVER)
            return
        if contact.node != identity.node:
            # It is not remembered against the name, because any stranger may advertise it with the address of another.
            self._contacts.mistaken(dial, now)
            detail = f"its advert says {contact.node}, its certificate {identity.node}"
            self._refuse(f"{contact.name} at {dialling.address[0]}", "identity", detail, now)
            return
        if neighbour is not None and neighbour.role is not identity.role:
            self._contacts.hang_up(dial, now + limits.REDIAL_MIN_NS)  # the life with the new role has its own links
            if neighbour.state in (State.ALIVE, State.SUSPECT):
                self._leave(neighbour, "it has another role now", now + limits.REDIAL_MIN_NS, now)
            neighbour.role = identity.role
            return
        if neighbour is not None and neighbour.dial_of(dialling.lane):  # a second way to the same inbox
            self._contacts.hang_up(dial, now + limits.REDIAL_MAX_NS // 2)
            return
        if neighbour is not None and dialling.lane is Lane.BULK and neighbour.state in (State.DEAD, State.LEFT):
            self._contacts.hang_up(dial)  # it went while this was dialled, and nothing waits for it any more
            return
        dialling.identity, dialling.opened_ns = identity, now
        if neighbour is None:
            neighbour = self._add(identity, contact.first_seen_ns, now)
        neighbour.set_dial(dialling.lane, dial)
        self._hearing.lane_opened(neighbour, now)
        self._check_met(neighbour, now)

    def lane_closed(self, dial: int, reason: str, refused: bool, now: int) -> None:
        """Note that a dialled lane was closed. ``refused``: an identity was wrong, so dialling again is in vain."""
        dialling = self._contacts.closed(dial, refused, now)
        if dialling is None:
            return
        if refused:
            self._refuse(dialling.contact.name, "identity", reason, now)
        neighbour = self.neighbours.get(dialling.identity.node) if dialling.identity is not None else None
        if neighbour is not None and neighbour.dial_of(dialling.lane) == dial:
            neighbour.set_dial(dialling.lane, 0)
            self._check_pipes(neighbour, now)

    def want_bulk(self, node: NodeId) -> None:
        """Dial the bulk lane of a neighbour, for which something waits, if it is neither open nor being dialled. One
        that is dead or has left has to say Hello first, though its inbox may answer."""
        neighbour = self.neighbours.get(node)
        if neighbour is not None and neighbour.state in (State.ALIVE, State.SUSPECT) and not self._leaving:
            if neighbour.realtime and not neighbour.bulk:
                self._contacts.dial_bulk(neighbour.realtime)

    # --- frames ----------------------------------------------------------------------------------------------------
    def receive(self, frame: Frame, pipe: int, now: int) -> Neighbour | None:
        """Take note of a frame. Returns the neighbour that sent it, or None when nobody else may use the frame."""
        known = self._pipes.of_number.get(pipe)
        if known is None or known.closing:
            return None
        if not known.spoken:
            if type(frame) is not Hello:
                self.refusals.before_hello(pipe, known, type(frame).__name__, now)
                return None
            return self._hello(frame, pipe, known, now)
        neighbour = self.neighbours.get(known.identity.node)
        if neighbour is None:
            return None
        neighbour.last_heard_ns = now
        if neighbour.state is State.SUSPECT:
            self.refute(neighbour, now)
        if type(frame) is Heartbeat:
            self.heartbeats.receive(frame, neighbour, now)
        elif type(frame) is Goodbye:
            self._goodbye(frame, neighbour, now)
        elif type(frame) is Refusal:
            self._refuse(neighbour.node, f"refused by it ({frame.code})", frame.detail, now)
        return neighbour

    def receive_unreadable(self, error: RemoteProtocolError, data: bytes | bytearray, pipe: int, now: int) -> None:
        """Note a frame of an unknown type, a Hello of another major version, or a malformed frame."""
        if isinstance(error, UnknownFrame):
            self.refusals.unknown(error.frame_type, pipe, now)
            return
        known, major = self._pipes.of_number.get(pipe), untrusted_other_major(data)
        if major is None:
            self.refusals.malformed(pipe, str(error), now)
        elif known is not None and not known.closing:  # nothing else is known of it
            self._turn_away(pipe, known, "version", f"it speaks version {major}, this node {MAJOR}.{MINOR}", now)

    def _turn_away(self, pipe: int, known: AdmittedPipe, code: str, detail: str, now: int) -> None:
        node = known.identity.node
        self._refuse(node, code, detail, now)
        neighbour = self.neighbours.get(node)
        if neighbour is not None and neighbour.realtime:
            self._messages.append((node, Refusal(code, detail[: limits.MAX_TEXT_CHARS])))
        self._pipes.close(pipe)

    def _hello(self, hello: Hello, pipe: int, known: AdmittedPipe, now: int) -> Neighbour | None:
        identity = known.identity
        fault: tuple[str, str] | None = None
        if hello.major != MAJOR:
            fault = "version", f"it speaks version {hello.major}.{hello.minor}, this node {MAJOR}.{MINOR}"
        elif hello.node != identity.node:
            fault = "identity", f"its Hello says {hello.node!r}, its certificate {identity.node!r}"
        elif hello.incarnation > MAX_INCARNATION:
            fault = "incarnation", f"incarnation out of range: {hello.incarnation} is above {MAX_INCARNATION}"
        elif hello.node == self._node:
            if hello.incarnation != self._incarnation:
                self._events.append(DuplicateIdentity(self._node, True, known.host))
            self._pipes.close(pipe)
            return None
        neighbour = self.neighbours.get(identity.node)
        if fault is None and neighbour is not None and neighbour.state in (State.ALIVE, State.SUSPECT):
            if hello.incarnation < neighbour.incarnation:
                self._events.append(DuplicateIdentity(identity.node, False, known.host))
                fault = "duplicate", f"a newer node with the id {identity.node} is alive"
        if fault is not None:
            self._turn_away(pipe, known, *fault, now)
            return None
        if neighbour is None:
            neighbour = self._add(identity, now, now)
        elif neighbour.role is not identity.role or neighbour.incarnation not in (hello.incarnation, 0):
            self._forget_older_life(neighbour, identity.role, now)
        self._pipes.spoke(pipe, neighbour, hello.lane, now)
        neighbour.incarnation = Incarnation(hello.incarnation)
        neighbour.inbound.add(pipe)
        neighbour.last_heard_ns = now
        self._contacts.pardon(identity.node)
        self._hearing.said_hello(neighbour, hello, known.host, now)
        match neighbour.state:
            case State.SUSPECT:
                self.refute(neighbour, now)
            case State.DEAD | State.LEFT:
                neighbour.state, neighbour.since_ns, neighbour.met = State.ALIVE, now, False
                neighbour.first_seen_ns = now
            case State.ALIVE:
                pass
        self._check_met(neighbour, now)
        return neighbour

    def _forget_older_life(self, neighbour: Neighbour, role: Role, now: int) -> None:
        """Drop the pipes and lanes of a neighbour that restarted or has another role: they belong to its former
        life."""
        self._drop_links(neighbour)
        neighbour.role = role
        neighbour.first_seen_ns = now
        neighbour.heartbeat_received = neighbour.echoed = 0
        neighbour.heard_by_peer = False

    def _goodbye(self, goodbye: Goodbye, neighbour: Neighbour, now: int) -> None:
        if goodbye.incarnation == neighbour.incarnation:
            self._leave(neighbour, goodbye.reason, now + limits.REDIAL_MAX_NS, now)

    def _leave(self, neighbour: Neighbour, reason: str, next_dial_ns: int, now: int) -> None:
        neighbour.state, neighbour.since_ns, neighbour.suspicion = State.LEFT, now, None
        self._suspected.pop(neighbour.node, None)
        self._events.append(NeighbourLeft(neighbour.node, reason))
        self._drop_links(neighbour, next_dial_ns)

    # --- life and death --------------------------------------------------------------------------------------------
    def _add(self, identity: PeerIdentity, first_seen_ns: int, now: int) -> Neighbour:
        neighbour = self.neighbours[identity.node] = Neighbour(identity.node, identity.role, first_seen_ns, now)
        self.heartbeats.start(now)
        return neighbour

    def reachable(self, now: int) -> list[Reach]:
        """Neighbours that live and to whom a realtime lane is open."""
        there = (n for n in self.neighbours.values() if n.state is _ALIVE and n.met and n.realtime)
        return [Reach(n.node, n.round_trip_ns, n.lasts_ns(now, self._suspect_after_ns)) for n in there]

    def is_alive(self, node: NodeId) -> bool:
        """Whether a neighbour was met and is not suspected, dead or gone."""
        neighbour = self.neighbours.get(node)
        return neighbour is not None and neighbour.met and neighbour.state is _ALIVE

    def _living(self) -> int:
        return sum(n.state in (State.ALIVE, State.SUSPECT) for n in self.neighbours.values())

    def _check_met(self, neighbour: Neighbour, now: int) -> None:
        if neighbour.inbound and neighbour.realtime and not neighbour.met:
            neighbour.met = True  # a suspicion stays: that our own lane is open does not prove that the neighbour lives
            self._events.append(
                NeighbourMet(neighbour.node, neighbour.role, neighbour.incarnation, now - neighbour.first_seen_ns)
            )
            neighbour.heartbeat_sent += 1
            held_ns = now - neighbour.echo_came_ns
            self._messages.append((neighbour.node, Heartbeat(  # queued by the engine: its queue may change first
                neighbour.heartbeat_sent, now, neighbour.heartbeat_received, neighbour.echo_sent_ns, held_ns
            )))  # fmt: skip

    def _check_pipes(self, neighbour: Neighbour, now: int) -> None:
        if self._leaving:  # they hang up because we said goodbye
            return
        if neighbour.state is State.ALIVE and not neighbour.inbound and not (neighbour.realtime or neighbour.bulk):
            if neighbour.incarnation:
                self._suspect(neighbour, "its pipes are gone", now)
                assert neighbour.suspicion is not None
                if now - self._forgiven_ns > self._settings.suspicion_max_ns:
                    neighbour.suspicion.tighten(self._settings.lost_link_suspicion_ns)
            else:  # it never said Hello, so nobody needs to be told
                del self.neighbours[neighbour.node]
                self.forgot = True

    def _suspect(self, neighbour: Neighbour, because: str, now: int) -> None:
        neighbour.state, neighbour.since_ns = State.SUSPECT, now
        neighbour.suspicion = Suspicion(
            now,
            self._settings.suspicion_min_ns,
            self._settings.suspicion_max_ns,
            max(self._living() - 1, limits.LEAST_CONFIRMERS),
        )
        self._suspected[neighbour.node] = neighbour
        self._counters["suspicions"] += 1
        self._events.append(NeighbourSuspected(neighbour.node, because))
        self._hearing.suspected(neighbour, now)

    def refute(self, neighbour: Neighbour, now: int) -> None:
        """Note that a suspected neighbour sent a frame, and so lives."""
        neighbour.state, neighbour.since_ns, neighbour.suspicion = State.ALIVE, now, None
        self._suspected.pop(neighbour.node, None)
        self._counters["refutations"] += 1
        self._events.append(NeighbourRefuted(neighbour.node))

    def _die(self, neighbour: Neighbour, now: int) -> None:
        neighbour.state, neighbour.since_ns, neighbour.suspicion = State.DEAD, now, None
        self._suspected.pop(neighbour.node, None)
        self._counters["deaths"] += 1
        self._events.append(NeighbourDead(neighbour.node, now - neighbour.last_heard_ns))
        self._drop_links(neighbour, lost=True)

    def _drop_links(self, neighbour: Neighbour, next_dial_ns: int | None = None, lost: bool = False) -> None:
        for pipe in sorted(neighbour.inbound):
            self._pipes.close(pipe)
        for dial in (neighbour.realtime, neighbour.bulk):
            if dial:
                self._contacts.hang_up(dial, next_dial_ns, lost)
        neighbour.inbound.clear()
        neighbour.realtime = neighbour.bulk = 0
        neighbour.met = False

    def leave(self, reason: str) -> None:
        """Say goodbye to all neighbours, and dial nobody any more."""
        self._leaving = True
        for neighbour in self.neighbours.values():
            if neighbour.realtime:
                self._messages.append((neighbour.node, Goodbye(self._incarnation, reason)))

    # --- time ------------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int, receiving_since_ns: int | None = None) -> None:
        """Do what is due. ``receiving_since_ns``: since when a callback has been holding up the receiving thread."""
        held_up = receiving_since_ns is not None and now - receiving_since_ns > self._local_stall_ns
        if held_up or now - self._promised_ns > self._local_stall_ns:
            self._forgive(now)
        self._check_silence(now)
        if now >= self.heartbeats.due_ns:
            self.heartbeats.round(self.neighbours.values(), now)
            self.refusals.end_needless(self.neighbours, now)
        if not self._leaving and now >= self._contacts.next_timer_at():
            self._contacts.dial_due(self._may_dial, now, self.heartbeats.gap_ns > 0)
        self._promised_ns = self.next_timer_at()

    def _forgive(self, now: int) -> None:
        self._counters["local_stalls"] += 1
        self._forgiven_ns = now
        for neighbour in self.neighbours.values():
            neighbour.last_heard_ns = max(neighbour.last_heard_ns, now)
            self._hearing.forgive(neighbour, now)
            if neighbour.suspicion is not None:
                neighbour.suspicion.restart(now, self._settings.suspicion_max_ns)

    def _check_silence(self, now: int) -> None:
        suspect_after_ns = self._suspect_after_ns
        gap_ns, new_gap_ns = gaps_ns(self.heartbeats.line_ns, len(self.neighbours), self._contacts.known)
        for neighbour in list(self.neighbours.values()):
            if neighbour.state is _ALIVE:
                silent_ns = now - neighbour.last_heard_ns
                if neighbour.incarnation:
                    is_new = neighbour.is_new(now, new_gap_ns)
                    patience_ns = neighbour.reckon_patience(silent_ns, new_gap_ns if is_new else gap_ns)
                    if silent_ns >= max(suspect_after_ns, patience_ns):
                        self._suspect(neighbour, "silence", now)
                    else:
                        self._hearing.check(neighbour, now)
                elif silent_ns >= neighbour.wait_for_hello(self._contacts.patience_ns):
                    # It took our Hello and never sent its own: its host may be gone, and nothing would report that.
                    self._drop_links(neighbour, now + limits.REDIAL_MAX_NS)
                    self._forget(neighbour.node)
            elif neighbour.suspicion is not None:
                if now >= neighbour.suspicion.dead_at:
                    self._die(neighbour, now)
            elif neighbour.realtime:
                if now - neighbour.heard_ns >= limits.HELLO_TIMEOUT_NS:  # our Hello may have been lost on the way
                    self._drop_links(neighbour, now + limits.REDIAL_MIN_NS)
            elif now - neighbour.since_ns >= limits.FORGET_DEAD_NS and not neighbour.bulk:
                self._forget(neighbour.node)

    def _forget(self, node: NodeId) -> None:
        del self.neighbours[node]
        self.forgot = True
        self._contacts.forget(node)

    def _may_dial(self, node: NodeId | None) -> bool:
        neighbour = self.neighbours.get(node) if node is not None else None
        return self._living() < self._settings.max_neighbours if neighbour is None else not neighbour.realtime

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has to be called at the latest."""
        suspicions = [neighbour.suspicion for neighbour in self._suspected.values()]
        due = min([self.heartbeats.due_ns, *[one.dead_at for one in suspicions if one is not None]])
        return due if self._leaving else min(due, self._contacts.next_timer_at())
