"""Seals a batch of this node to a relay, and checks what a relay says of it. The orders of trust are in
:mod:`protocols.records.carrying.sealed`."""

from cryptography import x509

from meshnode.identity.sealing import key_id, seal
from meshnode.identity.signatures import CertifiedKey, SigningKey, untrusted_certified_key
from protocols.base.errors import IdentityError, RemoteProtocolError
from protocols.base.ids import MeshName, NodeId, Role
from protocols.records.carrying.sealed import (
    carriage_statement,
    decode_untrusted_reply,
    encode_carriage,
    reply_statement,
    seal_info,
)
from protocols.wire.carrying.contents import Carriage, RelayKey
from protocols.wire.records import Acknowledgement, RelayRefusal


def sealed_batch(batch: bytes, mesh: MeshName, node: NodeId, signer: SigningKey, key: RelayKey) -> bytes:
    """The frame of a batch, signed by its node and sealed to the key of a relay."""
    to = key_id(key.key)
    signature = signer.sign(carriage_statement(mesh, node, to, batch))
    carriage = encode_carriage(Carriage(batch, signer.certificate, signature))
    return seal(carriage, key.key, seal_info(mesh, node, to), compressed=key.zstd)


def relay_of(certificate: bytes, authority: x509.Certificate, mesh: MeshName, utc_ns: int) -> CertifiedKey:
    """The relay of the mesh that a certificate names. :raises IdentityError: it names none, or is not valid now."""
    key = untrusted_certified_key(certificate, authority)
    if (key.mesh, key.role) != (mesh, Role.RELAY):
        raise IdentityError(f"this is the certificate of {key.role} {key.node} of mesh {key.mesh}, not of a relay here")
    if not key.is_valid_at(utc_ns):
        raise IdentityError(f"the certificate of {key.node} is not valid at this time")
    return key


def checked_reply(
    data: bytes, sealed: bytes, mesh: MeshName, node: NodeId, authority: x509.Certificate, relay: NodeId | None,
    utc_ns: int,
) -> Acknowledgement | RelayRefusal:  # fmt: skip
    """What a relay said of the batch with the id ``sealed`` of this node. ``relay``: the only one that is believed;
    None: any of the mesh.

    :raises RemoteProtocolError: it is no reply to this batch.
    :raises IdentityError: no relay of this mesh has signed it.
    """
    reply, answer = decode_untrusted_reply(data)
    if (reply.mesh, reply.node, reply.sealed) != (mesh, node, sealed):
        raise RemoteProtocolError(f"the reply is about another batch, of {reply.node!r} in mesh {reply.mesh!r}")
    author = relay_of(reply.certificate, authority, mesh, utc_ns)
    if author.node != reply.relay or relay not in (None, author.node):
        raise IdentityError(f"the reply is of {reply.relay!r}, with the certificate of {author.node}")
    if not author.has_signed(reply_statement(reply), reply.signature):
        raise IdentityError(f"the key of {author.node} did not sign the reply")
    return answer
