"""Signals of a CAN bus: the values of cantools, at the rate that was chosen, and nothing of what was not."""

from pathlib import Path
from typing import Any

import cantools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import can_vehicle
from meshnode.sensors.can_bus.signals import OUT_OF_RANGE_QUALITY, ChosenSignals, load_database
from protocols.base.errors import ConfigError

DBC = """VERSION ""
NS_ :
BS_:
BU_: ECU
BO_ 256 Engine: 8 ECU
 SG_ Speed : 0|16@1+ (0.25,0) [0|8000] "rpm" ECU
 SG_ Coolant : 16|8@1+ (1,-40) [-40|150] "degC" ECU
 SG_ Gear : 24|4@1+ (1,0) [0|15] "" ECU
BO_ 2566844926 Trailer: 8 ECU
 SG_ Kind M : 0|8@1+ (1,0) [0|0] "" ECU
 SG_ Load m1 : 8|16@1+ (2,0) [0|0] "kg" ECU
 SG_ Tilt m2 : 8|16@1- (0.1,0) [0|0] "deg" ECU
VAL_ 256 Gear 0 "neutral" 1 "first" 15 "broken" ;
"""
TRAILER = 2566844926 & 0x1FFF_FFFF
VEHICLE: Any = cantools.database.load_string(can_vehicle.database())


def database() -> Any:
    return cantools.database.load_string(DBC)


def chosen(*patterns: str, rate_hz: float = 10.0, on_change: bool = False, names: bool = True) -> ChosenSignals:
    return ChosenSignals(database(), list(patterns or ("*",)), rate_hz, on_change, names)


def take(signals: ChosenSignals, data: bytes, now_s: float, frame_id: int = 256, is_extended: bool = False) -> Any:
    """Name and value of what is given for one frame."""
    return {each.name: each.value for each in signals.take(frame_id, is_extended, data, now_s, now_s)}


@given(st.lists(st.tuples(st.integers(0, can_vehicle.MESSAGES - 1), st.binary(min_size=8, max_size=8)), max_size=40))
def test_values_are_those_of_cantools(frames: list[tuple[int, bytes]]) -> None:
    """The library that everybody trusts with a DBC decides."""
    signals = ChosenSignals(VEHICLE, ["*"], 1_000.0, False, True)
    for number, (message, data) in enumerate(frames):
        expected = {f"M{message}/{name}": value for name, value in VEHICLE.decode_message(256 + message, data).items()}
        assert take(signals, data, float(number), 256 + message) == expected


def test_signal_has_its_unit_and_what_it_can_not_be_has_little_quality() -> None:
    """A coolant of 200 degrees is a broken sensor, and a rule may want to see it."""
    signals = chosen()
    given_ = {each.name: each for each in signals.take(256, False, bytes([0x10, 0x27, 60, 1, 0, 0, 0, 0]), 1.0, 1.0)}
    speed, coolant, gear = given_["Engine/Speed"], given_["Engine/Coolant"], given_["Engine/Gear"]
    assert (speed.value, speed.unit, speed.quality) == (2500.0, "/min", 1.0)
    assert (coolant.value, coolant.unit) == (20, "Cel")
    assert (gear.value, gear.unit) == ("first", "1")
    hot = {each.name: each for each in signals.take(256, False, bytes([0, 0, 240, 1, 0, 0, 0, 0]), 2.0, 2.0)}
    assert (hot["Engine/Coolant"].value, hot["Engine/Coolant"].quality) == (200, OUT_OF_RANGE_QUALITY)
    numbers = chosen("Engine.Gear", names=False)
    assert take(numbers, bytes([0, 0, 0, 15, 0, 0, 0, 0]), 1.0) == {"Engine/Gear": 15}


def test_multiplexed_signals_are_given_with_the_frame_that_has_them() -> None:
    """A frame has one of them at a time; the identifier has 29 bits here."""
    signals = chosen("Trailer.*")
    assert take(signals, bytes([1, 10, 0, 0, 0, 0, 0, 0]), 1.0, TRAILER, True) == {
        "Trailer/Kind": 1,
        "Trailer/Load": 20,
    }
    assert take(signals, bytes([2, 10, 0, 0, 0, 0, 0, 0]), 2.0, TRAILER, True) == {
        "Trailer/Kind": 2,
        "Trailer/Tilt": 1.0,
    }
    assert take(signals, bytes(8), 3.0, TRAILER, False) == {}
    assert signals.unknown == 1, "the same number with 11 bits is another message"


def test_rate_bounds_how_often_a_signal_is_given_and_keeps_its_pace() -> None:
    """A hundred frames a second, ten readings a second: whatever the jitter of the frames."""
    signals = chosen("Engine.Speed", rate_hz=10.0)
    times = [number / 100 + (0.004 if number % 3 else 0.0) for number in range(1_000)]
    given_s = [time_s for time_s in times if take(signals, bytes(8), time_s)]
    assert len(given_s) == 100
    assert take(signals, bytes(8), 60.0), "after a pause it is due at once"
    assert not take(signals, bytes(8), 60.05), "and no burst makes up for it"


def test_change_is_given_once_and_one_that_came_too_early_when_its_time_has_come() -> None:
    """A door that opens and closes is two readings, not ten a second."""
    signals = chosen("Engine.Gear", rate_hz=2.0, on_change=True)
    gear = [bytes([0, 0, 0, number, 0, 0, 0, 0]) for number in range(16)]
    assert take(signals, gear[0], 0.0) == {"Engine/Gear": "neutral"}
    assert take(signals, gear[0], 1.0) == {}
    assert take(signals, gear[1], 2.0) == {"Engine/Gear": "first"}
    assert take(signals, gear[15], 2.1) == {}
    assert [each.value for each in signals.due(2.2)] == []
    assert [each.value for each in signals.due(2.6)] == ["broken"]
    assert [each.value for each in signals.due(9.0)] == []
    assert take(signals, gear[1], 9.1) == {"Engine/Gear": "first"}
    assert take(signals, gear[0], 9.2) == {}
    assert take(signals, gear[1], 9.3) == {}
    assert [each.value for each in signals.due(9.9)] == [], "it is back at what was given"


def test_frames_that_are_unknown_not_chosen_or_too_short_are_told_apart() -> None:
    """Each of them means something else to who looks for a fault."""
    signals = chosen("Engine.Speed")
    assert take(signals, bytes(8), 1.0, 999) == {}
    assert take(signals, bytes(8), 1.0, TRAILER, True) == {}
    with pytest.raises(ValueError, match=r"a frame of Engine \(1 bytes\) does not fit"):
        take(signals, b"\x01", 2.0)
    assert (signals.frames, signals.unknown, signals.malformed, signals.count) == (3, 1, 1, 1)


def test_pattern_without_a_signal_and_file_without_messages_are_named(tmp_path: Path) -> None:
    """A name with a mistake must not be a signal that never comes."""
    with pytest.raises(ConfigError, match=r"no signal is called 'Engine.Sped': did you mean 'Engine.Speed'"):
        chosen("Engine.Sped")
    for text, said in (("", "can't be used"), ('VERSION ""', "has no messages"), ("\x00\xff", "can't be used")):
        wrong = tmp_path / "wrong.dbc"
        wrong.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_database(wrong)
