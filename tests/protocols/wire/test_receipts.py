"""The bytes of receipts: what is signed is what is kept, and strangers' bytes never raise anything else."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, msgpack
from msgspec.structs import replace

from protocols.base import limits
from protocols.base.errors import RemoteProtocolError
from protocols.wire.codec import encode
from protocols.wire.parcels import encode_reading
from protocols.wire.receipts import (
    MAX_RECEIPT_BYTES,
    decode_untrusted_leaf,
    decode_untrusted_receipt,
    encode_receipt,
    receipt_statement,
    record_leaf,
)
from protocols.wire.records import Batch, Receipt, Record
from tests.tools.relay_fixture import reading
from tests.tools.strategies import RELAY_FRAMES

GOOD = Receipt("demo", "veh-1", 5, b"", bytes(32), 6, 9, 3, bytes(8), b"signature")
LARGEST = Receipt(
    "m" * 63, "n" * 63, 2**64 - 1, bytes(32), bytes(32), 2**64 - 2, 2**64 - 1, 256, bytes(8),
    bytes(limits.MAX_SIGNATURE_BYTES),
)  # fmt: skip


@given(RELAY_FRAMES[Batch].map(lambda batch: batch.receipt).filter(bool))  # type: ignore[attr-defined]
def test_receipt_comes_back_from_its_bytes(receipt: Receipt) -> None:
    """The store keeps these bytes, and a proof made from them years later must hold."""
    assert decode_untrusted_receipt(encode_receipt(receipt)) == receipt


def test_statement_covers_every_field_but_the_signature() -> None:
    """A field outside could be changed by whoever stores the receipt."""
    changed: dict[str, Any] = {
        "mesh": "demi", "node": "veh-2", "incarnation": 6, "policy": bytes(32), "root": b"1" * 32, "first": 5,
        "last": 8, "records": 4, "certificate": b"1" * 8,
    }  # fmt: skip
    assert {*changed, "signature"} == set(Receipt.__struct_fields__)
    statements = {receipt_statement(replace(GOOD, **{name: value})) for name, value in changed.items()}
    assert len(statements | {receipt_statement(GOOD)}) == len(changed) + 1
    assert receipt_statement(replace(GOOD, signature=b"other")) == receipt_statement(GOOD)


def test_receipt_and_its_largest_form_are_small() -> None:
    """It goes along with each batch, also with one of a single record."""
    assert len(encode_receipt(LARGEST)) == 313
    assert len(encode_receipt(LARGEST)) <= MAX_RECEIPT_BYTES


@pytest.mark.parametrize(
    "alter",
    [
        lambda data: data + b"\0",
        lambda data: b"\xdc\0\x0a" + data[1:],
        lambda data: b"\x9b" + data[1:] + b"\xc0",
        lambda data: data.replace(b"veh-1", b"VEH-1"),
        lambda data: b"",
        lambda data: data + bytes(MAX_RECEIPT_BYTES),
    ],
)
def test_receipt_in_other_bytes_is_refused(alter: Callable[[bytes], bytes]) -> None:
    """One statement and one signature are one receipt, byte by byte."""
    with pytest.raises(RemoteProtocolError):
        decode_untrusted_receipt(alter(encode_receipt(GOOD)))


@given(st.binary(max_size=400), st.integers(0, 200))
def test_bytes_of_a_stranger_raise_one_error_only(noise: bytes, at: int) -> None:
    """They come from a file, or from a node that was taken over."""
    data = encode_receipt(GOOD)
    for hostile in (noise, data[:at] + noise, data[:at] + noise[:1] + data[at + 1 :]):
        for decode in (decode_untrusted_receipt, decode_untrusted_leaf):
            with suppress(RemoteProtocolError):
                decode(hostile)


def test_leaf_of_a_record_is_one_for_each_way_in_which_it_may_come() -> None:
    """The relay makes the leaf of what it decoded, and the node of what it kept."""
    record = Record(7, "brakes", Raw(encode_reading(reading(1))))
    longer = b"\x93\xcd\x00\x07" + encode(record)[2:]
    assert record_leaf(msgpack.decode(longer, type=Record)) == record_leaf(record)
    assert decode_untrusted_leaf(record_leaf(record)) == record
    with pytest.raises(RemoteProtocolError, match="shortest"):
        decode_untrusted_leaf(longer)
