"""Proves who is the author of a reading that a neighbour passed on.

A publisher signs each reading that may be passed on, once for all neighbours. The signature covers the bytes of the
parcel, which nobody encodes again on the way, so nobody but the author can make or change a reading. Only the hops that
are left stand outside, and they can't exceed those that the author allowed.

Rules:

1. What a neighbour says of itself needs no signature, because its link proves it.
2. A reading of anybody else needs one, by the certificate of its origin that gossip has spread. Without that
   certificate it is neither delivered nor passed on (``author_unknown``). Nobody is to blame for that: the certificate
   may still be on its way.
3. A node passes on only what it has proven. So for a signature that is not good (``forged``), the neighbour that sent
   it is to blame, whether it forged the reading itself or passed it on without a check.
4. A sequence of an earlier life than the one in which the author's certificate was spread is a replay (``stale``).
   Sequences and times within a life are for the router to judge; they are signed.
5. A check is paid from the allowance of the neighbour that sent the parcel (``over_rate``), and the cheap checks go
   first. One frame causes one check.
"""

from collections.abc import Callable
from typing import Final, Literal

from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.errors import RemoteProtocolError
from protocols.base.ids import NodeId, Role
from protocols.base.sequences import MAX_INCARNATION, first_sequence
from protocols.base.time import NEVER
from protocols.links.drops import Drops
from protocols.readings.events import ReadingRefused
from protocols.readings.signing.held import Signed, SignedParcels
from protocols.readings.signing.seal import Certified, ReadingSeal
from protocols.wire.encoding.values import COMPOSITE, element_count
from protocols.wire.parcels import (
    check_signable,
    decode_untrusted_parcel,
    encode_alone,
    encode_signed,
    reading_statement,
)
from protocols.wire.readings import Reading, SignedReadings

_COMPLAINT_PAUSE_NS: Final = 60 * limits.SECOND
"""Pause between two events about readings from one neighbour, so that it can't fill a log."""


def of_nobody(author: NodeId) -> Certified | None:
    """What ``certificate_of`` of :class:`Authorship` is on a node without gossip."""
    del author
    return None


class _Payer:
    """What one neighbour may still cost, and when an event last reported it."""

    __slots__ = ("checks", "told_of_ns")

    def __init__(self, now: int) -> None:
        self.checks = Allowance(limits.SIGNED_READINGS_PER_S, limits.MAX_SIGNED_READINGS_BURST, now)
        self.told_of_ns = -NEVER


class Authorship:
    """Signs the readings of one node, and proves those of others."""

    def __init__(
        self, node: NodeId, drops: Drops, seal: ReadingSeal | None,
        certificate_of: Callable[[NodeId], Certified | None] = of_nobody,
    ) -> None:  # fmt: skip
        """``seal``: None for a node that can't sign; nobody passes its readings on, and it passes on none.
        ``certificate_of`` finds what gossip holds."""
        self._node, self._drops, self._seal, self._certificate_of = node, drops, seal, certificate_of
        self._parcels = SignedParcels()
        self._payers: dict[NodeId, _Payer] = {}
        self._made = self._checked = self._forged = 0
        self.events: list[ReadingRefused] = []
        """Events decided since the caller last took them."""

    def counters(self) -> dict[str, int]:
        """Counters by name, which only grow."""
        return {
            "signed": self._made, "signatures_checked": self._checked, "signatures_forged": self._forged,
            "signed_evicted": self._parcels.evicted,
        }  # fmt: skip

    # --- own readings ----------------------------------------------------------------------------------------------
    def sign(self, newest: Reading, parcel: bytes, is_wanted: bool) -> bytes:
        """The frame that carries a parcel of this node, whose newest reading is ``newest``, to neighbours. Without a
        seal, or if no neighbour wants it, it is the parcel itself. :raises ValueUnsupported: when it is too large."""
        if self._seal is None or not is_wanted:
            check_signable(parcel)
            return parcel
        certificate, signature = self._seal.sign(reading_statement(parcel))
        self._made += 1
        return encode_signed(newest.hops, certificate, signature, parcel)

    def encoded(self, reading: Reading, now: int) -> bytes | None:
        """The frame that carries a reading that is already known, this node's own or a last value, to a neighbour.
        ``reading.hops`` are those that are left. None: it may not be passed on, since it is not signed, or the
        signature is not good.

        :raises ValueUnsupported: when it is too large.
        """
        own = reading.origin == self._node
        if own and (not reading.hops or self._seal is None):
            return encode_alone(reading)
        signed = self._parcels.of(reading)
        if own and signed is None:
            parcel = encode_alone(reading)
            assert self._seal is not None
            certificate, signature = self._seal.sign(reading_statement(parcel))
            self._made += 1
            signed = Signed(reading.sequence, certificate, signature, parcel, self._node, proven=True)
            self._parcels.keep(reading, signed)
        return None if signed is None else self.passed_on(reading, signed, now)

    # --- readings of others ----------------------------------------------------------------------------------------
    def untrusted_readings(self, frame: SignedReadings, source: NodeId, now: int) -> tuple[Reading, ...]:
        """The readings in a frame from a neighbour; none when they are malformed, or the neighbour has used up its
        allowance and they are large, which is counted. Their lists and dicts are paid from it."""
        checks = self._payer(source, now).checks if len(frame.parcel) > limits.FREE_READINGS_BYTES else None
        if checks is not None and checks.left(now) < 1:
            self._drops.count(source, "*", "over_rate")
            return ()
        try:
            readings = decode_untrusted_parcel(frame)
        except RemoteProtocolError:
            self._blame(source, "", "", "malformed", now)
            return ()
        if checks is not None:
            elements = sum(element_count(reading.value) for reading in readings if type(reading.value) in COMPOSITE)
            checks.fine(elements // limits.SIGNED_ELEMENTS_PER_CHECK)
        return readings

    def keep(self, frame: SignedReadings, newest: Reading, source: NodeId, proven: bool) -> Signed:
        """Hold a parcel whose readings were accepted; ``newest`` is its last one."""
        signed = Signed(newest.sequence, frame.certificate, frame.signature, frame.parcel, source, proven)
        self._parcels.keep(newest, signed)
        return signed

    def passed_on(self, reading: Reading, signed: Signed, now: int) -> bytes | None:
        """The frame that passes a parcel on, whose newest reading is ``reading``, with the hops that are left. The
        signature is checked if it has not been. None: it is not proven, which is counted.

        :raises ValueUnsupported: when it is too large.
        """
        if not signed.proven:
            if self.proven_role(reading, signed, signed.source, now) is None:
                return None
            signed.proven = True
        return encode_signed(reading.hops, signed.certificate, signed.signature, signed.parcel)

    def proven_role(
        self, newest: Reading, signed: SignedReadings | Signed, source: NodeId, now: int, count: int = 1
    ) -> Role | None:  # fmt: skip
        """The role that the certificate of the author gives it, once its signature of a parcel from ``source`` was
        found good. None: it is not proven, which is counted by neighbour and reason as ``count`` readings."""
        origin, key, seal = NodeId(newest.origin), newest.key, self._seal
        certified = self._certificate_of(origin) if seal is not None else None
        if seal is None or certified is None:
            self._drops.count(source, "*", "author_unknown", count)
            return None
        certificate, incarnation = certified
        if incarnation <= MAX_INCARNATION and newest.sequence < first_sequence(incarnation):
            self._drops.count(source, "*", "stale", count)
            return None
        checks, cost = self._payer(source, now).checks, 1 + len(signed.parcel) // limits.SIGNED_BYTES_PER_CHECK
        if checks.left(now) < 1:
            self._drops.count(source, "*", "over_rate", count)
            return None
        checks.fine(cost)
        role = seal.role(certificate, origin, signed.certificate)
        if role is None:
            self._drops.count(source, "*", "author_unknown", count)
            return None
        self._checked += 1
        if not seal.signed(certificate, reading_statement(signed.parcel), signed.signature):
            self._blame(source, origin, key, "forged", now, count)
            return None
        return role

    def _payer(self, source: NodeId, now: int) -> _Payer:
        payer = self._payers.get(source)
        if payer is None:
            if len(self._payers) >= limits.MAX_SIGNED_PAYERS:
                del self._payers[next(iter(self._payers))]
            payer = self._payers[source] = _Payer(now)
        return payer

    def _blame(
        self, source: NodeId, origin: str, key: str, because: Literal["forged", "malformed"], now: int, count: int = 1
    ) -> None:  # fmt: skip
        self._forged += because == "forged"
        self._drops.count(source, "*", because, count)
        payer = self._payer(source, now)
        payer.checks.fine(limits.FORGED_READING_COST)
        if now - payer.told_of_ns >= _COMPLAINT_PAUSE_NS:
            payer.told_of_ns = now
            self.events.append(ReadingRefused(source, origin, key, because))
