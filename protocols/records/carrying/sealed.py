"""The bytes of carried batches: what a key of a relay is bound to, what is signed, and what is sealed.

Order of trust at the relay: the seal opens, so these bytes were made for its key, this mesh and this node; the
authority of the mesh issued the certificate in them; it names the node; its key signed the batch for this relay's key.
So a carrier can neither alter a batch nor say that it is of another node. It may bring one again: the relay stores each
record once.

Order of trust at the node: the authority issued the certificate in a reply to a relay of this mesh; its key signed the
answer for this node and this sealed batch.
"""

from typing import Final

import msgspec

from protocols.base import limits
from protocols.base.errors import RemoteProtocolError
from protocols.wire.carrying.contents import Carriage, RelayKey, SignedReply
from protocols.wire.codec import decode_untrusted, decode_untrusted_relay_frame, encode
from protocols.wire.fields import check_untrusted_id
from protocols.wire.records import Acknowledgement, RelayRefusal

_SEAL_DOMAIN: Final = b"meshnode seal 1\0"
_CARRIAGE_DOMAIN: Final = b"meshnode carriage 1\0"
_REPLY_DOMAIN: Final = b"meshnode reply 1\0"
_relay_key_decoder = msgspec.msgpack.Decoder(RelayKey)
_carriage_decoder = msgspec.msgpack.Decoder(Carriage)
_reply_decoder = msgspec.msgpack.Decoder(SignedReply)


def seal_info(mesh: str, node: str, key: bytes) -> bytes:
    """The ``info`` of HPKE: a seal opens only for this mesh, the node that made it, and the key with this id."""
    return _SEAL_DOMAIN + encode((mesh, node, key))


def carriage_statement(mesh: str, node: str, key: bytes, batch: bytes) -> bytes:
    """The bytes that the signature in a :class:`Carriage` covers."""
    return _CARRIAGE_DOMAIN + encode((mesh, node, key, batch))


def reply_statement(reply: SignedReply) -> bytes:
    """The bytes that the signature of a reply covers: all of its other fields but the certificate, whose key it is
    checked by."""
    return _REPLY_DOMAIN + encode((reply.mesh, reply.relay, reply.node, reply.sealed, reply.answer))


def encode_relay_key(key: RelayKey) -> bytes:
    """Encode the body of an entry of kind ``relay-key``."""
    return encode(key)


def decode_untrusted_relay_key(body: bytes) -> RelayKey:
    """Parse such a body. :raises RemoteProtocolError: for anything that is not one."""
    return decode_untrusted(_relay_key_decoder, body)


def encode_carriage(carriage: Carriage) -> bytes:
    """Encode what is sealed."""
    return encode(carriage)


def decode_untrusted_carriage(data: bytes) -> Carriage:
    """Parse what was sealed. Its signature is not checked here. :raises RemoteProtocolError: for anything else."""
    return decode_untrusted(_carriage_decoder, data, limits.MAX_EXCHANGE_BYTES)


def encode_reply(reply: SignedReply) -> bytes:
    """Encode a reply as it travels."""
    return encode(reply)


def decode_untrusted_reply(data: bytes) -> tuple[SignedReply, Acknowledgement | RelayRefusal]:
    """Parse a reply and the answer in it. Its signature is not checked here.

    :raises RemoteProtocolError: for anything that is not a reply.
    """
    reply = decode_untrusted(_reply_decoder, data, limits.MAX_REPLY_BYTES)
    check_untrusted_id(reply.relay)
    answer = decode_untrusted_relay_frame(reply.answer)
    if not isinstance(answer, Acknowledgement | RelayRefusal):
        raise RemoteProtocolError(f"a reply holds a {type(answer).__name__}")
    return reply, answer
