"""The driver of a CAN bus: a virtual bus of python-can, logs of it, and what is wrong on the first day."""

import asyncio
import threading
from pathlib import Path
from random import Random
from typing import Any

import can
import pytest

from benchmarks import can_bus
from benchmarks.can_vehicle import database, frame
from meshnode.sensors import DriverContext, Sample, create_driver
from meshnode.sensors.contract import checked
from protocols.base.errors import ConfigError, SourceUnavailable
from protocols.base.ids import node_id
from tests.tools.eventually import eventually


@pytest.fixture(name="dbc")
def given_dbc(tmp_path: Path) -> str:
    """The file of a database with 200 signals."""
    path = tmp_path / "vehicle.dbc"
    path.write_text(database())
    return str(path)


def context(**fields: Any) -> DriverContext:
    return DriverContext(node_id("v-1"), Path(), Random(1), logs_skipped=False, **fields)


def message(identifier: int, data: bytes, time_s: float = 0.0) -> can.Message:
    return can.Message(arbitration_id=identifier, data=data, is_extended_id=False, timestamp=time_s)


def test_bus_is_followed_and_its_silence_is_a_trouble_that_ends(dbc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vehicle that is off says nothing; the next frame ends that."""
    monkeypatch.setattr("meshnode.sensors.can_bus.driver._SILENT_S", 0.2)
    monkeypatch.setattr("meshnode.sensors.can_bus.driver.STATUS_EVERY_S", 0.3)
    troubles: list[str] = []
    given_ = context(trouble=troubles.append, uncertainty_now_ns=lambda: 7_000)
    options = {"interface": "virtual", "channel": "followed", "database": dbc, "signals": ["M1.S1", "M2.*"]}
    driver = create_driver("can", options, given_)
    samples: list[Sample] = []

    def run() -> None:
        given_.begin()
        samples.extend(driver.samples())

    thread = threading.Thread(target=lambda: [samples.append(each) for each in driver.samples()], daemon=True)
    thread.start()
    with can.Bus(interface="virtual", channel="followed") as bus:

        def hears(identifier: int) -> bool:
            bus.send(message(identifier, bytes(range(8))))
            return any(f"/can/M{identifier - 256}/" in sample.key for sample in samples)

        eventually(lambda: hears(257), "a frame comes")
        eventually(lambda: any("is silent" in why for why in troubles), "the silence is told")
        eventually(lambda: hears(258), "a frame comes again")
        eventually(lambda: troubles[-1] == "", "the trouble ends")
        bus.send(message(999, b""))
        bus.send(message(257, b"\x01"))
        eventually(lambda: given_.samples_skipped >= 1, "a short frame is counted")
        statuses = [sample.value for sample in samples if sample.key == "veh/v-1/can/status"]
        eventually(
            lambda: any(
                sample.value["unknown"] and sample.value["malformed"] and sample.value["bus"] == "followed"
                for sample in samples
                if sample.key == "veh/v-1/can/status"
            ),
            lambda: f"the state counts both: {statuses}",
        )
        given_.stopping.set()
        thread.join(30)
        assert not thread.is_alive()
    first = next(sample for sample in samples if sample.key == "veh/v-1/can/M1/S1")
    assert (first.value, first.unit, first.sensor) == (pytest.approx(0x0302 * 0.1), "km/h", "can")
    assert first.when is not None, "the stamp of the frame"
    assert first.when.uncertainty_ns == 7_000, "what the clock is worth now, not what was configured"


@pytest.mark.parametrize("kind", ["asc", "blf", "csv", "log", "trc"])
def test_log_of_a_bus_is_replayed_at_its_pace_with_the_values_of_cantools(kind: str, dbc: str, tmp_path: Path) -> None:
    """The formats that tools of vehicle makers write."""
    log, random = tmp_path / f"drive.{kind}", Random(3)
    with can.Logger(str(log)) as writer:
        for number in range(200):
            writer(message(*frame(random, number), 1_796_000_000 + number / 100))
    driver = create_driver("can", {"file": str(log), "database": dbc, "rate": 2.0, "rate_hz": 1_000.0}, context())
    assert checked(driver) == f"drive.{kind}, 200 signals chosen"
    samples = [sample for sample in driver.samples() if not sample.key.endswith("status")]
    due = [sample.due_s for sample in samples]
    assert due == sorted(due)
    assert due[-1] == pytest.approx(1.99 / 2, abs=0.01)
    random = Random(3)
    sent = [frame(random, number) for number in range(200)]
    published = {}
    for sample in samples:
        published.setdefault(sample.key.split("/can/", 1)[1], set()).add(sample.value)
    assert len(published) == 200
    assert can_bus.wrong_values(published, sent) == 0


def test_log_that_is_cut_off_gives_what_it_has_and_one_that_is_none_is_named(dbc: str, tmp_path: Path) -> None:
    """A recorder that lost power leaves half a file."""
    log, random = tmp_path / "drive.log", Random(3)
    with can.Logger(str(log)) as writer:
        for number in range(100):
            writer(message(*frame(random, number), 1_796_000_000 + number / 100))
    log.write_bytes(log.read_bytes()[:3_007])
    given_ = context()
    driver = create_driver("can", {"file": str(log), "database": dbc, "rate": 100.0}, given_)
    assert len(list(driver.samples())) > 50
    assert "it ends after" in given_.last_skipped
    empty = tmp_path / "empty.asc"
    empty.write_text("")
    with pytest.raises(SourceUnavailable, match=r"empty.asc"):
        list(create_driver("can", {"file": str(empty), "database": dbc}, context()).samples())


def test_bus_that_is_absent_silent_or_unknown_is_told_by_the_check(dbc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the doctor shows before a vehicle drives."""
    monkeypatch.setattr("meshnode.sensors.can_bus.driver.CHECK_S", 0.3)
    with pytest.raises(SourceUnavailable, match=r"the CAN bus can99 can't be opened: (there is no can99|this kernel)"):
        checked(create_driver("can", {"channel": "can99", "database": dbc}, context()))
    with pytest.raises(SourceUnavailable, match="'interface' is 'nix'"):
        checked(create_driver("can", {"channel": "x", "interface": "nix", "database": dbc}, context()))
    silent = create_driver("can", {"channel": "silent", "interface": "virtual", "database": dbc}, context())
    assert checked(silent) == "silent: no frame in 0.3 s, 200 signals chosen"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either 'channel'"),
        ({"channel": "can0"}, "give 'database'"),
        ({"channel": "can0", "database": "DBC", "signals": []}, "give a list of texts"),
        ({"channel": "can0", "database": "DBC", "signals": ["M1.S9"]}, "no signal is called 'M1.S9'"),
        ({"channel": "can0", "database": "DBC", "rate_hz": 0}, "rate_hz"),
        ({"file": "DBC", "database": "DBC"}, "whose name ends in .asc"),
        ({"chanel": "can0", "database": "DBC"}, "did you mean 'channel'"),
    ],
    ids=["nothing", "database", "signals", "pattern", "rate", "log", "unknown"],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str, dbc: str) -> None:
    """They keep the node from starting."""
    with pytest.raises(ConfigError, match=said):
        create_driver("can", {name: dbc if value == "DBC" else value for name, value in options.items()}, context())


@pytest.mark.processes
def test_node_publishes_what_a_bus_of_200_signals_says(tmp_path: Path) -> None:
    """The short form of ``python -m benchmarks.can_bus``, made again when a stall left no time for all signals."""
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        figures = asyncio.run(can_bus.run(folder, 1.5, 10.0, 500, 1))
        assert figures["wrong_values"] == 0
        if figures["signals"] == 200:
            break
    assert figures["signals"] == 200
