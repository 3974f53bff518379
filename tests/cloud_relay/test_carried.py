"""Batches that a node carries for another: what the relay believes of them, and what it says."""

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from meshnode.identity.sealing import SealingKey, read_or_make_sealing_key, seal, sealed_id
from meshnode.records.carrying.envelope import checked_reply, sealed_batch
from protocols.base.errors import IdentityError, MeshError, RemoteProtocolError
from protocols.base.ids import NodeId, PeerIdentity, Role
from protocols.base.limits import MAX_REPLY_BYTES, MAX_SEALED_BYTES
from protocols.gossip.entries import Seal
from protocols.records.carrying.sealed import decode_untrusted_relay_key, seal_info
from protocols.wire.carrying.frames import CarriedReply, RelayKeyAsked, RelayKeyTold
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.entries import decode_untrusted_entry
from protocols.wire.records import Acknowledgement, Fate, RelayRefusal
from tests.tools.carried_fixture import CarriedMesh
from tests.tools.pki_fixture import authority, credentials
from tests.tools.relay_fixture import batch

REFUSED = "not told by way of a carrier; the relay's log has the reason"


@pytest.fixture(name="mesh")
def given_mesh(tmp_path: Path) -> Iterator[CarriedMesh]:
    mesh = CarriedMesh(tmp_path)
    yield mesh
    mesh.relay.store.close()


def code(answer: object) -> str:
    assert isinstance(answer, RelayRefusal), answer
    return answer.code


# --- what is taken -------------------------------------------------------------------------------------------------
def test_carried_batch_is_stored_once_with_its_receipt_however_often_it_comes(mesh: CarriedMesh) -> None:
    """Two carriers and the node itself may bring the same records."""
    key = mesh.key()
    plain = mesh.sealed(1, 2, 3, key=key)
    sealed = mesh.seal(plain, key)
    assert b"wheel" not in sealed
    assert mesh.told(sealed) == Acknowledgement((1, 2, 3))
    assert isinstance(mesh.bring(sealed, carrier="v-3"), CarriedReply)
    assert mesh.relay.send(plain) == Acknowledgement((1, 2, 3))
    account = mesh.relay.account()
    assert (account.origin, account.stored, account.with_receipt, account.adds_up) == ("v-1", 3, 3, True)


def test_batch_that_comes_after_later_ones_fills_its_gap(mesh: CarriedMesh) -> None:
    """A carrier is on the road for hours, while the node is in coverage again and goes on."""
    key = mesh.key()
    late = mesh.seal(mesh.sealed(1, 2, key=key), key)
    fate = mesh.seal(mesh.sealed(3, key=key, fates=(Fate(4, 4, "expired"),)), key)
    assert mesh.relay.send(mesh.sealed(5, 6, key=key)) == Acknowledgement((5, 6))
    assert not mesh.relay.account().adds_up, "it can't know yet that they are on their way"
    assert mesh.told(late) == Acknowledgement((1, 2))
    assert mesh.told(fate) == Acknowledgement((3,))
    account = mesh.relay.account()
    assert (account.stored, account.expired, account.missing, account.adds_up) == (5, 1, 0, True)
    assert mesh.relay.send(mesh.sealed(7, key=key)) == Acknowledgement((7,)), "a late batch set nothing back"


def test_introduction_by_way_of_a_carrier_tells_where_to_begin(mesh: CarriedMesh) -> None:
    """A vehicle that lost its disk and is without coverage must not use sequences twice."""
    key = mesh.key()
    assert mesh.told(mesh.seal(batch(following=1), key)) == Acknowledgement(())
    mesh.told(mesh.seal(mesh.sealed(1, 2, key=key), key))
    assert mesh.told(mesh.seal(batch(following=1), key)) == RelayRefusal("sequence", "3")


def test_outbox_that_was_restored_from_a_copy_loses_no_record_by_way_of_a_carrier(mesh: CarriedMesh) -> None:
    """Its sequences were used before. As over its own connection, a person has to look, and its records wait."""
    key = mesh.key()
    mesh.relay.send(mesh.sealed(1, 2, 3, key=key))
    other = mesh.sealed(2, key=key, value="another")
    assert mesh.told(mesh.seal(other, key)) == RelayRefusal("sequence", "4")
    account = mesh.relay.account()
    assert (account.stored, account.conflicts, account.refused) == (3, 0, 0)


def test_reply_names_no_reason_because_the_carrier_reads_it(mesh: CarriedMesh, tmp_path: Path) -> None:
    """A reason may have a key in it, such as that of a camera at somebody's house."""
    key = mesh.key()
    plain = mesh.sealed(1, key=key)
    changed = replace(plain, records=(replace(plain.records[0], rule="other"),))
    answer = mesh.told(mesh.seal(changed, key))
    assert answer == RelayRefusal("receipt", REFUSED)
    assert mesh.relay.account().wrong_receipts == 1


def test_largest_reply_fits(mesh: CarriedMesh) -> None:
    """256 records of which each is refused."""
    key = mesh.key()
    first = mesh.sealed(*range(1, 257), key=key)
    mesh.told(mesh.seal(first, key))
    other = mesh.sealed(*range(1, 257), key=key, value="another")
    sealed = mesh.seal(other, key)
    answer = mesh.bring(sealed)
    assert isinstance(answer, CarriedReply)
    assert len(answer.reply) < MAX_REPLY_BYTES
    told = mesh.checked(answer.reply, sealed)
    assert isinstance(told, Acknowledgement)
    assert {refused.reason for refused in told.refused} == {REFUSED}
    assert len(told.refused) == 256


def test_key_is_published_by_an_entry_that_every_node_can_check(mesh: CarriedMesh, tmp_path: Path) -> None:
    """A node without coverage believes the relay, and nobody in between."""
    from meshnode.gossip.notary import Notary

    peer = PeerIdentity(mesh.mesh, Role.VEHICLE, NodeId("v-2"))
    told = decode_untrusted_relay_frame(mesh.carried.answer(peer, encode_frame(RelayKeyAsked())))
    assert isinstance(told, RelayKeyTold)
    entry = decode_untrusted_entry(told.entry)
    seal: Seal = Notary(credentials(tmp_path / "n", mesh.authority, "v-2"), mesh.mesh).seal()
    assert seal.verify(entry)
    assert (entry.author, entry.kind) == ("relay-1", "relay-key")
    assert decode_untrusted_relay_key(entry.body) == mesh.relay_key
    strangers = Notary(credentials(tmp_path / "s", authority(), "v-2"), mesh.mesh).seal()
    assert not strangers.verify(entry)


def test_sealing_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    """Whoever has it reads what is carried; and with another one after each start, nothing on its way would open."""
    made = read_or_make_sealing_key(tmp_path / "sealing.key")
    assert (tmp_path / "sealing.key").stat().st_mode & 0o777 == 0o600
    assert read_or_make_sealing_key(tmp_path / "sealing.key").public_key == made.public_key
    (tmp_path / "sealing.key").write_text("nonsense")
    with pytest.raises(IdentityError, match="remove it"):
        read_or_make_sealing_key(tmp_path / "sealing.key")
    with pytest.raises(IdentityError, match="can't be made"):
        read_or_make_sealing_key(tmp_path / "no" / "sealing.key")


# --- carriers that lie ---------------------------------------------------------------------------------------------
def test_batch_in_the_name_of_another_node_is_not_taken(mesh: CarriedMesh) -> None:
    """A carrier, or the node that gave it, would put its own words into the mouth of another."""
    mine = mesh.key("v-3")
    honest = mesh.seal(mesh.sealed(1, key=mine, node="v-3"), mine, "v-3")
    assert code(mesh.bring(honest, "v-1")) == "sealed"
    forged = sealed_batch(
        encode_frame(mesh.sealed(1, key=mine)), mesh.mesh, NodeId("v-1"), mine, mesh.relay_key
    )  # fmt: skip
    assert code(mesh.bring(forged, "v-1")) == "sealed"
    assert code(mesh.told(mesh.seal(batch(1, node="v-1"), mine, "v-3"), "v-3")) == "identity"
    assert mesh.relay.accounts() == []


@pytest.mark.parametrize("role", ["relay", "tool"])
def test_batch_of_a_role_that_sends_no_records_is_not_taken(mesh: CarriedMesh, role: str) -> None:
    """As over its own connection."""
    key = mesh.key("x-1", role=role)
    assert code(mesh.bring(mesh.seal(batch(following=1, node="x-1"), key, "x-1"), "x-1")) == "sealed"


def test_batch_by_a_stranger_or_for_another_mesh_or_key_is_not_taken(mesh: CarriedMesh) -> None:
    """Nobody outside of the mesh gets a batch in by way of a carrier."""
    stranger, key = mesh.key(signer=authority()), mesh.key()
    plain = mesh.sealed(1, key=key)
    assert code(mesh.bring(mesh.seal(plain, stranger))) == "sealed"
    foreign = sealed_batch(encode_frame(plain), mesh.mesh.__class__("other"), NodeId("v-1"), key, mesh.relay_key)
    assert code(mesh.bring(foreign)) == "sealed"
    assert code(mesh.bring(mesh.seal(plain, key), key=bytes(8))) == "key"
    assert code(mesh.bring(mesh.seal(plain, key), role=Role.TOOL)) == "identity"
    assert mesh.carried.statistics() == {"asked": 0, "taken": 0, "refused": 0, "sealed": 2, "key": 1, "again": 0}


def test_batch_of_which_any_byte_was_changed_is_not_taken(mesh: CarriedMesh) -> None:
    """What a carrier alters does not open."""
    key, random = mesh.key(), Random(7)
    sealed = mesh.seal(mesh.sealed(1, 2, key=key), key)
    for at in {0, 1, 31, 32, len(sealed) - 1, *random.sample(range(len(sealed)), 40)}:
        assert code(mesh.bring(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])) == "sealed"
    for cut in (1, 16, 31, 32, 48, len(sealed) - 1):
        assert code(mesh.bring(sealed[:cut])) == "sealed"
    assert mesh.relay.accounts() == []


@pytest.mark.parametrize("content", [b"", b"\0", b"\1", b"\2x", b"\0\x93\xc4\x00\xc4\x00\xc4\x00", b"\1" + bytes(99)])
def test_sealed_nonsense_is_refused_to_the_carrier(mesh: CarriedMesh, content: bytes) -> None:
    """Anybody in the mesh can seal anything."""
    from meshnode.identity import sealing

    info = seal_info(mesh.mesh, "v-1", mesh.sealing_key.id)
    public = sealing.X25519PublicKey.from_public_bytes(mesh.sealing_key.public_key)
    assert code(mesh.bring(sealing._SUITE.encrypt(content, public, info))) == "sealed"


def test_sealed_bomb_is_not_unpacked(mesh: CarriedMesh) -> None:
    """300 bytes that would become a gigabyte."""
    import zstandard

    from meshnode.identity import sealing

    info = seal_info(mesh.mesh, "v-1", mesh.sealing_key.id)
    public = sealing.X25519PublicKey.from_public_bytes(mesh.sealing_key.public_key)
    for told in (True, False):
        bomb = b"\1" + zstandard.ZstdCompressor(write_content_size=told).compress(bytes(1 << 25))
        if not told:
            bomb = b"\1" + zstandard.ZstdCompressor().compressobj().compress(bytes(1 << 20)) + b"x"
        answer = mesh.bring(sealing._SUITE.encrypt(bomb, public, info))
        assert code(answer) == "sealed"


def test_batch_of_a_certificate_that_has_ended_is_refused_by_a_signed_reply(tmp_path: Path) -> None:
    """The node learns that it has to seal these records again, with the certificate that it has now."""
    year_ns = 365 * 86_400 * 10**9
    mesh = CarriedMesh(tmp_path, clock=lambda: time.time_ns() + year_ns)
    key = mesh.key()
    assert mesh.told(mesh.seal(batch(following=1), key)) == RelayRefusal("certificate", REFUSED)
    mesh.relay.store.close()


def test_batch_that_the_disk_does_not_take_is_for_the_carrier_to_bring_again(mesh: CarriedMesh) -> None:
    """Nothing is signed that may be otherwise tomorrow."""
    key = mesh.key()
    sealed = mesh.seal(mesh.sealed(1, key=key), key)
    mesh.relay.store.close()
    assert code(mesh.bring(sealed)) == "storage"


def test_frame_that_is_too_large_is_malformed(mesh: CarriedMesh) -> None:
    """The bound holds before anything is opened."""
    key = mesh.key()
    assert code(mesh.bring(bytes(MAX_SEALED_BYTES + 1))) == "malformed"
    assert key


# --- replies that lie ----------------------------------------------------------------------------------------------
def test_reply_that_no_relay_of_the_mesh_signed_is_not_believed(mesh: CarriedMesh, tmp_path: Path) -> None:
    """A carrier that says 'delivered' of what it threw away would destroy records."""
    key = mesh.key()
    sealed, other = (mesh.seal(mesh.sealed(number, key=key), key) for number in (1, 2))
    answer = mesh.bring(sealed)
    assert isinstance(answer, CarriedReply)
    reply = answer.reply
    assert mesh.checked(reply, sealed) == Acknowledgement((1,))
    with pytest.raises(RemoteProtocolError, match="another batch"):
        mesh.checked(reply, other)
    with pytest.raises(RemoteProtocolError, match="another batch"):
        mesh.checked(reply, sealed, "v-2")
    believed = 0
    for at in range(len(reply)):
        try:  # the certificate's own signature has a byte that X.509 leaves open
            assert mesh.checked(reply[:at] + bytes([reply[at] ^ 1]) + reply[at + 1 :], sealed) == Acknowledgement((1,))
        except MeshError:
            believed -= 1
    assert len(reply) + believed <= 2
    vehicle = _signed_by(mesh, credentials(tmp_path / "a", mesh.authority, "relay-1"), sealed)
    stranger = _signed_by(mesh, credentials(tmp_path / "b", authority(), "relay-1", role="relay"), sealed)
    for forged, why in ((vehicle, "not of a relay"), (stranger, "authority did not issue")):
        with pytest.raises(IdentityError, match=why):
            mesh.checked(forged, sealed)
    with pytest.raises(IdentityError, match="certificate of relay-1"):
        checked_reply(
            reply, sealed_id(sealed), mesh.mesh, NodeId("v-1"), mesh.authority.certificate, NodeId("relay-2"),
            time.time_ns(),
        )  # fmt: skip


def _signed_by(mesh: CarriedMesh, files: object, sealed: bytes) -> bytes:
    from cloud_relay.ingest.signing import RelaySigner

    signer = RelaySigner.__new__(RelaySigner)
    signer._mesh, signer._node = mesh.mesh, NodeId("relay-1")
    from meshnode.identity.signatures import read_signing_key

    signer._key = read_signing_key(files)  # type: ignore[arg-type]
    return signer.reply("v-1", sealed_id(sealed), encode_frame(Acknowledgement((1,))))


# --- the seal ------------------------------------------------------------------------------------------------------
def test_seal_is_hpke_as_the_rfc_has_it() -> None:
    """Another implementation opens it: the vector of RFC 9180, A.2.1, which has the suite that is used here."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb")
    )
    key = SealingKey(private)
    assert key.public_key.hex() == "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a"
    sealed = bytes.fromhex(
        "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a"
        "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28"
    )
    from meshnode.identity import sealing

    info = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
    with pytest.raises(RemoteProtocolError):  # the vector has associated data, which is not used here
        key.open_untrusted(sealed, info)
    assert sealing._SUITE.decrypt(seal(b"x", key.public_key, info, compressed=True), private, info) == b"\0x"


def test_seal_without_zstandard_is_plain_and_one_with_it_is_refused(
    mesh: CarriedMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is an extra. Each side says and does what it can."""
    from meshnode.identity import packing

    key = mesh.key()
    small = mesh.seal(mesh.sealed(1, 2, key=key), key)
    monkeypatch.setattr(packing, "_zstandard", lambda: None)
    assert not packing.can_pack()
    assert code(mesh.bring(small)) == "sealed"
    plain = mesh.seal(mesh.sealed(1, 2, key=key), key)
    assert len(plain) > len(small)
    assert mesh.told(plain) == Acknowledgement((1, 2))
