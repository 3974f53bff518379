"""Replays a series from CSV or Parquet, and gives windows of it to a model.

Options: ``file``; ``time`` (the column, ``time_s``) and ``time_unit``; ``columns``; ``rate``, ``loop``; ``rate_hz``
(each column at most so often, 0: never) and ``unit`` of the readings; ``delimiter`` and ``decimal`` of CSV; ``key``.
For a model: ``model``, ``input``, ``length`` and ``hop`` (rows), ``layout``, ``gap_s``, ``labels`` (names of the
classes), ``result``, ``budget_ms``.

Keys: ``<prefix>/series/<column>``, ``<prefix>/series/window`` for each window, and ``<prefix>/series/result`` for what
the model says. Parquet needs the extra ``meshnode[export]``.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Self

from meshnode.sensors.contract import DriverContext, InferenceSample, Sample
from meshnode.sensors.options import Options
from meshnode.sensors.series.tables import PARQUET, UNITS_S, SeriesFile
from meshnode.sensors.series.windows import MAX_LENGTH, MAX_VALUES, SeriesWindow, Windows, shaped
from protocols.base.errors import ConfigError, InvalidKey, ModelInvalid, SourceUnavailable
from protocols.base.keys import checked_key
from protocols.base.limits import MAX_BUDGET_MS, MAX_TEXT_CHARS

if TYPE_CHECKING:
    from numpy.typing import NDArray

SENSOR: Final = "series"
_STEPS_LOOKED_AT: Final = 200
_GAP_STEPS: Final = 3.0
"""Times the usual step between rows: what is further apart has a gap, unless ``gap_s`` says otherwise."""


@dataclass(frozen=True, slots=True)
class WindowModel:
    """A model that takes windows. The fields are options, see the module."""

    name: str
    input_name: str
    length: int
    hop: int
    layout: str
    gap_s: float | None
    labels: tuple[str, ...]
    budget_ms: int

    @classmethod
    def read(cls, read: Options) -> Self | None:
        """None: no model. :raises ConfigError: an option is wrong."""
        has_model, has_hop, has_gap, has_labels = (read.has(name) for name in ("model", "hop", "gap_s", "labels"))
        name, input_name = read.text("model", "-"), read.text("input", "window")
        length = read.integer("length", 128, 1, MAX_LENGTH)
        hop = read.integer("hop", length, 1, MAX_LENGTH)
        layout = read.choice("layout", ("channels", "times", "flat"), "channels")
        gap_s = read.number("gap_s", 1.0, 1e-6, 86_400.0)
        labels = tuple(read.texts("labels", ["-"]))
        budget_ms = read.integer("budget_ms", 1_000, 1, MAX_BUDGET_MS)
        if any(len(label) > MAX_TEXT_CHARS for label in labels):
            raise read.wrong("labels", f"give names of at most {MAX_TEXT_CHARS} characters")
        if not has_model:
            return None
        return cls(
            name, input_name, length, hop if has_hop else length, layout, gap_s if has_gap else None,
            labels if has_labels else (), budget_ms,
        )  # fmt: skip


class SeriesReplay:
    """Replays one file; see the module."""

    def __init__(
        self, context: DriverContext, file: SeriesFile, key: str, result_key: str, rate: float, loop: bool,
        rate_hz: float, unit: str, model: WindowModel | None,
    ) -> None:  # fmt: skip
        """:raises SourceUnavailable: the file can't be read. :raises ConfigError: windows would be too large."""
        self._context, self._file, self._key, self._result_key = context, file, key, result_key
        self._rate, self._loop, self._unit, self._model = rate, loop, unit, model
        self._every_s = rate / rate_hz if rate_hz else None
        self._names = file.names()
        self._keys = [f"{key}/{name}" for name in self._names] if self._every_s is not None else []
        try:
            for each in self._keys:
                checked_key(each)
        except InvalidKey as error:
            raise ConfigError(
                f"sensor driver 'series': a column is no part of a key ({error}): choose others by 'columns', or set "
                "rate_hz = 0"
            ) from error
        if model is not None and model.length * len(self._names) > MAX_VALUES:
            raise ConfigError(
                f"sensor driver 'series': a window has {model.length} × {len(self._names)} values, more than "
                f"{MAX_VALUES}: lower 'length', or choose 'columns'"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        """See the module for the options. It reads the header of the file.

        :raises ConfigError: one is wrong or unknown, or the extra is missing.
        :raises SourceUnavailable: the file is absent, or has no such columns.
        """
        read = Options("series", options)
        if not read.has("file"):
            raise ConfigError("sensor driver 'series': option 'file' is missing: name the file to replay")
        path = read.file("file", context.folder, context.folder)
        has_columns = read.has("columns")
        columns = tuple(read.texts("columns", ["-"])) if has_columns else ()
        time_column, time_unit = read.text("time", "time_s"), read.choice("time_unit", tuple(UNITS_S), "s")
        delimiter, decimal = read.text("delimiter", ","), read.choice("decimal", (".", ","), ".")
        if len(delimiter) != 1 or delimiter.isalnum() or delimiter in '"\r\n. -+_':
            raise read.wrong("delimiter", "give the character between two cells, such as ';' or '\\t'")
        rate, loop = read.number("rate", 1.0, 0.01, 100.0), read.flag("loop", False)
        rate_hz, unit = read.number("rate_hz", 10.0, 0.0, 1_000.0), read.text("unit", "1")
        key = read.key("key", "series", context.prefix)
        result_key = read.key("result", f"{read.text('key', 'series')}/result", context.prefix)
        model = WindowModel.read(read)
        read.finish()
        if path.suffix.lower() in PARQUET:
            read.need("pyarrow.parquet", "export")
        file = SeriesFile(path, time_column, time_unit, columns, delimiter, decimal)
        return cls(context, file, key, result_key, rate, loop, rate_hz, unit, model)

    def samples(self) -> Generator[Sample, None, None]:
        """Readings of the columns, and a sample with an inference for each window.

        :raises SourceUnavailable: the file can't be read, or has no row that makes sense.
        """
        starts_s = 0.0
        while True:
            due_s: float | None = None
            next_s, gives = 0.0, False
            for time_s, row, window in self._timed():
                due_s = starts_s + time_s / self._rate
                if self._every_s is not None and time_s >= next_s - 1e-6:  # times are rounded
                    next_s, gives = max(next_s + self._every_s, time_s), True
                    for key, value in zip(self._keys, row, strict=True):
                        yield Sample(due_s, key, value, self._unit, SENSOR)
                if window is not None:
                    gives = True
                    yield self._of_window(due_s, window)
            if due_s is None:
                raise SourceUnavailable(f"{self._file.path} has no row of numbers: name a file of a series")
            if not self._loop:
                return
            if not gives:
                raise SourceUnavailable(
                    f"{self._file.path} gives neither readings nor windows: set rate_hz, or lower 'length' to at most "
                    "its rows without a gap"
                )
            starts_s = due_s + self._usual_step_s() / self._rate

    def check(self) -> str:
        """See ``CheckedDriver``."""
        step_s = self._usual_step_s()
        return f"{self._file.path.name}: {', '.join(self._names)[:100]}, {1 / step_s:.4g} rows a second"

    def _timed(self) -> Iterator[tuple[float, tuple[float, ...], SeriesWindow | None]]:
        """Rows with seconds since the first one, which never go back, and the windows that they complete."""
        model, windows = self._model, None
        if model is not None:
            gap_s = _GAP_STEPS * self._usual_step_s() if model.gap_s is None else model.gap_s
            windows = Windows(model.length, model.hop, gap_s)
        last_s: float | None = None
        passed_s = 0.0
        for time_s, row in self._file.rows(self._names, self._context.skipped):
            if last_s is not None and time_s < last_s:
                self._context.skipped(f"{self._file.path}: time goes back from {last_s:.6f} s to {time_s:.6f} s")
            elif last_s is not None:
                passed_s += time_s - last_s
            last_s = time_s
            yield passed_s, row, None if windows is None else windows.add(time_s, row)

    def _of_window(self, due_s: float, window: SeriesWindow) -> Sample:
        assert self._model is not None, "windows are for it"
        value = {"from_s": window.from_s, "to_s": window.to_s, "rows": len(window.values)}
        infer = asked(self._model, window, self._result_key)
        return Sample(due_s, f"{self._key}/window", value, sensor=SENSOR, infer=infer)

    def _usual_step_s(self) -> float:
        rows = self._file.rows(self._names, lambda _: None)
        times = [time_s for time_s, _ in islice(rows, _STEPS_LOOKED_AT)]
        steps = [later - earlier for earlier, later in pairwise(times) if later > earlier]
        if not times:
            raise SourceUnavailable(f"{self._file.path} has no row of numbers: name a file of a series")
        return median(steps) if steps else 1.0


def asked(model: WindowModel, window: SeriesWindow, result_key: str) -> InferenceSample:
    """What the node is asked to compute for a window."""

    def interpret(outputs: "Mapping[str, NDArray[Any]]") -> dict[str, Any]:
        shares = [each for each in outputs.values() if each.dtype.kind == "f" and each.size == len(model.labels)]
        if not shares:
            raise ModelInvalid(f"model {model.name!r} has no output of {len(model.labels)} numbers, one for each label")
        likely = shares[0].reshape(-1)
        best = int(likely.argmax())
        return {
            "label": model.labels[best], "probability": round(float(likely[best]), 4),
            "from_s": window.from_s, "to_s": window.to_s,
        }  # fmt: skip

    told: Callable[[Mapping[str, Any]], Any] | None = interpret if model.labels else None
    inputs = {model.input_name: shaped(window.values, model.layout)}
    return InferenceSample(model.name, inputs, budget_ms=model.budget_ms, key=result_key, interpret=told)
