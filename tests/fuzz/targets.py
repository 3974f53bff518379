"""What is fuzzed: each decoder of bytes that a stranger, a neighbour, a relay or a local program sends.

A target takes any bytes. It raises nothing but its declared errors, and takes at most ``max_cpu_ms`` of a processor
for an input of at most ``MAX_INPUT_BYTES``. The last target hands whole conversations to an engine, which raises
nothing at all.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any

from cloud_relay.ingest.batches import decode_untrusted_batch
from meshnode.grpc.wire.messages import ModelInferRequest
from meshnode.grpc.wire.requests import parse_untrusted_message
from meshnode.http.guard import BadRequest
from meshnode.http.reading_json import parse_untrusted_publish
from meshnode.identity.inspection import identity_from_untrusted_names
from meshnode.identity.signatures import sha256
from meshnode.inference.oip.requests import parse_untrusted_request
from meshnode.links.adverts import parse_untrusted_advert
from meshnode.models.pictures import decoded_untrusted
from protocols.base import limits
from protocols.base.errors import IdentityError, InputInvalid, InvalidName, MeshError, ReceiptWrong, RemoteProtocolError
from protocols.base.ids import NodeId, Role, mesh_name, parse_untrusted_spiffe
from protocols.local import decode_untrusted_application_frame, decode_untrusted_local_node_frame
from protocols.membership.events import Dial
from protocols.readings.quality import Quality
from protocols.records.receipts.proof import decode_untrusted_proof, encode_proof, untrusted_record
from protocols.records.uplink import decode_untrusted_answer
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame, untrusted_other_major
from protocols.wire.encoding.messagepack import untrusted_frame_number
from protocols.wire.entries import decode_untrusted_address, decode_untrusted_entry
from protocols.wire.gossip import GossipEntries
from protocols.wire.membership import Hello
from protocols.wire.parcels import decode_untrusted_reading, encode_reading
from protocols.wire.readings import Readings
from protocols.wire.receipts import decode_untrusted_receipt, encode_receipt, record_leaf
from protocols.wire.records import Batch, Receipt
from tests.tools.strategies import NOW_UTC_NS, engine, identity

MAX_INPUT_BYTES = 4_096
"""Larger inputs make a campaign slow and find the same. What the largest frames cost is measured elsewhere."""
_GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
_MESH = mesh_name("demo")


class Form(Enum):
    """What the inputs of a target are made of, for the mutator."""

    TEXT = "bytes and text"
    MESSAGEPACK = "one MessagePack value"
    FRAMED = "MessagePack values, each behind its length in two bytes"


@dataclass(frozen=True)
class Target:
    """A function of untrusted bytes, the errors that it declares, and inputs to begin with."""

    name: str
    run: Callable[[bytes], object]
    declared: tuple[type[MeshError], ...]
    seeds: Callable[[], list[bytes]]
    form: Form = Form.TEXT
    max_cpu_ms: float = 20.0
    """What one input may cost, the instrumentation of the fuzzer included."""


def _golden(numbers: range) -> Callable[[], list[bytes]]:
    def read() -> list[bytes]:
        paths = [path for path in sorted(_GOLDEN.glob("*.hex")) if int(path.name[:2]) in numbers]
        return [bytes.fromhex(re.sub(r"#.*", "", path.read_text())) for path in paths]

    return read


def _inside(data: bytes) -> list[bytes]:
    """The encoded readings or entries inside a frame."""
    frame = decode_untrusted_node_frame(data)
    if isinstance(frame, Readings):
        return [encode_reading(reading) for reading in frame.readings]
    assert isinstance(frame, GossipEntries)
    return [carried.entry for carried in frame.entries]


def _texts(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


def _heads(data: bytes) -> None:
    untrusted_frame_number(data)
    untrusted_other_major(data)


def _entry(data: bytes) -> None:
    decode_untrusted_address(decode_untrusted_entry(data).body)


def _advert(data: bytes) -> object:
    properties: dict[bytes, bytes | None] = {}
    *pairs, last = data.split(b"\xff")
    for pair in pairs:
        key, found, value = pair.partition(b"=")
        properties[key] = value if found else None
    addresses = last.decode("utf-8", "replace").split(",")
    return parse_untrusted_advert(properties, addresses, len(data), _MESH)


def _request(data: bytes) -> object:
    length, _, body = data.partition(b"\n")
    return parse_untrusted_request(body, length.decode("latin-1") or None)


def _messages() -> list[bytes]:
    """Requests to compute as gRPC has them: raw, typed, with all that may stand around tensors."""
    raw = ModelInferRequest(model_name="m", model_version="1", id="a", raw_input_contents=[bytes(8)])
    raw.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    raw.parameters["timeout"].int64_param = 1_000
    raw.outputs.add(name="y").parameters["classification"].int64_param = 1
    typed = ModelInferRequest(model_name="m")
    for datatype, field, values in (
        ("INT8", "int_contents", [1, -1]), ("UINT64", "uint64_contents", [2**64 - 1]),
        ("BOOL", "bool_contents", [True]), ("FP64", "fp64_contents", [0.5]), ("BYTES", "bytes_contents", [b"a"]),
    ):  # fmt: skip
        given = typed.inputs.add(name=datatype, datatype=datatype, shape=[len(values)])
        getattr(given.contents, field).extend(values)
        given.parameters["shared_memory_region"].string_param = "r"
    return [raw.SerializeToString(), typed.SerializeToString()]


def _conversation(data: bytes) -> None:
    """Frames of one neighbour to an engine, each behind its length in two bytes; 0 stands for 100 ms that pass."""
    now, here = limits.SECOND, engine("me")
    here.membership.hint("x", NodeId("x"), (("192.0.2.7", 7000),), now)
    here.handle_timer(now)
    (dial,) = [effect for effect in here.outgoing() if type(effect) is Dial]
    here.membership.greeting(dial.dial)
    here.lane_opened(dial.dial, identity("x", Role.RSU), now)
    here.membership.inbound_opened(1, identity("x", Role.RSU), "192.0.2.7", now)
    here.receive(encode_frame(Hello(1, 0, "x", 5, 7000, "realtime")), 1, now, NOW_UTC_NS)
    here.readings.subscribe("**", Quality(deadline_ns=200 * limits.MS), now)
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2])
        if size:
            here.receive(data[at + 2 : at + 2 + size], 1, now, NOW_UTC_NS)
        else:
            now += 100 * limits.MS
            here.handle_timer(now)
        at += 2 + size
        here.outgoing()
        here.events()
        while here.next_frame(dial.dial, now) is not None:
            pass
    here.handle_timer(now + limits.SECOND)
    here.peers(now)
    here.statistics()


def _conversations() -> list[bytes]:
    frames = _golden(range(1, 64))()
    framed = [len(frame).to_bytes(2) + frame for frame in frames]
    mixed = framed * 2
    Random(1).shuffle(mixed)
    return [*framed, b"".join(framed), b"\0\0".join(mixed)]


_REMOTE = (RemoteProtocolError,)


def _batch_with_receipt() -> tuple[Batch, Receipt]:
    (data,) = [data for data in _golden(range(64, 65))() if b"(certificate)" in data]
    batch = decode_untrusted_batch(data)
    assert batch.receipt is not None
    return batch, batch.receipt


def _receipts() -> list[bytes]:
    return [encode_receipt(_batch_with_receipt()[1])]


def _proofs() -> list[bytes]:
    batch, receipt = _batch_with_receipt()
    return [encode_proof(record_leaf(batch.records[0]), 0, (), encode_receipt(receipt), batch.certificate)]


def _proof(data: bytes) -> None:
    untrusted_record(*decode_untrusted_proof(data), sha256)


def _pictures() -> list[bytes]:
    from PIL import Image

    kinds: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("RGB", "PNG", {}), ("L", "JPEG", {}), ("RGB", "JPEG", {"progressive": True}), ("P", "PNG", {}),
    )  # fmt: skip
    files = []
    for mode, kind, options in kinds:
        file = io.BytesIO()
        Image.new(mode, (9, 7)).save(file, kind, **options)
        files.append(file.getvalue())
    return files


TARGETS = {
    target.name: target
    for target in (
        Target("node-frame", decode_untrusted_node_frame, _REMOTE, _golden(range(1, 64)), Form.MESSAGEPACK),
        Target("relay-batch", decode_untrusted_batch, _REMOTE, _golden(range(64, 96)), Form.MESSAGEPACK),
        Target("relay-answer", decode_untrusted_answer, _REMOTE, _golden(range(64, 96)), Form.MESSAGEPACK),
        Target(
            "application-frame", decode_untrusted_application_frame, _REMOTE, _golden(range(1, 96)), Form.MESSAGEPACK,
        ),
        Target(
            "local-node-frame", decode_untrusted_local_node_frame, _REMOTE, _golden(range(1, 96)), Form.MESSAGEPACK,
        ),
        Target(
            "reading", decode_untrusted_reading, _REMOTE, lambda: _inside(*_golden(range(6, 7))()), Form.MESSAGEPACK,
        ),
        Target("gossip-entry", _entry, _REMOTE, lambda: _inside(*_golden(range(14, 15))()), Form.MESSAGEPACK),
        Target("receipt", decode_untrusted_receipt, _REMOTE, _receipts, Form.MESSAGEPACK),
        Target("proof", _proof, (ReceiptWrong,), _proofs),
        Target("frame-head", _heads, (), _golden(range(1, 96))),
        Target(
            "spiffe", lambda data: parse_untrusted_spiffe(data.decode("utf-8", "replace")), (InvalidName,),
            _texts("spiffe://demo/rsu/rsu-1", "spiffe://a/b"),
        ),
        Target(
            "certificate-names", lambda data: identity_from_untrusted_names(data.decode("latin-1").split("\n")),
            (InvalidName, IdentityError), _texts("spiffe://demo/rsu/rsu-1", "spiffe://demo/rsu/rsu-1\nhttps://x"),
        ),
        Target(
            "advert", _advert, _REMOTE,
            lambda: [b"v=1\xffm=demo\xffn=rsu-1\xffi=17\xff192.0.2.7,fe80::1,::1", b"v=2\xff"],
        ),
        Target(
            "http-publish", parse_untrusted_publish, (BadRequest,),
            _texts('{"key":"rsu/rsu-1/x","value":{"dtype":"u1","shape":[1],"data":"AA=="},"how":{"sensor":"s","unit":"1"},'
                   '"where":{"latitude_deg":1,"longitude_deg":2,"accuracy_m":3}}', '{"key":"a","value":[1,null,"x"]}'),
        ),
        Target(
            "http-infer", _request, (BadRequest, InputInvalid),
            _texts('\n{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}',
                   '\n{"inputs":[{"name":"\\"NaN","datatype":"FP16","shape":[2],"data":[NaN,-Infinity]}],"outputs":null}',
                   '\n{"inputs":[{"name":"x","datatype":"BOOL","shape":[1,1],"data":[[true]]}],"parameters":{"timeout":1}}',
                   '\n{"inputs":[{"name":"x","datatype":"UINT8","shape":[2,1],"data":[[1],[2]],"parameters":{}}],"id":"\\u00e9"}',
                   '93\n{"inputs":[{"name":"x","datatype":"UINT8","shape":[2],"parameters":{"binary_data_size":2}}]}AB'),
        ),
        Target("grpc-infer", parse_untrusted_message, (BadRequest, InputInvalid), _messages),
        Target("picture", lambda data: decoded_untrusted(data, 10_000), (InputInvalid,), _pictures),
        Target("conversation", _conversation, (), _conversations, Form.FRAMED, max_cpu_ms=200.0),
    )
}  # fmt: skip
