"""Records in simulation: they survive what the relay, the disk and the process suffer, each in exactly one state."""

import pytest

from sims.result import Result
from sims.run import Run
from sims.scenario import Checks, Fault, Fixed, Group, Radio, Scenario

ALONE = Scenario(
    "alone", "One car and the relay.", 30.0, (Group("car", 1, Fixed(((0.0, 0.0),)), relay=True),),
    radio=Radio("ideal"), checks=Checks(settle_s=5.0),
)  # fmt: skip
CAR = ("car-0",)


def made(*faults: Fault) -> tuple[Result, list[int]]:
    """The run, and what the relay has of the car."""
    run = Run(Scenario(**{name: getattr(ALONE, name) for name in ALONE.__struct_fields__} | {"faults": faults}), 1)
    result = run.go()
    assert result.broken == []
    assert result.checks["record_in_one_state"].passed >= 30
    return result, list(run.world.stored("car-0"))


def test_records_without_faults_are_all_delivered() -> None:
    """Four a second; the last ones are on their way."""
    result, stored = made()
    assert stored == list(range(1, len(stored) + 1))
    assert len(stored) >= 115
    assert result.counters["records_expired"] == result.counters["records_evicted"] == 0
    assert result.counters["records_issued"] - result.counters["records_delivered"] <= 4


def test_records_of_a_long_outage_expire_and_are_evicted_and_the_rest_arrives() -> None:
    """What the relay lacks is accounted for by its state."""
    result, stored = made(Fault("relay-outage", 5.0, 10.0))
    counters = result.counters
    assert counters["records_expired"] > 0
    assert counters["records_evicted"] > 0
    assert max(stored) >= 110
    lost = counters["records_expired"] + counters["records_evicted"]
    assert len(stored) + lost + counters["records_pending"] >= counters["records_issued"] >= len(stored) + lost


def test_records_go_on_after_a_crash_with_the_disk() -> None:
    """The relay gets each once, though the acknowledgement of some was lost with the process."""
    _, stored = made(Fault("crash", 5.1, 3.0, CAR), Fault("crash", 12.3, 2.0, CAR))
    assert sorted(stored) == list(range(1, len(stored) + 1))
    assert len(stored) >= 90


def test_records_of_a_node_that_lost_its_disk_get_sequences_that_the_relay_does_not_have() -> None:
    """The relay tells where it stands, and no record takes the place of another."""
    result, stored = made(Fault("crash", 10.0, 3.0, CAR, keep_disk=False))
    assert len(stored) == len(set(stored)) >= 90
    assert result.counters["records_refused"] == 0


def test_records_while_the_disk_is_full_are_not_even_issued() -> None:
    """They have no sequence, so the relay misses nothing."""
    result, stored = made(Fault("full-disk", 5.0, 5.0, CAR))
    assert 18 <= result.counters["records_unwritten"] <= 21
    assert stored == list(range(1, len(stored) + 1))


@pytest.mark.parametrize("jump_s", [-3_600.0, 3_600.0])
def test_records_survive_a_clock_that_jumps(jump_s: float) -> None:
    """Those with a lifespan may expire early; none is lost without a word."""
    result, stored = made(Fault("clock-jump", 5.0, 8.0, CAR, jump_s=jump_s))
    assert len(stored) + result.counters["records_expired"] >= 110
