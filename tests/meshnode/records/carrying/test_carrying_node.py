"""Nodes that hand over and carry, in this process, with a real relay: what goes wrong on the way."""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

import meshnode
from cloud_relay.query.audit import OriginAccount, audit
from cloud_relay.store.schema import open_for_reading
from meshnode.cli import checks
from meshnode.links.transport import Address
from meshnode.records.carrying.performing import CarryingPerformer
from meshnode.records.running import RunningRecords
from meshnode.records.section import CarryingSection, RelaySection
from protocols.records.carrying.sealed import encode_reply
from protocols.wire.carrying.contents import SignedReply
from protocols.wire.carrying.frames import RelayReply
from protocols.wire.codec import encode_frame
from protocols.wire.records import Acknowledgement
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House
from tests.tools.relay_fixture import RelayProcess

pytestmark = pytest.mark.processes
CURATION = '[[curation]]\nname = "all"\nkeys = "veh/**"\n'
DEAD = '[relay]\naddress = "127.0.0.1:1"\n'
"""A relay that does not answer."""


class Valley:
    """A relay, and nodes with and without a way to it."""

    def __init__(self, folder: Path) -> None:
        self.house = House(folder)
        self.relay = RelayProcess(folder)

    @asynccontextmanager
    async def carrier(self, name: str, tables: str = "[carrying]\n") -> AsyncIterator[meshnode.Node]:
        relay = f'[relay]\naddress = "127.0.0.1:{self.relay.address.port}"\n'
        async with meshnode.open(self.house.file(name, relay + tables, mdns=False)) as node:
            performer = performer_of(node)
            await until(lambda: bool(performer.machine.greetings()), "the relay has told its key")
            yield node

    @asynccontextmanager
    async def origin(
        self, name: str, *carriers: meshnode.Node, relay: str = DEAD, carrying: str = "after_s = 0\n"
    ) -> AsyncIterator[meshnode.Node]:
        seeds = ", ".join(f'"127.0.0.1:{carrier.port}"' for carrier in carriers)
        tables = f"[discovery]\nmdns = false\nseeds = [{seeds}]\n{relay}[carrying]\n{carrying}{CURATION}"
        async with meshnode.open(self.house.file(name, tables)) as node:
            yield node

    def account(self, node: str) -> OriginAccount | None:
        with closing(open_for_reading(self.house.folder / "state" / "relay.sqlite")) as db:
            return next((account for account in audit(db) if account.origin == node), None)


def performer_of(node: meshnode.Node) -> CarryingPerformer:
    performer = node.part(RunningRecords).performer
    assert performer is not None
    return performer


@pytest.fixture(scope="module", name="valley")
def given_valley(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valley]:
    valley = Valley(tmp_path_factory.mktemp("valley"))
    with valley.relay:
        yield valley


def publish(node: meshnode.Node, count: int) -> None:
    for number in range(count):
        node.publish(f"veh/{node.id}/speed", number)


async def delivered(node: meshnode.Node, count: int) -> None:
    def are_all() -> bool:
        now = node.statistics()
        return now["outbox_delivered"] == count and now["outbox_pending"] == 0

    await until(are_all, lambda: str({n: c for n, c in node.statistics().items() if "outbox" in n or "carry" in n}))


async def test_node_without_a_relay_in_its_configuration_has_its_records_carried(valley: Valley) -> None:
    """A vehicle without any uplink: what it needs to know comes by gossip, from the carrier."""
    async with valley.carrier("bus-1") as carrier, valley.origin("veh-1", carrier, relay="", carrying="") as node:
        publish(node, 5)
        await delivered(node, 5)
        view = node.part(RunningRecords).node_view()["carrying"]
        assert view["carriers"] == ["bus-1"]
    account = valley.account("veh-1")
    assert account is not None
    assert (account.stored, account.with_receipt, account.adds_up) == (5, 5, True)


async def test_vehicle_that_lost_its_disk_learns_by_way_of_a_carrier_where_to_go_on(valley: Valley) -> None:
    """Otherwise its new records would come under the sequences of the old ones, and count as conflicts."""
    async with valley.carrier("bus-2") as carrier:
        async with valley.origin("veh-2", carrier) as node:
            publish(node, 3)
            await delivered(node, 3)
        shutil.rmtree(valley.house.home("veh-2") / "state")
        async with valley.origin("veh-2", carrier) as node:
            publish(node, 2)
            await delivered(node, 2)
    account = valley.account("veh-2")
    assert account is not None
    assert (account.stored, account.conflicts, account.missing, account.adds_up) == (5, 0, 0, True)


async def test_reply_to_a_former_life_still_counts(valley: Valley) -> None:
    """A vehicle is parked while the bus brings its records to the relay and comes back."""
    async with AsyncExitStack() as stack:
        carrier = await stack.enter_async_context(valley.carrier("bus-3"))
        async with valley.origin("veh-3", carrier) as node:
            publish(node, 1)
            await delivered(node, 1)
            publish(node, 4)
            await until(lambda: node.statistics()["carrying_handed_over_records"] >= 5)
        await until(lambda: valley.account("veh-3").stored == 5)  # type: ignore[union-attr]
        async with valley.origin("veh-3", carrier, carrying="after_s = 3600\n") as node:
            await delivered(node, node.statistics()["outbox_delivered"] + node.statistics()["outbox_pending"])
            assert node.statistics()["carrying_sealed"] == 0, "nothing was sealed anew"
            await until(lambda: carrier.statistics()["carrying_held"] == 0)


async def test_reply_to_a_batch_of_another_outbox_ends_nothing(valley: Valley) -> None:
    """The outbox was lost while a batch of it was on its way, and its sequences are used again: the records of now were
    counted as delivered, although the relay had others."""
    async with valley.carrier("bus-19") as carrier:
        async with valley.origin("veh-19", carrier) as node:
            publish(node, 1)
            await delivered(node, 1)
            performer_of(carrier)._client.upload = lambda order, data: None  # type: ignore[union-attr,method-assign]
            publish(node, 2)
            await until(lambda: node.statistics()["carrying_handed_over_records"] == 3)
        async with valley.origin("veh-19", carrier, carrying="after_s = 3600\n") as node:
            performer, told = performer_of(node), Acknowledgement((2, 3))
            await performer._apply(told, None, bytes(16))
            assert node.statistics()["outbox_pending"] == 2
            for sealed in list(performer_of(carrier).machine._holding._items):
                await performer._apply(told, None, sealed)
            assert node.statistics()["outbox_pending"] == 0


async def test_records_that_go_both_ways_are_stored_and_counted_once(valley: Valley) -> None:
    """The vehicle comes into coverage while the carrier is on its way."""
    relay = f'[relay]\naddress = "127.0.0.1:{valley.relay.address.port}"\n'
    async with valley.carrier("bus-4") as carrier:
        async with valley.origin("veh-4", carrier) as node:
            publish(node, 1)
            await delivered(node, 1)
            publish(node, 20)
            await until(lambda: node.statistics()["carrying_handed_over"] >= 2)
        async with valley.origin("veh-4", carrier, relay=relay) as node:
            publish(node, 20)
            await delivered(node, 41)
            await until(lambda: carrier.statistics()["carrying_held"] == 0)
    account = valley.account("veh-4")
    assert account is not None
    assert (account.stored, account.conflicts, account.adds_up) == (41, 0, True)


async def test_carrier_that_is_started_again_goes_on_with_what_it_has(valley: Valley) -> None:
    """The bus is switched off before it comes to coverage."""
    async with valley.carrier("bus-5") as carrier, valley.origin("veh-5", carrier) as node:
        publish(node, 1)
        await delivered(node, 1)
    shelf = valley.house.home("bus-5") / "state" / "carried"
    async with valley.carrier("bus-5") as carrier, valley.origin("veh-5", carrier) as node:
        # Its uploads wait from here on: no batch reaches the relay in this life.
        performer_of(carrier)._client.close()  # type: ignore[union-attr]
        publish(node, 3)
        await until(lambda: node.statistics()["carrying_handed_over_records"] == 3)
    assert {file.stat().st_mode & 0o777 for file in shelf.iterdir()} == {0o600}
    async with valley.carrier("bus-5") as carrier, valley.origin("veh-5", carrier, carrying="after_s = 3600\n") as node:
        await delivered(node, 4)
        await until(lambda: not list(shelf.iterdir()), "the carrier hears that the reply has come")


async def test_role_that_no_rule_lets_carry_is_refused_and_keeps_its_records(valley: Valley) -> None:
    """The carrier's operator says for whom."""
    rules = (
        '[access]\nrules = [{ role = "vehicle", verb = "publish", keys = "**" },'
        ' { role = "rsu", verb = "carry", keys = "**" }]\n'
    )
    async with valley.carrier("bus-6", "[carrying]\n" + rules) as carrier, valley.origin("veh-6", carrier) as node:
        publish(node, 1)
        await until(lambda: node.statistics()["outbox_pending"] == 1, "it is stored")
        await until(lambda: carrier.statistics()["carrying_forbidden"] >= 1, "it was refused")
        assert node.statistics()["outbox_pending"] == 1
        assert valley.account("veh-6") is None


async def test_carrier_that_throws_batches_away_and_forges_replies_costs_no_record(
    valley: Valley,
) -> None:
    """Only the relay's signature ends a record; another carrier gets the batch when the first took too long."""
    async with valley.carrier("bus-7") as liar, valley.carrier("bus-8") as honest:
        performer_of(liar)._client.upload = lambda order, data: None  # type: ignore[union-attr,method-assign]
        async with valley.origin("veh-7", liar, carrying="after_s = 0\npatience_s = 1\n") as node:
            publish(node, 2)
            await until(lambda: node.statistics()["outbox_pending"] == 2, "both are stored")
            await until(lambda: node.statistics()["carrying_handed_over"] >= 1)
            (given, *_) = performer_of(liar).machine._holding._items
            answer = encode_frame(Acknowledgement((1, 2)))
            made_up = SignedReply(valley.house.mesh, "relay-1", "veh-7", given, answer, b"(none)", b"(none)")
            forged = RelayReply(given, encode_reply(made_up))
            liar.driver.act(lambda engine, now: performer_of(liar).machine._decided.messages.append((node.id, forged)))
            await until(lambda: node.statistics()["carrying_replies_refused"] == 1)
            assert node.statistics()["outbox_pending"] == 2
        async with valley.origin("veh-7", honest, liar, carrying="after_s = 0\npatience_s = 1\n") as node:
            await delivered(node, 2)


async def test_batch_that_would_be_too_large_when_sealed_is_made_smaller(
    valley: Valley, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour closes the link on which a frame above the bound comes."""
    monkeypatch.setattr("meshnode.records.carrying.performing.MAX_SEALED_BYTES", 3_000)
    monkeypatch.setattr("meshnode.records.carrying.performing.MAX_CARRIED_BATCH_BYTES", 32_000)
    async with valley.carrier("bus-9") as carrier:
        async with valley.origin("veh-9", relay="", carrying="") as node:
            for number in range(40):
                node.publish("veh/veh-9/noise", Random(number).randbytes(300).hex())
            await until(lambda: node.statistics()["outbox_pending"] == 40)
        async with valley.origin("veh-9", carrier, relay="", carrying="") as node:
            await delivered(node, 40)
            assert node.statistics()["carrying_handed_over"] >= 5


def test_doctor_warns_when_the_disk_has_no_room_for_what_is_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the first flood of batches takes the place that own records need."""
    config = (
        House(tmp_path)
        .config("veh-1")
        .with_sections(CarryingSection(max_mib=1_000), RelaySection(address=Address("127.0.0.1", 1)))
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_200 * 2**20))
    (warned,) = [finding for finding in checks._state(config, None) if finding.status == "warn"]
    assert "what is carried may take 1256: free some disk, or lower [carrying] max_mib" in warned.message


async def test_bad_settings_say_the_way_out(tmp_path: Path) -> None:
    """Before the node starts."""
    house = House(tmp_path)
    for tables, why in (
        ("hand_over = false\ncarry = false\n", "remove the table"), ("max_mib = 1\n", "max_mib"),
    ):  # fmt: skip
        with pytest.raises(meshnode.MeshError, match=why):
            async with meshnode.open(house.file("veh-1", f"[carrying]\n{tables}")):
                pass
