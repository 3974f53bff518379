"""From frames to values: the signals that were chosen, as the database of the bus (DBC) describes them.

A frame of a message that has chosen signals is decoded when it comes. Each signal is given at most ``rate_hz`` times a
second, always with its newest value; with ``on_change`` only when its value differs from the one that was given last. A
change that comes too early is held, and given when its time has come.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from protocols.base.errors import ConfigError
from protocols.base.limits import MAX_TEXT_CHARS

MAX_SIGNALS: Final = 4_096
"""A vehicle's whole database has about as many."""
UNITS: Final = {
    "": "1",
    "-": "1",
    "rpm": "/min",
    "1/min": "/min",
    "degC": "Cel",
    "°C": "Cel",
    "C": "Cel",
    "°": "deg",
    "kph": "km/h",
}
"""How databases write units, and how UCUM does."""
OUT_OF_RANGE_QUALITY: Final = 0.1
"""Of a value that the database says can't be: the sensor behind it is likely to be broken."""


@dataclass(slots=True, eq=False)
class ChosenSignal:
    """One signal, and what was given of it."""

    name: str
    """``Message/Signal``."""
    unit: str
    lowest: float | None
    highest: float | None
    value: float | int | str = 0
    """The newest."""
    time_s: float = 0.0
    """Of the newest: the stamp of its frame."""
    given: float | int | str | None = None
    due_s: float = -math.inf
    """It is not given again before."""
    is_waiting: bool = False

    @property
    def quality(self) -> float:
        """1, or less for a value out of its range."""
        value = self.value
        if isinstance(value, str):
            return 1.0
        low, high = self.lowest, self.highest
        is_good = (low is None or value >= low) and (high is None or value <= high)
        return 1.0 if is_good and math.isfinite(value) else OUT_OF_RANGE_QUALITY


class ChosenSignals:
    """The signals of a database that were chosen, by frame."""

    def __init__(self, database: Any, patterns: list[str], rate_hz: float, on_change: bool, names: bool) -> None:
        """``patterns`` of ``Message.Signal``, with ``*`` and ``?``. ``names``: give the names of named values.

        :raises ConfigError: a pattern chooses nothing, or all together choose too many.
        """
        self._every_s, self._on_change, self._names = 1.0 / rate_hz, on_change, names
        self._messages: dict[tuple[int, bool], tuple[Any, dict[str, ChosenSignal]]] = {}
        self._known = {(message.frame_id, bool(message.is_extended_frame)) for message in database.messages}
        self._waiting: list[ChosenSignal] = []
        self.frames = self.unknown = self.malformed = 0
        chosen = dict.fromkeys(patterns, 0)
        for message in database.messages:
            signals = {}
            for signal in message.signals:
                fitting = [each for each in patterns if fnmatchcase(f"{message.name}.{signal.name}", each)]
                for pattern in fitting:
                    chosen[pattern] += 1
                if fitting:
                    signals[signal.name] = _chosen(message, signal)
            if signals:
                self._messages[message.frame_id, bool(message.is_extended_frame)] = message, signals
        for pattern, count in chosen.items():
            if not count:
                raise ConfigError(_nothing(pattern, database))
        if self.count > MAX_SIGNALS:
            raise ConfigError(
                f"sensor driver 'can': 'signals' chooses {self.count} signals, more than {MAX_SIGNALS}: name fewer"
            )

    @property
    def count(self) -> int:
        """How many signals were chosen."""
        return sum(len(signals) for _, signals in self._messages.values())

    def take(
        self, frame_id: int, is_extended: bool, data: bytes, time_s: float, now_s: float
    ) -> Iterator[ChosenSignal]:
        """The signals that are due now that a frame has come. ``time_s``: its stamp.

        :raises ValueError: its data don't fit its message; says how.
        """
        self.frames += 1
        found = self._messages.get((frame_id, is_extended))
        if found is None:
            self.unknown += (frame_id, is_extended) not in self._known
            return
        message, signals = found
        try:
            values = message.decode(data, decode_choices=self._names, decode_containers=False)
        except Exception as error:
            self.malformed += 1
            raise ValueError(
                f"a frame of {message.name} ({len(data)} bytes) does not fit the database: {error}"
            ) from error
        for name, value in values.items():
            signal = signals.get(name)
            if signal is not None:
                signal.value, signal.time_s = plain_value(value), time_s
                if self._on_change and signal.value == signal.given:
                    signal.is_waiting = False
                elif now_s >= signal.due_s:
                    yield self._given(signal, now_s)
                elif not signal.is_waiting and self._on_change:
                    signal.is_waiting = True
                    self._waiting.append(signal)

    def due(self, now_s: float) -> Iterator[ChosenSignal]:
        """The changes that were held and whose time has come."""
        if self._waiting:
            later = []
            for signal in self._waiting:
                if not signal.is_waiting:
                    continue
                if now_s >= signal.due_s:
                    yield self._given(signal, now_s)
                else:
                    later.append(signal)
            self._waiting = later

    def _given(self, signal: ChosenSignal, now_s: float) -> ChosenSignal:
        signal.given, signal.is_waiting = signal.value, False
        is_on_time = now_s - signal.due_s < self._every_s  # then the pace is kept, whatever the frames' jitter
        signal.due_s = (signal.due_s if is_on_time else now_s) + self._every_s
        return signal


def plain_value(value: Any) -> float | int | str:
    """A value of cantools as a reading can carry it: a number, or the name of a named value."""
    if isinstance(value, bool | int | float):
        return value
    return str(value)[:MAX_TEXT_CHARS]


def load_database(path: Path) -> Any:
    """The database of a bus: DBC, KCD, SYM, ARXML.

    :raises ConfigError: it is none, or can't be read; says where it is wrong.
    """
    import cantools

    try:
        database = cantools.database.load_file(path)
    except Exception as error:  # the parsers of four formats raise what they like
        raise ConfigError(
            f"sensor driver 'can': the database {path} can't be used: {str(error)[:200]}; give a file of DBC, KCD, SYM "
            "or ARXML"
        ) from error
    if not getattr(database, "messages", None):
        raise ConfigError(f"sensor driver 'can': the database {path} has no messages: give one that describes the bus")
    return database


def _chosen(message: Any, signal: Any) -> ChosenSignal:
    unit = str(signal.unit or "").strip()
    unit = UNITS.get(unit, unit)[:MAX_TEXT_CHARS]
    low, high = signal.minimum, signal.maximum
    if low is not None and high is not None and low >= high:
        low = high = None  # [0|0] of a DBC: there is no range
    return ChosenSignal(
        f"{message.name}/{signal.name}",
        unit,
        None if low is None else float(low),
        None if high is None else float(high),
    )


def _nothing(pattern: str, database: Any) -> str:
    from difflib import get_close_matches

    names = [f"{message.name}.{signal.name}" for message in database.messages for signal in message.signals]
    near = get_close_matches(pattern, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"they are called like {names[0]!r}"
    return f"sensor driver 'can': no signal is called {pattern[:60]!r}: {hint} ('*' stands for anything)"
