"""The history of real nodes: from Python, for local applications, over HTTP and by command."""

import asyncio
import json
import math
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

import meshnode
from meshnode.cli import checks
from meshnode.history.commands import history
from meshnode.history.query import HistoryPage
from meshnode.history.running import MAX_ASKED, RunningHistory
from meshnode.history.section import HistorySection
from meshnode.local.section import socket_of
from protocols.access import DEFAULT_RULES, AccessRule
from protocols.base.errors import BoundExceeded, ConfigError, InvalidKey, LocalProtocolError
from protocols.base.ids import Role
from protocols.wire.readings import Position
from protocols.wire.tensors import Tensor
from tests.tools.eventually import eventually, until
from tests.tools.mesh_fixture import House, given_house, wanted
from tests.tools.node_fixture import RunningNode, prepare
from tests.tools.node_fixture import meshnode as command

__all__ = ["given_house"]
ALL = HistorySection(keys=("**",))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings are written soon after they came."""
    monkeypatch.setattr("meshnode.history.keeping.GATHER_S", 0.02)


def stored(node: meshnode.Node) -> int:
    return node.statistics()["history_stored"]


async def test_node_keeps_its_own_readings_and_those_of_neighbours_and_answers_after_a_restart(house: House) -> None:
    """What a crash investigator asks: what did this vehicle know, and when."""
    config = house.config("rsu-1", role="rsu").with_sections(HistorySection(keys=("veh/**", "*/*/speed")))
    async with meshnode.open(config) as rsu, meshnode.open(house.config("veh-1", rsu.port)) as vehicle:
        await rsu.wait_for_peers(1)
        await vehicle.wait_for_peers(1)
        await wanted(vehicle, "veh/veh-1/speed")
        vehicle.publish("veh/veh-1/speed", 13.0, unit="m/s", where=Position(48.0, 11.0, 1.0))
        vehicle.publish("veh/veh-1/hazard", "ice", where=Position(49.0, 11.5, 1.0))
        rsu.publish("rsu/rsu-1/speed", 0.0, unit="m/s", time_ns=1_600_000_000_000_000_000)
        rsu.publish("rsu/rsu-1/secret", "not kept")
        rsu.publisher("rsu/rsu-1/speed").put_many([1.0, 2.0])
        await until(lambda: stored(rsu) == 5, lambda: f"all five: {rsu.statistics()}")
        page = await rsu.history()
        assert isinstance(page, HistoryPage)
        assert page.cursor is None
        assert [one.value for one in page.readings][-1] == 0.0, "the oldest by the time of sensing comes last"
        assert sorted(one.key for one in page.readings) == ["rsu/rsu-1/speed"] * 3 + [
            "veh/veh-1/hazard", "veh/veh-1/speed",
        ]  # fmt: skip
        (speed,) = (await rsu.history("veh/*/speed", since=timedelta(minutes=10), origin="veh-1")).readings
        assert (speed.value, speed.how.unit, speed.origin) == (13.0, "m/s", "veh-1")
        (ice,) = (await rsu.history(box=(48.9, 11.2, 50.0, 12.0))).readings
        assert ice.value == "ice"
        (first,) = (await rsu.history(until=datetime(2021, 1, 1, tzinfo=UTC), newest_first=False)).readings
        assert first.value == 0.0
        one = await rsu.history("rsu/**", limit=1, newest_first=False)
        rest = await rsu.history("rsu/**", newest_first=False, cursor=one.cursor)
        assert [reading.value for reading in (*one.readings, *rest.readings)] == [0.0, 1.0, 2.0]
        with pytest.raises(InvalidKey):
            await rsu.history("a//b")
        with pytest.raises(LocalProtocolError, match="the node veh-1 keeps no history"):
            await vehicle.history()
    with pytest.raises(LocalProtocolError, match="rsu-1"):
        await rsu.history()
    async with meshnode.open(config) as rsu:
        assert len((await rsu.history()).readings) == 5


async def test_local_application_gets_only_what_the_table_of_access_lets_it_subscribe_to(house: House) -> None:
    """Otherwise the disk would be a way around the table."""
    rules = (
        *(rule for rule in DEFAULT_RULES if (rule.role, rule.verb) != (Role.VEHICLE, "subscribe")),
        AccessRule(Role.VEHICLE, "subscribe", "veh/*/speed"),
    )  # fmt: skip
    config = house.config("veh-2", rules=rules).with_sections(ALL)
    async with meshnode.open(config) as node:
        for number in range(30):
            node.publish("veh/veh-2/speed", number)
            node.publish("veh/veh-2/secret", number)
        await until(lambda: stored(node) == 60)
        assert len((await node.history()).readings) == 60
        async with meshnode.connect(socket_of(config)) as application:
            page = await application.history()
            assert [one.value for one in page.readings] == list(range(29, -1, -1))
            assert {one.key for one in page.readings} == {"veh/veh-2/speed"}
            few = await application.history("veh/veh-2/*", limit=7, newest_first=False)
            rest = await application.history("veh/veh-2/*", limit=1_000, newest_first=False, cursor=few.cursor)
            assert [one.value for one in (*few.readings, *rest.readings)] == list(range(30))
            assert (await application.history("veh/veh-2/secret")).readings == ()
            with pytest.raises(LocalProtocolError, match="malformed"):
                application.ask("history", {"limit": "all"})
            told = application.ask("history", {"expression": "veh/**", "limit": 2})
            assert [type(data) for data in told["readings"]] == [bytes, bytes]
        assert len(node.ask("history")["readings"]) == 30


async def test_question_that_waits_for_the_disk_holds_up_nobody_and_only_so_many_wait(house: House) -> None:
    """One thread serves all applications; it must not stand still for one that asks for the past."""
    config = house.config("veh-4").with_sections(ALL)
    slow_disk = threading.Event()
    async with meshnode.open(config) as node, meshnode.connect(socket_of(config)) as application:
        part = node.part(RunningHistory)
        assert part._answering is not None
        part._answering.submit(slow_disk.wait)
        waiting = [asyncio.create_task(application.history()) for _ in range(3)]
        await until(lambda: part._places._value == MAX_ASKED - 3, "they wait")
        assert application.peers() == []
        further = [asyncio.create_task(node.history()) for _ in range(MAX_ASKED - 3)]
        await until(lambda: part._places._value == 0, "as many as may wait do")
        with pytest.raises(BoundExceeded, match="questions wait for the history: ask again later"):
            await application.history()
        slow_disk.set()
        pages = await asyncio.gather(*waiting, *further)
        assert {page.readings for page in pages} == {()}
        assert (await node.history()).cursor is None


def test_doctor_warns_when_the_disk_has_no_room_for_the_history(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is noticed only hours later otherwise."""
    config = house.config("veh-5").with_sections(HistorySection(keys=("**",), max_mib=1_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_200 * 2**20))
    (warned,) = [finding for finding in checks._state(config, None) if finding.status == "warn"]
    assert "1200 MiB are free, and outbox and history may take 1256" in warned.message


async def test_values_of_every_kind_come_back_as_they_were(house: House) -> None:
    """Tensors, deep values and odd numbers are readings like any others."""
    deep: Any = 1
    for _ in range(31):
        deep = [deep]
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    values = [None, True, 2**63, -1.5, math.inf, "é\x00", b"\x00\xff", {"a": [1, {"b": None}]}, deep, [], "x" * 100_000]
    config = house.config("veh-3").with_sections(ALL)
    async with meshnode.open(config) as node:
        for value in values:
            node.publish("veh/veh-3/x", value)
        node.publish("veh/veh-3/t", array)
        array[0, 0] = 99.0
        node.publish("veh/veh-3/t", {"inside": Tensor("u1", (2,), memoryview(b"ab"))})
        node.publish("veh/veh-3/t", "from long ago", time_ns=0)
        node.publish("veh/veh-3/t", "from the end of time", time_ns=2**64 - 1)
        await until(lambda: stored(node) == len(values) + 4)
        page = await node.history("veh/veh-3/x", newest_first=False)
        assert [one.value for one in page.readings] == values
        end, inside, tensor, long_ago = (await node.history("veh/veh-3/t")).readings
        assert (end.value, end.when.utc_ns) == ("from the end of time", 2**64 - 1)
        assert (long_ago.value, long_ago.when.utc_ns) == ("from long ago", 0)
        assert np.asarray(tensor.value).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
        assert bytes(inside.value["inside"].data) == b"ab"


def test_section_that_is_wrong_is_refused_by_its_key() -> None:
    """An empty list would keep nothing, silently."""
    with pytest.raises(ConfigError, match=r"keys"):
        HistorySection(keys=())
    with pytest.raises(ConfigError, match=r"max_mib"):
        HistorySection(keys=("**",), max_mib=8)
    with pytest.raises(ConfigError, match=r"keys\[0\]"):
        HistorySection(keys=("a//b",))


def failed(*arguments: str) -> Result:
    """The command in this process, which does not succeed."""
    result = CliRunner().invoke(history, arguments)
    assert result.exit_code
    return result


# --- over HTTP and by command: real processes ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("history")
    with RunningNode(prepare(folder, "veh-1", "vehicle", '[history]\nkeys = ["**"]\n')) as node:
        for number in range(12):
            where = {"latitude_deg": 48.0 + number, "longitude_deg": 11.0, "accuracy_m": 1.0}
            body = {"key": "veh/veh-1/speed", "value": number, "unit": "m/s", "where": where}
            assert node.post("/v1/readings", body)[0] == 200
        assert node.post("/v1/readings", {"key": "veh/veh-1/odd", "value": {"$float": "nan"}})[0] == 200
        eventually(lambda: node.get("/v1/node")["statistics"]["history_stored"] == 13, "all are stored")
        yield node


@pytest.mark.processes
def test_history_over_http_gives_pages_in_the_form_of_other_readings(running: RunningNode) -> None:
    """A dashboard reads live and past readings with the same code."""
    page = running.get("/v1/history?key=veh/*/speed&limit=5")
    assert [one["value"] for one in page["readings"]] == [11, 10, 9, 8, 7]
    assert set(page["readings"][0]) == {
        "key", "origin", "sequence", "value", "where", "when", "how", "priority", "lifespan_ms", "hops",
    }  # fmt: skip
    page = running.get(f"/v1/history?key=veh/*/speed&limit=50&cursor={page['cursor']}")
    assert ([one["value"] for one in page["readings"]], page["cursor"]) == ([6, 5, 4, 3, 2, 1, 0], None)
    box = running.get("/v1/history?key=**&box=50,10,52.5,12&newest_first=false&since=10m&origin=veh-1")
    assert [one["value"] for one in box["readings"]] == [2, 3, 4]
    assert running.get("/v1/history?key=veh/*/odd")["readings"][0]["value"] == {"$float": "nan"}
    assert running.get("/v1/history?key=**&until=10m") == {"readings": [], "cursor": None, "not_shown": 0}


@pytest.mark.processes
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "the query lacks 'key'"),
        ("key=a//b", "empty chunk"),
        ("key=**&limit=0", "limit 0 is out of range: use 1 to 1000"),
        ("key=**&limit=1001", "limit 1001 is out of range"),
        ("key=**&limit=all", "limit is 'all'"),
        ("key=**&since=yesterday", "since 'yesterday' is no time"),
        ("key=**&until=2026-01-01T00:00:00", "has no offset from UTC"),
        ("key=**&box=1,2,3", "is no box"),
        ("key=**&box=1,2,3,x", "is not four numbers"),
        ("key=**&cursor=1", "cursor '1' is not one that a page had"),
        ("key=**&orign=x", "did you mean 'origin'?"),
    ],
)
def test_request_that_makes_no_sense_is_refused_with_the_way_out(running: RunningNode, query: str, said: str) -> None:
    status, _, body = running.ask("GET", f"/v1/history?{quote(query, safe='=&')}")
    assert status == 400
    assert said in msgspec.json.decode(body)["error"]


@pytest.mark.processes
def test_command_shows_the_history_of_a_running_node_and_of_one_that_was_killed(running: RunningNode) -> None:
    """After an accident the computer is found without power, and its disk is what is left."""
    address = f"127.0.0.1:{running.http_port}"
    done = command("history", "veh/*/speed", "--http", address, "--limit", "2", "--since", "10m")
    assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines()] == ["11", "10"]
    assert done.stdout.startswith(datetime.now(UTC).strftime("%Y-%m-%dT"))
    state = running.config.parent / "state"
    assert "in use by another process" in str(failed("**", "--state-dir", str(state)).exception)
    assert "give one of them" in failed("**", "--state-dir", str(state), "--http", address).output
    running.process.kill()
    running.process.wait()
    done = command("history", "veh/*/speed", "--config", str(running.config), "--json", "--box", "50,10,52.5,12")
    assert [json.loads(line)["value"] for line in done.stdout.splitlines()] == [4, 3, 2], done.stderr
    assert failed("rsu/**", "--state-dir", str(state)).exit_code == 1
    assert "there is no history" in str(failed("**", "--state-dir", str(Path(state, "none"))).exception)
