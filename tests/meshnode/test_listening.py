"""A node whose address or port can't be had yet runs, says so, and listens once it can."""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import meshnode
from demo.processes import free_port
from meshnode.http.section import HttpSection
from tests.tools.emulator_fixture import as_root
from tests.tools.eventually import eventually, until
from tests.tools.hub_fixture import Hub
from tests.tools.mesh_fixture import House, Member, given_house
from tests.tools.node_fixture import environment, prepare
from tests.tools.node_fixture import meshnode as command

__all__ = ["given_house"]
LATER = "10.78.1.77"


@pytest.fixture(name="hub")
def given_hub() -> Iterator[Hub]:
    with Hub(2) as hub:
        yield hub


@pytest.mark.processes
@as_root
@pytest.mark.parametrize("engine", ["express", "nng"])
def test_node_whose_address_comes_later_meets_its_neighbours_then(hub: Hub, tmp_path: Path, engine: str) -> None:
    """A router that boots more slowly than the node kept it from starting."""
    house = House(tmp_path)
    early = house.file("rsu-1", f'[discovery]\nmdns = false\nseeds = ["{hub.address(1)}:7000"]\n', role="rsu")
    late = house.file("veh-1", "[discovery]\nmdns = false\n")
    for path, host in ((early, LATER), (late, "0.0.0.0")):
        text = path.read_text().replace(
            'host = "127.0.0.1"\nadvertise = ["127.0.0.1"]', f'host = "{host}"\nport = 7000'
        )
        path.write_text(text.replace("port = 7000", f'port = 7000\nlink_engine = "{engine}"'))
    with Member(early, hub.hosts[0].namespace) as rsu, Member(late, hub.hosts[1].namespace) as vehicle:
        assert rsu.port == 0
        eventually(lambda: f"inbox does not work: can't listen on {LATER}:7000" in rsu.log.read_text(), "it says so")
        assert vehicle.port == 7000
        assert vehicle.ask("peers") == [], "it dials nobody, because nobody could dial back"
        hub.move(0, LATER)
        eventually(lambda: rsu.alive() == {"veh-1"} and vehicle.alive() == {"rsu-1"}, "they meet")


def asked(port: int, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except OSError:
        return 0, None
    finally:
        connection.close()


@pytest.mark.processes
def test_node_whose_port_is_taken_answers_and_is_ready_once_it_is_free(tmp_path: Path) -> None:
    """A supervisor that starts the new process before the old one has ended must not need luck."""
    port = free_port()
    config = prepare(tmp_path, "rsu-1", "rsu", f"[http]\nport = {port}\n")
    with socket.create_server(("127.0.0.1", free_port())) as other:  # nobody else gets it when it is given back
        taken = other.getsockname()[1]
        config.write_text(config.read_text().replace('host = "127.0.0.1"', f'host = "127.0.0.1"\nport = {taken}', 1))
        process = subprocess.Popen(
            [sys.executable, "-m", "meshnode.cli", "run", str(config)],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            eventually(lambda: asked(port, "/readyz")[0] == 503, "it answers")
            status, answer = asked(port, "/readyz")
            assert (status, "inbox" in answer["error"], f"{taken} is in use" in answer["error"]) == (503, True, True)
            (trouble,) = asked(port, "/v1/node")[1]["troubles"]
            assert (trouble["part"], trouble["essential"]) == ("inbox", True)
            found = command("doctor", config).stdout.splitlines()
            assert any(line.startswith("fail  inbox") for line in found), found
            assert asked(port, "/healthz")[0] == 200
            other.close()
            eventually(lambda: asked(port, "/readyz")[0] == 200, "it listens")
            assert process.stdout is not None
            assert process.stdout.readline() == f"ready rsu-1 rsu port {taken} http {port}\n"
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.communicate()


@pytest.mark.processes
def test_node_that_waits_for_its_port_leaves_when_it_is_told_to(tmp_path: Path) -> None:
    """A node that never got its address must not have to be killed."""
    config = prepare(tmp_path, "rsu-1", "rsu")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        config.write_text(config.read_text().replace('host = "127.0.0.1"', f'host = "127.0.0.1"\nport = {taken}', 1))
        log = tmp_path / "log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "meshnode.cli", "run", str(config)],
                env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        try:
            eventually(lambda: "local applications" in log.read_text(), "it runs")
            process.terminate()
            assert process.wait(30) == 0
            assert process.stdout is not None
            with process.stdout:
                assert process.stdout.read() == "", "it was never ready"
            assert "Traceback" not in log.read_text()
        finally:
            process.kill()
            process.wait()


async def test_http_whose_port_is_taken_is_a_trouble_and_everything_else_works(house: House) -> None:
    """Two nodes on one computer, and nobody who changed the port of one: it must still pass on hazards."""
    with socket.create_server(("127.0.0.1", free_port())) as other:
        section = HttpSection(port=other.getsockname()[1])
        async with meshnode.open(house.config("veh-1").with_sections(section)) as node:
            (trouble,) = node.troubles.current()
            assert (trouble.part, trouble.essential, node.http_port) == ("http", False, None)
            assert node.publish("veh/veh-1/a", 1).sequence
            other.close()
            await until(lambda: node.http_port == section.port, "it listens")
            await until(lambda: node.troubles.current() == [], "no trouble any more")
            assert (await asyncio.to_thread(asked, section.port, "/readyz"))[0] == 200
