"""A relay that takes carried batches, and batches that nodes of its mesh seal for it. All of it is in this process."""

from pathlib import Path
from typing import Any

from cloud_relay.ingest.carried import CarriedIngest
from cloud_relay.ingest.signing import RelaySigner
from meshnode.identity.sealing import read_or_make_sealing_key, sealed_id
from meshnode.identity.signatures import SigningKey
from meshnode.records.carrying.envelope import checked_reply, sealed_batch
from protocols.base.ids import MeshName, NodeId, PeerIdentity, Role
from protocols.wire.carrying.contents import RelayKey
from protocols.wire.carrying.frames import CarriedBatch, CarriedReply
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.records import Acknowledgement, Batch, RelayFrame, RelayRefusal
from tests.tools.pki_fixture import MESH, credentials
from tests.tools.receipt_fixture import ReceiptMesh

CARRIER = "v-2"


class CarriedMesh(ReceiptMesh):
    """A mesh whose relay has a sealing key."""

    def __init__(self, folder: Path, clock: Any = None) -> None:
        super().__init__(folder, required=True)
        self.mesh = MeshName(MESH)
        self.sealing_key = read_or_make_sealing_key(folder / "sealing.key")
        files = credentials(folder / "keys", self.authority, "relay-1", role="relay")
        self.signer = RelaySigner(files, self.mesh, NodeId("relay-1"), self.sealing_key)
        more = {} if clock is None else {"clock": clock}
        self.carried = CarriedIngest(
            self.relay.ingest, self.mesh, self.sealing_key, self.signer, self.authority.certificate, **more
        )  # fmt: skip

    @property
    def relay_key(self) -> RelayKey:
        return RelayKey(1, self.sealing_key.public_key, zstd=True)

    def seal(self, plain: Batch, key: SigningKey, node: str = "v-1") -> bytes:
        return sealed_batch(encode_frame(plain), self.mesh, NodeId(node), key, self.relay_key)

    def bring(
        self, sealed: bytes, node: str = "v-1", *, carrier: str = CARRIER, role: Role = Role.VEHICLE,
        key: bytes | None = None,
    ) -> RelayFrame | CarriedReply:  # fmt: skip
        """What the relay answers to the carrier."""
        frame = CarriedBatch(node, self.sealing_key.id if key is None else key, sealed)
        peer = PeerIdentity(self.mesh, role, NodeId(carrier))
        return decode_untrusted_relay_frame(self.carried.answer(peer, encode_frame(frame)))  # type: ignore[return-value]

    def told(self, sealed: bytes, node: str = "v-1") -> Acknowledgement | RelayRefusal:
        """What the node learns when the carrier brings the reply back."""
        answer = self.bring(sealed, node)
        assert isinstance(answer, CarriedReply), answer
        return self.checked(answer.reply, sealed, node)

    def checked(self, reply: bytes, sealed: bytes, node: str = "v-1") -> Acknowledgement | RelayRefusal:
        import time

        return checked_reply(
            reply, sealed_id(sealed), self.mesh, NodeId(node), self.authority.certificate, None, time.time_ns()
        )  # fmt: skip
