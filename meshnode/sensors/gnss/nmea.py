"""The fixes of a receiver that speaks NMEA 0183, on a serial line or in a file.

Options: ``device`` (``/dev/ttyUSB0``) with ``baud``, or ``file`` with ``rate`` and ``loop``; ``error_m`` (of the
distance to one satellite, which gives the accuracy where the receiver does not say it) and ``latency_ms`` (the longest
way of a fix to here). Keys as of ``gpsd``. A file is a replay: its fixes are published as if they were of now.

It needs the extra ``meshnode[gps]``.
"""

import errno
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

from meshnode.sensors.contract import DriverContext, Sample
from meshnode.sensors.gnss.fixes import Heard, NoFix, SatelliteFix
from meshnode.sensors.gnss.gpsd import DEFAULT_LATENCY_MS
from meshnode.sensors.gnss.receiving import looked_at, received
from meshnode.sensors.gnss.sentences import SentenceMalformed, Sentences
from meshnode.sensors.gnss.tracking import Tracker
from meshnode.sensors.options import Options
from protocols.base.errors import ConfigError, SourceUnavailable
from protocols.base.limits import MS, SECOND

SENSOR: Final = "nmea"
DEFAULT_ERROR_M: Final = 5.0
"""One standard deviation for a receiver of one frequency under open sky."""
MAX_SENTENCE_BYTES: Final = 1_024
"""The standard allows 82; makers of receivers allow themselves more."""
_BAUDS: Final = (4_800, 9_600, 19_200, 38_400, 57_600, 115_200, 230_400, 460_800, 921_600)
_GAP_S: Final = 60.0
"""A longer gap in a file is shortened to a second: a log may go on the next day."""


class NmeaDriver:
    """Listens to a serial line, or replays a file; see the module."""

    def __init__(
        self, context: DriverContext, receiver: "SerialReceiver | None", file: Path | None, error_m: float,
        latency_ns: int, rate: float = 1.0, loop: bool = False,
    ) -> None:  # fmt: skip
        """One of ``receiver`` and ``file``."""
        self._context, self._receiver, self._file = context, receiver, file
        self._error_m, self._latency_ns, self._rate, self._loop = error_m, latency_ns, rate, loop

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        """See the module for the options. :raises ConfigError: one is wrong or unknown, or the extra is missing."""
        read = Options("nmea", options)
        has_device, has_file = read.has("device"), read.has("file")
        device = read.text("device", "-")
        file = read.file("file", context.folder, Path("-")) if has_file else None
        baud = read.integer("baud", 9_600, _BAUDS[0], _BAUDS[-1])
        rate = read.number("rate", 1.0, 0.01, 100.0)
        loop = read.flag("loop", False)
        error_m = read.number("error_m", DEFAULT_ERROR_M, 0.001, 1_000.0)
        latency_ms = read.number("latency_ms", DEFAULT_LATENCY_MS, 0.0, 60_000.0)
        if baud not in _BAUDS:
            raise read.wrong("baud", f"use one of {', '.join(map(str, _BAUDS))}")
        read.finish()
        if has_device == has_file:
            raise ConfigError("sensor driver 'nmea': give either 'device' (a serial line) or 'file' (a log of one)")
        for name in ("pynmea2", "serial") if has_device else ("pynmea2",):
            read.need(name, "gps")
        receiver = SerialReceiver(device, baud, error_m, context) if has_device else None
        return cls(context, receiver, file, error_m, int(latency_ms * MS), rate, loop)

    def samples(self) -> Generator[Sample, None, None]:
        """The samples of each fix, and once a second why there is none.

        :raises SourceUnavailable: the line or the file can't be opened, or the file has no fix.
        """
        tracker = Tracker(self._context, SENSOR, self._latency_ns, replays=self._receiver is None)
        if self._receiver is not None:
            yield from received(self._receiver, self._context, tracker)
            return
        starts_s = 0.0
        while True:
            due_s = starts_s
            found = False
            for due_s, heard in self._replayed(starts_s):
                if isinstance(heard, SatelliteFix):
                    found = True
                    yield from tracker.fixed(heard, due_s, 0)
                else:
                    yield from tracker.missing(heard.why, due_s)
            if not found:
                raise SourceUnavailable(f"{self._file} has no fix: name a log of NMEA 0183 with RMC and GGA sentences")
            if not self._loop:
                return
            starts_s = due_s + 1.0 / self._rate

    def check(self) -> str:
        """See ``CheckedDriver``."""
        if self._receiver is not None:
            return looked_at(self._receiver)
        for _, heard in self._replayed(0.0):
            if isinstance(heard, SatelliteFix):
                return f"{self._file}: begins at {heard.latitude_deg:.5f}, {heard.longitude_deg:.5f}"
        raise SourceUnavailable(f"{self._file} has no fix: name a log of NMEA 0183 with RMC and GGA sentences")

    def _replayed(self, starts_s: float) -> Iterator[tuple[float, SatelliteFix | NoFix]]:
        """What a file says, and when it is due."""
        assert self._file is not None, "it was asked for"
        sentences, due_s, last_ns = Sentences(self._error_m), starts_s, None
        with self._file.open("rb") as lines:
            number = 0
            while line := lines.readline(MAX_SENTENCE_BYTES):
                number += 1
                if not line.strip():
                    continue
                try:
                    heard = sentences.heard(line)
                except SentenceMalformed as error:
                    self._context.skipped(f"{self._file}, line {number}: {error}")
                    continue
                if isinstance(heard, SatelliteFix) and heard.utc_ns is not None:
                    if last_ns is not None:
                        step_s = (heard.utc_ns - last_ns) / SECOND
                        due_s += (step_s if 0 <= step_s <= _GAP_S else 1.0) / self._rate
                    last_ns = heard.utc_ns
                if isinstance(heard, SatelliteFix | NoFix):
                    yield due_s, heard


class SerialReceiver:
    """A receiver on a serial line; see ``Receiver``."""

    def __init__(self, device: str, baud: int, error_m: float, context: DriverContext) -> None:
        self.name = f"the receiver on {device}"
        self._device, self._baud, self._error_m, self._context = device, baud, error_m, context
        self._port: Any = None
        self._sentences = Sentences(error_m)
        self._rest = b""

    def open(self) -> None:
        """Open the line for this program alone. :raises SourceUnavailable: absent, busy, or not permitted."""
        import serial

        self.close()
        try:
            self._port = serial.Serial(self._device, self._baud, timeout=0.2, exclusive=True)
        except (OSError, ValueError) as error:
            raise SourceUnavailable(f"{self.name} can't be opened: {_way_out(error, self._device)}") from error
        self._sentences, self._rest = Sentences(self._error_m), b""

    def heard(self, timeout_s: float) -> Iterator[Heard]:
        """What it has said since, waiting for ``timeout_s`` at most. :raises SourceUnavailable: it has gone."""
        import termios

        try:
            if self._port.timeout != timeout_s:
                self._port.timeout = timeout_s
            data = self._port.read(max(1, min(self._port.in_waiting, 4_096)))
        except (OSError, TypeError, termios.error) as error:  # TypeError: pyserial's, when it is unplugged in a read
            raise SourceUnavailable(f"{self.name} has gone ({error}): was it unplugged?") from error
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_SENTENCE_BYTES:
            self._rest = b""
            self._context.skipped(f"{self.name}: no end of a line in {MAX_SENTENCE_BYTES} bytes: is 'baud' right?")
        for line in lines:
            if not line.strip():
                continue
            try:
                heard = self._sentences.heard(line)
            except SentenceMalformed as error:
                self._context.skipped(f"{self.name}: {error}")
            else:
                if heard is not None:
                    yield heard

    def close(self) -> None:
        """See ``Receiver``."""
        if self._port is not None:
            self._port.close()
            self._port = None


def _way_out(error: OSError | ValueError, device: str) -> str:
    code = getattr(error, "errno", None)
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"there is no {device}: connect the receiver, or name another 'device' (ls /dev/serial/by-id)"
    if code in (errno.EACCES, errno.EPERM):
        return f"it is not permitted: add the user of the node to the group of {device} (dialout on Debian)"
    if code in (errno.EBUSY, errno.EAGAIN) or "lock port" in str(error):
        return "another program reads it: stop that, or let gpsd read it and use the driver 'gpsd'"
    return f"{error}: name a serial line, such as /dev/ttyUSB0"
