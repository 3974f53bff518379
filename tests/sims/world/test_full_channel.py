"""A channel from which more is asked than it gives: what comes is new, shared fairly, and nobody is taken for dead."""

from functools import cache

import pytest
from msgspec.structs import replace

from protocols.base.limits import MS, SECOND
from sims.results.result import Result
from sims.runs.run import simulate
from sims.scenario.file import Checks, Fault, Scenario, load
from sims.virtual.driver import SimDriver


@cache
def jam(vehicles: int, duration_s: float = 40.0, faults: tuple[Fault, ...] = ()) -> Result:
    scenario: Scenario = load("jam")
    (group,) = scenario.groups
    return simulate(
        replace(scenario, groups=(replace(group, count=vehicles),), duration_s=duration_s, faults=faults,
                checks=Checks(("no_neighbour_older_than_lifetime", "queues_within_bounds"))), 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("vehicles", "useful_per_s", "age_p50_ms", "age_p95_ms"),
    [(12, 900, 200, 500), (18, 900, 400, 1_500), (30, 800, 1_200, 2_500)],
)
def test_vehicles_in_a_jam_know_where_the_others_are(
    vehicles: int, useful_per_s: float, age_p50_ms: float, age_p95_ms: float
) -> None:
    """With sixteen of them the mesh stopped: everything arrived after its time, for as long as the run lasted."""
    result = jam(vehicles)
    assert result.useful_per_s > useful_per_s
    assert result.age.quantiles["p50"] < age_p50_ms
    assert result.age.quantiles["p95"] < age_p95_ms
    assert result.urgent.quantiles["p95"] < 400
    assert result.counters["deaths"] == 0
    assert result.broken == []


def test_crowd_of_sixty_meets_and_its_channel_carries_as_much_as_ever() -> None:
    """Their handshakes ran into time-outs and began again, until nothing else was on the channel: 115 useful readings
    a second, and 727 neighbours given up in a minute."""
    result = jam(60, 45.0)
    assert result.useful_per_s > 750
    assert result.counters["deaths"] == 0
    assert result.counters["dials_failed"] == 0
    assert sum(result.meetings) > 2_000, "of 3,540"
    assert result.broken == []


def test_slow_neighbour_among_ten_good_ones_slows_nobody_but_itself() -> None:
    """A link of 100 kb/s, on which a third of what is published has room."""
    sim = SimDriver(1)
    names = [f"n{number}" for number in range(12)]
    for name in names:
        sim.add(name)
        sim.subscribe(name, "veh/*/x")
    sim.meet()
    sim.run_for(2 * SECOND)
    sim.shape("n0", "n11", 5 * MS, 100_000 // 8)
    for node in sim.numbered:
        node.received.clear()
    for number in range(200):
        sim.publish("n0", "veh/n0/x", bytes(1_000), lifespan_ms=1_000)
        sim.run_for(20 * MS)
        if number == 100:
            assert not sim.numbered[0].engine.lanes.pace.active
    for name in names[1:11]:
        received = sim.numbered[int(name[1:])].received
        assert len(received) >= 199, "each reading came"
    slow = sim.numbered[11].received
    assert 30 <= len(slow) <= 80
    newest = max(reading.sequence for _, reading in sim.numbered[1].received)
    assert newest - slow[-1][1].sequence < 45, "what comes there is from the last second"


def test_crowd_that_thins_out_gets_all_of_the_channel_again() -> None:
    """Thirty vehicles, of which eighteen drive on after 35 s; then the others have what twelve have, within 10 s."""
    gone = Fault("crash", 35.0, 0.0, tuple(f"car-{number}" for number in range(12, 30)))
    thinned = (_useful(jam(30, 55.0, (gone,))) - _useful(jam(30, 45.0, (gone,)))) / 10
    twelve = (_useful(jam(12, 40.0)) - _useful(jam(12, 30.0))) / 10
    assert thinned > 0.8 * twelve


def _useful(result: Result) -> float:
    """How many useful readings there were, from when the last vehicle had started."""
    return result.useful_per_s * (result.virtual_s - (result.nodes - 1) * 0.5)
