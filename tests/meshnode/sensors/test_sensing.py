"""What a node makes of its sensors: failed drivers start again, and what can't be used is left out and counted."""

import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

import meshnode as mesh
from demo.processes import free_port
from meshnode.backoff import Backoff
from meshnode.opening import ConfiguredNode
from meshnode.sensors import DriverContext, checked, create_driver
from meshnode.sensors.running import RunningSensors
from protocols.base.errors import ConfigError, SourceUnavailable
from protocols.base.ids import node_id
from tests.tools.eventually import eventually, until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.node_fixture import RunningNode, meshnode, prepare
from tests.tools.tiny_onnx import write_model

__all__ = ["given_house"]

DRIVERS = '''
"""Drivers that do what devices do."""
from pathlib import Path
import numpy as np
from meshnode.sensors import InferenceSample, Sample
from protocols.wire.readings import EventTime, Position

class Driver:
    def __init__(self, options, context):
        self.options, self.context = options, context

    @classmethod
    def from_options(cls, options, context):
        return cls(options, context)

class Shaky(Driver):
    """Works once the device is there."""
    @classmethod
    def from_options(cls, options, context):
        if not Path(options["device"]).exists():
            raise PermissionError(13, "Permission denied", options["device"])
        return cls(options, context)

    def samples(self):
        yield Sample(0.0, "veh/v/first", 1)
        if Path(options_of(self)).read_text() == "loose":
            raise RuntimeError("the cable is loose")
        while self.context.wait(self.context.elapsed_s() + 0.05):
            yield Sample(self.context.elapsed_s(), "veh/v/shaky", 2)

def options_of(driver):
    return driver.options["device"]

class Odd(Driver):
    """One sample of three can't travel."""
    def samples(self):
        for number, value in enumerate((1, object(), 3)):
            yield Sample(number / 100, "veh/v/odd", value)
        self.context.wait(3600)

class Seer(Driver):
    """Makes nothing of what its model computes."""
    def samples(self):
        number = 0
        while self.context.wait(number / 20):
            inputs = {"x": np.zeros(2, np.float32)}
            infer = InferenceSample("double", inputs, key="veh/v/seen", interpret=lambda outputs: outputs["nothing"])
            yield Sample(number / 20, "veh/v/seer", number, infer=infer)
            number += 1

class Clock(Driver):
    """Knows when its values were sensed, and how wrong the node's clock is."""
    def samples(self):
        here = Position(48.7, 11.4, 2.0)
        when = EventTime(1_700_000_000_000_000_000, 5_000)
        while self.context.wait(self.context.elapsed_s() + 0.02):
            due_s = self.context.elapsed_s()
            yield Sample(due_s, "veh/v/fix", 1, where=here, when=when, clock_uncertainty_ns=777)
            yield Sample(due_s, "veh/v/plain", 2)
            yield Sample(due_s, "veh/v/known", self.context.uncertainty_now_ns())

    def check(self):
        if self.options.get("absent"):
            raise PermissionError(13, "Permission denied")
        return "a clock that is right"

class Exits(Driver):
    def samples(self):
        raise SystemExit(3)
        yield
'''


@pytest.fixture(name="drivers")
def given_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package with the drivers above."""
    info = tmp_path / "shaky_drivers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shaky-drivers\nVersion: 1.0\n")
    named = "".join(f"{name.lower()} = shaky_drivers:{name}\n" for name in ("Shaky", "Odd", "Seer", "Clock", "Exits"))
    (info / "entry_points.txt").write_text(f"[meshnode.sensors]\n{named}")
    (tmp_path / "shaky_drivers.py").write_text(DRIVERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shaky_drivers", raising=False)


def opened(house: House, tables: str) -> ConfiguredNode:
    return mesh.open(house.file("v", tables, mdns=False))


def troubles(node: Any) -> dict[str, str]:
    """Why each sensor has a trouble."""
    return {trouble.name: trouble.why for trouble in node.troubles.current() if trouble.part == "sensor"}


def view(node: Any, name: str) -> dict[str, Any]:
    return next(view for view in node.part(RunningSensors).node_view()["sensors"] if view["name"] == name)


def test_backoff_doubles_up_to_its_bound_and_begins_again() -> None:
    """A device that is absent for days costs a try a minute, and one that came back is used at once."""

    class Never:
        def random(self) -> float:
            return 0.0

    backoff = Backoff(1.0, 60.0, Never())  # type: ignore[arg-type]
    assert [backoff.next_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.next_s() == 1
    assert all(45 <= pause_s <= 60 for pause_s in [Backoff(60.0, 60.0).next_s() for _ in range(100)])


async def test_driver_that_fails_is_a_trouble_and_is_started_again_until_it_works(
    house: House, drivers: None, tmp_path: Path
) -> None:
    """A device is unplugged, comes back with a loose cable, and then works: the node must see each of it by itself."""
    device = tmp_path / "device"
    async with opened(house, f'[sensors.gnss]\ndriver = "shaky"\ndevice = "{device}"\n') as node:
        assert "Permission denied" in troubles(node)["gnss"]
        assert view(node, "gnss")["state"] == "waiting"
        device.write_text("loose")
        await until(
            lambda: "the cable is loose" in troubles(node).get("gnss", ""), "it was started, and fails otherwise"
        )
        assert view(node, "gnss")["samples"] >= 1, "what it gave before it failed counts"
        device.write_text("tight")
        await until(lambda: not troubles(node), "it has run for a while")
        assert view(node, "gnss")["state"] == "running"
        counted = node.statistics()
        assert counted["sensor_failures"] >= 2
        assert 2 <= counted["sensor_restarts"] <= counted["sensor_failures"]
        assert counted["sensor_samples"] > 2


async def test_time_and_clock_of_a_sensor_become_those_of_the_readings(house: House, drivers: None) -> None:
    """A GNSS receiver knows when its fix was, and how far the host's clock is off."""
    async with opened(house, '[sensors.s]\ndriver = "clock"\n') as node:
        fix = await node.subscribe("veh/v/fix").next(30)
        assert (fix.when.utc_ns, fix.when.uncertainty_ns) == (1_700_000_000_000_000_000, 5_000)
        plain = await node.subscribe("veh/v/plain").next(30)
        assert plain.when.uncertainty_ns == 777
        assert (await node.subscribe("veh/v/known").next(30)).value == 777, "for drivers that stamp by this clock"
        assert node.driver.act(lambda engine, _: engine.clock_uncertainty_ns) == 777


async def test_check_of_a_driver_says_what_is_there_and_any_error_as_a_source(
    house: House, drivers: None, tmp_path: Path
) -> None:
    """The doctor shows both beside the sensor's name; a driver without a check has nothing to say."""
    context = DriverContext(node_id("v"), tmp_path, Random(1))
    assert checked(create_driver("clock", {}, context)) == "a clock that is right"
    with pytest.raises(SourceUnavailable, match="could not be looked at: PermissionError"):
        checked(create_driver("clock", {"absent": True}, context))
    assert checked(create_driver("odd", {}, context)) == ""


async def test_driver_that_exits_ends_neither_its_thread_nor_the_node(house: House, drivers: None) -> None:
    """A foreign driver may call ``sys.exit``; without an exception that is caught, nobody would ever know."""
    async with opened(house, '[sensors.s]\ndriver = "exits"\n') as node:
        await until(lambda: node.statistics()["sensor_restarts"] >= 1, "it is started again")
        assert "SystemExit" in troubles(node)["s"]


async def test_sample_that_cannot_travel_is_left_out_and_the_next_is_published(house: House, drivers: None) -> None:
    """One bad value used to end the sensor."""
    async with opened(house, '[sensors.s]\ndriver = "odd"\n') as node:
        heard = node.subscribe("veh/v/odd")
        assert [(await heard.next(30)).value, (await heard.next(30)).value][-1] == 3
        assert node.statistics()["sensor_samples_failed"] == 1
        assert "1 samples could not be published" in troubles(node)["s"]
        assert view(node, "s")["state"] == "running"


@pytest.mark.processes
async def test_result_that_a_driver_cannot_use_is_counted_and_shown(
    house: House, drivers: None, tmp_path: Path
) -> None:
    """A driver that was written for another model gave nothing, and only the log knew."""
    model = write_model(tmp_path / "double.onnx", [2], "Add")
    tables = f'[models.double]\npath = "{model}"\n[sensors.camera]\ndriver = "seer"\n'
    async with opened(house, tables) as node:
        await until(lambda: node.statistics()["sensor_results_unusable"] >= 2, "it goes on")
        assert "results of model 'double' could not be used" in troubles(node)["camera"]
        assert "nothing" in troubles(node)["camera"]
        assert node.statistics()["sensor_inferences_failed"] == 0


async def test_driver_that_has_no_more_samples_has_ended_and_is_no_trouble(house: House, tmp_path: Path) -> None:
    """A trace that does not loop ends as it should."""
    (tmp_path / "t.csv").write_text("time_s,key,value\n0,veh/v/a,1\n0.1,veh/v/a,2\n")
    async with opened(house, f'[sensors.t]\ndriver = "csv"\nfile = "{tmp_path}/t.csv"\n') as node:
        await until(lambda: view(node, "t")["state"] == "ended", "it has ended")
        assert view(node, "t")["samples"] == 2
        assert troubles(node) == {}


async def test_option_that_is_wrong_ends_the_opening_at_once(house: House) -> None:
    """What a person typed wrong is told while that person looks."""
    with pytest.raises(ConfigError, match="has no option 'intervall_s'"):
        async with opened(house, '[sensors.s]\ndriver = "host"\nintervall_s = 3\n'):
            pass


def findings(config: Path) -> list[str]:
    return [line for line in meshnode("doctor", config).stdout.splitlines() if " sensor " in line]


@pytest.mark.processes
def test_sensor_without_its_file_keeps_no_node_from_starting_and_works_once_it_is_there(tmp_path: Path) -> None:
    """Readiness, metrics, the view and the doctor name the sensor; the file may come later, and so may its repair."""
    tables = (
        f'[http]\nport = {free_port()}\n[sensors.trace]\ndriver = "csv"\nfile = "t.csv"\nloop = true\n'
        '[sensors.host]\ndriver = "host"\ninterval_s = 0.1\n'
    )
    config = prepare(tmp_path, "veh-1", "vehicle", tables)
    with RunningNode(config) as node:
        ready = node.get("/readyz")
        assert ready["ready"]
        assert [(trouble["part"], trouble["name"]) for trouble in ready["troubles"]] == [("sensor", "trace")]
        assert "there is no file" in ready["troubles"][0]["why"]
        eventually(lambda: node.get("/v1/node")["statistics"]["sensor_samples"], "the other sensor works")
        assert b'meshnode_trouble{name="trace",part="sensor"} 1.0' in node.ask("GET", "/metrics")[2]
        (line, *_) = findings(config)
        assert line.startswith("fail"), line
        assert "trace" in line, line
        (config.parent / "t.csv").write_text("time_s,key\n")
        eventually(lambda: "column 'value'" in str(node.get("/readyz")["troubles"]), "it is read, and is bad")
        (config.parent / "t.csv").write_text("time_s,key,value\n0,veh/veh-1/a,1\n")
        eventually(lambda: node.get("/readyz")["troubles"] == [], "it works")
        states = {sensor["name"]: sensor["state"] for sensor in node.get("/v1/node")["sensors"]}
        assert states == {"trace": "running", "host": "running"}
    (config.parent / "t.csv").unlink()
    stopped = findings(config)
    assert any(line.startswith("fail") and "[sensors.trace]" in line for line in stopped), stopped
