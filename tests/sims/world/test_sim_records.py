"""Records in simulation: they outlive what relay, disk and process suffer, and each ends in exactly one state."""

from typing import Any

import pytest
from msgspec.structs import replace

from sims.results.result import Result
from sims.runs.run import Run
from sims.scenario.file import Cellular, Checks, Curation, Fault, Fixed, Group, Hole, Radio, Scenario, Traffic, load

ALONE = Scenario(
    "alone", "One car and the relay.", 40.0, (Group("car", 1, Fixed(((0.0, 0.0),)), relay=True),),
    radio=Radio("ideal"), traffic=(Traffic("car", rate_hz=4.0),), curation=Curation(interval_s=0),
    checks=Checks(settle_s=15.0),
)  # fmt: skip
CAR = ("car-0",)


def ran(*faults: Fault, **changed: Any) -> tuple[Result, Run]:
    """A run that keeps every promise."""
    run = Run(replace(ALONE, faults=faults, **changed), 1)
    result = run.go()
    assert result.broken == []
    assert result.checks["record_in_one_state"].passed >= 35
    return result, run


def accounted(counters: dict[str, int]) -> int:
    """Records whose fate is known."""
    states = ("delivered", "expired", "evicted", "refused", "waiting", "lost_with_disk")
    return sum(counters[f"records_{state}"] for state in states)


# --- without faults ------------------------------------------------------------------------------------------------
def test_records_without_faults_arrive_in_a_round_trip() -> None:
    """Four a second; the last ones are on their way."""
    result, run = ran()
    counters = result.counters
    assert counters["records_made"] == counters["published"] >= 155
    assert counters["records_waiting"] <= 2
    assert list(run.world.stored("car-0")) == list(range(1, counters["records_at_relay"] + 1))
    assert 0.05 < result.figures["record_took_p50_s"] < 0.2
    assert result.checks["records_arrive"].passed == 1


def test_records_of_one_key_keep_their_interval() -> None:
    """Curation chooses one in twenty, as the same rule does in a real node."""
    result, _ = ran(curation=Curation(interval_s=5.0))
    assert result.counters["records_made"] == 8


def test_nodes_without_relay_make_no_records() -> None:
    """Large meshes pay nothing for what they don't do."""
    groups = (replace(ALONE.groups[0], relay=False),)
    result = Run(replace(ALONE, groups=groups, duration_s=5.0), 1).go()
    assert [name for name in result.counters if name.startswith("record")] == []
    assert "record_in_one_state" not in [name for name, check in result.checks.items() if check.passed]


# --- the way to the relay ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tunnels() -> tuple[tuple[Result, Run], tuple[Result, Run]]:
    """The tunnel as it is, and with coverage in it; without the gossip, which is not looked at."""
    scenario = replace(load("tunnel"), gossip=())
    runs = [Run(replace(scenario, cellular=Cellular(latency_ms=60, holes=h)), 1) for h in (scenario.cellular.holes, ())]
    holed, covered = ((run.go(), run) for run in runs)
    return holed, covered


def test_records_made_in_the_tunnel_arrive_behind_it(tunnels: tuple[tuple[Result, Run], tuple[Result, Run]]) -> None:
    """Each car is cut off for 40 s, keeps its records, and loses none."""
    result, _ = tunnels[0]
    counters = result.counters
    assert result.broken == []
    assert result.checks["record_in_one_state"].passed > 1_000
    assert result.checks["records_arrive"].passed == 11
    assert counters["records_made"] == counters["records_delivered"] + counters["records_waiting"] > 1_000
    assert counters["records_waiting"] <= 10
    assert counters["records_late"] > 10 * 25  # at least 25 s of each car's 40
    assert 38 < result.figures["record_took_max_s"] < 55
    assert result.sometimes["relay out of reach"] == result.sometimes["relay reached"] == 10


def test_tunnel_changes_nothing_but_when_records_arrive(tunnels: tuple[tuple[Result, Run], tuple[Result, Run]]) -> None:
    """What nodes say to one another, and which records they make, does not depend on the way to the relay."""
    (holed, with_hole), (covered, without) = tunnels
    assert covered.figures["record_took_max_s"] < 1.5
    assert covered.counters["records_late"] == 0
    assert holed.counters["records_made"] == covered.counters["records_made"]
    for name in with_hole.world.names:
        mine, theirs = (run.world.records.contents(name) for run in (with_hole, without))
        shared = sorted(mine.keys() & theirs.keys())
        assert len(shared) >= len(theirs) - 2  # the last may be on their way
        assert [mine[number] for number in shared] == [theirs[number] for number in shared]
    for same in ("latency", "discovery", "drops"):
        assert getattr(holed, same) == getattr(covered, same)


def test_records_of_a_relay_outage_arrive_after_it() -> None:
    """The relay comes back without knowing its connections, and every node finds out."""
    result, run = ran(Fault("relay-outage", 5.0, 10.0))
    assert result.counters["records_waiting"] <= 2
    assert accounted(result.counters) == result.counters["records_made"]
    assert result.counters["records_late"] == 0 or result.figures["record_took_max_s"] > 10
    assert 8 < result.figures["record_took_max_s"] < 20
    assert sorted(run.world.stored("car-0")) == list(range(1, result.counters["records_at_relay"] + 1))
    assert result.sometimes["relay out of reach"] >= 1


def test_little_room_and_little_time_end_records_in_every_way() -> None:
    """What the relay lacks, it knows the state of: no hole, nothing missing."""
    evicted, _ = ran(Fault("relay-outage", 5.0, 10.0), curation=Curation(interval_s=0, max_records=8))
    expired, _ = ran(Fault("relay-outage", 5.0, 10.0), curation=Curation(interval_s=0, lifespan_s=3.0))
    assert evicted.counters["records_evicted"] > 20
    assert expired.counters["records_expired"] > 20
    for result in (evicted, expired):
        assert accounted(result.counters) == result.counters["records_made"]


# --- processes and disks -------------------------------------------------------------------------------------------
def test_records_survive_a_crash_with_the_disk_and_are_stored_once() -> None:
    """An answer that the process did not live to hear is asked for again."""
    crashes = [Fault("crash", 5.0 + 2.03 * turn, 1.0, CAR) for turn in range(8)]
    result, run = ran(*crashes, cellular=Cellular(latency_ms=300))
    stored = list(run.world.stored("car-0"))
    assert sorted(stored) == list(range(1, len(stored) + 1))
    assert result.counters["records_lost_with_disk"] == 0
    assert result.counters["records_at_relay"] >= result.counters["records_made"] - 8


def test_records_of_a_lost_disk_are_named_and_the_node_goes_on_where_the_relay_stands() -> None:
    """No later record takes the place of an earlier one."""
    outage, crash = Fault("relay-outage", 5.0, 3.0), Fault("crash", 7.0, 3.0, CAR, keep_disk=False)
    result, run = ran(outage, crash)
    counters = result.counters
    assert counters["records_lost_with_disk"] >= 6
    assert accounted(counters) == counters["records_made"]
    contents = run.world.records.contents("car-0")
    assert len(contents) == len(set(contents.values())) == counters["records_at_relay"]


def test_full_disk_takes_no_records_and_no_sequence_is_spent_on_them() -> None:
    """So the relay misses nothing."""
    result, run = ran(Fault("full-disk", 5.0, 5.0, CAR))
    assert 18 <= result.counters["records_not_written"] <= 21
    assert sorted(run.world.stored("car-0")) == list(range(1, result.counters["records_at_relay"] + 1))


def test_acknowledgements_that_a_full_disk_did_not_keep_are_asked_for_again() -> None:
    """After the crash the node knows less than the relay."""
    result, run = ran(
        Fault("relay-outage", 5.0, 5.0), Fault("full-disk", 9.0, 12.0, CAR), Fault("crash", 20.0, 2.0, CAR)
    )
    stored = list(run.world.stored("car-0"))
    assert len(stored) == len(set(stored))
    assert accounted(result.counters) == result.counters["records_made"]


def test_full_disk_at_the_introduction_makes_no_copies_after_a_crash() -> None:
    """The relay knew records of this outbox before its disk knew that the relay did."""
    result, run = ran(
        Fault("full-disk", 0.4, 6.0, CAR), Fault("crash", 4.0, 1.0, CAR), traffic=(Traffic("car", rate_hz=10.0),)
    )
    contents = list(run.world.records.contents("car-0").values())
    assert len(contents) == len(set(contents)) > 200
    assert result.counters["records_not_written"] > 10


@pytest.mark.parametrize("jump_s", [-3_600.0, 3_600.0])
def test_records_survive_a_clock_that_jumps(jump_s: float) -> None:
    """With a lifespan of a day none of them expires."""
    result, _ = ran(Fault("clock-jump", 5.0, 8.0, CAR, jump_s=jump_s))
    assert result.counters["records_at_relay"] >= result.counters["records_made"] - 2


def test_car_that_stays_in_a_hole_is_not_blamed() -> None:
    """Nothing can arrive from there; its records wait and are accounted for."""
    result, _ = ran(cellular=Cellular(holes=(Hole(0.0, 0.0, 10.0),)))
    assert result.counters["records_waiting"] == result.counters["records_made"]
    assert result.checks["records_arrive"].passed == 0
