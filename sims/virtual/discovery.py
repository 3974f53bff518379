"""How simulated nodes find each other: multicast DNS as a real node speaks it, one datagram at a time.

A life begins with three announcements (now, +225 ms, +450 ms). It asks for others 20 to 120 ms after its start, as
python-zeroconf does, again 1 s later, and then every ``ASK_AGAIN_NS``; so it finds nodes that came into range, or whose
announcements were lost. A question names the lives that the asker knows. Every other node that hears it answers to all,
20 to 120 ms later (RFC 6762, section 6), at most once a second. The medium decides at each receiver whether a datagram
is lost. A node knows what it has heard until its process ends: records live for 75 minutes.

Not modelled: questions that are not asked because another node has just asked them, the questions that python-zeroconf
asks by itself 5 and 14 s after the start, several answers in one datagram, and refreshing of records that get old.
"""

from random import Random
from typing import Final, NamedTuple

from protocols.base import limits
from protocols.base.ids import NodeId
from sims.media.contract import Links
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode

ASK_AGAIN_NS: Final = 2 * limits.SECOND
"""The same as ``meshnode.links.mdns.ASK_AGAIN_S``."""
_OPEN_NS: Final = 12 * limits.MS
"""How long a process that has loaded everything takes to its first announcement: certificates, inbox, sockets. Emulated
nodes took 12 to 25 ms."""
_ANNOUNCED_AFTER_NS: Final = (_OPEN_NS, _OPEN_NS + 225 * limits.MS, _OPEN_NS + 450 * limits.MS)
_ASKED_SOON_NS: Final = limits.SECOND
_ANSWER_AFTER_NS: Final = (20 * limits.MS, 120 * limits.MS)
_ANSWER_INTERVAL_NS: Final = limits.SECOND
_ADVERT_BYTES: Final = 28 + 300
"""UDP and IP headers, and the PTR, SRV, TXT and A records of one service."""
_QUESTION_BYTES: Final = 28 + 40
_KNOWN_BYTES: Final = 32
_MOST_KNOWN: Final = 40
"""The most known answers that fit one datagram."""
_LIE_INTERVAL_NS: Final = limits.SECOND


class Advert(NamedTuple):
    """A claim that a life of a node is at a host."""

    node: NodeId
    incarnation: int
    host: NodeId


class _Host:
    __slots__ = ("answering", "answers_ns", "known", "lies")

    def __init__(self) -> None:
        self.known: dict[tuple[NodeId, int], None] = {}
        self.answers_ns = -_ANSWER_INTERVAL_NS
        self.answering = False
        self.lies = False


class Discovery:
    """The multicast DNS of all nodes."""

    def __init__(self, driver: SimDriver, links: Links, random: Random) -> None:
        self._driver, self._links, self._random = driver, links, random
        self._hosts: dict[int, _Host] = {}

    def begin(self, node: SimNode) -> None:
        """A life of a node begins and knows nobody."""
        lies = node.number in self._hosts and self._hosts[node.number].lies
        host = self._hosts[node.number] = _Host()
        host.lies = lies
        now = self._driver.now
        for after_ns in _ANNOUNCED_AFTER_NS:
            self._driver.push(now + after_ns, self._announce, (node, node.lives))
        self._driver.push(now + self._random.randint(*_ANSWER_AFTER_NS), self._ask, (node, node.lives, False))

    def lie(self, node: SimNode, on: bool) -> None:
        """While this is on, the host advertises other nodes, and nodes that don't exist, at its own address."""
        host = self._hosts.setdefault(node.number, _Host())
        if on and not host.lies:
            self._driver.push(self._driver.now, self._tell_lies, node)
        host.lies = on

    def _tell_lies(self, node: SimNode) -> None:
        if not self._hosts[node.number].lies:
            return
        other = self._random.choice(self._driver.numbered)
        lies = [Advert(NodeId(f"ghost-{self._random.randrange(1_000)}"), 1, node.name)]
        if other is not node:
            lies.append(Advert(other.name, self._random.randrange(1, 1 << 31), node.name))
        for lie in lies:
            self._multicast(node, lie)
        self._driver.push(self._driver.now + _LIE_INTERVAL_NS, self._tell_lies, node)

    # --- adverts ---------------------------------------------------------------------------------------------------
    def _announce(self, life: tuple[SimNode, int]) -> None:
        node, number = life
        if not node.running or node.lives != number:
            return
        host = self._hosts[node.number]
        host.answering, host.answers_ns = False, self._driver.now
        self._multicast(node, Advert(node.name, node.engine.settings.incarnation, node.name))

    def _multicast(self, node: SimNode, advert: Advert) -> None:
        at_ns, receivers = self._links.multicast_ns(node.number, _ADVERT_BYTES, self._driver.now)
        if receivers:
            self._driver.push(at_ns, self._heard, (advert, receivers))

    def _heard(self, heard: tuple[Advert, list[int]]) -> None:
        advert, receivers = heard
        for number in receivers:
            node = self._driver.numbered[number]
            if not node.running or node.name == advert.node:
                continue
            known = self._hosts[number].known
            life = advert.node, advert.incarnation
            if life not in known:
                if len(known) >= limits.MAX_ADVERTS:
                    del known[next(iter(known))]
                known[life] = None
                self._driver.when_awake(node, self._driver.now, self._hint, (node, advert))

    def _hint(self, hint: tuple[SimNode, Advert]) -> None:
        node, advert = hint
        self._driver.hint(node, advert.node, advert.host)

    # --- questions -------------------------------------------------------------------------------------------------
    def _ask(self, asking: tuple[SimNode, int, bool]) -> None:
        node, life, again = asking
        if not node.running or node.lives != life:
            return
        now = self._driver.now
        size_bytes = _QUESTION_BYTES + _KNOWN_BYTES * min(len(self._hosts[node.number].known), _MOST_KNOWN)
        at_ns, receivers = self._links.multicast_ns(node.number, size_bytes, now)
        if receivers:
            self._driver.push(at_ns, self._asked, (node, receivers))
        self._driver.push(now + (ASK_AGAIN_NS if again else _ASKED_SOON_NS), self._ask, (node, life, True))

    def _asked(self, asked: tuple[SimNode, list[int]]) -> None:
        asker, receivers = asked
        known, now = self._hosts[asker.number].known, self._driver.now
        for number in receivers:
            node = self._driver.numbered[number]
            if not node.running or (node.name, int(node.engine.settings.incarnation)) in known:
                continue
            host = self._hosts[number]
            if not host.answering:
                host.answering = True
                due_ns = now + self._random.randint(*_ANSWER_AFTER_NS)
                self._driver.push(
                    max(due_ns, host.answers_ns + _ANSWER_INTERVAL_NS), self._announce, (node, node.lives)
                )
