"""Signed gossip entries and readings in simulation: who signs what, who holds it, and who lies.

Signatures are keyed hashes (BLAKE2b with the author's name as key). They are cheap, and as good as real ones among
simulated nodes, because none of these guesses them. The result of checking an entry is remembered, so that a thousand
nodes check it once, and all of them keep one object of it.
"""

import hashlib
from random import Random
from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.gossip.entries import EntryKey, Seal, Sealed
from protocols.readings.signing.seal import ReadingSeal
from protocols.wire.codec import encode_frame
from protocols.wire.entries import encode_address, encode_entry, entry_statement
from protocols.wire.gossip import Carried, Entry, GossipEntries, InboxAddress
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode

ADDRESS_KIND: Final = "address"
LIFETIME_S: Final = 24 * 3_600
SPREAD_KIND: Final = "spread"
"""The kind of the entries that a scenario puts in."""
_LIE_INTERVAL_NS: Final = limits.SECOND
_CREDENTIAL_BYTES: Final = 466
_SIGNATURE_BYTES: Final = 70
"""Certificate and ECDSA signature of a real node are most of what a small entry costs on the air. An entry of 200 bytes
took 1,022 on the wire of the emulator."""
_MOST_KEPT: Final = 65_536
_MOST_WAITING: Final = 4_096


def _signature(author: str, statement: bytes) -> bytes:
    return hashlib.blake2b(statement, key=author.encode()[:64], digest_size=_SIGNATURE_BYTES - 8).digest() + bytes(8)


def _credential(author: str) -> bytes:
    """What stands for the certificate of a node: its name."""
    return author.encode().ljust(_CREDENTIAL_BYTES, b"\0")


def _certificate_id(author: str) -> bytes:
    return hashlib.sha256(_credential(author)).digest()[: limits.CERTIFICATE_ID_BYTES]


class Authors:
    """All authors of a world, and its forgers."""

    def __init__(self, driver: SimDriver, random: Random) -> None:
        self._driver, self._random = driver, random
        self._kept: dict[bytes, Sealed] = {}
        self._genuine: dict[Entry, bool] = {}
        self._signed: dict[tuple[bytes, bytes, bytes], bool] = {}
        self._taken: dict[str, dict[tuple[EntryKey, int], int]] = {}
        self._oldest: dict[EntryKey, tuple[int, bytes]] = {}
        self._newest: dict[EntryKey, int] = {}
        self._forging: dict[int, bool] = {}
        self._repeating: dict[int, bool] = {}

    def seal(self, node: NodeId) -> Seal:
        """What the engine of ``node`` signs and checks with."""
        taken = self._taken.setdefault(node, {})

        def share(sealed: Sealed) -> Sealed:
            if len(taken) >= _MOST_WAITING:
                taken.clear()
            taken[sealed.key, sealed.version] = sealed.fingerprint
            return self._keep(sealed)

        return Seal(lambda statement: (_credential(node), _signature(node, statement)), self._verify, _sha256, share)

    def reading_seal(self, node: NodeId) -> ReadingSeal:
        """What the engine of ``node`` signs and checks readings with."""
        own_id = _certificate_id(node)
        return ReadingSeal(lambda statement: (own_id, _signature(node, statement)), self._role, self._has_signed)

    def _role(self, certificate: bytes, author: NodeId, certificate_id: bytes) -> Role | None:
        node = self._driver.nodes.get(author)
        if node is None or certificate != _credential(author) or certificate_id != _certificate_id(author):
            return None
        return node.role

    def _has_signed(self, certificate: bytes, statement: bytes, signature: bytes) -> bool:
        signed = (certificate, statement, signature)
        known = self._signed.get(signed)
        if known is None:
            if len(self._signed) >= _MOST_KEPT:
                self._signed.clear()
            author = certificate.rstrip(b"\0").decode()
            known = self._signed[signed] = _signature(author, statement) == signature
        return known

    def _keep(self, sealed: Sealed) -> Sealed:
        kept = self._kept.get(sealed.data)
        if kept is None:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            kept = self._kept[sealed.data] = sealed
        return kept

    def _verify(self, entry: Entry) -> bool:
        known = self._genuine.get(entry)
        if known is None:
            if len(self._genuine) >= _MOST_KEPT:
                self._genuine.clear()
            known = _signature(entry.author, entry_statement(entry)) == entry.signature
            self._genuine[entry] = known
            if known:
                key = (entry.author, entry.kind)
                self._oldest.setdefault(key, (entry.version, encode_entry(entry)))
                self._newest[key] = max(entry.version, self._newest.get(key, 0))
        return known

    def taken(self, node: str, key: EntryKey, version: int) -> str:
        """A hash of the signed bytes of an entry that ``node`` has just taken."""
        return f"{self._taken[node].pop((key, version), 0):x}"

    def say_address(self, node: SimNode) -> None:
        """A node puts in an entry with the address of its inbox, as a real node does at its start."""
        body = encode_address(InboxAddress(node.role.value, 7000, (node.name,)))
        self._driver.act(node, lambda engine, now: engine.gossip.put(ADDRESS_KIND, body, LIFETIME_S, now))

    # --- lies ------------------------------------------------------------------------------------------------------
    def forge(self, node: SimNode, on: bool) -> None:
        """While this is on, a node sends its neighbours entries of other authors that it made up."""
        if on and not self._forging.get(node.number):
            self._driver.push(self._driver.now, self._forge, node)
        self._forging[node.number] = on

    def _forge(self, node: SimNode) -> None:
        if not self._forging[node.number]:
            return
        victims = [key for key in self._newest if key[0] != node.name]
        if victims and node.running:
            author, kind = self._random.choice(victims)
            entry = Entry(author, kind, self._newest[author, kind] + 1, LIFETIME_S, b"forged", b"", b"not a signature.")
            self._send(node, encode_entry(entry))
        self._driver.push(self._driver.now + _LIE_INTERVAL_NS, self._forge, node)

    def repeat_old(self, node: SimNode, on: bool) -> None:
        """While this is on, a node sends its neighbours genuine entries that newer ones have superseded."""
        if on and not self._repeating.get(node.number):
            self._driver.push(self._driver.now, self._repeat, node)
        self._repeating[node.number] = on

    def _repeat(self, node: SimNode) -> None:
        if not self._repeating[node.number]:
            return
        superseded = [data for key, (version, data) in self._oldest.items() if version < self._newest[key]]
        if superseded and node.running:
            self._send(node, self._random.choice(superseded))
        self._driver.push(self._driver.now + _LIE_INTERVAL_NS, self._repeat, node)

    def _send(self, node: SimNode, data: bytes) -> None:
        self._driver.connections.slip_in(node, encode_frame(GossipEntries((Carried(0, data),))))


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
