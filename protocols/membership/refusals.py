"""Who is turned away, for what, and what that costs them.

A refused peer is reported once in a period and not dialled for ``REFUSAL_MEMORY_NS``. What an identity may cost is kept
in its account, so it doesn't get a new allowance by coming again.
"""

from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.links.drops import Drops
from protocols.membership.accounts import Accounts
from protocols.membership.contacts import Contacts
from protocols.membership.events import MembershipEvent, PeerRefused
from protocols.membership.neighbour import Neighbour
from protocols.membership.pipes import AdmittedPipe, AdmittedPipes
from protocols.wire.encoding.messagepack import untrusted_frame_number
from protocols.wire.encoding.values import COMPOSITE, element_count
from protocols.wire.frame import number_of
from protocols.wire.readings import Readings

_READINGS_NUMBER: Final = number_of(Readings)


class Refusals:
    """The refusals of one node."""

    def __init__(
        self, contacts: Contacts, pipes: AdmittedPipes, events: list[MembershipEvent], drops: Drops
    ) -> None:  # fmt: skip
        """``events`` and ``drops`` get what happens."""
        self._contacts, self._pipes, self._events, self._drops = contacts, pipes, events, drops
        self._accounts = Accounts()
        self.counters = {"pipes_refused": 0, "frames_before_hello": 0, "frames_malformed": 0, "frames_unknown": 0}

    def refuse(self, who: str, code: str, detail: str, now: int) -> str:
        """Refuse a peer. Returns the reason."""
        self.counters["pipes_refused"] += 1
        if self._contacts.remember_refusal(who, now):  # one event in a period, so that a stranger can't fill the log
            self._events.append(PeerRefused(who, code, detail))
        return f"{code}: {detail}"

    def may_open(self, node: NodeId, now: int) -> bool:
        """Whether an identity may open one more pipe."""
        return self._accounts.of(node, now).pipes.left(now) >= 1

    def opened(self, node: NodeId, now: int) -> None:
        """Note that an identity opened a pipe."""
        self._accounts.of(node, now).pipes.take(now)

    def may_cost(self, node: NodeId, pipe: int, now: int) -> bool:
        """Whether a neighbour may have one more control frame looked at. Otherwise the frame is dropped, and as many
        again as it has in its allowance end the pipe."""
        control = self._accounts.of(node, now).control
        if control.take(now):
            return True
        self._drops.count(node, "", "control_over_rate")
        control.fine(1)
        if control.left(now) < -limits.MAX_CONTROL_FRAME_BURST:
            self.malformed(pipe, "it sends too many control frames", now)
        return False

    def has_overdrawn(self, neighbour: Neighbour, data: bytes | bytearray, now: int) -> bool:
        """Whether a frame larger than ``FREE_READINGS_BYTES`` is dropped before it is decoded, because the neighbour's
        readings had too many elements. It is a sign of life all the same. Only one ``in_debt`` need be asked about."""
        if self._accounts.of(neighbour.node, now).elements.left(now) >= 1:
            neighbour.in_debt = False
            return False
        if untrusted_frame_number(data) != _READINGS_NUMBER:
            return False
        neighbour.last_heard_ns = now
        self._drops.count(neighbour.node, "*", "over_rate")
        return True

    def charge(self, neighbour: Neighbour, frame: Readings, now: int) -> None:
        """Have a neighbour pay for the lists and dicts in readings that were decoded."""
        elements = sum([element_count(one.value) for one in frame.readings if type(one.value) in COMPOSITE])
        if elements:
            account = self._accounts.of(neighbour.node, now).elements
            account.left(now)  # what came until now counts first, because the allowance is bounded
            account.fine(elements)
            neighbour.in_debt = True

    def malformed(self, pipe: int, detail: str, now: int) -> None:
        """Close a pipe that sent a malformed frame, and fine its sender. An event reports it once in a period, even if
        the sender's next Hello ends its refusal."""
        self.counters["frames_malformed"] += 1
        known = self._pipes.of_number.get(pipe)
        node = "" if known is None else known.identity.node
        if known is not None and not known.closing:
            self._accounts.of(known.identity.node, now).pipes.fine(limits.MALFORMED_PIPE_COST)
        who = node or f"pipe {pipe}"
        if self._contacts.remember_refusal(f"{who}, malformed", now):
            self._events.append(PeerRefused(who, "protocol", detail))
        self._drops.count(node, "", "malformed_frame")
        self._pipes.close(pipe)

    def unknown(self, number: int, pipe: int, now: int) -> None:
        """Take note of a frame of an unknown type. Too many of them are malformed."""
        self.counters["frames_unknown"] += 1
        known = self._pipes.of_number.get(pipe)
        if known is None or known.closing:
            return
        node = known.identity.node
        self._drops.count(node, "", "unknown_frame")
        if not known.spoken:
            self.before_hello(pipe, known, f"of type {number}", now)
        elif not self._accounts.of(node, now).unknown.take(now):
            self.malformed(pipe, f"it sends too many frames of unknown types, such as {number}", now)

    def end_needless(self, neighbours: dict[NodeId, Neighbour], now: int) -> None:
        """Close the pipes that said no Hello, and those in whose place their neighbour has opened another."""
        for pipe in self._pipes.mute(now):
            node = self._pipes.of_number[pipe].identity.node
            neighbour = neighbours.get(node)
            # Another pipe of it may have said Hello. If not, it is dialled all the same: the network may have broken
            # before its Hello came, and new pipes are paid for in any case.
            is_silent = neighbour is None or not neighbour.inbound
            if is_silent and self._contacts.remember_refusal(f"{node}, mute", now):
                self._events.append(PeerRefused(node, "protocol", "it said no Hello"))
            self.counters["pipes_refused"] += is_silent
            self._pipes.close(pipe)
        for neighbour in neighbours.values():
            if len(neighbour.inbound) > 1:
                for pipe in self._pipes.replaced(neighbour.inbound, now):
                    neighbour.inbound.discard(pipe)
                    self._pipes.close(pipe)

    def end_floods(self, flooding: list[Neighbour], now: int) -> None:
        """Close the pipes of neighbours that sent too many heartbeats, and clear the list."""
        for neighbour in flooding:
            for pipe in sorted(neighbour.inbound):
                self.malformed(pipe, "it sends too many heartbeats", now)
        flooding.clear()

    def before_hello(self, pipe: int, known: AdmittedPipe, what: str, now: int) -> None:
        """Close a pipe whose first frame was something else than Hello."""
        self.counters["frames_before_hello"] += 1
        self.refuse(known.identity.node, "protocol", f"its first frame was {what}, not Hello", now)
        self._pipes.close(pipe)
