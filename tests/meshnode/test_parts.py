"""Parts that are not of the product: handed over by a program, or installed beside it (:mod:`tests.system.echo`)."""

import asyncio
import dataclasses
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import meshnode
from meshnode.http.section import HttpSection
from meshnode.loading import load, parts_of
from meshnode.local.section import socket_of
from meshnode.part import Part
from meshnode.parts import CAPABILITIES, DOORS
from meshnode.running import Host, RunningPart
from protocols.base.errors import ConfigError, LocalProtocolError, MeshError, StorageError
from protocols.inference.events import Answered, Compute
from protocols.local import Welcome
from protocols.machine import Event
from protocols.membership.events import PeerRefused
from tests.system.echo.part import ECHO, RunningEcho
from tests.system.echo.section import EchoSection
from tests.tools.mesh_fixture import House, given_house, until, wanted
from tests.tools.node_fixture import ROOT, RunningNode, environment, prepare

__all__ = ["given_house"]


# --- which parts a node has ------------------------------------------------------------------------------------------
def test_section_of_a_part_that_is_handed_over_is_read_and_checked_like_any_other(tmp_path: Path) -> None:
    """A mistake in it must be named like a mistake in any other, and with those at once."""
    config = prepare(tmp_path, "veh-1", "vehicle", "[echo]\ninterval_ms = 50\n")
    loaded = load(config, (ECHO,))
    assert loaded.of(EchoSection).interval_ms == 50
    assert [part.name for part in parts_of(loaded, (ECHO,))] == [
        *(part.name for part in CAPABILITIES), "echo", *(part.name for part in DOORS),
    ]  # fmt: skip
    config.write_text(config.read_text().replace("= 50", "= 5").replace("port = 0", "prot = 3"))
    with pytest.raises(ConfigError) as caught:
        load(config, (ECHO,))
    assert "echo.interval_ms = 5: is out of range: use 10 to 60_000" in str(caught.value)
    assert "http.prot = 3: is not a key of this table: did you mean 'port'?" in str(caught.value)


def test_section_of_a_part_that_nobody_has_is_refused_by_its_name(tmp_path: Path, house: House) -> None:
    """A node that silently left out what it was configured to do would be found out on the road."""
    config = prepare(tmp_path, "veh-1", "vehicle", "[echo]\ninterval_ms = 50\n")
    with pytest.raises(ConfigError, match=r"echo = \{…\}: is not a key of this table"):
        load(config)
    with pytest.raises(ConfigError, match=r"\[echo\] is a EchoSection, which no part of this node declares"):
        meshnode.open(house.config("veh-1").with_sections(EchoSection()))


def test_part_that_takes_the_name_or_the_table_of_another_is_refused(house: House) -> None:
    """Otherwise a program could quietly replace what signs entries or keeps records."""
    config = house.config("veh-1")
    with pytest.raises(ConfigError, match="two parts of the node are called 'gossip'"):
        meshnode.open(config, (dataclasses.replace(ECHO, name="gossip"),))
    with pytest.raises(ConfigError, match=r"part 'echo2' declares \[echo\], which another part has"):
        meshnode.open(config, (ECHO, dataclasses.replace(ECHO, name="echo2")))


class _Claiming(RunningPart):
    """Declares what its test gives it."""

    claimed: Mapping[str, Mapping[Any, Callable[[Any], Any]]] = {}

    def questions(self) -> Mapping[str, Callable[[Any], Any]]:
        return self.claimed.get("questions", {})

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        return self.claimed.get("performers", {})

    def handlers(self) -> Mapping[type[Event], Callable[[Any], object]]:
        return self.claimed.get("handlers", {})


@pytest.mark.parametrize(
    ("claimed", "said"),
    [
        ({"questions": {"models": print}}, "part 'late' answers the question models, and so does part 'inference'"),
        ({"questions": {"drops": print}}, "part 'late' answers the question drops, and so does the node itself"),
        ({"performers": {Compute: print}}, "part 'late' performs the effect Compute, and so does part 'inference'"),
        ({"handlers": {Answered: print}}, "part 'late' handles the event Answered, and so does part 'inference'"),
        ({"handlers": {PeerRefused: print}}, "part 'late' handles the event PeerRefused, and so does the node itself"),
    ],
)
async def test_part_that_declares_what_another_has_is_refused_by_the_names_of_both(
    house: House, claimed: Mapping[str, Mapping[Any, Callable[[Any], Any]]], said: str
) -> None:
    """The later one won silently: a part could take the models of a node out of its hands."""

    def start(host: Host) -> RunningPart:
        part = _Claiming(host)
        part.claimed = claimed
        return part

    with pytest.raises(LocalProtocolError, match=said):
        async with meshnode.open(house.config("veh-1"), (Part("late", start),)):
            pass


# --- parts of other packages -----------------------------------------------------------------------------------------
@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Install a package with an entry point, as another author's would be; returns where."""

    def install(entry_point: str) -> Path:
        info = tmp_path / "site" / "echo-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[meshnode.parts]\n{entry_point}\n")
        monkeypatch.syspath_prepend(str(info.parent))
        return info.parent

    return install


def test_installed_part_is_used_only_where_the_configuration_names_its_table(
    tmp_path: Path, installed: Callable[[str], Path]
) -> None:
    """Installing a package must not change a node that does not ask for it."""
    installed("echo = tests.system.echo.part:ECHO")
    plain = load(prepare(tmp_path, "veh-1", "vehicle"))
    assert ECHO not in parts_of(plain)
    asked = load(prepare(tmp_path, "veh-2", "vehicle", "[echo]\n"))
    assert ECHO in parts_of(asked)


@pytest.mark.parametrize(
    ("entry_point", "said"),
    [
        ("echo = tests.system.echo.no_such_module:ECHO", "can't be imported"),
        ("echo = tests.system.echo.part:RunningEcho", "which is not a meshnode.part.Part of that name"),
    ],
)
def test_installed_part_that_is_broken_is_refused_with_its_package(
    tmp_path: Path, installed: Callable[[str], Path], entry_point: str, said: str
) -> None:
    """Whoever installed it must see which package to repair."""
    installed(entry_point)
    with pytest.raises(ConfigError, match=f"part 'echo' of package 'echo'.*{said}"):
        load(prepare(tmp_path, "veh-1", "vehicle", "[echo]\n"))


@pytest.mark.processes
def test_installed_part_runs_in_a_node_and_brings_its_command(
    tmp_path: Path, installed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of a package that adds a capability: `meshnode run` and `meshnode echo` find it."""
    site = installed("echo = tests.system.echo.part:ECHO")
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")
    path = {"PYTHONPATH": f"{site}:{ROOT}"}
    monkeypatch.setattr("tests.tools.node_fixture.environment", lambda: {**environment(), **path})
    with RunningNode(prepare(tmp_path, "veh-1", "vehicle", "[echo]\n")) as node:
        ran = subprocess.run(
            [sys.executable, "-m", "meshnode.cli", "echo", "--http", f"127.0.0.1:{node.http_port}"],
            env={**environment(), **path}, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")  # it has met nobody
        assert "echo_asked" in json.loads(json.dumps(node.get("/v1/node")))["statistics"]


# --- what a part brings to a running node ----------------------------------------------------------------------------
class Stubborn(RunningPart):
    """Notes its steps, and fails where it is told to."""

    fails_in = ""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.steps: list[str] = []

    async def _step(self, name: str, closing: AsyncExitStack) -> None:
        self.steps.append(name)
        closing.callback(self.steps.append, f"undo {name}")
        if name == self.fails_in:
            raise StorageError(f"no {name}")

    async def prepare(self, closing: AsyncExitStack) -> None:
        assert self.host.port == 0, "nothing listens yet"
        await self._step("prepare", closing)

    async def join(self, closing: AsyncExitStack) -> None:
        assert self.host.port > 0
        await self._step("join", closing)

    async def serve(self, closing: AsyncExitStack) -> None:
        await self._step("serve", closing)

    def questions(self) -> Mapping[str, Callable[[Any], Any]]:
        return {"stubborn": self._answer, "stubborn.unsendable": lambda _: object()}

    def _answer(self, argument: Any) -> Any:
        if argument == "bug":
            raise ZeroDivisionError("a bug of the part")
        if argument == "error":
            raise StorageError("the disk is full: free some")
        return {"asked": argument}


async def test_part_lives_in_steps_that_are_undone_in_the_opposite_order(house: House) -> None:
    """A part must be able to rely on what is there at each step, and on being cleaned up."""
    async with meshnode.open(house.config("veh-1"), (Part("stubborn", Stubborn),)) as node:
        part = node.part(Stubborn)
        assert part.steps == ["prepare", "join", "serve"]
    assert part.steps[3:] == ["undo serve", "undo join", "undo prepare"]


@pytest.mark.parametrize("step", ["prepare", "join", "serve"])
async def test_part_that_fails_to_open_leaves_nothing_open(house: House, step: str) -> None:
    """A supervisor starts the node again: what was opened before the failure must be free."""
    made: list[Stubborn] = []

    def start(host: Host) -> Stubborn:
        part = Stubborn(host)
        part.fails_in = step
        made.append(part)
        return part

    with pytest.raises(StorageError, match=f"no {step}"):
        await meshnode.open(house.config("veh-1"), (Part("stubborn", start),)).__aenter__()
    assert made[0].steps[-1] == "undo prepare"
    async with meshnode.open(house.config("veh-1")) as node:
        assert node.port


async def test_question_to_a_part_is_answered_in_the_process_and_over_the_socket(house: House) -> None:
    """An application must reach a new capability without a new version of the local protocol."""
    config = house.config("veh-1")
    async with (
        meshnode.open(config, (Part("stubborn", Stubborn),)) as node,
        meshnode.connect(socket_of(config)) as application,
    ):
        for asked in (node, application):
            assert asked.ask("stubborn", [1, "a", None]) == {"asked": [1, "a", None]}
            with pytest.raises(StorageError, match="the disk is full"):
                asked.ask("stubborn", "error")
            with pytest.raises(
                LocalProtocolError,
                match="no part answers 'stubborm': ask for one of drops, history, inference_runs, models",
            ):
                asked.ask("stubborm")
        with pytest.raises(MeshError, match="a bug of the part"):
            application.ask("stubborn", "bug")
        with pytest.raises(MeshError, match="can't travel"):
            application.ask("stubborn.unsendable")


async def test_question_to_an_older_node_is_not_sent_when_it_would_hang_up(house: House) -> None:
    """A node of version 1.0 takes a subject that it does not know for a malformed frame."""
    config = house.config("veh-1")
    async with meshnode.open(config), meshnode.connect(socket_of(config)) as application:
        older = Welcome(1, 0, 1, application.mesh, application.id, application.role, application.incarnation, ())
        application._welcomed(older)
        with pytest.raises(LocalProtocolError, match="older version, which answers only drops, models"):
            application.ask("stubborn")
        assert application.peers() == []


async def test_part_between_two_nodes_is_reached_from_everywhere(house: House) -> None:
    """What the capability decides, performs, counts and tells arrives where it belongs."""
    here, there = house.config("rsu-1", role="rsu"), house.config("veh-1")
    fast = EchoSection(interval_ms=50)
    async with meshnode.open(here.with_sections(fast), (ECHO,)) as rsu:
        there = house.config("veh-1", rsu.port).with_sections(fast)
        events: list[Any] = []
        configured = meshnode.open(there, (ECHO,))
        configured.on_event(events.append)
        async with configured as vehicle, meshnode.connect(socket_of(there)) as application:
            await until(lambda: vehicle.part(RunningEcho).chimes.get(rsu.id, 0) > 2, "echoes come back")
            assert vehicle.statistics()["echo_answered"] > 2
            assert application.ask("echo.chimes")["rsu-1"] > 2
            assert application.ask("echo.ask", "rsu-1") > 2
            await until(lambda: any(type(event).__name__ == "Echoed" for event in events), "it is told")
            await asyncio.gather(rsu.wait_for_peers(1), vehicle.wait_for_peers(1))


# --- the guide -------------------------------------------------------------------------------------------------------
async def test_part_of_the_guide_does_what_the_guide_says(house: House) -> None:
    """Whoever adds a capability begins with a copy of it."""
    page = (ROOT / "docs" / "howto" / "add-a-capability.md").read_text("utf-8")
    space: dict[str, Any] = {"__name__": "meshnode_tally"}
    exec(page.split("```python\n")[1].split("```")[0], space)
    tally = space["TALLY"]
    async with meshnode.open(house.config("rsu-1", role="rsu")) as rsu:
        config = house.config("veh-1", rsu.port).with_sections(HttpSection(port=0))
        async with meshnode.open(config, parts=(tally,)) as node:
            await asyncio.gather(rsu.wait_for_peers(1), node.wait_for_peers(1))
            await wanted(rsu, "rsu/rsu-1/a")
            rsu.publish("rsu/rsu-1/a", 1)
            await until(lambda: node.ask("tally") == {"rsu-1": 1}, "it is counted")
            assert node.statistics()["tally_readings"] == 1
            url = f"http://127.0.0.1:{node.http_port}"
            assert json.loads(await asyncio.to_thread(_get, f"{url}/v1/tally")) == {"rsu-1": 1}
            metrics = (await asyncio.to_thread(_get, f"{url}/metrics")).decode()
            assert "# TYPE meshnode_tally_nodes_heard gauge" in metrics
            assert "# TYPE meshnode_tally_readings_total counter" in metrics
            arguments = ["--http", f"127.0.0.1:{node.http_port}"]
            ran = await asyncio.to_thread(CliRunner().invoke, space["tally"], arguments)
            assert ran.output == "rsu-1  1\n"


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        content: bytes = answer.read()
        return content
