"""Batches that one node carries for another: opens the seal, finds out who made the batch, and signs what became of it.

The carrier is believed in nothing. Who made the batch is what the seal and the signature in it say, see
:mod:`protocols.records.carrying.sealed` for the order of trust; from then on it is a batch like any other. A batch that
may come again, because the disk is full, say, is refused to the carrier, without a signature. Every other answer is
signed, so that the carrier can bring it to the node that made the batch. It names sequences and no reasons, because a
reason may name a key, which the carrier must not learn.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import ClassVar, Final

from cryptography import x509
from msgspec.structs import replace

from cloud_relay.ingest.batches import Ingest
from cloud_relay.ingest.signing import RelaySigner
from meshnode.identity.sealing import SealingKey, sealed_id
from meshnode.identity.signatures import CertifiedKey, untrusted_certified_key
from protocols.base.allowance import Allowance
from protocols.base.errors import IdentityError, MeshError, RemoteProtocolError
from protocols.base.ids import MeshName, PeerIdentity
from protocols.base.limits import MAX_TEXT_CHARS, MS
from protocols.records.carrying.sealed import carriage_statement, decode_untrusted_carriage, seal_info
from protocols.records.receipts.checking import SENDERS
from protocols.wire.carrying.frames import CarriedBatch, CarriedReply, RelayKeyAsked, RelayKeyTold
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.records import Acknowledgement, RelayRefusal

_AGAIN: Final = frozenset({"storage"})
"""Codes of refusals that the carrier tries again."""
MAX_LINES_BURST: Final = 64
"""Lines in the log about batches that were not taken, and one a second after them."""
UNTOLD: Final = "not told by way of a carrier; the relay's log has the reason"
_log = logging.getLogger(__name__)


class CarriedIngest:
    """Answers the frames of carried batches. ``answer`` may run on any thread."""

    FRAMES: ClassVar[tuple[type[Frame], ...]] = (RelayKeyAsked, CarriedBatch)

    def __init__(
        self, ingest: Ingest, mesh: MeshName, key: SealingKey, signer: RelaySigner, authority: x509.Certificate,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:  # fmt: skip
        """``clock`` gives UTC nanoseconds."""
        self._ingest, self._mesh, self._key, self._signer = ingest, mesh, key, signer
        self._authority, self._clock = authority, clock
        self._lock, self._lines = threading.Lock(), Allowance(1, MAX_LINES_BURST, time.monotonic_ns())
        self._counts = {"asked": 0, "taken": 0, "refused": 0, "sealed": 0, "key": 0, "again": 0}

    def statistics(self) -> dict[str, int]:
        """Counters: questions for the key (``asked``); batches that were taken, and those that were refused to the node
        that made them; those whose seal does not open or whose signature is wrong (``sealed``), those for another key
        (``key``), and those that the carrier has to bring again (``again``)."""
        return dict(self._counts)

    def answer(self, peer: PeerIdentity, data: bytes) -> bytes:
        """The answer to one request of ``peer``. Never raises."""
        try:
            answer = self._answer(peer, data)
        except RemoteProtocolError as error:
            answer = RelayRefusal("malformed", str(error)[:MAX_TEXT_CHARS])
        except Exception:  # noqa: BLE001 - a handler must not raise; the carrier keeps the batch
            _log.exception("a batch that %s carries was not handled: this is a bug of the relay", peer.node)
            answer = RelayRefusal("storage", "the relay failed")
        return encode_frame(answer)

    def _answer(self, peer: PeerIdentity, data: bytes) -> Frame:
        if peer.role not in SENDERS:
            return RelayRefusal("identity", f"a {peer.role} carries no batches: use a certificate of a vehicle or rsu")
        frame = decode_untrusted_relay_frame(data)
        match frame:
            case RelayKeyAsked():
                self._counts["asked"] += 1
                entry, age_ns = self._signer.entry()
                return RelayKeyTold(age_ns // MS, entry)
            case CarriedBatch():
                return self._carried(peer, frame)
            case _:
                raise RemoteProtocolError(f"a relay is not sent a {type(frame).__name__}")

    def _carried(self, carrier: PeerIdentity, frame: CarriedBatch) -> Frame:
        if frame.key != self._key.id:
            self._counts["key"] += 1
            return RelayRefusal(
                "key", f"the batch is sealed to the key {frame.key.hex()}, that here is {self._key.id.hex()}"
            )
        try:
            author, batch = self._opened(frame)
        except MeshError as error:
            self._counts["sealed"] += 1
            self._warn("a batch of %s that %s carries is not taken: %s", frame.node, carrier.node, error)
            return RelayRefusal("sealed", str(error)[:MAX_TEXT_CHARS])
        if author.is_valid_at(self._clock()):
            maker = PeerIdentity(author.mesh, author.role, author.node)
            answer = self._ingest.taken(maker, batch, carried=True)
        else:
            answer = RelayRefusal("certificate", "the certificate of the node is not valid at this time")
        if isinstance(answer, RelayRefusal):
            if answer.code in _AGAIN:
                self._counts["again"] += 1
                return answer
            self._warn("a batch of %s that %s carries: %s: %s", author.node, carrier.node, answer.code, answer.detail)
        self._counts["taken" if isinstance(answer, Acknowledgement) else "refused"] += 1
        told = encode_frame(_without_reasons(answer))
        return CarriedReply(self._signer.reply(author.node, sealed_id(frame.sealed), told))

    def _warn(self, text: str, *values: object) -> None:
        """Say something in the log, unless somebody makes too many such lines: they are counted all the same."""
        with self._lock:
            may_say = self._lines.take(time.monotonic_ns())
        if may_say:
            _log.warning(text, *values)

    def _opened(self, frame: CarriedBatch) -> tuple[CertifiedKey, bytes]:
        """Who made a batch, and its frame. :raises MeshError: this is not proven."""
        content = self._key.open_untrusted(frame.sealed, seal_info(self._mesh, frame.node, frame.key))
        carriage = decode_untrusted_carriage(content)
        author = untrusted_certified_key(carriage.certificate, self._authority)
        if (author.mesh, author.node) != (self._mesh, frame.node) or author.role not in SENDERS:
            raise IdentityError(f"it holds the certificate of {author.role} {author.node} of mesh {author.mesh}")
        statement = carriage_statement(self._mesh, frame.node, frame.key, carriage.batch)
        if not author.has_signed(statement, carriage.signature):
            raise IdentityError(f"the key of {author.node} did not sign it")
        return author, carriage.batch


def _without_reasons(answer: Acknowledgement | RelayRefusal) -> Acknowledgement | RelayRefusal:
    if isinstance(answer, Acknowledgement):
        return replace(answer, refused=tuple(replace(refused, reason=UNTOLD) for refused in answer.refused))
    return answer if answer.code == "sequence" else replace(answer, detail=UNTOLD)
