"""From fixes to samples: what the node believes of its place and clock, with a fix and without."""

from pathlib import Path
from random import Random

from meshnode.sensors import DriverContext, Sample
from meshnode.sensors.gnss.fixes import FixKind, SatelliteFix
from meshnode.sensors.gnss.tracking import MAX_ACCURACY_M, Tracker
from protocols.base.ids import node_id
from protocols.base.limits import MS, SECOND

UTC_NS = 1_800_000_000 * SECOND


def tracker(replays: bool = False) -> tuple[Tracker, DriverContext, list[str]]:
    troubles: list[str] = []
    context = DriverContext(node_id("v-1"), Path(), Random(1), trouble=troubles.append, logs_skipped=False)
    return Tracker(context, "gnss", SECOND, replays), context, troubles


def keys(samples: list[Sample]) -> list[str]:
    return [sample.key.rsplit("/", 1)[1] for sample in samples]


def test_fix_becomes_position_speed_and_now_and_then_the_state() -> None:
    """The time of the fix is that of the reading, and its quality follows its kind."""
    seen, _, troubles = tracker()
    first = list(
        seen.fixed(SatelliteFix(3, 48.7, 11.4, 2.0, UTC_NS, 5 * MS, speed_mps=12.0, heading_deg=80.0), 1.0, UTC_NS)
    )
    assert keys(first) == ["position", "speed", "gnss"]
    position, speed, state = first
    assert position.where is not None
    assert (position.where.latitude_deg, position.where.heading_deg, position.where.accuracy_m) == (48.7, 80.0, 2.0)
    assert position.when is not None
    assert (position.when.utc_ns, position.when.uncertainty_ns) == (UTC_NS, 5 * MS)
    assert (position.clock_uncertainty_ns, position.quality, speed.value) == (10 * MS, 0.8, 12.0)
    assert state.value == {"fix": "3d", "kind": "autonomous"}
    assert troubles == [""]
    again = list(seen.fixed(SatelliteFix(3, 48.7, 11.4, 2.0, UTC_NS + SECOND), 2.0, UTC_NS + SECOND))
    assert keys(again) == ["position"], "no speed is known, and the state is the same"
    better = list(
        seen.fixed(SatelliteFix(3, 48.7, 11.4, 0.02, UTC_NS + 2 * SECOND, kind=FixKind.RTK_FIXED), 3.0, UTC_NS)
    )
    assert keys(better) == ["position", "gnss"]
    assert better[0].quality == 1.0


def test_heading_of_a_vehicle_that_stands_is_the_one_in_which_it_came() -> None:
    """The direction of motion of something that does not move is noise."""
    seen, _, _ = tracker()
    list(seen.fixed(SatelliteFix(3, 48.7, 11.4, 2.0, UTC_NS, speed_mps=10.0, heading_deg=80.0), 1.0, UTC_NS))
    stands = list(
        seen.fixed(SatelliteFix(3, 48.7, 11.4, 2.0, UTC_NS + 1, speed_mps=0.1, heading_deg=233.0), 2.0, UTC_NS)
    )
    assert stands[0].where is not None
    assert stands[0].where.heading_deg == 80.0


def test_gap_is_told_each_second_with_its_reason_and_the_place_becomes_vague() -> None:
    """A node that still says 2 m after a minute in a tunnel lies."""
    seen, _, troubles = tracker()
    assert list(seen.waited(0.0, "silent")) == []
    list(seen.fixed(SatelliteFix(3, 48.7, 11.4, 2.0, UTC_NS, speed_mps=20.0), 1.0, UTC_NS))
    told = [sample for tenth in range(11, 610) for sample in seen.missing("no sky", tenth / 10)]
    assert keys(told) == ["gnss"] * 60
    assert told[0].value == {"fix": "none", "why": "no sky", "since_s": 0.1}
    accuracies = [sample.where.accuracy_m for sample in told if sample.where is not None]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] > 20.0 * 59
    assert troubles == ["", "no sky"]
    assert next(iter(seen.missing("no sky", 1e9))).where.accuracy_m == MAX_ACCURACY_M  # type: ignore[union-attr]
    back = list(seen.fixed(SatelliteFix(2, 48.8, 11.4, 9.0, UTC_NS + 60 * SECOND), 1e9 + 1, UTC_NS))
    assert keys(back) == ["position", "gnss"]
    assert troubles == ["", "no sky", ""]


def test_receiver_that_says_nothing_is_told_too_and_one_without_any_fix_has_no_place() -> None:
    """Nothing is made up before the first fix."""
    seen, _, troubles = tracker()
    told = [sample for tenth in range(100) for sample in seen.waited(tenth / 10, "silent")]
    assert [sample.value for sample in told] == [{"fix": "none", "why": "silent"}] * 8
    assert all(sample.where is None for sample in told)
    assert troubles == ["silent"]


def test_clock_that_was_set_is_told_with_the_next_fix() -> None:
    """Everybody who judges the age of readings has to know."""
    seen, _, _ = tracker()
    list(seen.fixed(SatelliteFix(3, 48.7, 11.4, 2.0, UTC_NS), 1.0, UTC_NS + 100 * MS))
    position = next(seen.fixed(SatelliteFix(3, 48.7, 11.4, 2.0, UTC_NS + SECOND), 2.0, UTC_NS + 31 * SECOND))
    assert position.clock_uncertainty_ns is not None
    assert 29 * SECOND <= position.clock_uncertainty_ns <= 31 * SECOND
    assert position.when is not None
    assert position.when.utc_ns == UTC_NS + SECOND, "the time of a fix is not this clock's"


def test_receiver_whose_weeks_have_begun_again_and_a_replay_say_no_time() -> None:
    """Old receivers live 19.6 years in the past, and a log is of another day."""
    seen, context, _ = tracker()
    old = next(seen.fixed(SatelliteFix(3, 48.7, 11.4, 2.0, 1_200_000_000 * SECOND), 1.0, UTC_NS))
    assert (old.when, old.clock_uncertainty_ns) == (None, None)
    assert "count of weeks" in context.last_skipped
    replayed = next(tracker(replays=True)[0].fixed(SatelliteFix(3, 48.7, 11.4, 2.0, UTC_NS), 1.0, 0))
    assert (replayed.when, replayed.clock_uncertainty_ns) == (None, None)
