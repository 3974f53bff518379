"""Whole nodes whose clock was wrong, or is."""

import asyncio
import http.client
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

import meshnode
from meshnode.identity import create_mesh, issue
from meshnode.identity.authority import CLOCK_TOLERANCE
from protocols.base.errors import ClockImplausible
from protocols.base.sequences import MAX_SEQUENCE, first_sequence
from protocols.membership.neighbour import State
from tests.tools.eventually import eventually, until
from tests.tools.mesh_fixture import House, Member, Open, given_house, given_opened, wanted  # noqa: F401 -- fixtures
from tests.tools.node_fixture import environment, prepare
from tests.tools.node_fixture import meshnode as command

KEY = "veh/veh-1/speed"


async def test_node_that_booted_with_clocks_of_other_years_is_heard_in_each_life(opened: Open, house: House) -> None:
    """What is on its disk is of 2039, of 2107, of 2300, of today, and unreadable; it never needs a person."""
    here = await opened("rsu-1", role="rsu")
    subscription = here.subscribe("veh/**", hops=1)
    config = house.config("veh-1", here.port)
    config.node.state_dir.mkdir(exist_ok=True)
    for number, kept in enumerate(["2180000000", "4323000000", "10413792000", "1790000000", "?"]):
        (config.node.state_dir / "incarnation").write_text(kept)
        async with meshnode.open(config) as there:
            await wanted(there, KEY)
            assert there.publish(KEY, number, unit="m/s", sensor="wheel", hops=1).queued == 1
            reading = await subscription.next(30)
            assert (reading.value, reading.origin) == (number, "veh-1")
            assert first_sequence(there.incarnation) <= reading.sequence <= MAX_SEQUENCE
        await until(lambda: here.peers()[0].state is State.LEFT, "the goodbye is heard")


@pytest.mark.processes
async def test_node_with_an_older_life_alive_elsewhere_is_back_once_that_is_dead(opened: Open, house: House) -> None:
    """The larger incarnation is right while it lives; here its process was killed without a goodbye."""
    here = await opened("rsu-1", role="rsu")
    path = house.file("veh-2", f"[discovery]\nmdns = false\nseeds = ['127.0.0.1:{here.port}']\n")
    incarnation = path.parent / "state" / "incarnation"
    incarnation.parent.mkdir()
    incarnation.write_text("4323000000")
    with Member(path) as former:
        (peer,) = await here.wait_for_peers(1)
        assert peer.incarnation == 4_323_000_001
        former.send(signal.SIGKILL)
    incarnation.unlink()
    async with meshnode.open(path) as there:
        assert there.incarnation < peer.incarnation
        await until(lambda: here.peers()[0].incarnation == there.incarnation, "it is met again", 60)
        assert here.peers()[0].state is State.ALIVE


# --- waiting -------------------------------------------------------------------------------------------------------
def reissue(config: Path, begins: datetime, valid_days: float = 1) -> None:
    """Replace the certificate of a node by one that is valid from ``begins`` on."""
    home = config.parent
    issue(home.parent / "authority", "vehicle", home.name, home, valid_days=valid_days, now=begins + CLOCK_TOLERANCE)


def early(folder: Path, node: str = "veh-1", tables: str = "", *, days: float = 1) -> Path:
    """The configuration of a node whose certificate is valid from tomorrow on, or was until yesterday."""
    if not (folder / "authority").exists():
        create_mesh(folder / "authority", "test", now=datetime.now(UTC) - timedelta(days=30))
    config = prepare(folder, node, "vehicle", tables)
    reissue(config, datetime.now(UTC) + timedelta(days=days))
    return config


class Waiting:
    """A process of ``meshnode run`` that is not ready yet."""

    def __init__(self, config: Path) -> None:
        self.log = config.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "meshnode.cli", "run", str(config)],
                env=environment(), stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        said = eventually(lambda: re.search(r"answers at HTTP port (\d+)", self.log.read_text()), self.log.read_text)
        self.port = int(said[1])

    def get(self, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read().decode()
            return response.status, body if path == "/metrics" else json.loads(body)
        finally:
            connection.close()

    def told_to_leave(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def waiting(config: Path) -> Iterator[Waiting]:
    node = Waiting(config)
    try:
        yield node
    finally:
        node.process.kill()
        node.process.wait()
        assert node.process.stdout is not None
        node.process.stdout.close()


@pytest.mark.processes
def test_node_whose_certificate_is_not_valid_yet_waits_and_says_so(tmp_path: Path) -> None:
    """A board without a battery boots in 1970, and nobody is there to start the node again."""
    config = early(tmp_path)
    with waiting(config) as node:
        assert node.get("/healthz") == (200, {"alive": True})
        status, body = node.get("/readyz")
        assert status == 503
        assert re.search(r"clock: .*not valid before .* this clock shows .*: set the clock", body["error"])
        status, view = node.get("/v1/node")
        assert (status, view["id"], view["waiting"], view["port"]) == (200, "veh-1", True, None)
        assert [(trouble["part"], trouble["essential"]) for trouble in view["troubles"]] == [("clock", True)]
        assert 'meshnode_trouble{name="",part="clock"} 1.0' in node.get("/metrics")[1]
        assert node.get("/v1/peers")[0] == 503
        sockets = psutil.Process(node.process.pid).net_connections()
        listening = [one.laddr.port for one in sockets if one.status == psutil.CONN_LISTEN]
        assert listening == [node.port], "no inbox"
        assert [one for one in sockets if one.type == socket.SOCK_DGRAM] == [], "no multicast"
        assert not (config.parent / "state" / "incarnation").exists()

        config.write_text(config.read_text().replace("port = 0", f"port = {node.port}"))  # as the doctor needs it
        found = json.loads(command("doctor", "--json", config).stdout)["findings"]
        clocks = [one["message"] for one in found if (one["status"], one["check"]) == ("fail", "clock")]
        assert any("set the clock" in message for message in clocks), found

        node.process.send_signal(signal.SIGSTOP)  # or it might look at one file of the new ones and one of the old ones
        reissue(config, datetime.now(UTC) - timedelta(minutes=1))
        node.process.send_signal(signal.SIGCONT)
        assert node.process.stdout is not None
        port = int(node.process.stdout.readline().split()[6])
        node.port = port
        assert node.get("/readyz")[0] == 200
        assert node.log.read_text().count("does not work") == 1, "it is said once"
        assert node.told_to_leave() == 0


@pytest.mark.processes
def test_node_whose_certificate_has_ended_waits_and_leaves_at_once_when_told(tmp_path: Path) -> None:
    """It may have ended, or the clock is ahead. Both are said, with both times."""
    config = early(tmp_path, days=-5)
    with waiting(config) as node:
        _, body = node.get("/readyz")
        assert re.search(
            r"expired at 20.* this clock shows 20.*: issue it again.*set the clock if it is ahead", str(body)
        )
        began_s = time.monotonic()
        assert node.told_to_leave() == 0
        assert time.monotonic() - began_s < 10, "it is told within seconds, also on a busy machine"
        assert "Traceback" not in node.log.read_text()


async def test_node_opens_by_itself_once_its_time_has_come(tmp_path: Path) -> None:
    """Nothing but the clock changes."""
    config = early(tmp_path)
    begins = datetime.now(UTC) + timedelta(seconds=2)
    reissue(config, begins)
    async with meshnode.open(config, wait_for_clock=True) as node:
        assert datetime.now(UTC) >= begins.replace(microsecond=0)
        assert node.incarnation >= int(begins.timestamp())
        assert not node.troubles.current()


async def test_program_is_not_made_to_wait_unless_it_asks(tmp_path: Path) -> None:
    """Entering a block that never returns would be a surprise."""
    with pytest.raises(ClockImplausible, match="set the clock"):
        async with meshnode.open(early(tmp_path)):
            pass
    assert not (tmp_path / "veh-1" / "state").exists()


async def test_waiting_node_goes_without_a_port_that_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Waiting is worth more than telling."""
    caplog.set_level(logging.WARNING)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = early(tmp_path, tables=f"[http]\nport = {taken.getsockname()[1]}\n")
        opening = asyncio.create_task(meshnode.open(config, wait_for_clock=True).__aenter__())
        await until(lambda: "waits without HTTP" in caplog.text, "it says so")
    reissue(config, datetime.now(UTC) - timedelta(minutes=1))
    node = await opening
    assert node.http_port
    await node.close()


async def test_waiting_node_says_that_files_do_not_fit_while_they_are_copied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Copying takes longer than a look; it must not end the node."""
    config = early(tmp_path, tables="[http]\nenabled = false\n")
    key = config.parent / "veh-1.key"
    opening = asyncio.create_task(meshnode.open(config, wait_for_clock=True).__aenter__())
    await until(lambda: "clock does not work" in caplog.text, "it waits")
    whole = key.read_bytes()
    key.write_bytes(whole[:50])
    await until(lambda: f"the node waits: key file {key}" in caplog.text, lambda: caplog.text)
    key.write_bytes(whole)
    reissue(config, datetime.now(UTC) - timedelta(minutes=1))
    await (await opening).close()


@pytest.mark.processes
def test_certificate_with_another_fault_ends_the_node_at_once_whatever_the_clock(tmp_path: Path) -> None:
    """Time does not heal it, and a service manager should see it."""
    config = early(tmp_path)
    other = prepare(tmp_path, "veh-2", "vehicle")
    (config.parent / "veh-1.key").write_bytes((other.parent / "veh-2.key").read_bytes())
    ran = command("run", config)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "does not belong to certificate" in ran.stderr
    (config.parent / "veh-1.key").unlink()
    assert command("run", config).returncode == 2
