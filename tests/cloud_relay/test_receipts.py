"""Receipts at the relay: which it believes, what it keeps of them, and what proves a record to somebody else."""

import base64
import json
import re
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from cloud_relay.cli import main
from cloud_relay.config import load_config
from cloud_relay.query.proofs import proof_of, proven
from cloud_relay.store.schema import RECEIPTS, open_for_reading
from meshnode.identity.signatures import SigningKey, read_authority
from protocols.base.errors import ConfigError, LocalProtocolError, ReceiptWrong, RemoteProtocolError, StorageError
from protocols.base.limits import MAX_BATCH_RECORDS, MAX_RECORD_BYTES
from protocols.records.receipts.proof import MAX_PROOF_BYTES, decode_untrusted_proof
from protocols.wire.codec import decode_untrusted_relay_frame, encode, encode_frame
from protocols.wire.parcels import decode_untrusted_reading, encode_reading
from protocols.wire.readings import Reading
from protocols.wire.receipts import receipt_statement
from protocols.wire.records import Acknowledgement, Batch, Fate, Record, RelayFrame, RelayRefusal
from tests.tools.pki_fixture import authority
from tests.tools.receipt_fixture import POLICY, ReceiptMesh, with_receipt
from tests.tools.relay_fixture import batch, reading


@pytest.fixture(name="mesh")
def given_mesh(tmp_path: Path) -> Iterator[ReceiptMesh]:
    mesh = ReceiptMesh(tmp_path)
    yield mesh
    mesh.relay.store.close()


@pytest.fixture(name="strict")
def given_strict_mesh(tmp_path: Path) -> Iterator[ReceiptMesh]:
    mesh = ReceiptMesh(tmp_path, required=True)
    yield mesh
    mesh.relay.store.close()


def refused(answer: RelayFrame, code: str = "receipt") -> str:
    assert isinstance(answer, RelayRefusal), answer
    assert answer.code == code
    return answer.detail


def proof(mesh: ReceiptMesh, sequence: int, node: str = "v-1") -> bytes:
    with closing(open_for_reading(mesh.relay.path)) as db:
        return proof_of(db, node, sequence)


# --- what is taken -------------------------------------------------------------------------------------------------
def test_batch_with_receipt_is_stored_and_each_record_can_be_proved(mesh: ReceiptMesh) -> None:
    """The whole way: what the node signed is what a stranger checks, with the authority's certificate alone."""
    key = mesh.key()
    assert mesh.relay.send(mesh.sealed(1, 2, 4, 5, 9, key=key)) == Acknowledgement((1, 2, 4, 5, 9))
    anchor = read_authority(mesh.anchor)
    for sequence in (1, 2, 4, 5, 9):
        shown = proven(proof(mesh, sequence), anchor)
        assert (shown.author.node, shown.record.sequence, shown.record.rule) == ("v-1", sequence, "r")
        assert shown.reading == decoded_reading(sequence)
        assert (shown.receipt.policy, shown.receipt.records) == (POLICY, 5)
    assert mesh.relay.account().with_receipt == 5
    assert all(record["has_receipt"] for record in mesh.relay.records())


def decoded_reading(number: int) -> Reading:
    return decode_untrusted_reading(encode_reading(reading(number)))


def test_batch_of_a_node_before_receipts_is_taken_and_marked(mesh: ReceiptMesh) -> None:
    """Updating the relay first must not stop a fleet; who looks must see which records nobody signed."""
    assert mesh.relay.send(batch(1, 2)) == Acknowledgement((1, 2))
    assert mesh.relay.send(mesh.sealed(3)) == Acknowledgement((3,))
    assert [record["has_receipt"] for record in mesh.relay.records()] == [True, False, False]
    account = mesh.relay.account()
    assert (account.stored, account.with_receipt, account.wrong_receipts, account.adds_up) == (3, 1, 0, True)
    with pytest.raises(LocalProtocolError, match="without a receipt"):
        proof(mesh, 1)
    with pytest.raises(LocalProtocolError, match="no record 8"):
        proof(mesh, 8)


def test_required_receipt_that_is_missing_is_named_and_nothing_is_stored(strict: ReceiptMesh) -> None:
    """The node keeps its records, and says what the person at the relay has decided."""
    assert strict.relay.send(batch()) == Acknowledgement(()), "an introduction has no records"
    assert "[ingest] receipts" in refused(strict.relay.send(batch(1, 2)))
    assert strict.relay.account().stored == 0
    assert strict.relay.send(batch(fates=(Fate(1, 1, "expired"),))) == Acknowledgement(())
    assert strict.relay.send(strict.sealed(2)) == Acknowledgement((2,))
    assert strict.relay.ingest.statistics() == {"receipt": 1}


def test_record_keeps_its_first_receipt_and_what_comes_again_adds_none(mesh: ReceiptMesh) -> None:
    """A node whose answers are lost must not fill the relay's disk; a record that had none gets one."""
    key = mesh.key()
    mesh.relay.send(batch(1, 2))
    for _ in range(3):
        assert mesh.relay.send(mesh.sealed(1, 2, 3, key=key)) == Acknowledgement((1, 2, 3))
    mesh.relay.send(mesh.sealed(3, 4, key=key))
    with closing(open_for_reading(mesh.relay.path)) as db:
        held = db.execute("SELECT sequence, receipt, place FROM receipted ORDER BY sequence").fetchall()
        assert db.execute("SELECT count(*) FROM receipts").fetchone() == (2,)
        assert db.execute("SELECT count(*) FROM certificates").fetchone() == (1,)
    assert held == [(1, 1, 0), (2, 1, 1), (3, 1, 2), (4, 2, 1)]


def test_record_that_is_refused_alone_leaves_the_proofs_of_the_others(mesh: ReceiptMesh) -> None:
    """The root is over all records as they came, also over those that the store can't hold."""
    good = batch(1, 3)
    records = (good.records[0], *batch(2, key="veh/*/speed").records, good.records[1])
    key = mesh.key()
    whole = replace(
        mesh.sealed(1, key=key), records=records, next_sequence=4,
        receipt=mesh.sealer(key).sealed(records, b""),
    )  # fmt: skip
    answer = mesh.relay.send(whole)
    assert isinstance(answer, Acknowledgement)
    assert (answer.stored, [refusal.sequence for refusal in answer.refused]) == ((1, 3), [2])
    assert proven(proof(mesh, 3), read_authority(mesh.anchor)).record.sequence == 3
    assert mesh.relay.account().with_receipt == 2


def test_deleting_other_records_leaves_a_proof_as_it_was(mesh: ReceiptMesh) -> None:
    """Whoever deletes what is too old must not take the proof of what is kept."""
    mesh.relay.send(mesh.sealed(*range(1, 8)))
    before = proof(mesh, 5)
    with closing(sqlite3.connect(mesh.relay.path)) as db:
        db.execute("DELETE FROM records WHERE sequence <> 5")
        db.commit()
    assert proof(mesh, 5) == before
    assert mesh.relay.account().with_receipt == 1


def test_certificate_is_asked_for_when_it_is_not_known(mesh: ReceiptMesh) -> None:
    """After a restart of the relay a node may leave out the certificate that the relay knew before."""
    key = mesh.key()
    first = mesh.sealed(1, key=key)
    refused(mesh.relay.send(replace(first, certificate=b"")), "certificate")
    assert mesh.relay.records() == []
    assert mesh.relay.send(first) == Acknowledgement((1,))
    assert mesh.relay.send(replace(mesh.sealed(2, key=key), certificate=b"")) == Acknowledgement((2,))
    renewed = mesh.key()
    refused(mesh.relay.send(replace(mesh.sealed(3, key=renewed), certificate=b"")), "certificate")
    assert mesh.relay.send(mesh.sealed(3, key=renewed)) == Acknowledgement((3,))
    assert mesh.relay.account().wrong_receipts == 0


# --- what is refused -----------------------------------------------------------------------------------------------
def other_record(sealed: Batch) -> Batch:
    changed = Record(2, "r", Raw(encode_reading(reading(2, value="other"))))
    return replace(sealed, records=(sealed.records[0], changed, sealed.records[2]))


def resealed(**of: Any) -> Callable[[Batch], Batch]:
    """The receipt with other fields, signed as before."""

    def change(sealed: Batch) -> Batch:
        assert sealed.receipt is not None
        return replace(sealed, receipt=replace(sealed.receipt, **of))

    return change


def other_signature(sealed: Batch) -> Batch:
    assert sealed.receipt is not None
    signature = bytearray(sealed.receipt.signature)
    signature[-1] ^= 1
    return resealed(signature=bytes(signature))(sealed)


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (other_record, "path"),
        (lambda sealed: replace(sealed, records=sealed.records[:2]), "about 3 records from 1 to 3"),
        (lambda sealed: replace(sealed, records=sealed.records[::2]), "batch has 2"),
        (lambda sealed: replace(sealed, records=(replace(sealed.records[0], rule="s"), *sealed.records[1:])), "path"),
        (lambda sealed: replace(sealed, records=()), "signature|without records"),
        (resealed(mesh="demi"), "in mesh 'demi'"),
        (resealed(node="v-2"), "is of 'v-2'"),
        (resealed(incarnation=2), "life 2"),
        (resealed(incarnation=0), "signature"),
        (resealed(policy=b""), "signature"),
        (resealed(root=bytes(32)), "signature"),
        (resealed(first=2), "signature"),
        (resealed(last=4), "signature"),
        (resealed(records=2), "signature"),
        (resealed(certificate=bytes(8)), "another certificate"),
        (resealed(signature=b"x"), "signature"),
        (other_signature, "signature"),
        (lambda sealed: replace(sealed, certificate=b"x"), "certificate can't be used"),
        (lambda sealed: replace(sealed, certificate=sealed.certificate[:-1] + b"\0"), "certificate"),
    ],
)  # fmt: skip
def test_batch_that_was_altered_anywhere_is_refused_counted_and_named(
    mesh: ReceiptMesh, tamper: Callable[[Batch], Batch], said: str
) -> None:
    """Whoever changes records under way, or a receipt, must not have anything of it stored."""
    sealed = mesh.sealed(1, 2, 3)
    for times in (1, 2):
        detail = refused(mesh.relay.send(tamper(sealed)))
        assert re.search(said, detail), detail
        account = mesh.relay.account()
        assert (account.stored, account.with_receipt, account.wrong_receipts) == (0, 0, times)
        assert account.why_wrong == detail
    assert mesh.relay.send(sealed) == Acknowledgement((1, 2, 3)), "and the right one is taken after all"
    told = CliRunner().invoke(main, ["audit", "--store", str(mesh.relay.path)]).output
    assert "v-1: 2 batches were refused, the last one because of a wrong receipt" in told


def test_batch_signed_by_somebody_else_is_refused(mesh: ReceiptMesh) -> None:
    """The certificate must be of this mesh, of this node and of its role, and valid now."""
    elsewhere = authority()
    keys: list[tuple[SigningKey, str]] = [
        (mesh.key(signer=elsewhere), "did not issue"),
        (mesh.key("v-2"), "is that of vehicle v-2"),
        (mesh.key(role="rsu"), "is that of rsu v-1"),
        (mesh.key(mesh="other"), "vehicle v-1"),
        (mesh.key(days=-1), "not valid at this time"),
    ]
    for key, said in keys:
        assert said in refused(mesh.relay.send(mesh.sealed(1, key=key)))
    own = mesh.key()
    stolen = replace(mesh.sealed(1, key=mesh.key("v-2"), node="v-2"), node="v-1")
    assert "is of 'v-2'" in refused(mesh.relay.send(stolen))
    assert mesh.relay.account().wrong_receipts == len(keys) + 1
    assert mesh.relay.send(mesh.sealed(1, key=own)) == Acknowledgement((1,))


def test_twin_of_a_signature_is_refused(mesh: ReceiptMesh) -> None:
    """Anybody can make it: two receipts of one statement would look like two statements."""
    sealed = mesh.sealed(1)
    assert sealed.receipt is not None
    r, s = decode_dss_signature(sealed.receipt.signature)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    refused(mesh.relay.send(resealed(signature=encode_dss_signature(r, order - s))(sealed)))


def test_signature_for_another_purpose_is_no_receipt(mesh: ReceiptMesh) -> None:
    """The same key signs gossip entries and readings, whose bytes an insider may choose."""
    key = mesh.key()
    sealed = mesh.sealed(1, key=key)
    assert sealed.receipt is not None
    statement = receipt_statement(sealed.receipt)
    assert statement.startswith(b"meshnode receipt 1\0")
    for other in (statement[19:], b"meshnode entry 1\0" + statement[19:], b"meshnode reading 1\0" + statement[19:]):
        refused(mesh.relay.send(resealed(signature=key.sign(other))(sealed)))
    assert encode(sealed.receipt)[1:].startswith(statement[20:]), "what is signed is what is kept"


@given(st.data())
def test_hostile_bytes_in_a_receipt_are_refused_by_one_error(data: st.DataObject) -> None:
    """A byte changed anywhere in the frame, a cut, an insertion: the decoder says no, or gives a frame."""
    frame = bytearray(_FRAME)
    at = data.draw(st.integers(len(frame) // 2, len(frame) - 1))
    frame[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=40))
    with suppress(RemoteProtocolError):
        decode_untrusted_relay_frame(bytes(frame))


_FRAME = bytes.fromhex(
    "".join(
        line.partition("#")[0].strip()
        for line in (Path(__file__).parents[1] / "golden/v1/64-batch-receipt.hex").read_text().splitlines()
    )
)


@pytest.mark.parametrize(
    "claim",
    [
        b"\xc6" + struct.pack(">I", 0x7FFFFFFF),
        b"\xdd\xff\xff\xff\xff",
        b"\xc4\x21" + bytes(33),
        b"\xc0",
    ],
)
def test_receipt_with_claims_beyond_its_bounds_is_malformed(mesh: ReceiptMesh, claim: bytes) -> None:
    """Lengths are checked before memory is taken."""
    frame = encode_frame(mesh.sealed(1))
    at = frame.index(b"\xc4\x20" + POLICY)
    answer = mesh.relay.send(frame[:at] + claim + frame[at + 34 :])
    assert isinstance(answer, RelayRefusal)
    assert answer.code == "malformed"


# --- proofs --------------------------------------------------------------------------------------------------------
def flip(field: str, at: int = -1) -> Callable[[dict[str, Any]], None]:
    def change(told: dict[str, Any]) -> None:
        content = bytearray(base64.b64decode(told[field]))
        content[at] ^= 1
        told[field] = base64.b64encode(content).decode()

    return change


def put(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda told: told.__setitem__(field, value)


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ("path", flip("record")),
        ("path", flip("record", 1)),
        ("path", put("index", 1)),
        ("path", put("index", 99)),
        ("path", lambda told: told["path"].pop()),
        ("path", lambda told: told["path"].reverse()),
        ("signature", flip("receipt", 60)),
        ("certificate", flip("receipt", 90)),
        ("receipt", flip("receipt", 0)),
        ("signature", flip("receipt")),
        ("certificate", flip("certificate")),
        ("certificate", put("certificate", "")),
        ("form", put("form", "meshnode proof 2")),
        ("form", put("more", 1)),
        ("form", put("index", -1)),
        ("form", put("record", "%")),
        ("form", put("path", ["AA=="])),
        ("form", put("path", [base64.b64encode(bytes(32)).decode()] * 9)),
        ("receipt", put("receipt", "AA==")),
    ],
)
def test_proof_that_was_altered_names_the_step_that_fails(
    mesh: ReceiptMesh, step: str, change: Callable[[dict[str, Any]], None]
) -> None:
    """Whoever gets a proof must learn what is wrong with it, by one line and the status."""
    mesh.relay.send(mesh.sealed(1, 2, 3, 4, 5))
    told = json.loads(proof(mesh, 3))
    file = mesh.folder / "proof.json"
    arguments = ["verify", str(file), "--authority", str(mesh.anchor)]
    file.write_text(json.dumps(told))
    assert CliRunner().invoke(main, arguments).exit_code == 0, "another form of the same JSON"
    change(told)
    file.write_text(json.dumps(told))
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1, done.output
    assert done.output.startswith(f"NOT proven: the step '{step}' failed: ")


def test_proof_of_another_mesh_or_of_another_receipt_does_not_hold(mesh: ReceiptMesh, tmp_path: Path) -> None:
    """A right path to a right root proves nothing when the parts don't belong together."""
    key = mesh.key()
    mesh.relay.send(mesh.sealed(1, 2, key=key))
    mesh.relay.send(mesh.sealed(3, 4, key=key))
    first, second = json.loads(proof(mesh, 1)), json.loads(proof(mesh, 3))
    first["receipt"] = second["receipt"]
    with pytest.raises(ReceiptWrong) as caught:
        proven(json.dumps(first).encode(), read_authority(mesh.anchor))
    assert caught.value.step == "path"
    (tmp_path / "other.crt").write_bytes(authority().pem)
    with pytest.raises(ReceiptWrong) as caught:
        proven(json.dumps(second).encode(), read_authority(tmp_path / "other.crt"))
    assert caught.value.step == "certificate"


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=8
).map(lambda value: json.dumps({"form": "meshnode proof 1", "record": value, "path": value}).encode()))  # fmt: skip
def test_file_that_is_no_proof_raises_one_error(data: bytes) -> None:
    """Anybody may hand over a file."""
    with pytest.raises(ReceiptWrong):
        decode_untrusted_proof(data)


def test_sizes_of_proofs_and_receipts_are_bounded(mesh: ReceiptMesh) -> None:
    """The largest record in the largest batch; and a small one, as it is mailed around."""
    key = mesh.key()
    mesh.relay.send(mesh.sealed(*range(1, MAX_BATCH_RECORDS + 1), key=key))
    small = proof(mesh, MAX_BATCH_RECORDS)
    assert len(json.loads(small)["path"]) == 8
    assert len(small) < 3_000
    large = Record(300, "r" * 200, Raw(encode_reading(reading(1, value=b"x" * (MAX_RECORD_BYTES - 300)))))
    plain = replace(batch(300), records=(large,))
    assert isinstance(mesh.relay.send(with_receipt(plain, mesh.sealer(key), key)), Acknowledgement)


def test_proof_larger_than_any_is_refused_before_it_is_parsed(mesh: ReceiptMesh) -> None:
    """A file of a gigabyte must not be read into memory."""
    file = mesh.folder / "large.json"
    file.write_bytes(b" " * (MAX_PROOF_BYTES + 10))
    done = CliRunner().invoke(main, ["verify", str(file), "--authority", str(mesh.anchor)])
    assert (done.exit_code, "no proof" in done.output) == (1, True)


def test_prove_and_verify_are_commands_for_people(mesh: ReceiptMesh) -> None:
    """They print what a person asks first: who, when, by which policy and rule."""
    mesh.relay.send(mesh.sealed(1, 2, 3))
    run = CliRunner().invoke
    out = mesh.folder / "p.json"
    assert run(main, ["prove", "v-1", "2", "--store", str(mesh.relay.path), "--out", str(out)]).exit_code == 0
    assert run(main, ["prove", "v-1", "2", "--store", str(mesh.relay.path)]).output == out.read_text()
    told = run(main, ["verify", str(out), "--authority", str(mesh.anchor)]).output
    for said in ("vehicle v-1 of mesh demo signed this record", "2023-11-14T22:13:22", POLICY.hex(), "rule         r"):
        assert said in told
    for wrong, said in (
        (["prove", "v-1", "9", "--store", str(mesh.relay.path)], "no record 9"),
        (["prove", "v-1", "2", "--store", str(mesh.relay.path), "--out", str(mesh.folder)], "can't be written"),
        (["verify", str(mesh.folder / "none"), "--authority", str(mesh.anchor)], "can't be read"),
        (["verify", str(out), "--authority", str(mesh.folder / "none")], "does not exist"),
    ):
        done = run(main, wrong)
        assert (done.exit_code, said in done.output) == (2, True), done.output


def test_store_that_was_changed_proves_nothing(mesh: ReceiptMesh) -> None:
    """Who can write to the store can't make it say that a node signed something else."""
    mesh.relay.send(mesh.sealed(1, 2))
    with closing(sqlite3.connect(mesh.relay.path)) as db:
        db.execute("UPDATE records SET encoded = ? WHERE sequence = 1", (encode_reading(reading(7)),))
        db.execute("DELETE FROM certificates")
        db.commit()
    with pytest.raises(StorageError, match="not what its receipt is about"):
        proof(mesh, 1)
    with pytest.raises(StorageError, match="certificate"):
        proof(mesh, 2)


# --- stores and configurations of before ---------------------------------------------------------------------------
def test_store_of_the_version_before_is_read_and_taken_over(tmp_path: Path) -> None:
    """An update of the relay must not cost what it has; and who only looks must not change the file."""
    mesh = ReceiptMesh(tmp_path)
    mesh.relay.send(batch(1, 2))
    mesh.relay.store.close()
    with closing(sqlite3.connect(mesh.relay.path)) as db:
        for table in ("receipts", "receipted", "certificates", "wrong_receipts"):
            assert f"CREATE TABLE {table} " in RECEIPTS
            db.execute(f"DROP TABLE {table}")
        for table in ("aggregates", "aggregate_groups", "aggregate_changes"):
            db.execute(f"DROP TABLE {table}")
        db.executescript(
            "DROP TABLE streams; DROP INDEX records_in_streams; DROP INDEX records_in_time; DROP INDEX records_in_cells"
        )
        db.execute("PRAGMA user_version = 1")
        db.commit()
    assert (mesh.relay.account().stored, mesh.relay.account().with_receipt) == (2, 0)
    assert [record["has_receipt"] for record in mesh.relay.records()] == [False, False]
    with closing(sqlite3.connect(mesh.relay.path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    later = ReceiptMesh(tmp_path)
    try:
        assert later.relay.send(later.sealed(3)) == Acknowledgement((3,))
        assert (later.relay.account().stored, later.relay.account().with_receipt) == (3, 1)
    finally:
        later.relay.store.close()


def test_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    """As before."""
    mesh = ReceiptMesh(tmp_path)
    mesh.relay.store.close()
    with closing(sqlite3.connect(mesh.relay.path)) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(StorageError, match="version 9"):
        ReceiptMesh(tmp_path)
    with pytest.raises(StorageError, match="version 9"):
        open_for_reading(mesh.relay.path)


def test_configuration_says_whether_receipts_are_required(tmp_path: Path) -> None:
    """The default takes a fleet of older nodes."""
    path = tmp_path / "relay.toml"
    for ingest, required in (("", False), ('receipts = "accepted"', False), ('receipts = "required"', True)):
        path.write_text(f'[relay]\nid = "relay-1"\n[ingest]\n{ingest}\n')
        assert load_config(path).receipts_required is required
    path.write_text('[relay]\nid = "relay-1"\n[ingest]\nreceipts = "yes"\n')
    with pytest.raises(ConfigError, match=r"ingest\.receipts is 'yes'.*\"accepted\" or \"required\""):
        load_config(path)
