"""Checks receipts, and proofs of single records by them. A check that fails raises a :class:`ReceiptWrong`.

A receipt is believed because of three things, in this order: the authority of the mesh signed a certificate that names
the node (the caller's part); the key of this certificate signed the receipt; the records, or one record with its path,
lead to the root in it.
"""

from collections.abc import Sequence
from typing import Protocol

from protocols.base.errors import ReceiptWrong
from protocols.base.ids import MeshName, NodeId, Role
from protocols.records.receipts.tree import Hash, leaf_hash, root_of
from protocols.wire.receipts import receipt_statement, record_leaf
from protocols.wire.records import Receipt, Record

SENDERS = (Role.VEHICLE, Role.RSU)
"""Roles whose nodes send records."""


class ReceiptAuthor(Protocol):
    """A certificate that the authority of the mesh has signed."""

    @property
    def mesh(self) -> MeshName:
        """Of the certificate."""

    @property
    def node(self) -> NodeId:
        """Whom it names."""

    @property
    def role(self) -> Role:
        """What this node is."""

    @property
    def certificate_id(self) -> bytes:
        """The first ``CERTIFICATE_ID_BYTES`` of its SHA-256."""

    def has_signed(self, statement: bytes, signature: bytes) -> bool:
        """Whether its key made the signature, in the only accepted form."""


def check_untrusted_author(receipt: Receipt, author: ReceiptAuthor) -> None:
    """Check that a certificate is that of a receipt, and that its key signed it. :raises ReceiptWrong: it did not."""
    if receipt.certificate != author.certificate_id:
        raise ReceiptWrong("certificate", f"the receipt names another certificate than that of {author.node}")
    if (receipt.mesh, receipt.node) != (author.mesh, author.node):
        raise ReceiptWrong(
            "certificate",
            f"the receipt is of {receipt.node!r} in mesh {receipt.mesh!r}, and its certificate of {author.node} in "
            f"{author.mesh}",
        )
    if author.role not in SENDERS:
        raise ReceiptWrong("certificate", f"a {author.role} sends no records, and this is the certificate of one")
    if not author.has_signed(receipt_statement(receipt), receipt.signature):
        raise ReceiptWrong("signature", f"the key of the certificate of {author.node} did not sign the receipt")


def untrusted_leaves(receipt: Receipt, records: Sequence[Record], hash_bytes: Hash) -> list[bytes]:
    """The hashes of the leaves of these records, which are all that the receipt is about. :raises ReceiptWrong: it is
    not about them."""
    if not records:
        raise ReceiptWrong("receipt", "a batch without records has a receipt")
    said = receipt.first, receipt.last, receipt.records
    found = records[0].sequence, records[-1].sequence, len(records)
    if said != found:
        raise ReceiptWrong(
            "receipt",
            f"the receipt is about {said[2]} records from {said[0]} to {said[1]}, and the batch has {found[2]} from "
            f"{found[0]} to {found[1]}",
        )
    leaves = [leaf_hash(record_leaf(record), hash_bytes) for record in records]
    if root_of(leaves, hash_bytes) != receipt.root:
        raise ReceiptWrong("path", "the records do not lead to the root that was signed")
    return leaves
