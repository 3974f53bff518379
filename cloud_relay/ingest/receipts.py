"""Which receipts the relay believes.

NNG shows the names in the certificate of a pipe, but not the certificate. So a node sends it along, and it has to name
the node that the pipe proved, and its role. The relay remembers one certificate of each node. When it does not know the
one that a receipt names, after it was restarted, say, it asks for it.

Each check costs the thread of the request: the hashes of up to 1 MiB of records and one signature. The writer of the
store waits for none of it.
"""

import time
from collections.abc import Callable
from typing import Final

from cryptography import x509

from cloud_relay.store.receipts import StorableReceipt
from meshnode.identity.signatures import CertifiedKey, sha256, untrusted_certified_key
from protocols.base.errors import IdentityError, ReceiptWrong
from protocols.base.ids import NodeId, PeerIdentity
from protocols.records.receipts.checking import check_untrusted_author, untrusted_leaves
from protocols.wire.receipts import encode_receipt
from protocols.wire.records import Batch, Receipt

MAX_AUTHORS: Final = 16_384
"""Nodes whose certificate is remembered, with 3 KB each. One that was forgotten is asked for it again."""


class CertificateMissing(Exception):
    """The certificate that a receipt names is not known, and was not sent along."""


class ReceiptCheck:
    """Checks the receipts of batches. May be called from any thread."""

    def __init__(
        self, authority: x509.Certificate, *, required: bool = False, clock: Callable[[], int] = time.time_ns
    ) -> None:
        """``required``: whether batches with records have to have one. ``clock`` gives UTC nanoseconds."""
        self._authority, self.required, self._clock = authority, required, clock
        self._authors: dict[NodeId, CertifiedKey] = {}

    def checked(self, batch: Batch, peer: PeerIdentity) -> StorableReceipt | None:
        """The receipt of a batch of ``peer``; None: it has none.

        :raises ReceiptWrong: it must not be believed.
        :raises CertificateMissing: the node has to send its certificate along.
        """
        receipt = batch.receipt
        if receipt is None:
            return None
        if (receipt.mesh, receipt.node) != (peer.mesh, peer.node):
            raise ReceiptWrong(
                "receipt", f"the receipt is of {receipt.node!r} in mesh {receipt.mesh!r}, and came from {peer.node}"
            )
        if receipt.incarnation > batch.incarnation:
            raise ReceiptWrong(
                "receipt", f"the receipt is of life {receipt.incarnation}, after that of its node, {batch.incarnation}"
            )
        author = self._author(receipt, batch.certificate, peer)
        check_untrusted_author(receipt, author)
        leaves = untrusted_leaves(receipt, batch.records, sha256)
        self._remember(author)
        places = {record.sequence: place for place, record in enumerate(batch.records)}
        return StorableReceipt(
            encode_receipt(receipt), b"".join(leaves), places, author.certificate_id, author.certificate
        )

    def _author(self, receipt: Receipt, certificate: bytes, peer: PeerIdentity) -> CertifiedKey:
        author = self._authors.get(peer.node)
        if author is None or author.certificate_id != receipt.certificate:
            if not certificate:
                raise CertificateMissing
            try:
                author = untrusted_certified_key(certificate, self._authority)
            except IdentityError as error:
                raise ReceiptWrong("certificate", str(error)) from error
        if (author.mesh, author.node, author.role) != (peer.mesh, peer.node, peer.role):
            raise ReceiptWrong(
                "certificate", f"the certificate is that of {author.role} {author.node}, and came from {peer.role} "
                f"{peer.node}",
            )  # fmt: skip
        if not author.is_valid_at(self._clock()):
            raise ReceiptWrong("certificate", f"the certificate of {author.node} is not valid at this time")
        return author

    def _remember(self, author: CertifiedKey) -> None:
        if len(self._authors) >= MAX_AUTHORS and author.node not in self._authors:
            self._authors.pop(next(iter(self._authors)), None)
        self._authors[author.node] = author
