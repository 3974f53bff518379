"""A capability adds and does not edit: ``echo`` (:mod:`tests.system.echo`) in virtual time and in real nodes.

It has frames, a machine, an effect, an event, a section of the configuration, a command, a route, a metric, questions
for local applications and a check. Nothing of the product knows it.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import meshnode
from meshnode.loading import load as load_config
from meshnode.local.section import socket_of
from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.settings import NodeSettings
from sims.checks import contract
from sims.runs.run import simulate
from sims.scenario.file import load
from sims.virtual.capability import Capability
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from tests.system.echo.checks import EchoesComeBack
from tests.system.echo.frames import FRAMES
from tests.system.echo.machine import Chime, Echo, Echoed
from tests.system.echo.part import ECHO
from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, environment, prepare

PROGRAM = "tests.system.echo"
"""``meshnode`` with one more part."""
TABLE = "[echo]\ninterval_ms = 50\n"


def echo_of(chimes: list[tuple[str, NodeId]], interval_ns: int = 200 * MS) -> Capability:
    def made(settings: NodeSettings) -> Echo:
        return Echo(interval_ns)

    def chime(node: SimNode, effect: Chime) -> None:
        chimes.append((node.name, effect.node))

    return Capability(made, FRAMES, {Chime: chime})


def test_capability_in_virtual_time_sends_frames_counts_and_performs() -> None:
    """Its frames pass, its timer rings, its event and its effect reach those for whom they are."""
    chimes: list[tuple[str, NodeId]] = []
    sim = SimDriver(1, capabilities=[echo_of(chimes)])
    for name in ("a", "b"):
        sim.add(name)
    sim.meet()
    sim.run_for(3 * SECOND)
    counters = sim.nodes[NodeId("a")].engine.statistics()
    assert counters["echo_answered"] > 10
    assert counters["echo_asked_of_us"] > 10
    assert counters["frames_unknown"] == 0
    assert ("a", NodeId("b")) in chimes
    echoed = [event for _, event in sim.nodes[NodeId("b")].events if type(event) is Echoed]
    assert all(event.took_ns >= 2 * MS for event in echoed)
    assert len(echoed) > 10


def test_capability_is_skipped_by_nodes_that_do_not_have_it() -> None:
    """A mesh is never updated all at once."""
    sim = SimDriver(1, capabilities=[echo_of([])])
    sim.add("new")
    sim._capabilities = ()
    sim.add("old")
    sim.meet()
    sim.run_for(2 * SECOND)
    counters = sim.nodes[NodeId("new")].engine.statistics()
    assert counters["echo_asked"] > 5
    assert counters["echo_answered"] == 0
    assert sim.nodes[NodeId("new")].engine.membership.is_alive(NodeId("old"))


@pytest.fixture
def known_check() -> Iterator[None]:
    contract.register(EchoesComeBack)
    yield
    del contract._known[EchoesComeBack.name]


def test_capability_has_its_check_judged_in_a_scenario(known_check: None) -> None:
    """A run of a shipped scenario, in which every node has one capability more."""
    result = simulate(load("pair"), 1, capabilities=[echo_of([])])
    assert result.checks[EchoesComeBack.name].passed > 0
    assert result.checks[EchoesComeBack.name].failed == 0
    assert result.counters["echo_answered"] > 0


# --- real nodes ------------------------------------------------------------------------------------------------------
def shown_by_command(node: RunningNode) -> str:
    """What the capability's command prints."""
    ran = subprocess.run(
        [sys.executable, "-m", PROGRAM, "echo", "--http", f"127.0.0.1:{node.http_port}"],
        env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return ran.stdout.strip()


@pytest.mark.processes
async def test_capability_between_two_real_nodes_is_reached_from_everywhere(tmp_path: Path) -> None:
    """Two processes over mutual TLS: its section, frames, effects, counters, metric, route, command and questions."""
    with (
        RunningNode(prepare(tmp_path, "rsu-1", "rsu", TABLE), PROGRAM) as rsu,
        RunningNode(prepare(tmp_path, "veh-1", "vehicle", TABLE, (rsu.port,)), PROGRAM) as vehicle,
    ):
        eventually(lambda: vehicle.get("/v1/echo").get("rsu-1", 0) > 3, "echoes come back")
        metrics = vehicle.ask("GET", "/metrics")[2].decode()
        assert 'meshnode_echo_chimes_total{neighbour="rsu-1"}' in metrics
        assert "# TYPE meshnode_echo_neighbours_heard gauge" in metrics
        assert "# TYPE meshnode_echo_answered_total counter" in metrics
        node, _, count = shown_by_command(vehicle).partition(" ")
        assert (node, int(count) > 3) == ("rsu-1", True)
        async with meshnode.connect(socket_of(load_config(vehicle.config, (ECHO,)))) as application:
            told: list[str] = []
            application.on_event(lambda event: told.append(type(event).__name__))
            assert application.ask("echo.chimes")["rsu-1"] > 3
            assert application.ask("echo.ask", "rsu-1") > 3
            eventually(lambda: "Echoed" in told, "an application is told of its event")


@pytest.mark.processes
def test_section_of_the_capability_is_refused_where_the_capability_is_missing(tmp_path: Path) -> None:
    """A table that nobody reads would be a setting that does nothing."""
    config = prepare(tmp_path, "rsu-1", "rsu", TABLE)
    plain = subprocess.run(
        [sys.executable, "-m", "meshnode.cli", "run", str(config)],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert plain.returncode == 2
    assert "echo" in plain.stderr
