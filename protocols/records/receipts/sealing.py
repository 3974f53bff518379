"""Makes the receipt of each batch, once: a batch that is sent again has the receipt that it had.

The certificate that the receipt names goes along until the relay has acknowledged a batch with it, and again when the
relay says that it does not know it. So a receipt costs about 170 bytes a batch, and the certificate, of 400, a moment.

It is used by one thread at a time: that of the uplink while a request is under way, and the event loop otherwise.
"""

from collections.abc import Callable
from typing import Protocol

from msgspec.structs import replace

from protocols.base.ids import Incarnation, MeshName, NodeId
from protocols.records.receipts.tree import Hash, leaf_hash, root_of
from protocols.wire.receipts import receipt_statement, record_leaf
from protocols.wire.records import Receipt, Record


class ReceiptSigner(Protocol):
    """The key of a node, with its certificate."""

    @property
    def certificate(self) -> bytes:
        """In DER."""

    @property
    def certificate_id(self) -> bytes:
        """The first ``CERTIFICATE_ID_BYTES`` of its SHA-256."""

    def sign(self, statement: bytes) -> bytes:
        """The signature of a statement: ECDSA with SHA-256, ASN.1 DER, low s."""


class BatchSealer:
    """The receipts of one life of a node."""

    def __init__(
        self, mesh: MeshName, node: NodeId, incarnation: Incarnation, signer: Callable[[], ReceiptSigner],
        hash_bytes: Hash,
    ) -> None:  # fmt: skip
        """``signer`` gives the present key, which a renewal exchanges. ``hash_bytes`` is SHA-256."""
        self._mesh, self._node, self._incarnation = mesh, node, incarnation
        self._signer, self._hash = signer, hash_bytes
        self._sequences: tuple[int, ...] = ()
        self._receipt: Receipt | None = None
        self._certificate = self._known = b""
        """The certificate of the receipt, and the id of the one that the relay is thought to know."""
        self._made = 0

    def counters(self) -> dict[str, int]:
        """Receipts that were made."""
        return {"receipts": self._made}

    def sealed(self, records: tuple[Record, ...], policy: bytes) -> Receipt:
        """The receipt of a batch of these records, which passed the egress policy with this digest."""
        sequences = tuple([record.sequence for record in records])
        receipt = self._receipt
        if receipt is None or sequences != self._sequences or policy != receipt.policy:
            receipt = self._receipt = self._sign(records, policy)
            self._sequences = sequences
        return receipt

    @property
    def certificate_to_send(self) -> bytes:
        """The certificate of the last receipt; empty when the relay is thought to know it."""
        return b"" if self._receipt is None or self._receipt.certificate == self._known else self._certificate

    def acknowledged(self) -> None:
        """The relay took the batch of the last receipt, and so it knows the certificate."""
        if self._receipt is not None:
            self._known = self._receipt.certificate
        self.forget()

    def certificate_is_unknown(self) -> bool:
        """The relay does not know the certificate. True: it did not go along with the batch, so send it now."""
        was_thought_known = bool(self._known)
        self._known = b""
        return was_thought_known

    def forget(self) -> None:
        """Make a new receipt for the next batch, whichever that is."""
        self._receipt, self._sequences = None, ()

    def _sign(self, records: tuple[Record, ...], policy: bytes) -> Receipt:
        signer = self._signer()
        leaves = [leaf_hash(record_leaf(record), self._hash) for record in records]
        unsigned = Receipt(
            self._mesh, self._node, self._incarnation, policy, root_of(leaves, self._hash), records[0].sequence,
            records[-1].sequence, len(records), signer.certificate_id, b"",
        )  # fmt: skip
        self._certificate = signer.certificate
        self._made += 1
        return replace(unsigned, signature=signer.sign(receipt_statement(unsigned)))
