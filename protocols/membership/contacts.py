"""Contacts: where a node dials, when, and how often.

A *contact* is somewhere to dial. It comes from an advert or a seed, which are hints from strangers, or from an
authenticated Hello. Each contact has at most one dial under way for each lane. A failure doubles the pause before the
next dial, up to ``REDIAL_MAX_NS``. A lane that closes within a second of opening counts as a failure, so that a peer
which refuses us after the handshake is not dialled in a loop. After a refusal, by us or by the peer, the peer is not
dialled for ``REFUSAL_MEMORY_NS``.

Several contacts may lead to one node: an advert, seeds, a Hello. While a lane to it is open the others are *parked*.
Once it ends they are dialled too, because one of them may know where the node is now. A seed may be misled, by a name
that led to another node for a while: when two seeds claim the same node, those without a lane are not parked but
dialled again, slowly.

A stranger that floods the radio with adverts makes us dial addresses that do not answer. How many wait for an answer at
once is bounded (:mod:`protocols.membership.dial_limit`), and contacts that failed least are dialled first. Mere hints
never keep a peer that said Hello waiting: it needs no place in the table, and is dialled next.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from protocols.base import limits
from protocols.base.ids import Lane, NodeId, PeerIdentity
from protocols.base.time import NEVER
from protocols.membership.crowd import crowd_size
from protocols.membership.dial_limit import DialLimit
from protocols.membership.events import Dial, HangUp

HostPort = tuple[str, int]

_UNKNOWN: Final = -NEVER
"""An instant that has to be computed again."""
_LEADS_NOWHERE: Final = 3
"""Failures after which a newer hint may replace a hint."""


class Contact:
    """Somewhere to dial."""

    __slots__ = (
        "addresses", "advertised", "attempt", "busy", "failures", "first_seen_ns", "name", "next_dial_ns", "node",
        "parked", "proven", "proven_addresses", "said", "seed", "wanted",
    )  # fmt: skip

    def __init__(self, name: str, node: NodeId | None, now: int) -> None:
        self.name, self.node, self.first_seen_ns = name, node, now
        self.seed = node is None  # any node may answer there; ``node`` is then the one that answered last
        self.addresses: tuple[HostPort, ...] = ()
        self.said: tuple[HostPort, ...] = ()  # from the newest advert
        self.proven_addresses: tuple[HostPort, ...] = ()  # where it answered last, or from its last Hello
        self.attempt = 0  # which address comes next
        self.failures = 0
        self.next_dial_ns = now
        self.busy = 0
        """Realtime lanes to it that are open or being dialled."""
        self.parked = False
        """Whether it is not dialled because another contact has a lane to its node."""
        self.wanted = True
        """False once the hint was withdrawn: open lanes stay, but it is not dialled again."""
        self.advertised = False
        """Whether a hint named it, which will also be withdrawn. A contact that comes only from a Hello is forgotten
        with its neighbour."""
        self.proven = False
        """Whether it comes from an authenticated Hello."""


class Dialling:
    """A dial that is under way, or the lane that it became."""

    __slots__ = ("address", "began_ns", "contact", "identity", "lane", "opened_ns")

    def __init__(self, contact: Contact, lane: Lane, address: HostPort, now: int) -> None:
        self.contact, self.lane, self.address, self.began_ns = contact, lane, address, now
        self.identity: PeerIdentity | None = None
        """The peer that answered; None until one does."""
        self.opened_ns = 0


class Contacts:
    """All contacts and dials of one node."""

    def __init__(self, node: NodeId, dial_timeout_ns: int, random: Random) -> None:
        self._node, self._dial_timeout_ns, self._random = node, dial_timeout_ns, random
        self._contacts: dict[str, Contact] = {}
        self._dials: dict[int, Dialling] = {}
        self._limit = DialLimit()
        self.known = 0
        """How many nodes contacts are of, those of which only adverts tell included."""
        self._refused: dict[str, int] = {}  # name of a contact, node id or host -> until when
        self._next_dial = 1
        self._due_ns = _UNKNOWN  # when the next contact may be dialled
        self._effects: list[Dial | HangUp] = []
        self.counters = {"hints_ignored": 0, "dials": 0, "dials_failed": 0}

    def has_outgoing(self) -> bool:
        """Whether :meth:`outgoing` would return any effects."""
        return bool(self._effects)

    def outgoing(self) -> list[Dial | HangUp]:
        """Effects decided since the last call."""
        effects, self._effects = self._effects, []
        return effects

    # --- hints -----------------------------------------------------------------------------------------------------
    def hint(self, name: str, node: NodeId | None, addresses: tuple[HostPort, ...], now: int) -> None:
        """Take an advert (with ``node``) or a seed (``node`` is None). Hints are bounded, and believed only once TLS
        has proved them."""
        if node == self._node or not addresses:
            return
        addresses = addresses[: limits.MAX_ADVERT_ADDRESSES]
        contact = self._contacts.get(name)
        if contact is None:
            if not self._make_room(_LEADS_NOWHERE):
                self.counters["hints_ignored"] += 1
                return
            contact = self._contacts[name] = Contact(name, node, now)
        self._due_ns = _UNKNOWN
        contact.wanted = contact.advertised = True
        if contact.said != addresses:
            contact.said = addresses
            self._move(contact, addresses, now)

    def _make_room(self, min_failures: int) -> bool:
        """Forget the hint that failed most if the table is full. False: it is full, and none failed ``min_failures``
        times."""
        if len(self._contacts) < limits.MAX_ADVERTS:
            return True
        met = {dialling.contact.name for dialling in self._dials.values() if dialling.identity is not None}
        hints = [contact for contact in self._contacts.values() if not contact.seed and contact.name not in met]
        worst = max(hints, key=lambda contact: contact.failures, default=None)
        if worst is None or worst.failures < min_failures:
            return False
        for dial in [dial for dial, dialling in self._dials.items() if dialling.contact is worst]:
            self.hang_up(dial)
        self._contacts.pop(worst.name, None)
        self.counters["hints_ignored"] += 1
        return True

    def dial_back(self, node: NodeId, addresses: tuple[HostPort, ...], now: int) -> None:
        """Dial the inbox that an authenticated Hello named, unless such a dial is under way."""
        if any(dialling.address == addresses[0] for dialling in self._dials.values()):
            return
        contact = self._contacts.get(node)
        if contact is None:
            if not self._make_room(0):
                return
            contact = self._contacts[node] = Contact(node, node, now)
        self._due_ns = _UNKNOWN
        contact.wanted = contact.proven = True
        contact.proven_addresses = addresses[: limits.MAX_ADVERT_ADDRESSES]
        self._move(contact, contact.proven_addresses, now)

    def forget(self, node: NodeId) -> None:
        """Forget where a neighbour was, unless an advert still names it."""
        contact = self._contacts.get(node)
        if contact is not None and not contact.advertised and not contact.seed:
            for dial in [dial for dial, dialling in self._dials.items() if dialling.contact is contact]:
                self.hang_up(dial)
            self._contacts.pop(node, None)
            self._due_ns = _UNKNOWN

    def _move(self, contact: Contact, addresses: tuple[HostPort, ...], now: int) -> None:
        """An advert or a Hello names new addresses. Try these first, and then those where it once proved to be,
        because anybody can send an advert. Give up dials to other addresses."""
        others = [address for address in contact.proven_addresses if address not in addresses]
        others = others[: limits.MAX_ADVERT_ADDRESSES // 2]  # a liar may fill an advert with addresses
        contact.addresses = (*addresses[: limits.MAX_ADVERT_ADDRESSES - len(others)], *others)
        contact.attempt = contact.failures = 0
        contact.next_dial_ns = min(contact.next_dial_ns, now)
        for dial, dialling in list(self._dials.items()):
            if dialling.contact is contact and dialling.identity is None and dialling.address not in contact.addresses:
                self.hang_up(dial)

    def withdraw(self, name: str) -> None:
        """A hint was withdrawn. This does not mean that the node is dead, so an open link stays."""
        contact = self._contacts.get(name)
        if contact is None:
            return
        self._due_ns = _UNKNOWN
        contact.wanted = False
        if not any(dialling.contact is contact for dialling in self._dials.values()):
            del self._contacts[name]

    def network_changed(self, now: int) -> None:
        """Our host has other addresses, or an interface was away: what failed before says nothing. Give up dials
        without an answer, and dial everybody to whom there is no lane again within ``REDIAL_MIN_NS``."""
        for dial, dialling in list(self._dials.items()):
            if dialling.identity is None and dialling.lane is Lane.REALTIME:
                self.hang_up(dial, now)
        for contact in self._contacts.values():
            contact.attempt = contact.failures = 0
            soon_ns = now + int(limits.REDIAL_MIN_NS * self._random.random())
            contact.next_dial_ns = min(contact.next_dial_ns, soon_ns)
        self._due_ns = _UNKNOWN

    # --- refusals --------------------------------------------------------------------------------------------------
    def remember_refusal(self, who: str, now: int) -> bool:
        """Don't dial ``who`` for a while. False: it was remembered already, or too many are."""
        news = self._refused.get(who, 0) <= now
        if len(self._refused) >= limits.MAX_ADVERTS:
            self._refused = {key: until for key, until in self._refused.items() if until > now}
        if who not in self._refused and len(self._refused) >= limits.MAX_ADVERTS:
            return False
        self._refused[who] = now + limits.REFUSAL_MEMORY_NS
        return news

    def pardon(self, who: str) -> None:
        """Forget a refusal, because the peer was accepted after all."""
        self._refused.pop(who, None)

    # --- dials -----------------------------------------------------------------------------------------------------
    def dialling(self, dial: int) -> Dialling | None:
        """The dial with that number, if there is one."""
        return self._dials.get(dial)

    def answered(self, dial: int, identity: PeerIdentity, now: int) -> Dialling | None:
        """A peer answered a dial. None: the dial was given up meanwhile, and its lane is closed."""
        self._due_ns = _UNKNOWN  # one dial less waits for an answer
        dialling = self._dials.get(dial)
        if dialling is None:
            self._effects.append(HangUp(dial))
            return None
        if dialling.lane is Lane.REALTIME:
            self._limit.answered(dialling.began_ns, now)
        if dialling.contact.seed:
            dialling.contact.node = identity.node
            if self._is_claimed_twice(identity.node):
                self._release(identity.node)
        if dialling.contact.node == identity.node:
            dialling.contact.proven_addresses = (dialling.address,)
        return dialling

    def mistaken(self, dial: int, now: int) -> None:
        """Another node answered than the one that was dialled: close the lane and try the next address. After the last
        address, try all of them again much later."""
        contact = self._dials[dial].contact
        contact.attempt += 1
        more = contact.attempt % len(contact.addresses) != 0
        self.hang_up(dial, now + (limits.REDIAL_MIN_NS if more else limits.REDIAL_MAX_NS))

    def hang_up(self, dial: int, next_dial_ns: int | None = None, lost: bool = False) -> None:
        """Close a lane or give up a dial; ``lost`` as of :class:`HangUp`. Dial that contact again at
        ``next_dial_ns``, if it is given."""
        self._effects.append(HangUp(dial, lost))
        self._due_ns = _UNKNOWN
        dialling = self._end(dial)
        if dialling is None:
            return
        if next_dial_ns is not None:
            dialling.contact.next_dial_ns = next_dial_ns
        if dialling.identity is not None:
            self._release(dialling.identity.node, next_dial_ns)
        self._forget_unwanted(dialling.contact)

    def closed(self, dial: int, refused: bool, now: int) -> Dialling | None:
        """A lane was closed, or could not be opened; decide when to dial again. None: the dial is not known."""
        self._due_ns = _UNKNOWN
        dialling = self._end(dial)
        if dialling is None:
            return None
        contact = dialling.contact
        if dialling.identity is None and contact.proven and not contact.failures:
            self._limit.timed_out(dialling.began_ns, now)
        if dialling.identity is None or now - dialling.opened_ns < limits.SECOND:
            self.counters["dials_failed"] += 1
            contact.failures += 1
        else:
            contact.failures = 0
        contact.attempt += 1
        back_off_ns = min(limits.REDIAL_MIN_NS << min(max(contact.failures - 1, 0), 8), limits.REDIAL_MAX_NS)
        contact.next_dial_ns = now + int(back_off_ns * self._random.uniform(0.75, 1.25))
        if refused:
            contact.next_dial_ns = now + limits.REFUSAL_MEMORY_NS
        if dialling.identity is not None:
            self._release(dialling.identity.node)
        self._forget_unwanted(contact)
        return dialling

    def _release(self, node: NodeId, next_dial_ns: int | None = None) -> None:
        """Dial the contacts of a node again that were parked: at once, or at ``next_dial_ns``."""
        for contact in self._contacts.values():
            if contact.parked and contact.node == node:
                contact.parked = False
                if next_dial_ns is not None:
                    contact.next_dial_ns = next_dial_ns

    def _is_claimed_twice(self, node: NodeId) -> bool:
        return sum(contact.seed and contact.node == node for contact in self._contacts.values()) > 1

    def _count_proven(self) -> int:
        """How many peers have proved who they are: by a Hello, or at the end of a lane."""
        crowd = {dialling.identity.node for dialling in self._dials.values() if dialling.identity is not None}
        crowd.update(contact.node for contact in self._contacts.values() if contact.proven and contact.node is not None)
        return len(crowd)

    def _is_reached(self, node: NodeId) -> bool:
        return any(
            dialling.identity is not None and dialling.identity.node == node and dialling.lane is Lane.REALTIME
            for dialling in self._dials.values()
        )

    def _forget_unwanted(self, contact: Contact) -> None:
        """Forget a withdrawn contact once it has no lanes. Another contact may have its name by then."""
        if not contact.wanted and self._contacts.get(contact.name) is contact:
            if not any(dialling.contact is contact for dialling in self._dials.values()):
                del self._contacts[contact.name]

    def _end(self, dial: int) -> Dialling | None:
        dialling = self._dials.pop(dial, None)
        if dialling is not None and dialling.lane is Lane.REALTIME:
            dialling.contact.busy -= 1
        return dialling

    @property
    def patience_ns(self) -> int:
        """How long a peer that took our Hello may take to dial back; in a crowd it has many others to dial."""
        return max(self._dial_timeout_ns, self._limit.round_ns) + limits.HELLO_TIMEOUT_NS

    def dial_bulk(self, realtime: int) -> None:
        """Dial the bulk lane to the address of a realtime lane, unless such a dial is under way."""
        to = self._dials[realtime]
        if not any(d.contact is to.contact and d.lane is Lane.BULK for d in self._dials.values()):
            self._dial(to.contact, Lane.BULK, to.address, -NEVER)

    def _dial(self, contact: Contact, lane: Lane, address: HostPort, now: int) -> None:
        dial, self._next_dial = self._next_dial, self._next_dial + 1
        self._due_ns = _UNKNOWN
        self._dials[dial] = Dialling(contact, lane, address, now)
        if lane is Lane.REALTIME:
            contact.busy += 1
        self.counters["dials"] += 1
        # With several addresses the first tries have short time-outs, because some addresses may not answer at all.
        timeout_ns = self._dial_timeout_ns
        if len(contact.addresses) > 1:
            timeout_ns = min(timeout_ns, (1_500 * limits.MS) << min(contact.failures // len(contact.addresses), 2))
        self._effects.append(Dial(dial, *address, timeout_ns))

    def dial_due(self, may_dial: Callable[[NodeId | None], bool], now: int, is_paced: bool = False) -> None:
        """Dial every contact whose time has come; ``may_dial`` says whether a lane to that node is wanted, and
        ``is_paced`` whether this node keeps a pace."""
        self._limit.is_paced = is_paced
        if now < self.next_timer_at():
            return
        self._due_ns = _UNKNOWN
        due = [
            contact
            for contact in self._contacts.values()
            if contact.next_dial_ns <= now and not contact.busy and not contact.parked
        ]
        waiting = self._waiting_since()
        for contact in sorted(due, key=lambda contact: (not contact.proven, contact.failures)):
            refused_until_ns = self._refused.get(contact.name, 0)
            if refused_until_ns > now:
                contact.next_dial_ns = refused_until_ns
            elif may_dial(contact.node) or (
                contact.seed and contact.node is not None and self._is_claimed_twice(contact.node)
            ):
                if self._limit.room_at(waiting, now) > now:
                    break  # their turn comes later
                self._limit.began(waiting, now)
                waiting.append(now)
                self._dial(contact, Lane.REALTIME, contact.addresses[contact.attempt % len(contact.addresses)], now)
            elif contact.node is not None and self._is_reached(contact.node):
                contact.parked = True
            else:
                contact.next_dial_ns = now + limits.REDIAL_MAX_NS

    def next_timer_at(self) -> int:
        """When :meth:`dial_due` has to be called next."""
        if self._due_ns != _UNKNOWN:
            return self._due_ns
        self.known = len({contact.node for contact in self._contacts.values()})
        self._limit.crowd = crowd_size(self._count_proven(), self.known)
        due_ns = NEVER
        for contact in self._contacts.values():
            if contact.next_dial_ns < due_ns and not (contact.busy or contact.parked):
                due_ns = contact.next_dial_ns
        self._due_ns = due_ns if due_ns == NEVER else self._limit.room_at(self._waiting_since(), due_ns)
        return self._due_ns

    def _waiting_since(self) -> list[int]:
        """When each of the dials that wait for an answer began, in that order."""
        return sorted(dialling.began_ns for dialling in self._dials.values() if dialling.identity is None)
