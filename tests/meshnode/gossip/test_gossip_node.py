"""Gossip between real nodes, over mutual TLS: what they know of one another, from whom, and what they refuse."""

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from msgspec.structs import replace
from starlette.requests import Request

import meshnode.gossip.service
import meshnode.identity.renewal
import meshnode.links.mdns  # here: while it is loaded, its library starts a process, which these tests may not
from meshnode.gossip.notary import Notary
from meshnode.gossip.routes import entry_form, gossip_routes
from meshnode.gossip.running import RunningGossip
from meshnode.gossip.service import load, own_hosts
from meshnode.identity import create_mesh, issue
from meshnode.links.interfaces import HostAddress
from protocols.base import limits
from protocols.base.effects import Event
from protocols.base.ids import MeshName, NodeId
from protocols.gossip.entries import EntryView, Stored
from protocols.gossip.events import EntryRefused
from protocols.wire.entries import (
    decode_untrusted_address,
    decode_untrusted_entry,
    encode_address,
    encode_entry,
    entry_statement,
)
from protocols.wire.gossip import Carried, Entry, GossipEntries, InboxAddress
from sims.emulator.nodes import MESH as EMULATED_MESH
from sims.scenario.file import Spread
from tests.tools.eventually import eventually, until
from tests.tools.mesh_fixture import House, Open, given_house, given_opened
from tests.tools.node_fixture import RunningNode, prepare
from tests.tools.node_fixture import meshnode as command

__all__ = ["given_house", "given_opened"]
DAY_S = 86_400


def notary(folder: Path, node: str, mesh: str = "test", **options: Any) -> Notary:
    """With a fresh certificate of the authority in ``folder``."""
    if not (folder / "authority").exists():
        create_mesh(folder / "authority", mesh, now=datetime.now(UTC) - timedelta(days=10))
    return Notary(issue(folder / "authority", "vehicle", node, folder / node, **options).credentials, MeshName(mesh))


def signed(by: Notary, author: str, version: int = 1, body: bytes = b"x", kind: str = "address") -> Entry:
    """By whatever key ``by`` has."""
    draft = Entry(author, kind, version, DAY_S, body, b"", b"")
    credential, signature = by.sign(entry_statement(draft))
    return replace(draft, credential=credential, signature=signature)


# --- signatures ----------------------------------------------------------------------------------------------------
def test_entry_is_verified_by_the_certificate_it_carries(tmp_path: Path) -> None:
    """A node needs to know nothing of the author but the authority it shares with it."""
    entry = signed(notary(tmp_path, "veh-1"), "veh-1")
    assert notary(tmp_path, "veh-2").verify(entry)
    assert len(encode_entry(entry)) < limits.MAX_ENTRY_BYTES


@pytest.mark.parametrize("author", ["a-0", "n" * 54])
def test_entry_of_a_scenario_has_room_beside_the_certificate_of_the_emulator(tmp_path: Path, author: str) -> None:
    """What the simulator takes must not fail on real nodes, and what they could take should not be refused."""
    by, room_bytes = notary(tmp_path, author, mesh=EMULATED_MESH), Spread(1.0, author).room_bytes
    entries = [signed(by, author, 1_795_243_218 << 20, bytes(room_bytes), "spread") for _ in range(50)]
    sizes = [len(encode_entry(entry)) for entry in entries]
    assert limits.MAX_ENTRY_BYTES - 8 <= max(sizes) <= limits.MAX_ENTRY_BYTES


CHANGES: dict[str, Callable[[Entry], Entry]] = {
    "body": lambda entry: replace(entry, body=b"y"),
    "version": lambda entry: replace(entry, version=2),
    "author": lambda entry: replace(entry, author="veh-2"),
    "cut signature": lambda entry: replace(entry, signature=entry.signature[:-1]),
    "no signature": lambda entry: replace(entry, signature=b""),
    "no certificate": lambda entry: replace(entry, credential=b""),
    "cut certificate": lambda entry: replace(entry, credential=entry.credential[:-1]),
    "zeros for a certificate": lambda entry: replace(entry, credential=bytes(500)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_entry_with_a_changed_field_is_not_verified(tmp_path: Path, change: Callable[[Entry], Entry]) -> None:
    """Whatever a stranger sends, the answer is no and nothing is raised."""
    checker = notary(tmp_path, "veh-1")
    assert not checker.verify(change(signed(checker, "veh-1")))


def test_signature_has_one_form_and_its_twin_is_not_verified(tmp_path: Path) -> None:
    """Of each ECDSA signature anybody can compute a second one, which passed for another entry of the author."""
    by, order = notary(tmp_path, "veh-1"), 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    for version in range(1, 21):
        entry = signed(by, "veh-1", version)
        r, s = decode_dss_signature(entry.signature)
        assert s <= order // 2
        assert by.verify(entry)
        assert not by.verify(replace(entry, signature=encode_dss_signature(r, order - s)))
        assert not by.verify(replace(entry, signature=b"\x30\x81" + entry.signature[1:])), "a longer form of its length"


def test_entry_signed_in_another_name_or_mesh_is_not_verified_and_has_its_time(tmp_path: Path) -> None:
    """A valid certificate speaks for its owner, its mesh and its time only."""
    here = notary(tmp_path / "here", "veh-1")
    assert not here.verify(signed(here, "veh-2"))
    assert not here.verify(signed(notary(tmp_path / "there", "veh-1"), "veh-1"))
    for days in (-3, 3):
        then = datetime.now(UTC) + timedelta(days=days)
        late = signed(notary(tmp_path / "here", "veh-3", valid_days=1, now=then), "veh-3")
        assert here.verify(late), "it is genuine, so its carrier is not to blame"
        assert not here.is_current(late)
    assert here.is_current(signed(here, "veh-1"))


def test_remembered_authors_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forged certificates are free to make."""
    monkeypatch.setattr("meshnode.gossip.notary._MAX_AUTHORS", 5)
    checker = notary(tmp_path, "veh-1")
    good = signed(checker, "veh-1")
    for number in range(20):
        assert not checker.verify(replace(good, credential=b"%d" % number))
    assert checker.verify(good)
    assert len(checker._authors) <= 5


@pytest.mark.parametrize("name", ["v", "n" * 63])
def test_address_fits_an_entry_beside_the_largest_certificate(tmp_path: Path, name: str) -> None:
    """Names of 63 characters leave room for four IPv4 addresses at least."""
    by = notary(tmp_path, name, mesh="m" * len(name))
    hosts = tuple(f"192.168.100.{number}" for number in range(100, 104))
    entry = signed(by, name, 1_795_243_218 << 20, encode_address(InboxAddress("vehicle", 65_535, hosts)))
    assert len(encode_entry(entry)) <= limits.MAX_ENTRY_BYTES


def test_hosts_told_are_those_that_neighbours_can_dial() -> None:
    """An address that leads nowhere helps nobody."""
    here = HostAddress("lo", 1, "127.0.0.1"), HostAddress("eth0", 2, "192.0.2.9"), HostAddress("eth0", 2, "2001:db8::9")
    assert own_hosts("0.0.0.0", ("192.0.2.7",), (), here) == ["192.0.2.7"]
    assert own_hosts("192.0.2.8", (), (), here) == ["192.0.2.8"]
    assert own_hosts("rsu-1.example", (), (), here) == ["rsu-1.example"]
    assert own_hosts("::", (), ("192.0.2.9", "192.0.2.10"), here) == ["192.0.2.9"], "the other one is not there yet"
    assert own_hosts("0.0.0.0", (), (), here) == ["192.0.2.9"], "loopback leads to this host only"


# --- nodes in this process -----------------------------------------------------------------------------------------
def held(node: Any) -> dict[str, int]:
    """Version of the address of each author."""
    return {view.author: view.version for view in node.entries()}


async def test_forged_entry_of_a_neighbour_is_refused_and_told(opened: Open) -> None:
    """An insider with a valid certificate says where somebody else is."""
    victim = await opened("victim", role="rsu")
    insider = await opened("insider", victim.port)
    await until(lambda: len(held(victim)) == len(held(insider)) == 2, "both know both")
    told: list[Event] = []
    victim.on_event(told.append)
    genuine = held(victim)
    forged = signed(insider.part(RunningGossip)._notary, "victim", version=genuine["victim"] + 5)
    old = signed(insider.part(RunningGossip)._notary, "insider", version=1)
    frame = GossipEntries(tuple(Carried(0, encode_entry(entry)) for entry in (forged, old)))
    insider.driver.engine._put(NodeId("victim"), frame, time.monotonic_ns())
    insider.driver.settle()
    await until(lambda: victim.statistics()["gossip_entries_forged"] == 1, "the forgery was looked at")
    await until(lambda: any(isinstance(event, EntryRefused) for event in told), "it is told")
    await until(lambda: victim.statistics()["gossip_entries_stale"] == 1, "the old one was looked at")
    assert held(victim) == genuine
    (refused,) = [event for event in told if isinstance(event, EntryRefused)]
    assert (refused.source, refused.author, refused.because) == ("insider", "victim", "forged")
    assert [peer.state.value for peer in victim.peers()] == ["alive"]


async def test_restarted_node_knows_the_mesh_before_it_meets_anybody(opened: Open, house: House) -> None:
    """It was told once; and its own new address is above the old one everywhere."""
    here = await opened("stays-1")
    async with meshnode.open(house.config("restarts-1", here.port)) as before:
        await until(lambda: len(held(before)) == len(held(here)) == 2, "both know both")
        first = held(before)["restarts-1"]
    alone = await opened("restarts-1")
    assert held(alone)["restarts-1"] > first
    await until(lambda: "stays-1" in held(alone), "what was kept has been checked")
    (view,) = [view for view in alone.entries() if view.author == "stays-1"]
    assert (view.source, decode_untrusted_address(view.body).port) == ("stays-1", here.port)
    assert held(here)["restarts-1"] == first, "it met nobody yet"


async def test_renewed_certificate_signs_the_entry_again(
    opened: Open, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry whose certificate has ended is taken by nobody."""
    monkeypatch.setattr(meshnode.identity.renewal, "CHECK_S", 0.05)
    here = await opened("renews-1")
    there = await opened("renews-2", here.port)
    await until(lambda: len(held(here)) == 2, "they know one another")
    before = held(here)["renews-2"]
    issue(house.folder / "authority", "vehicle", "renews-2", house.home("renews-2"), valid_days=60)
    await until(lambda: held(here)["renews-2"] > before, "the new entry came")
    assert held(there) == held(here)


# --- the file ------------------------------------------------------------------------------------------------------
async def test_address_lives_as_long_as_it_should_once_a_clock_that_was_ahead_is_set_back(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be signed every 20 s for as long as the node runs, at the cost of the whole mesh."""
    monkeypatch.setattr(meshnode.gossip.service, "LOOK_S", 0.02)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 30 * DAY_S - 45)
    node = await opened("ahead-1")
    assert [view.lifetime_s for view in node.entries()] == [60]
    monkeypatch.setattr(time, "time", right)
    await until(lambda: [view.lifetime_s for view in node.entries()] == [DAY_S], "it is signed again")
    (view,) = node.entries()
    monkeypatch.setattr(time, "time", lambda: right() + 30 * DAY_S - 5_000)
    service = node.part(RunningGossip)._service
    assert service is not None
    service.say()
    assert node.entries()[0].version == view.version, "a shorter one waits for its turn"


@pytest.mark.parametrize("content", [b"", b"\x93\x01", b"\x93\x02\x00\x90", b"junk" * 1_000])
def test_file_that_can_not_be_read_is_left_alone_and_said(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A power cut must not keep a node from starting."""
    file = tmp_path / "gossip.msgpack"
    file.write_bytes(content)
    assert load(file) == []
    assert "this node gets the entries again from neighbours" in caplog.text


def test_file_that_does_not_exist_is_an_empty_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first start is nothing to warn of."""
    assert load(tmp_path / "gossip.msgpack") == []
    assert not caplog.text


async def test_full_disk_keeps_no_entries_and_costs_nothing_else(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is known can be told again."""
    node = await opened("full-disk")
    service = node.part(RunningGossip)._service
    assert service is not None
    service._file = tmp_path / "missing" / "gossip.msgpack"
    service.save()
    assert "can't be kept" in caplog.text
    service._file = tmp_path / "gossip.msgpack"
    service.save()
    (stored,) = load(tmp_path / "gossip.msgpack")
    assert isinstance(stored, Stored)
    assert stored.source == "full-disk"


# --- the list ------------------------------------------------------------------------------------------------------
async def test_list_of_entries_is_put_together_beside_the_engine_and_the_loop(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of them take tens of milliseconds, in which readings and requests would wait."""
    node = await opened("lists-1")
    lock, threads = node.driver._lock, []

    def decode(data: bytes) -> Entry:
        assert lock.acquire(timeout=30), "whoever asks for the list holds the engine's lock"
        lock.release()
        threads.append(threading.current_thread())
        return decode_untrusted_entry(data)

    def form(view: EntryView) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return entry_form(view)

    monkeypatch.setattr("protocols.gossip.entries.decode_untrusted_entry", decode)
    monkeypatch.setattr("meshnode.gossip.routes.entry_form", form)
    (route,) = gossip_routes(node.entries)
    response = await route.endpoint(Request({"type": "http"}))
    assert [entry["author"] for entry in json.loads(response.body)] == ["lists-1"]
    assert len(threads) == 2
    assert threading.current_thread() not in threads


# --- the command ---------------------------------------------------------------------------------------------------
@pytest.mark.processes
def test_gossip_command_shows_three_nodes_in_a_line_and_from_whom(tmp_path: Path) -> None:
    """The two ends know one another's address by the one between, though no link is between them."""
    with (
        RunningNode(prepare(tmp_path, "rsu-1", "rsu")) as left,
        RunningNode(prepare(tmp_path, "veh-1", "vehicle", seeds=(left.port,))) as middle,
        RunningNode(prepare(tmp_path, "veh-2", "vehicle", seeds=(middle.port,))) as right,
    ):
        eventually(lambda: all(len(n.get("/v1/gossip")) == 3 for n in (left, middle, right)), "all know all")
        assert [peer["node"] for peer in right.get("/v1/peers")] == ["veh-1"]
        done = command("gossip", "--json", "--http", f"127.0.0.1:{right.http_port}")
        entries = {entry["author"]: entry for entry in json.loads(done.stdout)}
        assert {author: entry["from"] for author, entry in entries.items()} == {
            "rsu-1": "veh-1", "veh-1": "veh-1", "veh-2": "veh-2"
        }  # fmt: skip
        assert entries["rsu-1"]["address"] == {
            "role": "rsu", "port": left.port, "hosts": ["127.0.0.1"], "capabilities": []
        }  # fmt: skip
        assert 0 < entries["rsu-1"]["age_s"] < 60
        assert entries["rsu-1"]["size_bytes"] <= limits.MAX_ENTRY_BYTES
        table = command("gossip", "--http", f"127.0.0.1:{right.http_port}")
        assert table.returncode == 0
        assert f"rsu at 127.0.0.1:{left.port}" in " ".join(table.stdout.split())
        metrics = right.ask("GET", "/metrics")[2].decode()
        assert "meshnode_gossip_entries_held 3.0" in metrics
        assert "meshnode_gossip_entries_accepted_total 3.0" in metrics
