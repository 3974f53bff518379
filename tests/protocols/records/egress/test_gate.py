"""What the gate lets through holds nothing of what its rules don't let through."""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocols.base.errors import InputInvalid, InvalidKey, LocalProtocolError
from protocols.base.ids import NodeId, node_id
from protocols.base.keys import checked_key
from protocols.base.limits import SECOND
from protocols.base.sequences import MAX_SEQUENCE
from protocols.records.egress.area import Area
from protocols.records.egress.gate import EgressGate, KeptBack, WithPictures
from protocols.records.egress.rules import EgressPolicy, EgressRule
from protocols.records.egress.values import MAX_FOUND, PixelBox
from protocols.wire.parcels import decode_untrusted_reading, encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.tensors import Tensor
from tests.tools.strategies import MODEST, NOW_UTC_NS, THOROUGH, reading

DAY_S = 86_400
HOME = Position(48.76612345, 11.42981234, 3.0, 370.0, 12.0)


def keyed_hash(message: bytes) -> bytes:
    return hmac.digest(b"k" * 32, message, "sha256")


def gate(*rules: EgressRule) -> EgressGate:
    return EgressGate(EgressPolicy(rules), NodeId("veh-1"), keyed_hash)


def judged(rule: EgressRule, one: Reading) -> Any:
    return gate(rule).judged(one)


def test_first_matching_rule_decides_and_what_no_rule_matches_stays() -> None:
    """Nothing leaves by default: a new key that nobody thought of must not."""
    rules = gate(EgressRule("speeds", "veh/*/speed"), EgressRule("rest", "veh/**", drop=True))
    speed = reading("veh/veh-1/speed", "veh-1")
    assert rules.judged(speed) is speed, "so the bytes that it was encoded in can be used"
    assert rules.judged(reading("veh/veh-1/plate")) == KeptBack("rest", "dropped")
    assert rules.judged(reading("rsu/rsu-1/hazard")) == KeptBack("", "no rule")


@pytest.mark.parametrize("value", ["IN AB 123", None, [{"count": 1}], {"plate": "IN AB 123"}, b"\xff\xd8"])
def test_value_without_an_allowed_field_stays(value: object) -> None:
    """An allow-list says nothing about a value that has no fields."""
    assert judged(EgressRule("r", "**", fields=frozenset({"count"})), reading(value=value)) == KeptBack("r", "fields")


def test_allowed_fields_leave_and_others_do_not() -> None:
    """A sensor's next version may bring a field that nobody has looked at."""
    released = judged(
        EgressRule("r", "**", fields=frozenset({"count", "other"})), reading(value={"count": 3, "plate": "IN AB 123"})
    )
    assert released.value == {"count": 3}


@pytest.mark.parametrize(("count", "leaves"), [(5, True), (4, False), (None, False), (True, False), (9.0, False)])
def test_summary_of_too_few_readings_stays(count: object, leaves: bool) -> None:
    """The mean of one speed is that speed."""
    value = {"mean": 13.9} | ({} if count is None else {"count": count})
    outcome = judged(EgressRule("r", "**", min_count=5, fields=frozenset({"mean"})), reading(value=value))
    assert outcome == (reading(value={"mean": 13.9}) if leaves else KeptBack("r", "count"))


def test_reading_that_may_be_from_a_forbidden_place_stays() -> None:
    """The box is meant for the place where it was sensed, and the measured one is a few metres off."""
    home = Area(48.765, 11.428, 48.767, 11.431)
    near, far = replace(HOME, latitude_deg=48.76701), replace(HOME, latitude_deg=48.78)
    inside, outside = EgressRule("r", "**", drop_inside=home), EgressRule("r", "**", drop_outside=home)
    for where, stays in ((HOME, True), (near, True), (far, False)):
        one = reading(where=where)
        assert judged(inside, one) == (KeptBack("r", "place") if stays else one)
    assert judged(outside, reading(where=HOME)) == reading(where=HOME)
    assert judged(outside, reading(where=near)) == KeptBack("r", "place")


# --- names -----------------------------------------------------------------------------------------------------------
LETTERS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=4, max_size=12)


@given(LETTERS, st.lists(LETTERS, min_size=1, max_size=4), LETTERS, LETTERS)
@THOROUGH
def test_no_name_of_the_original_is_left_in_the_encoded_bytes(
    origin: str, chunks: list[str], sensor: str, calibration: str
) -> None:
    """Of the key only what the rule spells out stays: a chunk may be a VIN, a plate, or the id of a neighbour."""
    assume({origin, sensor, calibration, *chunks}.isdisjoint({"seen", "summary", "test"}))
    key = "/".join(("seen", *chunks, origin, "summary"))
    how = Provenance(sensor, "m/s", 0.5, calibration, (f"rule {origin}",))
    original = reading(key, origin, value=13.9, how=how)
    released = judged(EgressRule("r", "seen/**/summary", pseudonym_s=DAY_S), original)
    encoded = encode_reading(released)
    for text in (origin, sensor, calibration, *chunks):
        assert text.encode() not in encoded
    assert decode_untrusted_reading(encoded) == released
    checked_key(released.key)
    node_id(released.origin)
    assert released.key.startswith("seen/")
    assert released.key.endswith(f"/{released.origin}/summary")
    assert 0 <= released.sequence <= MAX_SEQUENCE
    assert (released.value, released.how.unit) == (13.9, "m/s")


@given(st.integers(0, 2**40), st.integers(0, DAY_S * SECOND - 1), st.integers(0, DAY_S * SECOND - 1))
@MODEST
def test_node_has_one_pseudonym_in_a_period_and_another_in_the_next(day: int, early_ns: int, late_ns: int) -> None:
    """Within a day a vehicle's records belong together, and nobody follows it for a year."""
    day %= 50_000
    rule, begins_ns = EgressRule("r", "veh/*/x", pseudonym_s=DAY_S), day * DAY_S * SECOND

    def at(utc_ns: int) -> Reading:
        released = judged(rule, reading(when=EventTime(utc_ns, 0)))
        assert isinstance(released, Reading)
        return released

    first, second, next_day = at(begins_ns + early_ns), at(begins_ns + late_ns), at(begins_ns + DAY_S * SECOND)
    assert (first.origin, first.key) == (second.origin, second.key)
    assert first.key == f"veh/{first.origin}/x"
    assert first.origin != next_day.origin
    other_key = EgressGate(EgressPolicy([rule]), NodeId("veh-1"), lambda message: hashlib.sha256(message).digest())
    assert other_key.judged(reading(when=EventTime(begins_ns + early_ns, 0))).origin != first.origin  # type: ignore[union-attr]


def test_chunk_that_the_rule_spells_out_is_replaced_when_it_is_a_node() -> None:
    """A rule for one node spells out its id."""
    released = judged(EgressRule("r", "veh/veh-1/x", pseudonym_s=DAY_S), reading("veh/veh-1/x", "rsu-9"))
    assert "veh-1" not in released.key
    released = judged(EgressRule("r", "veh/veh-2/x", pseudonym_s=DAY_S), reading("veh/veh-2/x", "veh-2"))
    assert released.key == f"veh/{released.origin}/x"


def test_key_that_grows_too_long_stays() -> None:
    """The wire would refuse it, and with it its whole group."""
    key = "/".join("abcdefghijklmnop")
    assert judged(EgressRule("r", "**", pseudonym_s=DAY_S), reading(key)) == KeptBack("r", "key")


def test_sequences_do_not_tell_when_the_node_started_or_what_came_before() -> None:
    """They begin with the second of the start, and grow from one pseudonym to the next."""
    for rule in (EgressRule("r", "**", pseudonym_s=DAY_S), EgressRule("r", "**", time_s=60)):
        sequences = [judged(rule, reading(sequence=number)).sequence for number in range(100)]
        assert len(set(sequences)) == 100
        assert sequences != sorted(sequences)


# --- all together ----------------------------------------------------------------------------------------------------
def test_coarse_time_widens_the_window_of_a_summary() -> None:
    """Otherwise the value would tell the second in which a trip began."""
    rule = EgressRule("r", "**", time_s=3_600)
    begins_ns = NOW_UTC_NS // (3_600 * SECOND) * 3_600 * SECOND
    value = {"start_ns": begins_ns + 5, "end_ns": begins_ns + 10, "count": 3}
    released = judged(rule, reading(value=value))
    assert released.value == {"start_ns": begins_ns, "end_ns": begins_ns + 3_600 * SECOND, "count": 3}
    assert released.when == EventTime(begins_ns + 1_800 * SECOND, 3_600 * SECOND)


VALUES = st.dictionaries(st.sampled_from(["count", "plate", "start_ns", "end_ns"]), st.integers(0, 2**50))


@given(VALUES, st.floats(-90, 90), st.floats(-180, 180), st.integers(0, 2**62))
@THOROUGH
def test_what_has_left_once_leaves_the_same_again(
    value: dict[str, int], latitude_deg: float, longitude_deg: float, utc_ns: int
) -> None:
    """All but the pseudonyms, which can't be told from names."""
    rule = EgressRule("r", "**", fields=frozenset({"count", "start_ns", "end_ns"}), cell_m=500, time_s=60)
    one = reading(value=value, where=Position(latitude_deg, longitude_deg, 3.0), when=EventTime(utc_ns, 10))
    once = judged(rule, one)
    assume(isinstance(once, Reading))
    assert replace(judged(rule, once), sequence=once.sequence) == once
    assert judged(rule, one) == once


# --- pictures --------------------------------------------------------------------------------------------------------
def redraw(content: bytes, found: Sequence[PixelBox]) -> bytes:
    if not content.startswith(b"picture"):
        raise InputInvalid("no picture")
    return b"drawn" + content[7:] + b"".join(b"[%g,%g,%g,%g]" % box for box in found)


def tensor(content: bytes, *shape: int) -> Tensor:
    return Tensor("u1", shape or (len(content),), memoryview(content))


@pytest.mark.parametrize(
    ("value", "drawn"),
    [
        (b"picture1", b"drawn1"),
        ({"a": [b"picture1", 3], "b": "picture"}, {"a": [b"drawn1", 3], "b": "picture"}),
        (tensor(b"picture1"), tensor(b"drawn1")),
        ({"a": b"picture1", "b": b"nothing"}, None),
        (tensor(b"picture1", 2, 4), None),
        ([b""], None),
    ],
)
def test_bytes_leave_only_as_pictures_that_were_drawn_anew(value: Any, drawn: Any) -> None:
    """Whatever can't be decoded may be a picture in a form that nobody looked at."""
    outcome = judged(EgressRule("r", "**", strip_pictures=True), reading(value=value))
    assert isinstance(outcome, WithPictures)
    finished = outcome.finished(redraw)
    assert finished == (KeptBack("r", "picture") if drawn is None else reading(value=drawn))


def test_picture_in_a_field_that_may_not_leave_is_not_drawn() -> None:
    """Decoding it would take a tenth of a second for nothing."""
    rule = EgressRule("r", "**", fields=frozenset({"count"}), cover=((0.0, 0.0, 1.0, 0.5),))
    assert judged(rule, reading(value={"count": 1, "picture": b"picture1"})) == reading(value={"count": 1})


PLATE = {"left": 310.5, "top": 188, "right": 389, "bottom": 207, "probability": 0.9}


@pytest.mark.parametrize(
    ("value", "drawn"),
    [
        ({"picture": b"picture1", "plates": [PLATE]}, b"drawn1[310.5,188,389,207]"),
        ({"plates": [], "picture": b"picture1"}, b"drawn1"),
        ({"plates": [PLATE], "of": {"pictures": [b"picture1"]}}, b"drawn1[310.5,188,389,207]"),
        ({"plates": [PLATE], "of": {"plates": [], "picture": tensor(b"picture1")}}, b"drawn1"),
        ({"picture": b"picture1"}, None),
        ({"picture": b"picture1", "of": {"plates": [PLATE]}}, None),
        (b"picture1", None),
        ({"picture": b"picture1", "plates": PLATE}, None),
        ({"picture": b"picture1", "plates": [PLATE] * (MAX_FOUND + 1)}, None),
        ({"picture": b"picture1", "plates": [PLATE | {"right": 300}]}, None),
        ({"picture": b"picture1", "plates": [PLATE | {"right": float("nan")}]}, None),
        ({"picture": b"picture1", "plates": [PLATE | {"right": 1e308}]}, None),
        ({"picture": b"picture1", "plates": [PLATE | {"right": True}]}, None),
        ({"picture": b"picture1", "plates": [[310, 188, 389, 207]]}, None),
    ],
)  # fmt: skip
def test_picture_leaves_only_with_what_was_found_in_it_covered(value: Any, drawn: bytes | None) -> None:
    """A picture in which nobody has looked for plates may show one."""
    outcome = judged(EgressRule("r", "**", cover_field="plates"), reading(value=value))
    assert isinstance(outcome, WithPictures)
    finished = outcome.finished(redraw)
    if drawn is None:
        assert finished == KeptBack("r", "picture")
    else:
        assert isinstance(finished, Reading)
        assert drawn in (finished.value.get("picture"), *finished.value.get("of", {}).get("pictures", ())) or (
            bytes(finished.value["of"]["picture"].data) == drawn
        )


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        (("readings.value.speed",), {"readings": [{"value": {"speed": 3.0}}, {"value": {"speed": 4.0}}]}),
        (("count", "readings.value.vin"), {"count": 2, "readings": [{"value": {"vin": "WVW"}}]}),
        (("count.speed", "readings.value.speed.x", "readings.none"), None),
        (("readings", "readings.value.speed"), {"readings": "whole"}),
        (("a.b",), {"a.b": 1}),
        (("readings.value.speed", "readings.value.vin", "readings.key", "count", "a.b"), "whole"),
    ],
)
def test_fields_inside_of_maps_and_lists_leave_alone(fields: tuple[str, ...], left: Any) -> None:
    """What a pattern derives holds whole values of others: their pictures may be wanted, and their VIN not."""
    value = {
        "count": 2, "a.b": 1,
        "readings": [{"key": "k", "value": {"speed": 3.0, "vin": "WVW"}}, {"key": "l", "value": {"speed": 4.0}}],
    }  # fmt: skip
    original = reading(value=value)
    released = judged(EgressRule("r", "**", fields=frozenset(fields)), original)
    if left is None:
        assert released == KeptBack("r", "fields")
    elif left == "whole":
        assert released is original
    else:
        assert released.value == (left if left != {"readings": "whole"} else {"readings": value["readings"]})


# --- policies --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""}, {"cell_m": 9}, {"cell_m": 100_001}, {"time_s": 0}, {"pseudonym_s": 0}, {"min_count": 1},
        {"fields": frozenset()}, {"cover": ((0.5, 0.0, 0.5, 1.0),)}, {"cover": ((0.0, 0.0, 1.1, 1.0),)},
        {"cover": ((0.0, 0.0, 1.0, 1.0),) * 65}, {"fields": frozenset({"a..b"})},
    ],
)  # fmt: skip
def test_rule_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    """And the message names it."""
    with pytest.raises(LocalProtocolError, match="egress rule"):
        EgressRule(**{"name": "r", "keys": "**", **fields})


def test_policies_and_areas_that_make_no_sense_are_refused() -> None:
    """Before anything has left."""
    with pytest.raises(InvalidKey):
        EgressRule("r", "veh/$")
    with pytest.raises(LocalProtocolError, match="use 1 to"):
        EgressPolicy([])
    with pytest.raises(LocalProtocolError, match="'r'"):
        EgressPolicy([EgressRule("r", "a"), EgressRule("r", "b")])
    for sides in ((1, 0, 1, 1), (0, 1, 1, 1), (0, 0, 91, 1), (0, -181, 1, 1)):
        with pytest.raises(LocalProtocolError, match="use a"):
            Area(*sides)


def test_digest_tells_policies_apart_and_is_the_same_for_equal_ones() -> None:
    """A receipt names the policy by it, perhaps years later: hence the golden value."""

    def digest(*rules: EgressRule) -> str:
        return EgressPolicy(rules).digest(lambda content: hashlib.sha256(content).digest()).hex()

    one = EgressRule("a", "veh/**", fields=frozenset({"x", "y"}), drop_inside=Area(48, 11, 49, 12))
    other = EgressRule("b", "rsu/**", cover=((0, 0, 1, 0.5),), cell_m=500)
    same = EgressRule("a", "veh/**", fields=frozenset({"y", "x"}), drop_inside=Area(48.0, 11.0, 49.0, 12.0))
    assert digest(one, other) == digest(same, other)
    assert len({digest(one, other), digest(other, one), digest(one), digest(EgressRule("a", "veh/**"))}) == 4
    assert (
        digest(EgressRule("all", "**"), one, other)
        == "5186f2cc628568c881b7a16f99175a3968aa8168ffba27b3f14a8144ee21c09a"
    )


def test_readings_that_a_pattern_names_in_its_value_are_veiled_like_readings() -> None:
    """The exact time, key and sequence of another vehicle left in the value, while the record itself told none."""
    described = {
        "key": "veh/veh-9/speed", "origin": "veh-9", "sequence": 1_700_000_000_000_001,
        "utc_ns": NOW_UTC_NS + 123_456_789, "value": 3.0,
    }  # fmt: skip
    until_ns = NOW_UTC_NS + 60_123_456_789
    rule = EgressRule("stuck", "rsu/*/stuck", cell_m=2_000, time_s=3_600, pseudonym_s=86_400)
    for value in (
        {"after": described, "until_ns": until_ns},
        {"count": 2, "readings": [described, described]},
        {"left": described, "right": described | {"value": {"first": described, "then": described}}},
    ):
        released = judged(rule, reading(key="rsu/rsu-1/stuck", value=value))
        told = repr(released.value)
        for part in ("veh", "speed", str(described["sequence"]), str(described["utc_ns"]), str(until_ns)):
            assert part not in told
        assert "3.0" in told
    picked = EgressRule("r", "**", time_s=3_600, pseudonym_s=86_400, fields=frozenset({"after.key", "after.utc_ns"}))
    released = judged(picked, reading(value={"after": described, "until_ns": until_ns}))
    assert sorted(released.value["after"]) == ["key", "utc_ns"]
    assert "veh" not in released.value["after"]["key"]
    assert released.value["after"]["utc_ns"] != described["utc_ns"]
