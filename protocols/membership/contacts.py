"""Where to dial, when, and how often: the part of membership that deals in hints.

A *contact* is somewhere to dial: an advert or a seed (hints from strangers), or what an authenticated Hello said. Each
contact has at most one dial per lane under way. Failure doubles the pause, up to ``REDIAL_MAX_NS``; a lane that closes
within a second of opening counts as a failure, so that a peer which turns us away after the handshake is not dialled in
a loop. Whoever was refused, by us or by them, is left alone for ``REFUSAL_MEMORY_NS``.

Whoever floods the radio with adverts makes us knock at doors that never open, but not at all at once: at most
``MAX_DIALS`` wait for an answer, those that failed least first. Who said Hello is not kept waiting by mere hints,
neither for a place in the table nor for a dial.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from protocols.base import limits
from protocols.base.ids import Lane, NodeId, PeerIdentity
from protocols.base.time import NEVER
from protocols.membership.events import Dial, HangUp

HostPort = tuple[str, int]

MAX_DIALS: Final = 64
"""Dials without an answer: each is a socket and, at a mute server, lasts until its time-out."""
_UNKNOWN: Final = -NEVER
"""An instant that has to be looked for."""
_LEADS_NOWHERE: Final = 3
"""Failures after which a hint makes room for a newer one."""


class Contact:
    """Somewhere to dial."""

    __slots__ = (
        "addresses", "advertised", "attempt", "busy", "failures", "first_seen_ns", "name", "next_dial_ns", "node",
        "proven", "proven_addresses", "said", "seed", "wanted",
    )  # fmt: skip

    def __init__(self, name: str, node: NodeId | None, now: int) -> None:
        self.name, self.node, self.first_seen_ns = name, node, now
        self.seed = node is None  # whoever answers there is welcome; ``node`` is then who answered last
        self.addresses: tuple[HostPort, ...] = ()
        self.said: tuple[HostPort, ...] = ()  # by the newest advert
        self.proven_addresses: tuple[HostPort, ...] = ()  # where it answered last, or its last Hello told
        self.attempt = 0  # which address comes next
        self.failures = 0
        self.next_dial_ns = now
        self.busy = 0
        """Realtime lanes to it that are open or being dialled."""
        self.wanted = True
        """False once the hint was withdrawn: finish, don't dial again."""
        self.advertised = False
        """Somebody will say when it is gone; what only a Hello told is forgotten with its neighbour."""
        self.proven = False
        """An authenticated Hello told it."""


class Dialling:
    """A dial under way, or the lane it became."""

    __slots__ = ("address", "contact", "identity", "lane", "opened_ns")

    def __init__(self, contact: Contact, lane: Lane, address: HostPort) -> None:
        self.contact, self.lane, self.address = contact, lane, address
        self.identity: PeerIdentity | None = None
        """Who answered; None while nobody has."""
        self.opened_ns = 0


class Contacts:
    """All contacts and dials of one node."""

    def __init__(self, node: NodeId, dial_timeout_ns: int, random: Random) -> None:
        self._node, self._dial_timeout_ns, self._random = node, dial_timeout_ns, random
        self._contacts: dict[str, Contact] = {}
        self._dials: dict[int, Dialling] = {}
        self._refused: dict[str, int] = {}  # name of a contact, node id or host -> until when
        self._next_dial = 1
        self._due_ns = _UNKNOWN  # when the next contact may be dialled
        self._effects: list[Dial | HangUp] = []
        self.counters = {"hints_ignored": 0, "dials": 0, "dials_failed": 0}

    def has_outgoing(self) -> bool:
        """Whether :meth:`outgoing` has any."""
        return bool(self._effects)

    def outgoing(self) -> list[Dial | HangUp]:
        """Effects decided since the last call."""
        effects, self._effects = self._effects, []
        return effects

    # --- hints -----------------------------------------------------------------------------------------------------
    def hint(self, name: str, node: NodeId | None, addresses: tuple[HostPort, ...], now: int) -> None:
        """An advert (``node`` given) or a seed (``node`` None). Bounded; believed only once TLS has proved it."""
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
        """Forget the hint that failed most if the table is full; False when none failed ``min_failures`` times."""
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
        """An authenticated Hello says where its inbox is: dial there, unless that is under way."""
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
        """A neighbour is forgotten, and where it was with it, unless an advert still names it."""
        contact = self._contacts.get(node)
        if contact is not None and not contact.advertised and not contact.seed:
            for dial in [dial for dial, dialling in self._dials.items() if dialling.contact is contact]:
                self.hang_up(dial)
            self._contacts.pop(node, None)
            self._due_ns = _UNKNOWN

    def _move(self, contact: Contact, addresses: tuple[HostPort, ...], now: int) -> None:
        """It is said to be somewhere else: try there first, and then where it once proved to be, for anybody can say
        so. Dials to elsewhere are given up."""
        others = [address for address in contact.proven_addresses if address not in addresses]
        others = others[: limits.MAX_ADVERT_ADDRESSES // 2]  # a liar may fill an advert
        contact.addresses = (*addresses[: limits.MAX_ADVERT_ADDRESSES - len(others)], *others)
        contact.attempt = contact.failures = 0
        contact.next_dial_ns = min(contact.next_dial_ns, now)
        for dial, dialling in list(self._dials.items()):
            if dialling.contact is contact and dialling.identity is None and dialling.address not in contact.addresses:
                self.hang_up(dial)

    def withdraw(self, name: str) -> None:
        """A hint was taken back. Says nothing of life: an open link stays."""
        contact = self._contacts.get(name)
        if contact is None:
            return
        self._due_ns = _UNKNOWN
        contact.wanted = False
        if not any(dialling.contact is contact for dialling in self._dials.values()):
            del self._contacts[name]

    # --- refusals --------------------------------------------------------------------------------------------------
    def remember_refusal(self, who: str, now: int) -> bool:
        """Leave ``who`` alone for a while. False: no news, because it was remembered already or too many are."""
        news = self._refused.get(who, 0) <= now
        if len(self._refused) >= limits.MAX_ADVERTS:
            self._refused = {key: until for key, until in self._refused.items() if until > now}
        if who not in self._refused and len(self._refused) >= limits.MAX_ADVERTS:
            return False
        self._refused[who] = now + limits.REFUSAL_MEMORY_NS
        return news

    def pardon(self, who: str) -> None:
        """It was let in after all."""
        self._refused.pop(who, None)

    # --- dials -----------------------------------------------------------------------------------------------------
    def dialling(self, dial: int) -> Dialling | None:
        """The dial of that number."""
        return self._dials.get(dial)

    def answered(self, dial: int, identity: PeerIdentity) -> Dialling | None:
        """Somebody answered. None: the dial was given up meanwhile, and the lane is closed."""
        self._due_ns = _UNKNOWN  # it does not wait for an answer any more
        dialling = self._dials.get(dial)
        if dialling is None:
            self._effects.append(HangUp(dial))
            return None
        if dialling.contact.seed:
            dialling.contact.node = identity.node
        if dialling.contact.node == identity.node:
            dialling.contact.proven_addresses = (dialling.address,)
        return dialling

    def mistaken(self, dial: int, now: int) -> None:
        """Somebody else answered: hang up, and try the next address, or all of them again much later."""
        contact = self._dials[dial].contact
        contact.attempt += 1
        more = contact.attempt % len(contact.addresses) != 0
        self.hang_up(dial, now + (limits.REDIAL_MIN_NS if more else limits.REDIAL_MAX_NS))

    def hang_up(self, dial: int, next_dial_ns: int | None = None) -> None:
        """Close a lane or give up a dial; dial that contact again at ``next_dial_ns`` when given."""
        self._effects.append(HangUp(dial))
        self._due_ns = _UNKNOWN
        dialling = self._end(dial)
        if dialling is None:
            return
        if next_dial_ns is not None:
            dialling.contact.next_dial_ns = next_dial_ns
        self._forget_unwanted(dialling.contact)

    def closed(self, dial: int, refused: bool, now: int) -> Dialling | None:
        """A lane is finished, or never came to be; decides when to dial again. None: the dial is not known."""
        self._due_ns = _UNKNOWN
        dialling = self._end(dial)
        if dialling is None:
            return None
        contact = dialling.contact
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
        self._forget_unwanted(contact)
        return dialling

    def _forget_unwanted(self, contact: Contact) -> None:
        """With the last of its lanes; another may have its name by then."""
        if not contact.wanted and self._contacts.get(contact.name) is contact:
            if not any(dialling.contact is contact for dialling in self._dials.values()):
                del self._contacts[contact.name]

    def _end(self, dial: int) -> Dialling | None:
        dialling = self._dials.pop(dial, None)
        if dialling is not None and dialling.lane is Lane.REALTIME:
            dialling.contact.busy -= 1
        return dialling

    def dial_bulk(self, realtime: int) -> None:
        """Dial the bulk lane to where a realtime lane leads, unless that is under way."""
        to = self._dials[realtime]
        if not any(d.contact is to.contact and d.lane is Lane.BULK for d in self._dials.values()):
            self._dial(to.contact, Lane.BULK, to.address)

    def _dial(self, contact: Contact, lane: Lane, address: HostPort) -> None:
        dial, self._next_dial = self._next_dial, self._next_dial + 1
        self._due_ns = _UNKNOWN
        self._dials[dial] = Dialling(contact, lane, address)
        contact.busy += lane is Lane.REALTIME
        self.counters["dials"] += 1
        # With several addresses the first tries are short: one of them may lead nowhere.
        timeout_ns = self._dial_timeout_ns
        if len(contact.addresses) > 1:
            timeout_ns = min(timeout_ns, (1_500 * limits.MS) << min(contact.failures // len(contact.addresses), 2))
        self._effects.append(Dial(dial, *address, timeout_ns))

    def dial_due(self, may_dial: Callable[[NodeId | None], bool], now: int) -> None:
        """Dial every contact whose time has come; ``may_dial`` says whether a lane to that node is wanted."""
        if now < self.next_timer_at():
            return
        self._due_ns = _UNKNOWN
        due = [contact for contact in self._contacts.values() if contact.next_dial_ns <= now and not contact.busy]
        free = MAX_DIALS - self._unanswered()
        for contact in sorted(due, key=lambda contact: (not contact.proven, contact.failures)):
            refused_until_ns = self._refused.get(contact.name, 0)
            if refused_until_ns > now:
                contact.next_dial_ns = refused_until_ns
            elif may_dial(contact.node):
                if free <= 0 and not contact.proven:  # the end of any dial makes room
                    continue
                free -= 1
                self._dial(contact, Lane.REALTIME, contact.addresses[contact.attempt % len(contact.addresses)])
            else:
                contact.next_dial_ns = now + limits.REDIAL_MAX_NS

    def next_timer_at(self) -> int:
        """When :meth:`dial_due` wants to be called next."""
        if self._due_ns != _UNKNOWN:
            return self._due_ns
        full, due_ns = self._unanswered() >= MAX_DIALS, NEVER
        for contact in self._contacts.values():
            if contact.next_dial_ns < due_ns and not contact.busy and (contact.proven or not full):
                due_ns = contact.next_dial_ns
        self._due_ns = due_ns
        return due_ns

    def _unanswered(self) -> int:
        unanswered = 0
        for dialling in self._dials.values():
            if dialling.identity is None:
                unanswered += 1
        return unanswered
