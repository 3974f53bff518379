"""What a value says of other readings leaves as these readings would, or not at all."""

import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest

from meshnode.records.egress.door import EgressDoor
from protocols.base.ids import NodeId
from protocols.base.limits import SECOND
from protocols.records.egress.area import Area
from protocols.records.egress.gate import EgressGate, KeptBack
from protocols.records.egress.rules import EgressPolicy, EgressRule
from protocols.wire.readings import Reading
from tests.tools.strategies import NOW_UTC_NS, reading

DAY_S = 86_400
RULE = EgressRule("r", "**", time_s=3_600, pseudonym_s=DAY_S)


def judged(rule: EgressRule, one: Reading) -> Any:
    gate = EgressGate(
        EgressPolicy([rule]), NodeId("rsu-1"), lambda message: hmac.digest(b"k" * 32, message, hashlib.sha256)
    )
    return gate.judged(one)


def described(**changed: Any) -> dict[str, Any]:
    whole = {"key": "veh/veh-9/speed", "origin": "veh-9", "sequence": 17, "utc_ns": NOW_UTC_NS + 123, "value": 3.0}
    return whole | changed


def test_description_behind_a_number_in_a_list_is_veiled() -> None:
    """An expression such as [value.count, value.readings[0]] makes one."""
    for value in ([3, described()], {"a": [[1, [described()]]]}):
        assert "veh-9" not in repr(judged(RULE, reading(value=value)).value)


def test_window_within_a_description_has_whole_buckets() -> None:
    """A pattern over the trips of a vehicle told the second in which each began."""
    begins_ns = NOW_UTC_NS // (3_600 * SECOND) * 3_600 * SECOND
    trip = {"start_ns": begins_ns + 5, "end_ns": begins_ns + 10, "until_ns": begins_ns + 11, "count": 3}
    value = {"first": described(value=trip), "then": described(value=trip)}
    ends_ns = begins_ns + 3_600 * SECOND
    whole = {"start_ns": begins_ns, "end_ns": ends_ns, "until_ns": ends_ns, "count": 3}
    released = judged(RULE, reading(value=value))
    assert (released.value["first"]["value"], released.value["then"]["value"]) == (whole, whole)


@pytest.mark.parametrize(
    "changed",
    [
        {"key": "a/" * 101}, {"key": "a/" * 20 + "a"}, {"key": ["veh", "veh-9"]}, {"origin": "v" * 64}, {"origin": 9},
        {"utc_ns": 1.5}, {"utc_ns": -1}, {"sequence": "17"},
    ],
)  # fmt: skip
def test_description_of_what_is_no_reading_stays(changed: dict[str, Any]) -> None:
    """A neighbour sent a key of 8 MB, all slashes, and held up whoever published for 76 s. A time that is no whole
    number left with all names beside it."""
    assert judged(RULE, reading(value={"after": described(**changed)})) == KeptBack("r", "described")


def test_value_that_describes_more_than_patterns_do_stays() -> None:
    """Each name costs everybody who publishes 7 µs."""
    many = [described(key=f"a{number}/b{number}/c{number}") for number in range(200)]
    assert judged(RULE, reading(value=many)) == KeptBack("r", "described")
    assert isinstance(judged(RULE, reading(value=many[:16])), Reading), "as many as a repetition has"


def test_own_value_that_is_not_yet_plain_is_veiled(tmp_path: Path) -> None:
    """A tuple leaves as a list, so what is in it must be looked into as in a list."""
    door = EgressDoor(EgressPolicy([EgressRule("r", "**", pseudonym_s=DAY_S)]), NodeId("rsu-1"), tmp_path)
    released = door.judged(reading("rsu/rsu-1/x", "rsu-1", value=(described(),)), None)
    assert isinstance(released, Reading)
    assert "veh-9" not in repr(released.value)


# --- names that others say -------------------------------------------------------------------------------------------
def test_neighbour_can_not_have_the_name_of_another_one_translated() -> None:
    """One reading with the names of a fleet, once for each day, was a dictionary for whoever reads the records."""
    rule = EgressRule("r", "veh/**", pseudonym_s=DAY_S)
    of_itself = judged(rule, reading("veh/veh-9/speed", "veh-9")).origin
    rogue = "veh-6"
    asked = (
        reading(f"veh/{rogue}/veh-9", rogue),
        reading(f"veh/{rogue}/x", rogue, value=[described()]),
        reading(f"veh/{rogue}/x", rogue, value={"first": described(origin=rogue, value=described())}),
        reading("veh/rsu-1/x", "rsu-1", value=described(origin=rogue, key=f"veh/{rogue}/veh-9")),
        reading("veh/rsu-1/x", "rsu-1", value=described(origin=rogue, key="a", value=described())),
    )
    for one in asked:
        assert of_itself not in repr(judged(rule, one))


def test_what_this_node_says_of_others_belongs_to_their_records() -> None:
    """It has seen who they are, so that they can be found beside what patterns say of them."""
    rule = EgressRule("r", "veh/**", pseudonym_s=DAY_S)
    of_itself = judged(rule, reading("veh/veh-9/speed", "veh-9", sequence=17))
    said = judged(rule, reading("veh/rsu-1/x/veh-9", "rsu-1", value=described()))
    assert (said.value["origin"], said.value["sequence"]) == (of_itself.origin, of_itself.sequence)
    assert said.value["key"].split("/")[1] == said.key.split("/")[3] == of_itself.origin


def test_sequence_does_not_tell_which_names_of_two_rules_are_one() -> None:
    """A pattern's record by the hour told whose the records by the day are, or even those with names."""
    one = reading("veh/veh-9/speed", "veh-9", sequence=17)
    sequences = {
        judged(EgressRule("r", "**", **how), one).sequence  # type: ignore[arg-type]
        for how in ({"pseudonym_s": 3_600}, {"pseudonym_s": DAY_S}, {"time_s": 60})
    }
    assert len(sequences) == 3


# --- values that may not leave ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("of_source", "value", "left"),
    [
        ({"drop": True}, "IN AB 123", None),
        ({"drop_inside": Area(48, 11, 49, 12)}, 3.0, None),
        ({"drop_outside": Area(48, 11, 49, 12)}, 3.0, None),
        ({"fields": frozenset({"count"})}, {"count": 3, "plate": "IN AB 123"}, {"count": 3}),
        ({"fields": frozenset({"count"})}, "IN AB 123", None),
        ({"min_count": 5}, {"count": 4}, None),
        ({"min_count": 5}, {"count": 5}, {"count": 5}),
        ({"strip_pictures": True}, {"a": [b"picture"]}, None),
        ({}, "IN AB 123", "IN AB 123"),
    ],
)
@pytest.mark.parametrize("of_derived", [{}, {"pseudonym_s": DAY_S}])
def test_value_that_its_rule_keeps_back_does_not_leave_in_a_description(
    of_source: dict[str, Any], value: Any, left: Any, of_derived: dict[str, Any]
) -> None:
    """A plate that a rule drops left as part of what a pattern derived from two readings of it."""
    rules = EgressRule("source", "veh/*/speed", **of_source), EgressRule("derived", "rsu/**", **of_derived)
    gate = EgressGate(EgressPolicy(rules), NodeId("rsu-1"), lambda message: hashlib.sha256(message).digest())
    released = gate.judged(reading("rsu/rsu-1/x", "rsu-1", value={"readings": [described(value=value)]}))
    assert isinstance(released, Reading)
    assert released.value["readings"][0]["value"] == left


def test_value_without_descriptions_is_released_itself_beside_a_rule_that_drops() -> None:
    """So that the bytes that it was encoded in can be used."""
    rules = EgressRule("plates", "veh/*/plate", drop=True), EgressRule("rest", "**")
    gate = EgressGate(EgressPolicy(rules), NodeId("rsu-1"), lambda message: hashlib.sha256(message).digest())
    one = reading(value={"a": [1, {"b": [described(key="rsu/a/x")]}]})
    assert gate.judged(one) is one
