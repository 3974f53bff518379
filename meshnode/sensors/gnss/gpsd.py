"""The fixes of gpsd, which serves the receivers of a host to all of its programs.

Options: ``host`` and ``port`` (localhost, 2947), ``device`` (which receiver, if gpsd has several), ``latency_ms`` (the
longest way of a fix from the receiver to here, for the uncertainty of the clock). Keys: ``<prefix>/position``,
``…/speed`` and ``…/gnss``, which says how good the fix is, or why there is none.
"""

import socket
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Final, Self

from meshnode.sensors.contract import CHECK_S, DriverContext, Sample
from meshnode.sensors.gnss.fixes import Heard
from meshnode.sensors.gnss.receiving import MAX_LINE_BYTES, looked_at, received
from meshnode.sensors.gnss.reports import ReportMalformed, Reports
from meshnode.sensors.gnss.tracking import Tracker
from meshnode.sensors.options import Options
from protocols.base.errors import SourceUnavailable
from protocols.base.limits import MS

SENSOR: Final = "gpsd"
DEFAULT_LATENCY_MS: Final = 1_000.0
"""Receivers of 4,800 baud take most of a second for what they have to say of it."""
_WATCH: Final = b'?WATCH={"enable":true,"json":true,"pps":true};\n'


class GpsdDriver:
    """Listens to gpsd; see the module."""

    def __init__(self, context: DriverContext, host: str, port: int, device: str, latency_ns: int) -> None:
        self._context, self._latency_ns = context, latency_ns
        self._receiver = GpsdReceiver(host, port, device, context)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        """See the module for the options. :raises ConfigError: one is wrong or unknown."""
        read = Options("gpsd", options)
        host = read.text("host", "localhost")
        port = read.integer("port", 2947, 1, 65_535)
        device = read.text("device", "-") if read.has("device") else ""
        latency_ms = read.number("latency_ms", DEFAULT_LATENCY_MS, 0.0, 60_000.0)
        read.finish()
        return cls(context, host, port, device, int(latency_ms * MS))

    def samples(self) -> Generator[Sample, None, None]:
        """The samples of each fix, and once a second why there is none.

        :raises SourceUnavailable: gpsd is not there.
        """
        yield from received(self._receiver, self._context, Tracker(self._context, SENSOR, self._latency_ns))

    def check(self) -> str:
        """See ``CheckedDriver``."""
        return looked_at(self._receiver)


class GpsdReceiver:
    """A connection to gpsd; see ``Receiver``."""

    def __init__(self, host: str, port: int, device: str, context: DriverContext) -> None:
        self.name = f"gpsd at {host}:{port}"
        self._host, self._port, self._device, self._context = host, port, device, context
        self._socket: socket.socket | None = None
        self._reports = Reports(device)
        self._rest = b""

    def open(self) -> None:
        """Connect, and ask for reports. :raises SourceUnavailable: nobody answers."""
        self.close()
        try:
            self._socket = socket.create_connection((self._host, self._port), CHECK_S)
            self._socket.sendall(_WATCH)
        except OSError as error:
            self.close()
            raise SourceUnavailable(
                f"{self.name} can't be reached ({error}): start it (systemctl start gpsd), or name its 'host' and "
                "'port'"
            ) from error
        self._reports, self._rest = Reports(self._device), b""

    def heard(self, timeout_s: float) -> Iterator[Heard]:
        """What gpsd has said since, waiting for ``timeout_s`` at most. :raises SourceUnavailable: it has gone."""
        assert self._socket is not None, "it is open"
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(MAX_LINE_BYTES)
        except TimeoutError:
            return
        except OSError as error:
            raise SourceUnavailable(f"{self.name} has gone: {error}") from error
        if not data:
            raise SourceUnavailable(f"{self.name} has closed the connection")
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest = b""
            self._context.skipped(f"{self.name}: a line of more than {MAX_LINE_BYTES} bytes: is this gpsd?")
        for line in lines:
            if not line.strip():
                continue
            try:
                heard = self._reports.heard(line)
            except ReportMalformed as error:
                self._context.skipped(f"{self.name}: {error}")
            else:
                if heard is not None:
                    yield heard

    def close(self) -> None:
        """See ``Receiver``."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
