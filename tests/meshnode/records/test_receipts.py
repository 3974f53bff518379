"""Receipts of a node: from a real one to a real relay, and with relays and nodes of before."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random

import msgspec
import pytest
from click.testing import CliRunner
from msgspec import Struct

import meshnode
from cloud_relay.cli import main
from cloud_relay.query.proofs import proof_of, proven
from cloud_relay.store.schema import open_for_reading
from demo.processes import free_port
from meshnode.identity import issue
from meshnode.identity.signatures import read_authority
from meshnode.records.outbox import Outbox
from meshnode.records.running import RunningRecords
from meshnode.records.uplink import UplinkDriver
from protocols.base.errors import TransportError
from protocols.base.ids import Incarnation, MeshName, PeerIdentity, Role, node_id
from protocols.records.curated import Curated
from protocols.records.events import UplinkState
from protocols.records.receipts.sealing import BatchSealer
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.parcels import encode_reading
from protocols.wire.records import Acknowledgement, Batch, Fate, PackedBatch, Record, RelayRefusal
from tests.tools.eventually import until
from tests.tools.receipt_fixture import POLICY, ReceiptMesh
from tests.tools.relay_fixture import RelayProcess, reading

PEER = PeerIdentity(MeshName("demo"), Role.VEHICLE, node_id("v-1"))


@pytest.fixture(name="mesh")
def given_mesh(tmp_path: Path) -> Iterator[ReceiptMesh]:
    """Its relay asks for receipts."""
    mesh = ReceiptMesh(tmp_path, required=True)
    yield mesh
    mesh.relay.store.close()


class DirectRequester:
    """A requester whose relay is a function."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def request(self, frame: bytes, timeout_s: float) -> bytes:
        return self._answer(frame)

    def close(self) -> None:
        pass


@asynccontextmanager
async def uplinked(
    path: Path, answer: Callable[[bytes], bytes], sealer: BatchSealer | None, policy: bytes = POLICY
) -> AsyncIterator[tuple[Outbox, UplinkDriver]]:
    async with Outbox.open(path, 1000, 2**24, policy=policy) as outbox:
        uplink = UplinkDriver(
            outbox, lambda: DirectRequester(answer), node_id("v-1"), Incarnation(1), Random(1), sealer
        )  # fmt: skip
        task = asyncio.create_task(uplink.run())
        yield outbox, uplink
        await uplink.stop(5)
        await asyncio.wait_for(task, 30)


def curated(number: int) -> Curated:
    return Curated("r", encode_reading(reading(number)))


async def test_lost_answers_leave_each_record_with_a_receipt(mesh: ReceiptMesh, tmp_path: Path) -> None:
    """On a road every exchange may break at any point, and each record must be provable all the same."""
    random = Random(5)

    def unreliable(frame: bytes) -> bytes:
        if random.random() < 0.3:
            raise TransportError("lost before it arrived")
        response = mesh.relay.ingest.answer(PEER, frame)
        if random.random() < 0.3:
            raise TransportError("the answer was lost")
        return response

    async with uplinked(tmp_path / "o.sqlite", unreliable, mesh.sealer(mesh.key())) as (outbox, _):
        for number in range(1, 31):
            await outbox.put(curated(number))
        await until(lambda: outbox.pending == 0)
    account = mesh.relay.account()
    assert (account.stored, account.with_receipt, account.wrong_receipts, account.adds_up) == (30, 30, 0, True)


class _BatchOf16(Struct, frozen=True, array_like=True, tag=64):
    """A batch as version 1.6 knew it."""

    major: int
    minor: int
    node: str
    incarnation: int
    next_sequence: int
    records: tuple[Record, ...] = ()
    fates: tuple[Fate, ...] = ()


async def test_relay_of_before_takes_what_has_a_receipt_and_its_successor_asks_for_the_certificate(
    mesh: ReceiptMesh, tmp_path: Path
) -> None:
    """Nodes are updated first here: the older relay acknowledges what it does not understand."""
    is_old, shown = True, []

    def answer(frame: bytes) -> bytes:
        batch = decode_untrusted_relay_frame(frame)
        if isinstance(batch, PackedBatch):
            return encode_frame(RelayRefusal("malformed", "frame 75 is not known"))
        assert isinstance(batch, Batch)
        shown.append(bool(batch.certificate))
        if not is_old:
            return mesh.relay.ingest.answer(PEER, frame)
        older = msgspec.msgpack.decode(frame, type=_BatchOf16)
        return encode_frame(Acknowledgement(tuple(record.sequence for record in older.records)))

    async with uplinked(tmp_path / "o.sqlite", answer, mesh.sealer(mesh.key())) as (outbox, _):
        for number in (1, 2):
            await outbox.put(curated(number))
            await until(lambda: outbox.pending == 0)
        is_old = False
        await outbox.put(curated(3))
        await until(lambda: outbox.pending == 0)
    assert mesh.relay.account().with_receipt == 1
    assert mesh.relay.ingest.statistics() == {"certificate": 1}
    assert shown == [False, True, False, False, True], "with the first receipt, and when it is asked for"


async def test_node_of_before_keeps_its_records_where_receipts_are_required(mesh: ReceiptMesh, tmp_path: Path) -> None:
    """Nothing is lost, and the person at the node reads what to do."""
    async with uplinked(
        tmp_path / "o.sqlite", lambda frame: mesh.relay.ingest.answer(PEER, frame), None
    ) as (outbox, uplink):  # fmt: skip
        await outbox.put(*(curated(number) for number in range(1, 6)))
        await until(lambda: uplink.state is UplinkState.REFUSED)
        assert "(receipt): records without a receipt are refused here" in uplink.detail
        assert outbox.pending == 5
        assert outbox.statistics()["refused"] == 0


CONFIG = """
[node]
id = "veh-1"
position = {{ latitude_deg = 48.7661, longitude_deg = 11.4298, accuracy_m = 3.0 }}
[listen]
port = 0
host = "127.0.0.1"
[discovery]
mdns = false
[relay]
address = "127.0.0.1:{port}"
[[curation]]
name = "all"
keys = "veh/**"
{egress}
"""
EGRESS = """
[[egress]]
name = "own"
keys = "veh/**"
time_s = 60
"""


async def test_policy_of_records_that_wait_survives_a_restart_and_a_shift(tmp_path: Path) -> None:
    """A new outbox is renumbered once it meets the relay, and its file must follow."""
    async with Outbox.open(tmp_path / "o.sqlite", 100, 2**20) as outbox:
        await outbox.put(curated(1))
    async with Outbox.open(tmp_path / "o.sqlite", 100, 2**20, policy=POLICY) as outbox:
        await outbox.put(curated(2))
        async with outbox.exclusive():
            await outbox.shift(40)
            assert outbox.ledger.renumber(41)
    for policy in (b"", POLICY):
        async with Outbox.open(tmp_path / "o.sqlite", 100, 2**20, policy=policy) as outbox:
            plan = outbox.ledger.next_batch(outbox.utc_now())
            assert plan is not None
            assert (plan.sequences, plan.policy) == ((41,), b"")
            outbox.ledger.acknowledged(plan, Acknowledgement(()))
            outbox.ledger.refuse(41)
            plan = outbox.ledger.next_batch(outbox.utc_now())
            assert plan is not None
            assert (plan.sequences, plan.policy) == ((42,), POLICY)
            outbox.ledger.restore(*await outbox._file.read_ledger())


@pytest.mark.processes
async def test_node_whose_policy_changes_names_for_each_record_the_policy_that_it_passed(tmp_path: Path) -> None:
    """A real node and relay over TLS: what waited under one policy is not signed as if it had passed the next."""
    relay, port = RelayProcess(tmp_path), free_port()
    home = tmp_path / "veh-1"
    issue(tmp_path / "authority", Role.VEHICLE, "veh-1", home)
    for life, egress in enumerate(("", EGRESS), 1):
        (home / "node.toml").write_text(CONFIG.format(port=port, egress=egress))
        async with meshnode.open(home / "node.toml") as node:
            node.publish("veh/veh-1/speed", life)
            await until(lambda node=node, life=life: node.statistics()["outbox_issued"] == life)
    toml = tmp_path / "relay.toml"
    toml.write_text(f'[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = {port}\n[ingest]\nreceipts = "required"\n')
    with relay:
        async with meshnode.open(home / "node.toml") as node:
            await until(lambda: node.statistics()["outbox_delivered"] == 2)
            assert node.statistics()["uplink_receipts"] == 2, "one for each policy"
            digest = node.part(RunningRecords).node_view()["egress"]["digest"]
    store = tmp_path / "state" / "relay.sqlite"
    anchor = read_authority(tmp_path / "authority" / "authority.crt")
    with closing(open_for_reading(store)) as db:
        found = [proven(proof_of(db, "veh-1", sequence), anchor) for sequence in (1, 2)]
    assert [proof.receipt.policy.hex() for proof in found] == ["", digest]
    assert [proof.reading.value for proof in found] == [1, 2]
    told = CliRunner().invoke(main, ["audit", "--store", str(store), "--json"]).output
    assert json.loads(told)["origins"][0]["with_receipt"] == 2
