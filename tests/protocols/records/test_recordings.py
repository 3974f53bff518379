"""Recordings: what becomes a record around the moment at which a rule derives something."""

from typing import Any

import pytest

from protocols.base.errors import BoundExceeded, InvalidKey, LocalProtocolError
from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.records.curation import Curator, RecordChosen
from protocols.records.deriving.each import EachRule
from protocols.records.deriving.output import Output
from protocols.records.deriving.sources import Source
from protocols.records.recordings import LOOK_BACK_NS, Recording
from protocols.records.rules import CurationRule
from protocols.records.wanted import HistoryWanted
from protocols.wire.readings import EventTime, Position, Provenance, Reading

UTC_NS = 1_700_000_000 * SECOND
BOOT_NS = 1_000 * SECOND
NODE = NodeId("veh-1")


class Recorded:
    """A curator with one rule, ``brake``, that records."""

    def __init__(self, *rules: CurationRule, **settings: Any) -> None:
        self.rule = self.made(**settings)
        self.curator = Curator(rules, [self.rule])
        self.sequence = 0
        self.wanted: list[HistoryWanted] = []

    @staticmethod
    def made(keys: tuple[str, ...] = ("veh/*/speed",), **settings: Any) -> EachRule:
        source = Source("veh/*/brake", "any")
        rule = EachRule("brake", NODE, source, Output("veh/{node}/alert", "", record_lifespan_ms=None), lambda _: "")
        rule.recording = Recording(keys, **{"after_ns": 5 * SECOND, **settings})
        return rule

    def reading(self, key: str, at_s: float, origin: str = "veh-1") -> Reading:
        self.sequence += 1
        how, where = Provenance("s", "1"), Position(48.7, 11.4, 2.0)
        return Reading(key, origin, self.sequence, at_s, where, EventTime(int(UTC_NS + at_s * SECOND), 1), how, 4)

    def show(self, key: str, at_s: float, origin: str = "veh-1") -> list[str]:
        """The rules of the records that a reading leads to."""
        self.go_on(at_s)
        now, utc = MonotonicNs(int(BOOT_NS + at_s * SECOND)), UtcNs(int(UTC_NS + at_s * SECOND))
        outputs = self.curator.receive(self.reading(key, at_s, origin), origin == NODE, now, utc)
        return [output.rule for output in outputs if isinstance(output, RecordChosen)]

    def go_on(self, at_s: float) -> None:
        now = MonotonicNs(int(BOOT_NS + at_s * SECOND))
        while self.curator.next_timer_at() <= now:
            self.wanted += [one for one in self.curator.handle_timer(now) if isinstance(one, HistoryWanted)]

    def recalled(self, *readings: Reading, is_last: bool = True) -> list[float]:
        outputs = self.curator.recalled(self.wanted[-1].number, readings, is_last)
        return [output.reading.value for output in outputs if isinstance(output, RecordChosen)]

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.curator.recording_counters("brake"))


def test_readings_become_records_while_the_rule_finds_something_and_a_little_longer() -> None:
    """Each match has it go on; nothing is recorded before and after."""
    here = Recorded()
    assert here.show("veh/veh-1/speed", 1) == []
    assert here.show("veh/veh-1/brake", 2) == []
    assert here.show("veh/veh-1/speed", 3) == ["brake"]
    assert here.show("veh/veh-1/other", 3) == []
    here.show("veh/veh-1/brake", 6)
    assert here.show("veh/veh-1/speed", 10.9) == ["brake"]
    assert here.show("veh/veh-1/speed", 11.1) == []
    assert here.counters == {"recordings": 1, "recorded": 2}
    assert here.curator.next_timer_at() == NEVER


def test_recording_looks_back_also_when_the_clock_was_set_back_since_the_last_one() -> None:
    """By the clock that one has not even begun."""
    here = Recorded(before_ns=30 * SECOND)
    here.show("veh/veh-1/brake", 100)
    here.go_on(110)
    set_back = UtcNs(UTC_NS - 3_000 * SECOND)
    here.curator.receive(here.reading("veh/veh-1/brake", -3_000), True, MonotonicNs(BOOT_NS + 120 * SECOND), set_back)
    here.go_on(123)
    assert [(wanted.since_ns - wanted.until_ns) // SECOND for wanted in here.wanted] == [-30, -30]


def test_readings_of_neighbours_are_recorded_only_when_it_says_so() -> None:
    here, any_ = Recorded(), Recorded(source="any")
    for each in (here, any_):
        each.show("veh/veh-1/brake", 2)
    assert here.show("veh/veh-2/speed", 3, "veh-2") == []
    assert any_.show("veh/veh-2/speed", 3, "veh-2") == ["brake"]
    assert (here.rule.expressions, any_.rule.expressions) == (("veh/*/brake",), ("veh/*/brake", "veh/*/speed"))


def test_reading_that_is_a_record_already_and_the_one_that_was_the_reason_are_records_once() -> None:
    """The relay has no use for the same reading twice."""
    here = Recorded(CurationRule("all", "veh/*/speed"), keys=("veh/**",))
    assert here.show("veh/veh-1/brake", 2) == ["brake"]
    assert here.show("veh/veh-1/speed", 3) == ["all"]
    assert here.counters == {"recordings": 1, "recorded": 1}


def test_reading_that_became_a_record_before_the_recording_began_is_not_recorded_out_of_the_history() -> None:
    """What another rule left out still is."""
    here = Recorded(CurationRule("some", "veh/*/speed", min_interval_ns=5 * SECOND), before_ns=30 * SECOND)
    shown = [here.reading("veh/veh-1/speed", at_s) for at_s in (1, 2)]
    for at_s, reading in enumerate(shown, 1):
        now = at_s * SECOND
        here.curator.receive(reading, True, MonotonicNs(BOOT_NS + now), UtcNs(UTC_NS + now))
    here.show("veh/veh-1/brake", 3)
    here.go_on(6)
    assert here.recalled(*shown) == [2]
    assert here.counters == {"recordings": 1, "recorded": 1}


def test_time_before_is_wanted_once_and_what_came_in_both_ways_is_a_record_once() -> None:
    """A history is written a little later, and a reading that was sensed before may come after."""
    here = Recorded(before_ns=10 * SECOND, max_records=50)
    here.show("veh/veh-1/brake", 20)
    assert here.show("veh/veh-1/speed", 20.5) == ["brake"]
    late = here.reading("veh/veh-1/speed", 19)
    now, utc = MonotonicNs(BOOT_NS + 21 * SECOND), UtcNs(UTC_NS + 21 * SECOND)
    assert [type(one) for one in here.curator.receive(late, True, now, utc)] == [RecordChosen]
    assert here.wanted == []
    here.go_on(20 + LOOK_BACK_NS / SECOND)
    (wanted,) = here.wanted
    assert (wanted.rule, wanted.keys, wanted.own_only, wanted.most) == ("brake", ("veh/*/speed",), True, 48)
    assert (wanted.since_ns - UTC_NS, wanted.until_ns - UTC_NS) == (10 * SECOND, 20 * SECOND)
    early = here.reading("veh/veh-1/speed", 11)
    assert here.recalled(early, late, is_last=False) == [11]
    here.go_on(100)
    assert here.recalled(early, here.reading("veh/veh-1/speed", 12)) == [12], "also when it has ended meanwhile"
    assert here.recalled(here.reading("veh/veh-1/speed", 13)) == [], "nothing comes after the last part"
    assert here.counters == {"recordings": 1, "recorded": 4}


def test_recording_after_another_one_reaches_back_to_its_end_only() -> None:
    """Otherwise what was recorded would be recorded again."""
    here = Recorded(before_ns=60 * SECOND, after_ns=SECOND)
    here.show("veh/veh-1/brake", 100)
    here.show("veh/veh-1/brake", 110)
    here.go_on(120)
    first, second = here.wanted
    assert (first.since_ns - UTC_NS, first.until_ns - UTC_NS) == (40 * SECOND, 100 * SECOND)
    assert (second.since_ns - UTC_NS, second.until_ns - UTC_NS) == (101 * SECOND, 110 * SECOND)


def test_recording_is_bounded_also_when_the_rule_finds_something_all_the_time() -> None:
    here = Recorded(max_records=3)
    records = [rule for number in range(10) for key in ("brake", "speed") for rule in here.show(f"veh/a/{key}", number)]
    assert records == ["brake"] * 3
    assert here.counters == {"recordings": 1, "recorded": 3, "not_recorded": 7}


def test_time_before_that_is_not_looked_up_in_time_is_counted() -> None:
    """A disk that hangs must not have recordings pile up."""
    here = Recorded(before_ns=SECOND, after_ns=SECOND)
    for number in range(3):
        here.show("veh/veh-1/brake", 10 * number)
    here.go_on(40)
    assert here.counters == {"recordings": 3, "not_recalled": 2}


def test_recording_ends_with_a_rule_that_is_used_no_more_and_goes_on_with_one_that_stays() -> None:
    here = Recorded()
    here.show("veh/veh-1/brake", 1)
    here.curator.exchange([here.rule])
    assert here.show("veh/veh-1/speed", 2) == ["brake"]
    here.curator.exchange([])
    assert here.show("veh/veh-1/speed", 3) == []
    assert here.curator.next_timer_at() == NEVER


@pytest.mark.parametrize(
    ("settings", "error", "why"),
    [
        ({"after_ns": 0}, LocalProtocolError, "neither back nor on"),
        ({"keys": ()}, BoundExceeded, "has 0 keys"),
        ({"keys": ("a//b",)}, InvalidKey, "a//b"),
        ({"before_ns": 3_601 * SECOND}, BoundExceeded, "for more than 3600 s"),
        ({"max_records": 10_001}, BoundExceeded, "max_records is 10001: use 1 to 10000"),
        ({"lifespan_ms": -1}, BoundExceeded, "lifespan_ms is -1"),
    ],
)
def test_recording_that_can_not_be_is_refused(settings: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        Recorded(**settings)
