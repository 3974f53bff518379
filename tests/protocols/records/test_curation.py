"""Which readings become records."""

import pytest

from protocols.base.errors import BoundExceeded, InvalidKey, LocalProtocolError
from protocols.base.ids import MonotonicNs
from protocols.base.limits import SECOND
from protocols.records import rules as curation
from protocols.records.rules import CurationRule, Curator
from protocols.wire.readings import EventTime, Position, Provenance, Reading


def reading(key: str) -> Reading:
    return Reading(key, "v-1", 1, 2.0, Position(48.7, 11.4, 2.0), EventTime(1, 1), Provenance("wheel", "m/s"))


def chosen(curator: Curator, key: str, now_s: float, is_own: bool = True) -> str | None:
    rule = curator.choose(reading(key), is_own, MonotonicNs(int(now_s * SECOND)))
    return rule.name if rule else None


def test_choose_interval_limits_each_key_apart() -> None:
    """One busy sensor must not use up the uplink of another under the same rule."""
    curator = Curator([CurationRule("speeds", "veh/*/speed", min_interval_ns=SECOND)])
    assert chosen(curator, "veh/a/speed", 10.0) == "speeds"
    assert chosen(curator, "veh/a/speed", 10.9) is None
    assert chosen(curator, "veh/b/speed", 10.9) == "speeds"
    assert chosen(curator, "veh/a/speed", 11.0) == "speeds"
    assert curator.statistics() == {"speeds": {"chosen": 3, "limited": 1}}


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
    curator = Curator([CurationRule("all", "**", min_interval_ns=SECOND)])
    for number in range(100):
        assert chosen(curator, f"veh/{number}/speed", 1.0) == "all"
    assert len(curator._last_ns) == len(curator._deciding) == 8
    assert chosen(curator, "veh/99/speed", 1.5) is None, "a recent key is still limited"


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
