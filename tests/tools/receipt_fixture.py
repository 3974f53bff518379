"""Batches with real receipts: keys and certificates of a mesh that exists in memory and in a folder of a test."""

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cloud_relay.store.places import StorePlace
from meshnode.identity.signatures import SigningKey, read_signing_key, sha256
from protocols.base.ids import Incarnation, MeshName, NodeId
from protocols.records.receipts.sealing import BatchSealer
from protocols.wire.records import Batch
from tests.tools.pki_fixture import MESH, Authority, authority, credentials
from tests.tools.relay_fixture import EVERYTHING, RelayInProcess, batch

POLICY = bytes(range(32))


class ReceiptMesh:
    """An authority, a relay that trusts it, and keys of nodes."""

    def __init__(self, folder: Path, *, required: bool = False, place: StorePlace | None = None) -> None:
        """``place``: that of the store; None: a file in the folder."""
        self.folder, self.authority = folder, authority()
        self.anchor = folder / "authority.crt"
        self.anchor.write_bytes(self.authority.pem)
        self.relay = RelayInProcess(place or folder / "relay.sqlite", EVERYTHING, self.authority, required=required)

    def key(self, node: str = "v-1", *, signer: Authority | None = None, **of: Any) -> SigningKey:
        """A new key of a node."""
        return read_signing_key(credentials(self.folder / "keys", signer or self.authority, node, **of))

    def sealer(self, key: SigningKey, node: str = "v-1", incarnation: int = 1) -> BatchSealer:
        """What makes receipts with it."""
        return BatchSealer(MeshName(MESH), NodeId(node), Incarnation(incarnation), lambda: key, sha256)

    def sealed(self, *numbers: int, key: SigningKey | None = None, policy: bytes = POLICY, **of: Any) -> Batch:
        """A batch with its receipt and the certificate."""
        plain = batch(*numbers, **of)
        key = key or self.key()
        return with_receipt(plain, self.sealer(key, plain.node), key, policy)


def with_receipt(plain: Batch, sealer: BatchSealer, key: SigningKey, policy: bytes = POLICY) -> Batch:
    """A batch with the receipt of its records."""
    receipt = sealer.sealed(plain.records, policy)
    return replace(plain, receipt=receipt, certificate=key.certificate)
