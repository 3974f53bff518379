"""Real receivers: gpsd itself and a serial line, which come, go, and are somebody else's."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Self

import pytest

from benchmarks import gnss
from benchmarks.fake_receiver import FakeReceiver, fix_sentences, no_fix_sentences
from benchmarks.gpsd_process import GPSD, Gpsd
from demo.processes import free_port
from meshnode.sensors import DriverContext, Sample, create_driver
from meshnode.sensors.contract import checked
from protocols.base.errors import ConfigError, MeshError, SourceUnavailable
from protocols.base.ids import node_id
from tests.tools.eventually import eventually

pytestmark = pytest.mark.processes
needs_gpsd = pytest.mark.skipif(GPSD is None, reason="gpsd is not installed: 'sudo .ci/servers' installs it")


class Listener:
    """A driver on a thread of its own, and what it gave."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.troubles: list[str] = []
        self.context = DriverContext(
            node_id("v-1"), Path(), Random(1), trouble=self.troubles.append, logs_skipped=False
        )
        self.samples: list[Sample] = []
        self.error: Exception | None = None
        self._driver = create_driver(name, options, self.context)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.context.begin()
        try:
            for sample in self._driver.samples():
                self.samples.append(sample)
        except MeshError as error:
            self.error = error

    def of(self, kind: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.key == f"veh/v-1/{kind}"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.context.stopping.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "a driver ends with its node"


@contextmanager
def speaking(receiver: FakeReceiver, said: Callable[[float], bytes]) -> Iterator[None]:
    """The receiver says ``said(utc_s)`` ten times a second."""
    stopping = threading.Event()

    def speak() -> None:
        while not stopping.wait(0.1):
            receiver.say(said(time.time()))

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def context() -> DriverContext:
    return DriverContext(node_id("v-1"), Path(), Random(1), logs_skipped=False)


@needs_gpsd
def test_gpsd_is_followed_through_a_loss_of_the_fix_and_a_restart() -> None:
    """Positions and times are right before and after, and each gap says why it is."""
    with FakeReceiver() as receiver:
        gpsd = Gpsd(free_port(), receiver.device)
        has_fix = threading.Event()
        has_fix.set()
        begun_s = time.time()

        def said(utc_s: float) -> bytes:
            east_deg = 11.4 + (utc_s - begun_s) * 1e-4
            return fix_sentences(utc_s, 48.7, east_deg) if has_fix.is_set() else no_fix_sentences(utc_s)

        with speaking(receiver, said):
            gpsd.start()
            try:
                with Listener("gpsd", {"port": gpsd.port}) as heard:
                    eventually(lambda: len(heard.of("position")) >= 3, "fixes come")
                    has_fix.clear()
                    eventually(
                        lambda: any("no fix" in str(told.value) for told in heard.of("gnss")), "the loss is told"
                    )
                    has_fix.set()
                    many = len(heard.of("position"))
                    eventually(lambda: len(heard.of("position")) > many, "the fix is back")
                    gpsd.kill()
                    eventually(lambda: any("gpsd at" in str(told.value) for told in heard.of("gnss")), "it has gone")
                    gpsd.start()
                    many = len(heard.of("position"))
                    eventually(lambda: len(heard.of("position")) > many, "it is sought until it is there")
                    assert heard.troubles[-1] == ""
            finally:
                gpsd.kill()
        for sample in heard.of("position"):
            assert sample.when is not None
            utc_s = sample.when.utc_ns / 1e9
            assert sample.value["longitude_deg"] == pytest.approx(11.4 + (utc_s - begun_s) * 1e-4, abs=2e-6)
            assert sample.value["latitude_deg"] == pytest.approx(48.7, abs=1e-6)
        due = [sample.due_s for sample in heard.samples]
        assert due == sorted(due)
        for kind in ("no fix", "gpsd at"):
            assert any(kind in why for why in heard.troubles)


@needs_gpsd
def test_check_of_gpsd_says_what_it_sees_what_it_lacks_and_that_it_is_away() -> None:
    """What the doctor shows."""
    with FakeReceiver() as receiver:
        gpsd = Gpsd(free_port(), receiver.device)
        driver = create_driver("gpsd", {"port": gpsd.port}, context())
        with pytest.raises(SourceUnavailable, match=rf"gpsd at localhost:{gpsd.port} can't be reached"):
            checked(driver)
        gpsd.start()
        try:
            with speaking(receiver, lambda utc_s: fix_sentences(utc_s, 48.7, 11.4)):
                assert "d fix" in checked(driver)
        finally:
            gpsd.kill()


def test_serial_receiver_is_followed_when_it_is_unplugged_and_comes_back(tmp_path: Path) -> None:
    """The name in /dev/serial/by-id stays the same, whichever number the port gets."""
    device = tmp_path / "by-id"
    with FakeReceiver() as receiver:
        device.symlink_to(receiver.device)
        with Listener("nmea", {"device": str(device)}) as heard:
            with speaking(receiver, lambda utc_s: fix_sentences(utc_s, 48.7, 11.4)):
                eventually(lambda: len(heard.of("position")) >= 3, "fixes come")
            receiver.unplug()
            eventually(lambda: any("has gone" in why for why in heard.troubles), "it is told")
            receiver.plug()
            device.unlink()
            device.symlink_to(receiver.device)
            with speaking(receiver, lambda utc_s: fix_sentences(utc_s, 48.8, 11.4)):
                eventually(lambda: heard.of("position")[-1].value["latitude_deg"] > 48.75, "it is used again")
            assert heard.error is None


def test_serial_line_that_is_absent_busy_or_not_permitted_is_told_with_the_way_out(tmp_path: Path) -> None:
    """The three things that go wrong on the first day."""
    with pytest.raises(SourceUnavailable, match=r"there is no .*connect the receiver"):
        checked(create_driver("nmea", {"device": str(tmp_path / "ttyUSB9")}, context()))
    with FakeReceiver() as receiver:
        with (
            speaking(receiver, lambda utc_s: fix_sentences(utc_s, 48.7, 11.4)),
            Listener("nmea", {"device": receiver.device}) as heard,
        ):
            eventually(lambda: heard.of("position"), "it is in use")
            with pytest.raises(SourceUnavailable, match="another program reads it"):
                checked(create_driver("nmea", {"device": receiver.device}, context()))
        Path(receiver.device).chmod(0o600)
        if os.geteuid() == 0:
            os.seteuid(65_534)
            try:
                with pytest.raises(SourceUnavailable, match="not permitted: add the user"):
                    checked(create_driver("nmea", {"device": receiver.device}, context()))
            finally:
                os.seteuid(0)


def test_noise_of_a_wrong_speed_is_counted_and_told_as_such(tmp_path: Path) -> None:
    """A receiver at another baud rate is bytes without end."""
    with FakeReceiver() as receiver, Listener("nmea", {"device": receiver.device}) as heard:
        with speaking(receiver, lambda _: b"\x80\xf8\x00" * 500):
            eventually(lambda: "is 'baud' right" in heard.context.last_skipped, "it is told")
        with speaking(receiver, lambda utc_s: b"\r\n" + fix_sentences(utc_s, 48.7, 11.4)):
            eventually(lambda: heard.of("position"), "what comes afterwards is used")


def test_log_of_a_receiver_is_replayed_at_its_pace_and_bad_lines_are_skipped(tmp_path: Path) -> None:
    """What somebody recorded on the road is what the mesh is tried with."""
    log = tmp_path / "drive.nmea"
    said = [fix_sentences(1_796_083_200 + step / 2, 48.7 + step * 1e-4, 11.4) for step in range(6)]
    log.write_bytes(b"".join(said[:3]) + b"$GPRMC,garbage\r\n" + no_fix_sentences(1_796_083_202) + b"".join(said[3:]))
    given = context()
    driver = create_driver("nmea", {"file": str(log), "rate": 2.0}, given)
    assert checked(driver) == f"{log}: begins at 48.70000, 11.40000"
    samples = list(driver.samples())
    positions = [sample for sample in samples if sample.key.endswith("/position")]
    assert [sample.due_s for sample in positions] == [step / 4 for step in range(6)]
    assert all(sample.when is None for sample in positions), "they are published as if they were of now"
    assert any(sample.value.get("fix") == "none" for sample in samples if sample.key.endswith("/gnss"))
    assert f"{log}, line 13" in given.last_skipped


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("gpsd", {"prot": 2947}, "prot"),
        ("gpsd", {"port": 0}, "port"),
        ("nmea", {}, "either 'device'"),
        ("nmea", {"device": "/dev/ttyS0", "file": __file__}, "either 'device'"),
        ("nmea", {"device": "/dev/ttyS0", "baud": 9_601}, "use one of 4800, 9600"),
    ],
    ids=["unknown", "port", "nothing", "both", "baud"],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], said: str) -> None:
    """They keep the node from starting."""
    with pytest.raises(ConfigError, match=said):
        create_driver(name, options, context())


def test_log_without_a_fix_is_no_source(tmp_path: Path) -> None:
    """A file that was named by mistake is told as such."""
    wrong = tmp_path / "notes.txt"
    wrong.write_text("these are notes\n" * 3)
    with pytest.raises(SourceUnavailable, match="has no fix: name a log"):
        list(create_driver("nmea", {"file": str(wrong)}, context()).samples())


@needs_gpsd
async def test_node_behind_gpsd_keeps_its_promises_while_it_is_disturbed(tmp_path: Path) -> None:
    """The short form of ``python -m benchmarks.gnss``: place, clock and every gap, with a loss of the fix. The receiver
    moves on while this computer stalls: then the run is made again. A fault of ours would show in every run."""
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        account = await gnss.run(folder, 0.25, 1)
        if not account["wrong"]:
            break
    assert account["wrong"] == []
    assert account["counts"]["position"] > 0
    assert account["counts"]["times no fix"] == 1
