"""A capability adds and does not edit: ``echo`` (:mod:`tests.system.echo`) in virtual time and in real nodes.

It has frames, a machine, an effect, an event, a section of the configuration, a command, a route, a metric, questions
for local applications and a check. Nothing of the product knows it.
"""

from collections.abc import Iterator

import pytest

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
