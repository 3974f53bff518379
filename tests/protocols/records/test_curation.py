"""Which readings become records."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base import limits
from protocols.base.errors import BoundExceeded, InvalidKey, LocalProtocolError
from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.keys import matches
from protocols.base.limits import MAX_DOUBLE_WILDCARDS, SECOND
from protocols.base.time import NEVER
from protocols.records import curation
from protocols.records.curation import CurationOutput, Curator, ReadingDerived, RecordChosen
from protocols.records.rules import CurationRule
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from tests.tools.strategies import EXPRESSIONS, MODEST

UTC = UtcNs(1_700_000_000 * SECOND)


def reading(key: str, lineage: tuple[str, ...] = (), origin: str = "v-1") -> Reading:
    how = Provenance("wheel", "m/s", lineage=lineage)
    return Reading(key, origin, 1, 2.0, Position(48.7, 11.4, 2.0), EventTime(1, 1), how, 4)


def at(seconds: float) -> MonotonicNs:
    return MonotonicNs(int(seconds * SECOND))


def chosen(curator: Curator, key: str, now_s: float, is_own: bool = True) -> str | None:
    """The rule that chose a reading of that key."""
    outputs = curator.receive(reading(key), is_own, at(now_s), UTC)
    assert len(outputs) <= 1
    return outputs[0].rule if outputs else None


def test_choose_interval_limits_each_key_apart() -> None:
    """One busy sensor must not use up the uplink of another under the same rule."""
    curator = Curator([CurationRule("speeds", "veh/*/speed", min_interval_ns=SECOND)])
    assert chosen(curator, "veh/a/speed", 10.0) == "speeds"
    assert chosen(curator, "veh/a/speed", 10.9) is None
    assert chosen(curator, "veh/b/speed", 10.9) == "speeds"
    assert chosen(curator, "veh/a/speed", 11.0) == "speeds"
    assert curator.counters() == {"chosen": 3, "limited": 1, "derived": 0, "keys_forgotten": 0}


def test_choose_first_match_decides_alone() -> None:
    """A rate limit would mean nothing if a later, wider rule recorded what it held back."""
    curator = Curator([CurationRule("slow", "veh/a/speed", min_interval_ns=SECOND), CurationRule("all", "veh/**")])
    assert chosen(curator, "veh/a/speed", 1.0) == "slow"
    assert chosen(curator, "veh/a/speed", 1.5) is None
    assert chosen(curator, "veh/a/hazard", 1.5) == "all"
    assert chosen(curator, "rsu/1/hazard", 1.5) is None


def test_choose_neighbours_reading_needs_source_any() -> None:
    """With the default every node records only what it sensed: a hazard heard by ten nodes is one record, not ten."""
    curator = Curator([CurationRule("mine", "**"), CurationRule("heard", "rsu/**", source="any")])
    assert chosen(curator, "rsu/1/hazard", 1.0, is_own=True) == "mine"
    assert chosen(curator, "rsu/1/hazard", 1.0, is_own=False) == "heard"
    assert chosen(curator, "veh/1/speed", 1.0, is_own=False) is None


def test_choose_invented_keys_keep_memory_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys come from neighbours: a hostile one may invent millions."""
    monkeypatch.setattr(curation, "MAX_CACHED_KEYS", 8)
    monkeypatch.setattr(limits, "MAX_CACHED_KEYS", 8)
    curator = Curator([CurationRule("all", "**", min_interval_ns=SECOND)])
    for number in range(100):
        assert chosen(curator, f"veh/{number}/speed", 1.0) == "all"
    assert len(curator._last_own) == len(curator._concerned_own) == 8
    assert chosen(curator, "veh/99/speed", 1.5) is None, "a recent key is still limited"


def test_choose_invented_keys_of_one_node_leave_the_intervals_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule limits what goes to the relay. A node that invents keys must not lift that limit for own keys, nor for
    those of its neighbours."""
    monkeypatch.setattr(limits, "MAX_CACHED_KEYS", 8)
    curator = Curator([CurationRule("all", "**", min_interval_ns=SECOND, source="any")])

    def is_chosen(key: str, origin: str, now_s: float) -> bool:
        return bool(curator.receive(reading(key, origin=origin), origin == "me", at(now_s), UTC))

    assert all(is_chosen(f"veh/{origin}/{n}", origin, 1.0) for origin in ("me", "v-1", "v-2") for n in range(2))
    for number in range(100):
        assert is_chosen(f"veh/v-9/{number}", "v-9", 1.0)
    assert not any(is_chosen(f"veh/{origin}/{n}", origin, 1.5) for origin in ("me", "v-1", "v-2") for n in range(2))
    assert curator.counters()["keys_forgotten"] == 4 + 100 - 8


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"keys": "veh//speed"}, InvalidKey),
        ({"name": ""}, BoundExceeded),
        ({"min_interval_ns": -1}, LocalProtocolError),
        ({"source": "others"}, LocalProtocolError),
        ({"lifespan_ms": -1}, BoundExceeded),
        ({"priority": 8}, LocalProtocolError),
    ],
)
def test_rule_out_of_range_is_refused(fields: dict[str, object], error: type[Exception]) -> None:
    """A rule that can't mean anything is found at the start, not after a day of missing records."""
    with pytest.raises(error):
        CurationRule(**({"name": "r", "keys": "veh/**"} | fields))  # type: ignore[arg-type]


def test_curator_two_rules_of_one_name_are_refused() -> None:
    """Records carry the name of their rule: two of one name could not be told apart."""
    with pytest.raises(LocalProtocolError, match="'r'"):
        Curator([CurationRule("r", "a"), CurationRule("r", "b")])


def test_record_has_the_priority_and_lifespan_of_its_rule() -> None:
    """The outbox evicts by priority, and only the rule knows what the relay needs."""
    curator = Curator([CurationRule("a", "a", priority=7, lifespan_ms=5), CurationRule("rest", "**", lifespan_ms=0)])
    assert curator.receive(reading("a"), True, at(1), UTC) == (RecordChosen("a", reading("a"), 7, 5),)
    assert curator.receive(reading("b"), True, at(1), UTC) == (RecordChosen("rest", reading("b"), 4, 0),)


# --- patterns ------------------------------------------------------------------------------------------------------
class Silence:
    """Says that a key was silent for two seconds, and keeps the reading after which it was."""

    record_lifespan_ms = None
    recording = None

    def __init__(self, name: str, key: str) -> None:
        self.name, self.expressions, self._key = name, (key,), key
        self._last: Reading | None = None
        self._due_ns = NEVER

    def predicted(self, *_: Any) -> Sequence[CurationOutput]:
        return ()

    def counters(self) -> dict[str, int]:
        return {}

    def considers(self, key: str, is_own: bool) -> bool:
        return key == self._key

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        self._last, self._due_ns = reading, now + 2 * SECOND
        return ()

    def handle_timer(self, now: MonotonicNs) -> Sequence[CurationOutput]:
        last, self._due_ns = self._last, NEVER
        assert last is not None
        return (
            RecordChosen(self.name, last, 5, 0),
            ReadingDerived(self.name, f"{last.key}/silent", True, last.where, last.when, last.how),
        )

    def next_timer_at(self) -> int:
        return self._due_ns


def test_pattern_of_absence_gives_a_record_and_a_derived_reading_when_its_time_has_come() -> None:
    """That nothing came is known by the clock alone."""
    curator = Curator([CurationRule("all", "**", min_interval_ns=SECOND)], [Silence("silence", "rsu/1/light")])
    assert (curator.next_timer_at(), curator.expressions) == (NEVER, ("rsu/1/light",))
    curator.receive(reading("rsu/1/light", origin="rsu-1"), False, at(1), UTC)
    assert curator.next_timer_at() == at(3)
    curator.receive(reading("rsu/1/light", origin="rsu-1"), False, at(2), UTC)
    assert list(curator.handle_timer(at(3))) == []
    assert curator.next_timer_at() == at(4)
    record, derived = curator.handle_timer(at(4))
    assert isinstance(record, RecordChosen)
    assert isinstance(derived, ReadingDerived)
    assert (record.rule, derived.key, derived.how.lineage) == ("silence", "rsu/1/light/silent", ("silence",))
    assert curator.next_timer_at() == NEVER
    assert curator.counters() == {"chosen": 1, "limited": 0, "derived": 1, "keys_forgotten": 0}


def test_derived_reading_is_shown_to_rules_and_other_patterns_but_not_to_its_own() -> None:
    """Patterns build on one another; one that sees what it derived would feed itself for ever."""
    first, second = Silence("first", "a"), Silence("second", "a/silent")
    curator = Curator([CurationRule("silent", "*/silent")], [first, second, Silence("again", "a/silent")])
    outputs = curator.receive(reading("a/silent", ("first", "again")), True, at(1), UTC)
    assert [output.rule for output in outputs] == ["silent"]
    derived = [output for output in curator.handle_timer(at(3)) if isinstance(output, ReadingDerived)]
    assert [(output.rule, output.how.lineage) for output in derived] == [("second", ("second", "first", "again"))]


def test_pattern_with_the_name_of_a_rule_is_refused() -> None:
    """Records carry that name."""
    with pytest.raises(LocalProtocolError, match="'r'"):
        Curator([CurationRule("r", "a")], [Silence("r", "b")])


KEYS = st.sampled_from(["a", "b", "a/b", "b/a", "a/b/a"])


@MODEST
@given(
    st.lists(
        st.tuples(
            EXPRESSIONS.filter(lambda text: text.split("/").count("**") <= MAX_DOUBLE_WILDCARDS),
            st.integers(0, 3),
            st.sampled_from(["own", "any"]),
        ),
        max_size=4,
    ),
    st.lists(st.tuples(KEYS, st.booleans(), st.integers(0, 2)), max_size=30),
)
def test_rules_in_any_order_choose_as_their_description_says(
    given_rules: list[tuple[str, int, Any]], came: list[tuple[str, bool, int]]
) -> None:
    """The first rule that matches decides alone, and no two of its records of a key are nearer than its interval."""
    rules = [
        CurationRule(str(number), keys, interval_s * SECOND, source)
        for number, (keys, interval_s, source) in enumerate(given_rules)
    ]
    curator = Curator(rules)
    now_s, last_s = 0, dict[tuple[str, str], int]()
    for key, is_own, later_s in came:
        now_s += later_s
        rule = next((r for r in rules if matches(r.keys, key) and (is_own or r.source == "any")), None)
        expected = None
        if rule is not None and now_s - last_s.get((rule.name, key), -10) >= rule.min_interval_ns // SECOND:
            expected = rule.name
            last_s[rule.name, key] = now_s
        assert chosen(curator, key, now_s, is_own) == expected


def test_record_may_wait_as_long_as_the_configuration_allows() -> None:
    """A parked vehicle delivers after weeks. The rule refused what the configuration had accepted."""
    assert CurationRule("a", "a", lifespan_ms=366 * 86_400_000).lifespan_ms == 366 * 86_400_000
    with pytest.raises(BoundExceeded, match="lifespan_ms"):
        CurationRule("a", "a", lifespan_ms=367 * 86_400_000)
