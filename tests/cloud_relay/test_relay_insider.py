"""What one node of the mesh can cost a real relay, and everybody else there."""

import sqlite3
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
import zstandard
from msgspec import Raw
from msgspec.structs import replace

from cloud_relay.ingest.access import PublishAccess
from cloud_relay.ingest.batches import storable
from cloud_relay.store.sqlite import MAX_WAITING_BATCHES
from protocols.access import AccessRule, AccessTable
from protocols.base.errors import TransportError
from protocols.base.ids import MeshName, NodeId, PeerIdentity, Role
from protocols.base.limits import MAX_BATCH_BYTES, MAX_ELEMENTS, MAX_FRAME_BYTES
from protocols.wire.codec import decode_untrusted_relay_frame, encode, encode_frame
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.records import Acknowledgement, Batch, PackedBatch, Record, RelayRefusal
from tests.tools.relay_fixture import EVERYTHING, RelayInProcess, RelayProcess, batch, given_relay, reading  # noqa: F401 -- a fixture

MAX_GROWTH_BYTES: Final = 80 * 1024 * 1024
"""Eight threads may each hold a batch, its rows and the objects of one reading."""


def batch_of_maps(size_bytes: int, records: int) -> bytes:
    """A batch of this size whose readings consist of empty maps."""
    head = encode_reading(reading(1, value="?"))
    at = head.index(b"\xa1?")
    count = size_bytes // records - 200
    maps = b"\xdd" + count.to_bytes(4) + b"\x80" * count
    readings = Raw(head[:at] + maps + head[at + 2 :])
    all_records = tuple(Record(number + 1, "r", readings) for number in range(records))
    return encode(Batch(MAJOR, MINOR, "v-1", 1, records + 1, all_records))


@pytest.mark.processes
def test_relay_process_sent_frames_of_empty_maps_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame of 16 MB made a relay of 45 MB grow to 1,234 MB."""
    monkeypatch.setattr("meshnode.links.nng.exchange.MAX_EXCHANGE_BYTES", MAX_FRAME_BYTES)
    with RelayProcess(tmp_path) as relay:
        with relay.requester("v-2") as honest:
            assert decode_untrusted_relay_frame(honest.request(encode_frame(batch(1, node="v-2")), 20)) == (
                Acknowledgement((1,))
            )
            before = relay.memory_bytes()
            with relay.requester() as insider, suppress(TransportError):
                insider.request(batch_of_maps(MAX_FRAME_BYTES - 1000, 64), 20)
            for records in (1, 4, 8, 256):
                with relay.requester() as insider:
                    insider.request(batch_of_maps(MAX_BATCH_BYTES, records), 20)
            assert relay.memory_bytes() - before < MAX_GROWTH_BYTES
            answer = decode_untrusted_relay_frame(honest.request(encode_frame(batch(2, node="v-2")), 20))
        assert answer == Acknowledgement((2,))


# --- turns at the writer ---------------------------------------------------------------------------------------------
@contextmanager
def busy_disk(relay: RelayInProcess) -> Iterator[None]:
    """Another program holds the store, so that batches collect before the writer."""
    with closing(sqlite3.connect(relay.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def submitted(
    relay: RelayInProcess, node: str, number: int, order: list[str]
) -> Future[Acknowledgement | RelayRefusal]:
    """Submit a batch, and note in ``order`` when it is answered."""
    peer = PeerIdentity(MeshName("demo"), Role.VEHICLE, NodeId(node))
    done = relay.store.submit(storable(batch(number, node=node), peer, PublishAccess(EVERYTHING)))
    done.add_done_callback(lambda _: order.append(node))
    return done


def test_store_of_a_node_that_uploads_much_serves_another_by_its_turn(relay: RelayInProcess) -> None:
    """The batches of one node must not stand before those of all others."""
    order: list[str] = []
    with busy_disk(relay):
        many = [submitted(relay, "v-1", number, order) for number in range(1, 50)]
        one = submitted(relay, "v-2", 1, order)
    assert one.result(30) == Acknowledgement((1,))
    for done in many:
        done.result(30)
    assert order.index("v-2") <= 2, "the transaction under way, and at most one batch of each in the next"


def test_store_whose_queue_is_full_turns_away_who_fills_it(relay: RelayInProcess) -> None:
    """Otherwise one node could have the batches of all others refused."""
    order: list[str] = []
    with busy_disk(relay):
        many = [submitted(relay, "v-1", number, order) for number in range(1, MAX_WAITING_BATCHES + 20)]
        others = [submitted(relay, node, 1, order) for node in ("v-2", "v-3")]
    for done in others:
        assert done.result(30) == Acknowledgement((1,))
    failed = sum(done.exception(30) is not None for done in many)
    assert failed == relay.store.statistics()["batches_gave_way"] > 0


def test_ingest_batch_of_many_containers_is_taken_in_parts(relay: RelayInProcess) -> None:
    """A node with such values must not lose records, nor keep a thread of the relay for a second."""
    values = [[] for _ in range(12_000)]
    records = tuple(Record(number, "r", Raw(encode_reading(reading(number, value=values)))) for number in range(1, 5))
    frame = Batch(MAJOR, MINOR, "v-1", 1, 5, records)
    assert relay.send(frame) == Acknowledgement((1, 2))
    rest = Batch(MAJOR, MINOR, "v-1", 1, 5, records[2:])
    assert relay.send(rest) == Acknowledgement((3, 4))


def test_ingest_record_of_too_many_elements_is_refused_before_it_is_decoded(relay: RelayInProcess) -> None:
    """The bound of a frame between nodes holds for a record too."""
    answer = relay.send(batch_of_maps(200 * 1024, 1))
    assert isinstance(answer, RelayRefusal)
    assert answer.code == "malformed"
    assert f"{MAX_ELEMENTS} elements" in answer.detail


# --- access ----------------------------------------------------------------------------------------------------------
RULES = (AccessRule(Role.VEHICLE, "publish", "veh/{id}/**"), AccessRule(Role.RSU, "publish", "rsu/{id}/**"))


@pytest.mark.parametrize(
    ("role", "origin", "key", "is_taken"),
    [
        (Role.VEHICLE, "v-1", "veh/v-1/speed", True),
        (Role.VEHICLE, "v-1", "veh/v-2/speed", False),
        (Role.VEHICLE, "v-1", "rsu/v-1/light", False),  # its role may not
        (Role.RSU, "v-1", "rsu/v-1/light", True),
        (Role.VEHICLE, "rsu-2", "rsu/rsu-2/hazard", True),  # it heard that from a neighbour
        (Role.VEHICLE, "rsu-2", "rsu/rsu-1/hazard", False),
        (Role.VEHICLE, "rsu-2", "admin/rsu-2", False),
        (Role.VEHICLE, "*", "veh/v-2/speed", False),  # no wildcard reaches a rule
        (Role.VEHICLE, "", "veh/v-2/speed", False),
    ],
)
def test_ingest_record_that_its_origin_may_not_publish_is_refused_alone(
    tmp_path: Path, role: Role, origin: str, key: str, is_taken: bool
) -> None:
    """The table of access held between nodes, and any of them could upload what it liked."""
    relay = RelayInProcess(tmp_path / "relay.sqlite", AccessTable(RULES))
    try:
        good = batch(1, 3, key="veh/v-1/speed" if role is Role.VEHICLE else "rsu/v-1/light").records
        tested = Record(2, "r", Raw(encode_reading(replace(reading(2, key), origin=origin or "?"))))
        answer = relay.send(Batch(MAJOR, MINOR, "v-1", 1, 4, (good[0], tested, good[1])), role=role)
        assert isinstance(answer, Acknowledgement)
        assert answer.stored == ((1, 2, 3) if is_taken else (1, 3))
        assert [refused.sequence for refused in answer.refused] == ([] if is_taken else [2])
        assert relay.account().adds_up
    finally:
        relay.store.close()


@pytest.mark.processes
def test_relay_process_holds_uploads_against_the_rules_of_its_configuration(tmp_path: Path) -> None:
    """A mesh with rules of its own writes them into the configuration of the relay too."""
    with RelayProcess(tmp_path) as relay, relay.requester() as node:
        answer = decode_untrusted_relay_frame(node.request(encode_frame(batch(1, key="fleet/v-1/speed")), 20))
        assert isinstance(answer, Acknowledgement)
        assert "fleet/v-1/speed" in answer.refused[0].reason
        with (tmp_path / "relay.toml").open("a") as config:
            config.write('[access]\nrules = [{ role = "vehicle", verb = "publish", keys = "fleet/{id}/**" }]\n')
    with relay, relay.requester() as node:
        answer = decode_untrusted_relay_frame(node.request(encode_frame(batch(2, key="fleet/v-1/speed")), 20))
        assert answer == Acknowledgement((2,))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"garbage", "badly compressed"),
        (zstandard.compress(bytes(64 * 1024 * 1024)), "would have 67108864 bytes"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1_000)), "at most"),
        (zstandard.compress(encode_frame(Acknowledgement((1,)))), "batches only"),
        (zstandard.compress(encode_frame(PackedBatch(zstandard.compress(b"again")))), "batches only"),
    ],
)
def test_packed_batch_that_is_none_is_refused_cheaply(relay: RelayInProcess, data: bytes, why: str) -> None:
    """64 MiB of zeros are two kilobytes when they are packed."""
    peer = PeerIdentity(MeshName("demo"), Role.VEHICLE, NodeId("v-1"))
    tracemalloc.start()
    answer = decode_untrusted_relay_frame(relay.ingest.answer(peer, encode_frame(PackedBatch(data))))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(answer, RelayRefusal)
    assert answer.code == "malformed"
    assert why in answer.detail
    assert most < 4 * 1024 * 1024
