"""Series of CSV and Parquet: rows at their pace, windows without seams, and what is wrong with files."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.parquet import write_table

from meshnode.sensors import DriverContext, Sample, create_driver
from meshnode.sensors.contract import checked
from meshnode.sensors.series.windows import Windows, shaped
from protocols.base.errors import ConfigError, SourceUnavailable
from protocols.base.ids import node_id


def context(folder: Path) -> DriverContext:
    return DriverContext(node_id("v-1"), folder, Random(1), logs_skipped=False)


def write(folder: Path, name: str, times: list[Any], **columns: list[Any]) -> None:
    """A file of either kind."""
    named = {"time_s": times, **columns}
    if name.endswith(".parquet"):
        write_table(pa.table(named), folder / name, row_group_size=50)
    else:
        rows = [",".join(named), *(",".join(map(str, row)) for row in zip(*named.values(), strict=True))]
        (folder / name).write_text("\n".join(rows) + "\n")


def samples(folder: Path, **options: Any) -> list[Sample]:
    return list(create_driver("series", options, context(folder)).samples())


@pytest.mark.parametrize("name", ["imu.csv", "imu.parquet"])
def test_rows_become_readings_at_a_rate_and_windows_of_all_rows(name: str, tmp_path: Path) -> None:
    """A hundred rows a second are for the model; nobody wants as many readings."""
    times = [100.0 + number / 100 for number in range(200)]
    write(tmp_path, name, times, x=[number / 4 for number in range(200)], y=[-number / 4 for number in range(200)])
    options = {"file": name, "model": "m", "length": 40, "hop": 20, "rate_hz": 10.0, "unit": "m/s2", "key": "imu"}
    assert checked(create_driver("series", options, context(tmp_path))) == f"{name}: x, y, 100 rows a second"
    found = samples(tmp_path, **options)
    due = [sample.due_s for sample in found]
    assert due == sorted(due)
    x = [(sample.due_s, sample.value, sample.unit) for sample in found if sample.key == "veh/v-1/imu/x"]
    assert len(x) == 20
    assert x[3] == (pytest.approx(0.3), 7.5, "m/s2")
    given_ = [sample for sample in found if sample.infer is not None]
    assert [sample.due_s for sample in given_] == pytest.approx([(39 + 20 * number) / 100 for number in range(9)])
    second = given_[1]
    assert second.key == "veh/v-1/imu/window"
    assert second.value == {"from_s": pytest.approx(100.2), "to_s": pytest.approx(100.59), "rows": 40}
    assert second.infer is not None
    assert second.infer.key == "veh/v-1/imu/result"
    window = np.asarray(second.infer.inputs["window"])  # type: ignore[index]
    assert (window.shape, window.dtype) == ((1, 2, 40), np.float32)
    assert window[0, :, 0].tolist() == [5.0, -5.0]


def test_gap_begins_a_new_window_and_a_bad_row_is_left_out(tmp_path: Path) -> None:
    """A model was not trained on seams; a missing row of a fast series is none."""
    times = [number / 10 for number in range(20)] + [5 + number / 10 for number in range(20)]
    values: list[Any] = [float(number) for number in range(40)]
    values[3], values[4], values[30] = "", "nan", "many"
    write(tmp_path, "s.csv", times, x=values)
    driver = create_driver(
        "series", {"file": "s.csv", "model": "m", "length": 8, "rate_hz": 0}, given_ := context(tmp_path)
    )
    windows = [sample.value for sample in driver.samples()]
    assert [(window["from_s"], window["to_s"]) for window in windows] == [
        (0.0, 0.9),
        (1.0, 1.7),
        (5.0, 5.7),
        (5.8, 6.6),
    ]
    assert given_.samples_skipped == 3
    assert "row 32: give a number" in given_.last_skipped


def test_clock_that_was_set_back_is_told_and_no_sample_is_due_before_another(tmp_path: Path) -> None:
    """Loggers get the time of a satellite after they began."""
    write(tmp_path, "s.csv", [10.0, 10.1, 3.0, 3.1], x=[1, 2, 3, 4])
    driver = create_driver("series", {"file": "s.csv", "rate_hz": 1000.0}, given_ := context(tmp_path))
    assert [sample.due_s for sample in driver.samples()] == pytest.approx([0.0, 0.1, 0.1, 0.2])
    assert "time goes back from 10.1" in given_.last_skipped


def test_times_of_parquet_may_be_timestamps_and_numbers_of_any_unit(tmp_path: Path) -> None:
    """Pandas writes timestamps, loggers microseconds."""
    begin = datetime(2026, 12, 1, tzinfo=UTC)
    write(
        tmp_path, "t.parquet", [begin + timedelta(milliseconds=20 * number) for number in range(5)], x=[1, 2, 3, 4, 5]
    )
    assert [sample.due_s for sample in samples(tmp_path, file="t.parquet", rate_hz=100.0)] == pytest.approx(
        [0, 0.02, 0.04, 0.06, 0.08]
    )
    write(tmp_path, "u.csv", [20_000 * number for number in range(5)], x=[1, 2, 3, 4, 5])
    found = samples(tmp_path, file="u.csv", time_unit="us", rate_hz=100.0, rate=2.0)
    assert [sample.due_s for sample in found] == pytest.approx([0, 0.01, 0.02, 0.03, 0.04])


def test_series_that_loops_goes_on_by_its_usual_step(tmp_path: Path) -> None:
    """The end and the beginning are no window."""
    write(tmp_path, "s.csv", [0.0, 0.1, 0.2], x=[1, 2, 3])
    driver = create_driver("series", {"file": "s.csv", "loop": True, "model": "m", "length": 2}, context(tmp_path))
    playing = driver.samples()
    found = [next(playing) for _ in range(11)]
    playing.close()
    assert [each.due_s for each in found if each.key.endswith("/x")] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    )
    assert [(each.value["from_s"], each.value["to_s"]) for each in found if each.infer] == [(0.0, 0.1)] * 3


@pytest.mark.parametrize("options", [{}, {"model": "m", "length": 4}])
def test_series_that_would_loop_without_giving_anything_says_so(options: dict[str, Any], tmp_path: Path) -> None:
    """It would read the file again and again as fast as it can, and a node that stops would wait for it."""
    write(tmp_path, "s.csv", [0.0, 0.1, 0.2], x=[1, 2, 3])
    driver = create_driver("series", {"file": "s.csv", "loop": True, "rate_hz": 0, **options}, context(tmp_path))
    with pytest.raises(SourceUnavailable, match=r"gives neither readings nor windows: set rate_hz, or lower 'length'"):
        next(driver.samples())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "has no column 'time_s'"),
        ("a.csv", b"time_s\n1\n", "has 0 columns of values"),
        ("a.csv", b"time_s;x\n1;2\n", "has no column 'time_s': it has time_s;x"),
        ("a.csv", b"time_s,x\n" + b"1" * 70_000, "a line is too long"),
        ("a.csv", b"time_s,x\nnow,2\n", "has no row of numbers"),
        ("a.csv", bytes(range(256)), "NUL character"),
        ("a.parquet", b"PAR1 nothing PAR1", "is no Parquet file that can be read"),
    ],
)
def test_file_that_is_none_is_named_with_its_fault(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    """The node goes on without it and tries again."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceUnavailable, match=says):
        checked(create_driver("series", {"file": name}, context(tmp_path)))


def test_text_where_numbers_are_needed_is_refused_with_the_column(tmp_path: Path) -> None:
    """Parquet has types, so all of its rows would be wrong."""
    write(tmp_path, "a.parquet", [1.0, 2.0], x=["a", "b"])
    with pytest.raises(SourceUnavailable, match="column 'x' has no numbers but string"):
        checked(create_driver("series", {"file": "a.parquet"}, context(tmp_path)))


@pytest.mark.parametrize("seed", range(8))
def test_damaged_parquet_gives_rows_or_one_error(seed: int, tmp_path: Path) -> None:
    """Whatever a card made of it."""
    write(tmp_path, "a.parquet", [number / 10 for number in range(300)], x=[float(number) for number in range(300)])
    content, random = bytearray((tmp_path / "a.parquet").read_bytes()), Random(seed)
    for _ in range(1 + seed * 5):
        content[random.randrange(len(content))] = random.randrange(256)
    (tmp_path / "a.parquet").write_bytes(content)
    try:
        found = samples(tmp_path, file="a.parquet")
    except (SourceUnavailable, ConfigError):
        return
    assert all(math.isfinite(sample.value) for sample in found)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "'file' is missing"),
        ({"file": "s.csv", "layout": "rows"}, "use one of channels, times, flat"),
        ({"file": "s.csv", "model": "m", "length": 65_536, "columns": ["x"] * 100}, "a window has 65536 × 100 values"),
        ({"file": "s.csv", "lenght": 3}, "did you mean 'length'"),
        ({"file": "s.csv", "columns": ["bad/*"]}, "set rate_hz = 0"),
    ],
)
def test_wrong_option_names_the_way_out(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    """Before anything is replayed."""
    (tmp_path / "s.csv").write_text("time_s,x,bad/*\n1,2,3\n")
    with pytest.raises(ConfigError, match=says):
        create_driver("series", options, context(tmp_path))


@settings(max_examples=60)
@given(
    steps=st.lists(st.sampled_from([0.1, 0.1, 0.1, 0.5, -1.0, 0.0]), max_size=60),
    length=st.integers(1, 8), hop=st.integers(1, 10),
)  # fmt: skip
def test_window_has_neither_gap_nor_seam_and_hops_as_asked(steps: list[float], length: int, hop: int) -> None:
    """Whatever the times of rows are."""
    windows, time_s, run, run_rows = Windows(length, hop, 0.2), 0.0, 0, []
    for number, step in enumerate(steps):
        time_s += step
        if number and not 0 < step <= 0.2:
            run_rows = []
        run_rows.append(number)
        run = len(run_rows)
        window = windows.add(time_s, [float(number)])
        assert (window is not None) == (run >= length and (run - length) % hop == 0)
        if window is not None:
            assert window.values[:, 0].tolist() == run_rows[-length:]


def test_layouts_are_those_that_models_take() -> None:
    """PyTorch has channels first, Keras last, scikit-learn neither."""
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert shaped(values, "channels").tolist() == [[[0, 2, 4], [1, 3, 5]]]
    assert shaped(values, "times").tolist() == [[[0, 1], [2, 3], [4, 5]]]
    assert shaped(values, "flat").tolist() == [[0, 2, 4, 1, 3, 5]]
