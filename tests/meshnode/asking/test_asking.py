"""A vehicle asks the relay about elsewhere: real nodes that can't hear each other, and a real relay between them."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

import meshnode
from meshnode.asking import commands, running
from meshnode.asking.commands import query
from meshnode.http.running import RunningHttp
from meshnode.http.section import HttpSection
from meshnode.identity import issue
from meshnode.links.nng.library import open_responder
from meshnode.links.transport import Address, CredentialFiles
from meshnode.local.section import socket_of
from meshnode.records.section import CurationRulesSection, CurationSection, RelaySection
from protocols.base.errors import (
    BoundExceeded,
    InvalidKey,
    LocalProtocolError,
    NotPermitted,
    RemoteProtocolError,
    TransportError,
)
from protocols.base.ids import MeshName, PeerIdentity, Role
from protocols.base.limits import SECOND
from protocols.wire.codec import encode_frame
from protocols.wire.readings import Position, Reading
from protocols.wire.records import RelayRefusal
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.relay_fixture import RelayProcess
from tests.tools.relay_http_fixture import asked

__all__ = ["given_house"]
pytestmark = pytest.mark.processes
ACCESS: Final = """
[access]
rules = [
  { role = "vehicle", verb = "publish", keys = "veh/{id}/**" },
  { role = "rsu", verb = "publish", keys = "rsu/{id}/**" },
  { role = "vehicle", verb = "subscribe", keys = "rsu/**" },
  { role = "vehicle", verb = "subscribe", keys = "veh/{id}/**" },
]
"""
FAR: Final = Position(49.5, 12.5, 2.5, 380.0, 90.0)
CURATION: Final = CurationRulesSection(rules=(CurationSection(name="all", keys="**"),))


@pytest.fixture(name="relay", scope="module")
def given_relay(house: House) -> Iterator[RelayProcess]:
    folder = house.folder
    (folder / "relay.toml").write_text(
        f'[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n[http]\nport = 0\n{ACCESS}'
    )
    with RelayProcess(folder, house.mesh) as relay:
        yield relay


@asynccontextmanager
async def node(house: House, relay: RelayProcess, name: str, *sections: Any, **of: Any) -> AsyncIterator[meshnode.Node]:
    config = house.config(name, **of).with_sections(RelaySection(address=relay.address), CURATION, *sections)
    async with meshnode.open(config) as opened:
        yield opened


async def at_the_relay(relay: RelayProcess, key: str, count: int) -> None:
    port = urlsplit(relay.http_url or "").port
    assert port is not None

    def stored() -> bool:
        return len(asked(port, f"/v1/records?key={key}").json["records"]) == count

    await until(stored, f"{count} records of {key}")


@pytest.fixture(name="sensed", scope="module")
def given_sensed(house: House, relay: RelayProcess) -> list[Reading]:
    """What an RSU sensed far from here and sent to the relay, before it went away."""
    kept: list[Reading] = []

    async def sense() -> None:
        async with node(house, relay, "rsu-9", role="rsu") as rsu:
            rsu.subscribe("**", callback=kept.append)
            for number in range(3):
                rsu.publish(
                    "rsu/rsu-9/hazard", {"ice": number}, where=FAR, sensor="road", quality=0.75, lineage=("camera",),
                    calibration="cal-3",
                )  # fmt: skip
            rsu.publish("rsu/rsu-9/fog", 0.5, where=Position(-17.0, 179.9, 1.0))
            await at_the_relay(relay, "rsu/**", 4)
            await until(lambda: len(kept) == 4, "its own readings")

    asyncio.run(sense())
    return kept


async def test_vehicle_gets_what_was_sensed_elsewhere_with_its_context_and_age(
    house: House, relay: RelayProcess, sensed: list[Reading]
) -> None:
    """The reason to ask: who sensed it is far away, or has gone."""
    async with node(house, relay, "veh-1") as vehicle:
        assert vehicle.peers() == []
        answer = await vehicle.query("rsu/**")
        assert {aged.reading.key for aged in answer.readings} == {"rsu/rsu-9/hazard", "rsu/rsu-9/fog"}
        originals = {(reading.key, reading.sequence): reading for reading in sensed}
        for aged in answer.readings:
            assert aged.reading == originals[aged.reading.key, aged.reading.sequence], "the context is untouched"
            assert (aged.sent_by, aged.rule) == ("rsu-9", "all")
            assert aged.age_ns == answer.now_utc_ns - aged.reading.when.utc_ns
            assert 0 <= aged.age_ns < 600 * SECOND
            assert aged.age_uncertainty_ns == aged.reading.when.uncertainty_ns
        newest = await vehicle.query("rsu/rsu-9/*", newest=True, since=timedelta(hours=1))
        assert [(aged.reading.key, aged.reading.value) for aged in newest.readings] == [
            ("rsu/rsu-9/fog", 0.5), ("rsu/rsu-9/hazard", {"ice": 2}),
        ]  # fmt: skip
        assert vehicle.statistics()["asking_questions"] == 2
        assert vehicle.statistics()["asking_readings"] == 6


async def test_places_times_and_pages_choose(house: House, relay: RelayProcess, sensed: list[Reading]) -> None:
    """A vehicle asks about the road ahead, and a place may lie where longitudes begin anew."""
    async with node(house, relay, "veh-1") as vehicle:

        async def keys(**question: Any) -> list[str]:
            answer = await vehicle.query("rsu/**", **question)
            return sorted({aged.reading.key.rpartition("/")[2] for aged in answer.readings})

        assert await keys(near=(49.501, 12.501), radius_m=500) == ["hazard"]
        assert await keys(near=(49.501, 12.501), radius_m=50) == []
        assert await keys(near=(-17.0, -179.95), radius_m=20_000) == ["fog"]
        assert await keys(near=(-90, 0), radius_m=1_000_000) == []
        assert await keys(box=(-20, 179, -10, -179)) == ["fog"]
        assert await keys(since=max(reading.when.utc_ns for reading in sensed) + 1) == []
        found, cursor = [], None
        while True:
            page = await vehicle.query("rsu/rsu-9/hazard", limit=1, cursor=cursor)
            found += [aged.reading.value["ice"] for aged in page.readings]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == [2, 1, 0]


async def test_node_without_the_right_and_stranger_get_nothing(
    house: House, relay: RelayProcess, sensed: list[Reading], tmp_path: Path
) -> None:
    """The relay knows everything, so it is the place to ask what one may not have."""
    async with node(house, relay, "veh-1") as vehicle:
        for wider in ("**", "veh/**", "veh/veh-2/speed"):
            with pytest.raises(NotPermitted, match="no access rule lets vehicle veh-1 have all of"):
                await vehicle.query(wider)
        assert (await vehicle.query("veh/veh-1/**")).readings == ()
    async with node(house, relay, "rsu-8", role="rsu") as rsu:
        with pytest.raises(NotPermitted):
            await rsu.query("rsu/**")
    strangers = House(tmp_path)
    config = strangers.config("veh-1").with_sections(RelaySection(address=relay.address))
    async with meshnode.open(config) as stranger:
        with pytest.raises(TransportError):
            await stranger.query("rsu/**", timeout_s=5.0)


async def test_question_over_http_by_command_and_by_local_application(
    house: House, relay: RelayProcess, sensed: list[Reading]
) -> None:
    """Programs in any language, people, and applications beside the node ask the same."""
    config = house.config("veh-1").with_sections(RelaySection(address=relay.address), HttpSection(port=0))
    async with meshnode.open(config) as vehicle:
        port = json_port(vehicle)
        page = (await asyncio.to_thread(asked, port, "/v1/query?key=rsu/*/hazard&newest=true&since=1h")).json
        (entry,) = page["readings"]
        assert (entry["value"], entry["sent_by"], entry["rule"]) == ({"ice": 2}, "rsu-9", "all")
        assert 0 <= entry["age_s"] < 600
        for target, status in (
            ("key=**", 403), ("key=a//b", 400), ("key=rsu/**&near=1", 400), ("key=rsu/**&radius_m=5", 400),
            ("key=rsu/**&limit=0", 400), ("key=rsu/**&until=1h", 400), ("key=rsu/**&cursor=x", 502),
        ):  # fmt: skip
            answer = await asyncio.to_thread(asked, port, f"/v1/query?{target}")
            assert (answer.status, "error" in answer.json) == (status, True), target
        words = ["rsu/**", "--near", "49.5,12.5", "--radius-m", "100", "--http", f"127.0.0.1:{port}"]
        shown = await asyncio.to_thread(CliRunner().invoke, query, words)
        assert shown.exit_code == 0, shown.output
        assert shown.output.count("rsu/rsu-9/hazard") == 3
        assert " s old, by rsu-9" in shown.output
        lines = await asyncio.to_thread(CliRunner().invoke, query, ["rsu/*/fog", "--json", *words[-2:]])
        assert json.loads(lines.output)["sent_by"] == "rsu-9"
        none = await asyncio.to_thread(CliRunner().invoke, query, ["rsu/*/sun", *words[-2:]])
        assert none.exit_code == 1
        async with meshnode.connect(socket_of(config)) as application:
            answer = await application.query("rsu/**", near=(49.5, 12.5), radius_m=100.0, since=timedelta(hours=1))
            assert [aged.reading.value["ice"] for aged in answer.readings] == [2, 1, 0]
            with pytest.raises(NotPermitted):
                await application.query("**")


# --- relays that do not answer ---------------------------------------------------------------------------------------
class OddRelay:
    """A relay of the mesh that answers questions as it likes."""

    def __init__(self, house: House, answer: bytes) -> None:
        files: CredentialFiles = issue(
            house.folder / "authority", Role.RELAY, "relay-2", house.folder / "odd"
        ).credentials

        def handler(peer: PeerIdentity, data: bytes) -> bytes:
            return answer

        self._responder = open_responder(files, "127.0.0.1", 0, MeshName(house.mesh), handler, 2)
        self.section = RelaySection(address=Address("127.0.0.1", self._responder.port))

    def close(self) -> None:
        self._responder.close()


@pytest.mark.parametrize(
    ("answer", "raised", "said"),
    [
        (encode_frame(RelayRefusal("malformed", "a frame is malformed")), RemoteProtocolError, "before wire 1.8"),
        (encode_frame(RelayRefusal("busy", "ask again later")), BoundExceeded, "ask again later"),
        (encode_frame(RelayRefusal("storage", "it can't read")), RemoteProtocolError, "it can't read"),
        (encode_frame(RelayRefusal("newer", "word")), RemoteProtocolError, "newer"),
        (b"\xc1", RemoteProtocolError, "malformed"),
        (b"\x94\x4d\x01\x91\x93\xa3v-1\xa1r\x01\xa0", RemoteProtocolError, "malformed"),
    ],
    ids=["of before", "busy", "storage", "newer word", "junk", "no reading"],
)
async def test_relay_that_gives_no_answer_is_a_clear_error(
    house: House, answer: bytes, raised: type[Exception], said: str
) -> None:
    """Who drives wants to know whether there is no ice, or nobody who knows."""
    odd = OddRelay(house, answer)
    try:
        async with meshnode.open(house.config("veh-1").with_sections(odd.section)) as vehicle:
            with pytest.raises(raised, match=said):
                await vehicle.query("rsu/**")
            assert vehicle.statistics()["asking_failed"] == 1
    finally:
        await asyncio.to_thread(odd.close)


async def test_node_without_relay_and_wrong_questions_are_refused(house: House) -> None:
    """Nothing is sent that has no meaning."""
    async with meshnode.open(house.config("veh-1")) as vehicle:
        with pytest.raises(LocalProtocolError, match=r"add \[relay\]"):
            await vehicle.query("rsu/**")
        wrong: tuple[tuple[str, dict[str, Any], type[Exception], str], ...] = (
            ("a//b", {}, InvalidKey, "empty chunk"),
            ("**", {"limit": 101}, LocalProtocolError, "1 to 100"),
            ("**", {"near": (1, 2)}, LocalProtocolError, "radius in metres"),
            ("**", {"radius_m": 5.0}, LocalProtocolError, "no circle"),
            ("**", {"near": (91, 2), "radius_m": 5.0}, LocalProtocolError, "out of range"),
            ("**", {"near": (1, float("nan")), "radius_m": 5.0}, LocalProtocolError, "no circle"),
            ("**", {"near": (1, 2), "radius_m": 5e6}, LocalProtocolError, "at most 1e"),
            ("**", {"near": (1, 2), "radius_m": 5.0, "box": (1, 2, 3, 4)}, LocalProtocolError, "one of them"),
            ("**", {"box": (1, 2, 3)}, LocalProtocolError, "no box"),
            ("**", {"since": timedelta(0)}, LocalProtocolError, "no age"),
            ("**", {"cursor": "x" * 300}, LocalProtocolError, "unchanged"),
        )
        for expression, question, raised, said in wrong:
            with pytest.raises(raised, match=said):
                await vehicle.query(expression, **question)


async def test_relay_that_says_nothing_is_told_in_time_and_few_wait_for_it(house: House) -> None:
    """A call in a tunnel must end, and a program that asks on and on must not fill the node."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and says nothing
        config = house.config("veh-1").with_sections(RelaySection(address=Address(*silent.getsockname())))
        async with meshnode.open(config) as vehicle:
            with pytest.raises(TransportError):
                await vehicle.query("rsu/**", timeout_s=0.5)
            many = [asyncio.create_task(vehicle.query("rsu/**", timeout_s=0.2)) for _ in range(20)]
            ended = await asyncio.gather(*many, return_exceptions=True)
            assert {type(error) for error in ended} == {TransportError, BoundExceeded}
            assert vehicle.statistics()["asking_failed"] == 17


async def test_question_that_waits_when_its_node_closes_ends_with_an_error(house: House) -> None:
    """Who waits must neither wait on nor take it for a cancellation of its own."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = house.config("veh-1").with_sections(RelaySection(address=Address(*silent.getsockname())))
        async with meshnode.open(config) as vehicle:
            waiting = [asyncio.create_task(vehicle.query("rsu/**", timeout_s=60.0)) for _ in range(3)]
            await until(lambda: vehicle.statistics()["asking_questions"] == 1, "one is asked")
        ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(error) for error in ended} == {TransportError}


def json_port(vehicle: meshnode.Node) -> int:
    port = vehicle.part(RunningHttp).port
    assert port is not None
    return port


def test_command_waits_longer_than_the_node_waits_for_its_relay() -> None:
    """Both had ten seconds: who asked while the relay was away was told that the node is stopped, now and then."""
    assert commands.PATIENCE_S >= running.TIMEOUT_S + 5
