"""The signals of a CAN bus: SocketCAN, what else python-can knows, or a log.

Options: ``channel`` (``can0``) with ``interface``, or ``file`` with ``rate`` and ``loop``; ``database`` (a DBC),
``signals`` (patterns of ``Message.Signal``), ``rate_hz`` (each signal at most so often), ``on_change``, ``names`` (of
named values). Keys: ``<prefix>/can/<Message>/<Signal>``, and ``<prefix>/can/status`` every ten seconds, which counts
frames.

It needs the extra ``meshnode[can]``. The bit rate of a bus is set by the system (``ip link``), not by a node.
"""

import errno
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

from meshnode.sensors.can_bus.signals import ChosenSignal, ChosenSignals, load_database
from meshnode.sensors.contract import CHECK_S, DriverContext, Sample
from meshnode.sensors.options import Options
from protocols.base.errors import ConfigError, SourceUnavailable
from protocols.base.limits import MAX_TEXT_CHARS, SECOND
from protocols.wire.readings import EventTime

SENSOR: Final = "can"
STATUS_EVERY_S: Final = 10.0
DEFAULT_RATE_HZ: Final = 2.0
_POLL_S: Final = 0.05
"""How long one wait for a frame may take: changes that were held are given within it, and a node that stops waits."""
_SILENT_S: Final = 5.0
"""A bus on which nothing was said for this long is told as silent."""
_LOGS: Final = (".asc", ".blf", ".csv", ".db", ".log", ".mf4", ".trc")


class CanDriver:
    """Listens to a bus, or replays a log; see the module."""

    def __init__(
        self, context: DriverContext, signals: ChosenSignals, channel: str, interface: str, file: Path | None,
        rate: float, loop: bool,
    ) -> None:  # fmt: skip
        self._context, self._signals, self._channel, self._interface = context, signals, channel, interface
        self._file, self._rate, self._loop = file, rate, loop
        self._errors = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        """See the module for the options. It reads the database.

        :raises ConfigError: an option is wrong or unknown, the database is none, or the extra is missing.
        """
        read = Options("can", options)
        has_channel, has_file = read.has("channel"), read.has("file")
        channel, interface = read.text("channel", "-"), read.text("interface", "socketcan")
        file = read.file("file", context.folder, Path("-")) if has_file else None
        database = read.file("database", context.folder, Path("-")) if read.has("database") else None
        patterns = read.texts("signals", ["*"])
        rate_hz = read.number("rate_hz", DEFAULT_RATE_HZ, 0.001, 1_000.0)
        on_change, names = read.flag("on_change", False), read.flag("names", True)
        rate, loop = read.number("rate", 1.0, 0.01, 100.0), read.flag("loop", False)
        if file is not None and file.suffix.lower() not in _LOGS:
            raise read.wrong("file", f"name a log whose name ends in {', '.join(_LOGS)}")
        read.finish()
        if has_channel == has_file:
            raise ConfigError("sensor driver 'can': give either 'channel' (a bus) or 'file' (a log of one)")
        if database is None:
            raise ConfigError("sensor driver 'can': give 'database', the file (DBC) that describes the signals")
        for name in ("can", "cantools"):
            read.need(name, "can")
        signals = ChosenSignals(load_database(database), patterns, rate_hz, on_change, names)
        return cls(context, signals, channel, interface, file, rate, loop)

    def samples(self) -> Generator[Sample, None, None]:
        """The chosen signals as they come.

        :raises SourceUnavailable: the bus or the log can't be opened, or has gone.
        """
        if self._file is not None:
            yield from self._replayed(self._file)
            return
        bus = self._opened()
        try:
            yield from self._heard(bus)
        finally:
            bus.shutdown()

    def check(self) -> str:
        """See ``CheckedDriver``. A silent bus is told, and no failure: its vehicle may be off."""
        import can

        if self._file is not None:
            first = next(iter(self._frames(self._file)), None)
            if first is None:
                raise SourceUnavailable(f"{self._file} has no frame: name a log of a bus")
            return f"{self._file.name}, {self._signals.count} signals chosen"
        bus = self._opened()
        try:
            heard = 0
            ends_s = self._context.elapsed_s() + CHECK_S
            while self._context.elapsed_s() < ends_s and heard < 100:
                try:
                    message = bus.recv(0.2)
                except (can.CanError, OSError) as error:
                    raise SourceUnavailable(self._gone(error)) from error
                if message is not None and not message.is_error_frame:
                    heard += 1
                    for _ in self._taken(message, 0.0):
                        pass
        finally:
            bus.shutdown()
        if not heard:
            return f"{self._channel}: no frame in {CHECK_S:g} s, {self._signals.count} signals chosen"
        unknown = (
            f", {self._signals.unknown} of {heard} frames are not in the database" if self._signals.unknown else ""
        )
        return f"{self._channel}: frames come, {self._signals.count} signals chosen{unknown}"

    # --- a bus -----------------------------------------------------------------------------------------------------
    def _opened(self) -> Any:
        import can

        try:
            return can.Bus(channel=self._channel, interface=self._interface)
        except (can.CanError, OSError, ValueError, TypeError, ImportError) as error:
            raise SourceUnavailable(
                f"the CAN bus {self._channel} can't be opened: {_way_out(error, self._channel, self._interface)}"
            ) from error

    def _heard(self, bus: Any) -> Generator[Sample, None, None]:
        import can

        context = self._context
        told_s = heard_s = context.elapsed_s()
        is_silent = False
        while not context.stopping.is_set():
            try:
                message = bus.recv(_POLL_S)
            except (can.CanError, OSError) as error:
                raise SourceUnavailable(self._gone(error)) from error
            now_s = context.elapsed_s()
            if message is not None:
                heard_s = now_s
                if is_silent:
                    is_silent = False
                    context.trouble("")
                for signal in self._taken(message, now_s):
                    yield self._sample(signal, now_s, signal.time_s)
            elif now_s - heard_s >= _SILENT_S and not is_silent:
                is_silent = True
                context.trouble(f"the CAN bus {self._channel} is silent for {_SILENT_S:g} s now: is the vehicle on?")
            for signal in self._signals.due(now_s):
                yield self._sample(signal, now_s, signal.time_s)
            if now_s - told_s >= STATUS_EVERY_S:
                told_s = now_s
                yield self._status(now_s)

    def _taken(self, message: Any, now_s: float) -> Iterator[ChosenSignal]:
        if message.is_error_frame or message.is_remote_frame:
            self._errors += message.is_error_frame
            return
        try:
            yield from self._signals.take(
                message.arbitration_id, message.is_extended_id, message.data, message.timestamp, now_s
            )
        except ValueError as error:
            self._context.skipped(f"{self._channel if self._file is None else self._file}: {error}")

    def _sample(self, signal: ChosenSignal, due_s: float, time_s: float | None) -> Sample:
        when = None
        if time_s is not None and time_s > 1e9:  # interfaces without clocks count from their start
            when = EventTime(int(time_s * SECOND), self._context.uncertainty_now_ns())
        key = f"{self._context.prefix}/can/{signal.name}"
        return Sample(due_s, key, signal.value, signal.unit, SENSOR, quality=signal.quality, priority=3, when=when)

    def _status(self, due_s: float) -> Sample:
        signals = self._signals
        value = {
            "bus": (self._channel if self._file is None else self._file.name)[:MAX_TEXT_CHARS],
            "frames": signals.frames, "unknown": signals.unknown, "malformed": signals.malformed,
            "errors": self._errors,
        }  # fmt: skip
        return Sample(due_s, f"{self._context.prefix}/can/status", value, "1", SENSOR, priority=2)

    def _gone(self, error: Exception) -> str:
        return f"the CAN bus {self._channel} has gone: {_way_out(error, self._channel, self._interface)}"

    # --- a log -----------------------------------------------------------------------------------------------------
    def _replayed(self, file: Path) -> Iterator[Sample]:
        starts_s = 0.0
        while True:
            due_s, first_s = starts_s, None
            for message in self._frames(file):
                if first_s is None:
                    first_s = message.timestamp
                due_s = max(due_s, starts_s + (message.timestamp - first_s) / self._rate)
                for signal in self._signals.due(due_s):
                    yield self._sample(signal, due_s, None)
                for signal in self._taken(message, due_s):
                    yield self._sample(signal, due_s, None)
            if first_s is None:
                raise SourceUnavailable(f"{file} has no frame: name a log of a bus")
            yield self._status(due_s)
            if not self._loop:
                return
            starts_s = due_s + 0.1

    def _frames(self, file: Path) -> Iterator[Any]:
        """The frames of a log. A log that is cut off gives what it has."""
        import can

        number = 0
        try:
            with can.LogReader(file) as reader:
                for message in reader:
                    number += 1
                    yield message
        except Exception as error:  # the readers of seven formats raise what they like
            if not number:
                raise SourceUnavailable(
                    f"the log {file} can't be read: {str(error)[:200]}; name a log whose name ends as its format does"
                ) from error
            self._context.skipped(f"{file}: it ends after {number} frames ({str(error)[:200]})")


def _way_out(error: Exception, channel: str, interface: str) -> str:
    code = getattr(error, "errno", None) or getattr(error, "error_code", None)
    if code == errno.ENODEV:
        return f"there is no {channel}: connect it (ip link show type can), or name another 'channel'"
    if code == errno.ENETDOWN:
        return f"it is down: sudo ip link set {channel} up type can bitrate 500000"
    if code in (errno.EACCES, errno.EPERM):
        return f"it is not permitted: give the user of the node the rights for {channel}"
    if code in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
        return "this kernel has no CAN: sudo modprobe can_raw"
    return f"{str(error)[:200]}; 'interface' is {interface!r}, see python-can for what it needs"
