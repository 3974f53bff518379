"""A node's uplink against everything a relay may answer."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from meshnode.identity.packing import unpacked_untrusted
from meshnode.links.transport import Address
from meshnode.records import way as ways
from meshnode.records.outbox import Outbox
from meshnode.records.uplink import UplinkDriver
from meshnode.records.way import Way, interface_towards, resolved
from protocols.base.errors import TransportError
from protocols.base.ids import Incarnation, MeshName, NodeId, PeerIdentity, Role, node_id
from protocols.base.limits import SECOND
from protocols.records.curated import Curated
from protocols.records.events import UplinkState
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.parcels import encode_reading
from protocols.wire.records import Acknowledgement, Batch, PackedBatch, RelayRefusal
from tests.tools.eventually import until
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, batch, given_relay, reading  # noqa: F401 -- a fixture


class DirectRequester:
    """A requester whose relay is a function."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def request(self, frame: bytes, timeout_s: float) -> bytes:
        return self._answer(frame)

    def close(self) -> None:
        pass


@asynccontextmanager
async def uplinked(path: Path, answer: Callable[[bytes], bytes]) -> AsyncIterator[tuple[Outbox, UplinkDriver]]:
    async with Outbox.open(path, 1000, 2**24) as outbox:
        uplink = UplinkDriver(outbox, lambda: DirectRequester(answer), node_id("v-1"), Incarnation(1), Random(1))
        task = asyncio.create_task(uplink.run())
        yield outbox, uplink
        await uplink.stop(5)
        await asyncio.wait_for(task, 30)


def direct(relay: RelayInProcess) -> Callable[[bytes], bytes]:
    peer = PeerIdentity(MeshName("demo"), Role.VEHICLE, NodeId("v-1"))
    return lambda frame: relay.ingest.answer(peer, frame)


def curated(number: int, **of: Any) -> Curated:
    return Curated("r", encode_reading(reading(number, **of)))


async def test_uplink_lost_answers_are_repaired_by_sending_again(relay: RelayInProcess, tmp_path: Path) -> None:
    """On a road every exchange may break at any point; neither loss nor doubles may come of it."""
    random = Random(5)
    answer = direct(relay)

    def unreliable(frame: bytes) -> bytes:
        if random.random() < 0.3:
            raise TransportError("lost before it arrived")
        response = answer(frame)
        if random.random() < 0.3:
            raise TransportError("the answer was lost")
        return response

    async with uplinked(tmp_path / "o.sqlite", unreliable) as (outbox, _):
        for number in range(1, 41):
            await outbox.put(curated(number))
        await until(lambda: outbox.pending == 0)
        assert outbox.statistics()["delivered"] == 40
    assert relay.account().stored == 40
    assert relay.account().adds_up


async def test_uplink_unreadable_record_is_found_and_refused_alone(relay: RelayInProcess, tmp_path: Path) -> None:
    """One record that the relay can't parse must neither block the others nor be sent for ever."""
    async with uplinked(tmp_path / "o.sqlite", direct(relay)) as (outbox, uplink):
        poison = Curated("r", b"\x91\xc0")
        await outbox.put(*(curated(n) for n in range(1, 20)), poison, *(curated(n) for n in range(21, 40)))
        await until(lambda: outbox.pending == 0)
        assert outbox.statistics()["refused"] == 1
        assert uplink.state is UplinkState.CONNECTED
    account = relay.account()
    assert (account.stored, account.refused, account.adds_up) == (38, 1, True)


async def test_uplink_relay_that_refuses_everything_costs_no_record(tmp_path: Path) -> None:
    """A broken relay must not talk a node into throwing its records away."""
    asked = 0

    def confused(frame: bytes) -> bytes:
        nonlocal asked
        asked += 1
        batch = decode_untrusted_relay_frame(frame)
        if asked == 1:
            return encode_frame(Acknowledgement(()))  # takes the introduction
        assert isinstance(batch, Batch | PackedBatch)
        return encode_frame(RelayRefusal("malformed", "everything"))

    async with uplinked(tmp_path / "o.sqlite", confused) as (outbox, uplink):
        await outbox.put(*(curated(n) for n in range(1, 9)))
        await until(lambda: uplink.state is UplinkState.REFUSED)
        assert outbox.pending == 8
        assert asked <= 14, "and it is not asked in a loop"


@pytest.mark.parametrize("code", ["version", "identity", "a newer word"])
async def test_uplink_refused_node_keeps_its_records_and_asks_rarely(tmp_path: Path, code: str) -> None:
    """Only a person can lift such a refusal: until then the records wait and the relay has its peace."""
    asked = 0

    def refuse(frame: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return encode_frame(RelayRefusal(code, "because"))

    async with uplinked(tmp_path / "o.sqlite", refuse) as (outbox, uplink):
        await outbox.put(curated(1))
        await until(lambda: uplink.state is UplinkState.REFUSED)
        await outbox.put(curated(2))
        assert code in uplink.detail
        assert "because" in uplink.detail
        assert (outbox.pending, asked) == (2, 1)


@pytest.mark.parametrize("response", [b"", b"\xff\xff", encode_frame(batch(1)), encode_frame(Acknowledgement((7,)))])
async def test_uplink_senseless_answer_changes_nothing(tmp_path: Path, response: bytes) -> None:
    """Whatever comes back, a record ends only when the relay named it."""
    introduced = False

    def answer(frame: bytes) -> bytes:
        nonlocal introduced
        if not introduced:
            introduced = True
            return encode_frame(Acknowledgement(()))
        return response

    async with uplinked(tmp_path / "o.sqlite", answer) as (outbox, uplink):
        await outbox.put(curated(1))
        await until(lambda: uplink.statistics()["batches_failed"] > 0)
        assert outbox.pending == 1


async def test_uplink_packs_batches_for_a_relay_that_takes_them(relay: RelayInProcess, tmp_path: Path) -> None:
    """Records of one kind are much alike, and the way to the relay may be paid for by the byte."""
    answer, sent = direct(relay), [0, 0]

    def seen(frame: bytes) -> bytes:
        batch = decode_untrusted_relay_frame(frame)
        if isinstance(batch, PackedBatch):
            sent[0] += len(frame)
            sent[1] += len(unpacked_untrusted(batch.data))
        return answer(frame)

    async with uplinked(tmp_path / "o.sqlite", seen) as (outbox, _):
        await outbox.put(*(curated(number) for number in range(1, 200)))
        await until(lambda: outbox.pending == 0)
    assert relay.store.statistics()["stored"] == 199
    assert 0 < 3 * sent[0] < sent[1]


async def test_uplink_sends_batches_as_they_are_to_a_relay_that_takes_none_packed(
    relay: RelayInProcess, tmp_path: Path
) -> None:
    """An older one calls the frame malformed. That must not look like a record that nobody can read."""
    answer, packed = direct(relay), []

    def older(frame: bytes) -> bytes:
        if isinstance(decode_untrusted_relay_frame(frame), PackedBatch):
            packed.append(frame)
            return encode_frame(RelayRefusal("malformed", "frame 75 is not known"))
        return answer(frame)

    async with uplinked(tmp_path / "o.sqlite", older) as (outbox, uplink):
        for number in range(1, 50, 7):
            await outbox.put(*(curated(each) for each in range(number, number + 7)))
            await until(lambda: outbox.pending == 0)
        assert uplink.state is UplinkState.CONNECTED
    assert relay.store.statistics()["stored"] == 49
    assert len(packed) == 1


async def test_uplink_storage_refusal_is_tried_again(relay: RelayInProcess, tmp_path: Path) -> None:
    """When the relay's operator has made room, everything must flow again by itself."""
    answer = direct(relay)
    full = True

    def sometimes_full(frame: bytes) -> bytes:
        return encode_frame(RelayRefusal("storage", "full")) if full else answer(frame)

    async with uplinked(tmp_path / "o.sqlite", sometimes_full) as (outbox, uplink):
        await outbox.put(curated(1))
        await until(lambda: uplink.state is UplinkState.STORAGE)
        full = False
        await until(lambda: outbox.pending == 0)


async def test_uplink_holds_records_back_until_the_way_leads_over_a_free_interface(
    relay: RelayInProcess, tmp_path: Path
) -> None:
    """The urgent one goes over the cellular network; the others go once there is Wi-Fi, over another connection."""
    leads_over, opened = ["wwan0"], []
    asked = direct(relay)

    def connect() -> DirectRequester:
        opened.append(leads_over[0])
        return DirectRequester(asked)

    way = Way(Address("relay.example", 7_500), ("wlan*", "eth0"), 6, lambda _: leads_over[0])
    async with Outbox.open(tmp_path / "outbox.sqlite", 1000, 2**24) as outbox:
        uplink = UplinkDriver(outbox, connect, node_id("v-1"), Incarnation(1), Random(1), way=way)
        task = asyncio.create_task(uplink.run())
        await outbox.put(curated(1))
        await outbox.put(replace(curated(2), priority=6))
        await until(lambda: outbox.ledger.statistics()["delivered"] == 1, "the urgent one is there")
        await until(lambda: uplink.state is UplinkState.HELD, "the other one is held back")
        assert uplink.detail == "the way leads over wwan0, and records wait for wlan*, eth0"
        assert outbox.ledger.pending == 1
        leads_over[0] = "wlan1"
        await outbox.put(curated(3))
        await until(lambda: outbox.ledger.pending == 0, "all are there")
        assert uplink.state is UplinkState.CONNECTED
        assert opened == ["wwan0", "wlan1"]
        await uplink.stop(5)
        await asyncio.wait_for(task, 30)


def test_kernel_says_by_which_interface_packets_would_leave() -> None:
    assert interface_towards(resolved(Address("127.0.0.1", 7_500))) == "lo"
    assert interface_towards(resolved(Address("nobody.invalid", 7_500))) is None


def test_name_of_the_relay_is_looked_up_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was with each look, once a second while records went out: over the very way that they were held back from."""
    asked: list[Address] = []

    def looked_up(address: Address) -> list[Any]:
        asked.append(address)
        return [(socket.AF_INET, ("127.0.0.1", 7_500))]

    monkeypatch.setattr(ways, "resolved", looked_up)
    monkeypatch.setattr(ways, "LOOK_S", 0.0)
    way = Way(Address("relay.example", 7_500), ("lo",), None)
    for _ in range(20):
        assert way.look().interface == "lo"
    assert len(asked) == 1


async def test_uplink_node_that_lost_its_outbox_goes_on_without_conflicts(
    relay: RelayInProcess, tmp_path: Path
) -> None:
    """After a damaged file was moved away, no new record may be refused for a sequence used before."""
    async with uplinked(tmp_path / "old.sqlite", direct(relay)) as (outbox, _):
        await outbox.put(*(curated(n) for n in range(1, 6)))
        await until(lambda: outbox.pending == 0)
    async with uplinked(tmp_path / "new.sqlite", direct(relay)) as (outbox, _):
        await outbox.put(*(curated(n) for n in range(6, 16)))
        await until(lambda: outbox.pending == 0)
        assert outbox.statistics()["refused"] == 0
    assert relay.account().stored == 15
    assert relay.account().adds_up


async def test_uplink_introduction_that_the_disk_did_not_take_is_asked_for_again(
    relay: RelayInProcess, tmp_path: Path
) -> None:
    """Records sent before it is written down would be sent under other sequences after a crash."""
    async with Outbox.open(tmp_path / "o.sqlite", 1000, 2**24) as outbox:
        await outbox.put(curated(1))
        await outbox._file._db.execute("PRAGMA query_only = ON")
        uplink = UplinkDriver(
            outbox, lambda: DirectRequester(direct(relay)), node_id("v-1"), Incarnation(1), Random(1)
        )  # fmt: skip
        task = asyncio.create_task(uplink.run())
        await until(lambda: uplink.state is UplinkState.STORAGE)
        assert "could not note" in uplink.detail
        assert (outbox.ledger.introduced, relay.records()) == (False, [])
        await outbox._file._db.execute("PRAGMA query_only = OFF")
        await until(lambda: outbox.pending == 0)
        await uplink.stop(5)
        await asyncio.wait_for(task, 30)
        assert uplink.state is UplinkState.STOPPED


async def test_uplink_delivers_what_was_put_before_the_clock_was_set(relay: RelayInProcess, tmp_path: Path) -> None:
    """A board without a battery records for a minute, gets the time from a satellite, and then meets the relay."""
    utc_ns, away = 1_000 * SECOND, True
    answer = direct(relay)

    def relayed(frame: bytes) -> bytes:
        if away:
            raise TransportError("nobody is in reach")
        return answer(frame)

    async with Outbox.open(
        tmp_path / "o.sqlite", 1000, 2**24, clock=lambda: utc_ns, steady=lambda: 7 * SECOND
    ) as outbox:
        uplink = UplinkDriver(outbox, lambda: DirectRequester(relayed), node_id("v-1"), Incarnation(1), Random(1))
        task = asyncio.create_task(uplink.run())
        await outbox.put(Curated("r", encode_reading(reading(1)), lifespan_ms=60_000))
        await until(lambda: uplink.state is UplinkState.UNREACHABLE)
        utc_ns = BASE_NS
        failed = uplink.statistics()["batches_failed"]
        await until(lambda: uplink.statistics()["batches_failed"] > failed + 1, "it looked after that")
        assert (outbox.pending, outbox.statistics()["expired"]) == (1, 0)
        away = False
        await until(lambda: outbox.pending == 0)
        await uplink.stop(5)
        await asyncio.wait_for(task, 30)
    assert [record["sequence"] for record in relay.records()] == [1]


async def test_uplink_cancelled_leaves_its_batch_for_the_next(relay: RelayInProcess, tmp_path: Path) -> None:
    """A batch that nobody settles would be under way for ever, and nothing could be sent again."""
    held = threading.Event()

    class Mute(DirectRequester):
        def request(self, frame: bytes, timeout_s: float) -> bytes:
            batch = decode_untrusted_relay_frame(frame)
            if isinstance(batch, Batch) and batch.records:
                held.set()
                closed.wait(60)
                raise TransportError("closed here")
            return super().request(frame, timeout_s)

        def close(self) -> None:
            closed.set()

    closed = threading.Event()
    async with Outbox.open(tmp_path / "o.sqlite", 1000, 2**24) as outbox:
        await outbox.put(curated(1))
        first = UplinkDriver(outbox, lambda: Mute(direct(relay)), node_id("v-1"), Incarnation(1), Random(1))
        task = asyncio.create_task(first.run())
        await until(held.is_set)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        second = UplinkDriver(
            outbox, lambda: DirectRequester(direct(relay)), node_id("v-1"), Incarnation(1), Random(1)
        )  # fmt: skip
        task = asyncio.create_task(second.run())
        await until(lambda: outbox.pending == 0)
        await second.stop(5)
        await task


async def test_uplink_stop_during_a_request_without_answer_ends_in_time(tmp_path: Path) -> None:
    """SIGTERM must end a node even when the relay holds its request for ever."""

    class Mute:
        def __init__(self) -> None:
            self.asked, self.closed = threading.Event(), threading.Event()

        def request(self, frame: bytes, timeout_s: float) -> bytes:
            self.asked.set()
            assert self.closed.wait(60)
            raise TransportError("closed here")

        def close(self) -> None:
            self.closed.set()

    mute = Mute()
    async with Outbox.open(tmp_path / "o.sqlite", 10, 2**20) as outbox:
        uplink = UplinkDriver(outbox, lambda: mute, node_id("v-1"), Incarnation(1), Random(1))
        task = asyncio.create_task(uplink.run())
        await outbox.put(curated(1))
        await until(mute.asked.is_set)
        await uplink.stop(0.05)
        await asyncio.wait_for(task, 30)
        assert outbox.pending == 1
