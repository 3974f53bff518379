"""The recorder: what it is told comes out right, and however long a run is, it stays small."""

import csv
import io
from pathlib import Path
from random import Random

import msgspec
import pytest
from msgspec.structs import replace

from protocols.base.ids import NodeId
from protocols.inference.events import PartReport
from sims.errors import ResultError
from sims.report.render import render
from sims.results.histogram import Histogram
from sims.results.parts import MAX_ROWS
from sims.results.recorder import (
    MAX_ARRIVALS,
    MAX_DETAILS,
    MAX_ENTRIES,
    MAX_HAPPENINGS_OF_KIND,
    MAX_KINDS,
    MAX_MESSAGES,
    MAX_PLACES,
    SECOND_NS,
    TRACED_NODES,
    Recording,
)
from sims.results.result import Recorder, Result
from sims.results.saved import encode, load, save
from sims.scenario.file import Cut, Inference, Scenario
from tests.tools.result_fixture import MS_NS, city, result_of


def outcome(recording: Recording) -> Result:
    """The result of whatever was told so far."""
    return recording.result("simulator", 1, 60.0, 1.0)


def test_recording_is_what_the_harnesses_ask_for() -> None:
    """A method that was renamed on one side only would fail in the middle of a run."""
    recorder: Recorder = Recording(city(12, 10))
    recorder.busy(0, 0.5)
    assert {name for name in vars(Recorder) if not name.startswith("_")} <= set(dir(recorder))


# --- histograms ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale_ns", [1_000, 1_000_000, 1_000_000_000])
def test_quantiles_of_a_histogram_are_right_within_three_percent(scale_ns: int) -> None:
    """A comparison with a bound of 25 % needs figures that are far better."""
    random = Random(3)
    values = [int(random.lognormvariate(1, 1) * scale_ns) for _ in range(20_000)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    spread = histogram.spread("ms")
    ordered = sorted(values)
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        exact_ms = ordered[int(share * len(ordered)) - 1] / 1e6
        assert spread.quantiles[name] == pytest.approx(exact_ms, rel=0.03)
    assert spread.quantiles["max"] == pytest.approx(ordered[-1] / 1e6)
    assert spread.mean == pytest.approx(sum(values) / len(values) / 1e6)
    assert sum(spread.counts) == spread.count == len(values)


@pytest.mark.parametrize("value", [0, 1, 31, 32, 33, 1023, 1 << 40, (1 << 59) + 1])
def test_bin_of_a_histogram_holds_its_value(value: int) -> None:
    """Off by one at a power of two would put a value into the bin beside."""
    histogram = Histogram()
    histogram.add(value)
    spread = histogram.spread("ms")
    assert spread.counts[-1] == 1
    assert spread.edges[-2] * 1e6 <= value * (1 + 1e-12)
    assert value < spread.edges[-1] * 1e6 * (1 + 1e-12)


def test_histogram_of_impossible_times_still_counts_them() -> None:
    """An emulator's clocks may say that a reading came before it left; it came all the same."""
    histogram = Histogram()
    for value in (-5, 1 << 70):
        histogram.add(value)
    assert histogram.spread("ms").count == 2


def test_values_added_together_are_counted_as_one_by_one() -> None:
    """Latencies come by the dozen; the short way must not put one elsewhere."""
    random = Random(4)
    values = [0, 31, 32, 1 << 59, 1 << 60, 1 << 70, *(int(random.lognormvariate(15, 5)) for _ in range(2_000))]
    one_by_one, together = Histogram(), Histogram()
    for value in values:
        one_by_one.add(value)
    together.add_all(values[:5])
    together.add_all(values[5:])
    together.add_all([])
    assert together.spread("ms") == one_by_one.spread("ms")


def test_spread_of_nothing_has_no_quantiles() -> None:
    """A zero would look like a very good latency."""
    spread = Histogram().spread("ms")
    assert (spread.count, spread.quantiles, spread.edges) == (0, {}, [])


# --- what is told comes out ------------------------------------------------------------------------------------------
def test_latency_counts_from_publish_to_callback() -> None:
    """The first figure that anybody looks at."""
    recording = Recording(city(12, 10))
    for number in range(100):
        recording.delivered(number * SECOND_NS + 4 * MS_NS, "car-1", "car-2", "k", number, number * SECOND_NS)
    latency = outcome(recording).latency
    assert latency.count == 100
    assert latency.quantiles["p50"] == pytest.approx(4, rel=0.04)


def test_message_followed_tells_who_had_it_when() -> None:
    """The timeline of a message is how a person finds out where the time went."""
    recording = Recording(city(12, 60))
    recording.published(10 * SECOND_NS, "car-1", "veh/car-1/position", 7)
    recording.delivered(10 * SECOND_NS + MS_NS, "rsu-0", "car-1", "veh/car-1/position", 7, 10 * SECOND_NS)
    recording.delivered(10 * SECOND_NS + 2 * MS_NS, "car-4", "car-1", "veh/car-1/position", 7, 10 * SECOND_NS)
    (message,) = outcome(recording).messages
    assert (message.origin, message.sequence) == ("car-1", 7)
    assert message.arrivals == [("rsu-0", pytest.approx(10.001)), ("car-4", pytest.approx(10.002))]


def test_check_that_failed_says_when_and_why() -> None:
    """A broken promise without its circumstances can't be looked for."""
    recording = Recording(city(12, 10))
    recording.judge("queues_bounded", True, "", 0)
    for number in range(MAX_DETAILS + 5):
        recording.judge("queues_bounded", False, f"{number} waiting", 2 * SECOND_NS)
    result = outcome(recording)
    check = result.checks["queues_bounded"]
    assert (check.passed, check.failed, len(check.details)) == (1, MAX_DETAILS + 5, MAX_DETAILS)
    assert check.details[0] == "2.000 s: 0 waiting"
    assert result.broken == ["queues_bounded"]
    assert result.happenings[0].kind == "check-failed"


def _spreading(present: list[str], holders: dict[str, float]) -> Result:
    recording = Recording(city(12, 60))
    for second in range(60):
        for name in present:
            recording.placed(second * SECOND_NS, name, 0, 0)
    for name, at_s in holders.items():
        recording.spread(int(at_s * SECOND_NS), name, "rsu-0", 1)
    return outcome(recording)


def test_dissemination_counts_shares_of_those_who_were_there() -> None:
    """A vehicle that left the map can't have the news; it must not make the mesh look slow."""
    present = ["rsu-0", *(f"car-{number}" for number in range(9))]
    holders = {name: 5.0 + number for number, name in enumerate(present)}
    (entry,) = _spreading(present, holders).dissemination
    assert (entry.made_s, entry.there, entry.holders) == (5.0, 10, 10)
    assert (entry.t50_s, entry.t90_s, entry.t100_s) == (4.0, 8.0, 9.0)


def test_dissemination_that_stopped_short_says_never() -> None:
    """A missing node must not be reported as a time."""
    present = ["rsu-0", *(f"car-{number}" for number in range(9))]
    (entry,) = _spreading(present, dict.fromkeys(present[:9], 5.0)).dissemination
    assert (entry.t90_s, entry.t100_s) == (0.0, None)


def test_newer_entry_counts_for_the_older_one() -> None:
    """Who has version 2 needs no version 1; waiting for it would never end."""
    recording = Recording(city(12, 60))
    recording.spread(0, "rsu-0", "rsu-0", 1)
    recording.spread(SECOND_NS, "rsu-0", "rsu-0", 2)
    for name in city(12, 60).names[1:]:
        recording.spread(3 * SECOND_NS, name, "rsu-0", 2)
    first, second = outcome(recording).dissemination
    assert (first.version, first.t100_s) == (1, 3.0)
    assert (second.version, second.t100_s) == (2, 2.0)


def test_answers_are_counted_by_who_computed_them() -> None:
    """Where the work went is what a placement is judged by."""
    recording = Recording(city(12, 10))
    for by in ("car-1", "rsu-0", "car-2"):
        recording.answered(0, "car-1", by, 5 * MS_NS)
    recording.answered(0, "car-1", "", 500 * MS_NS, "deadline")
    result = outcome(recording)
    assert result.inference_by == {"car": 1, "failed: deadline": 1, "here": 1, "rsu": 1}
    assert result.inference.count == 3


def part(index: int, node: str, took_ms: int, output_bytes: int, replays: int = 0) -> PartReport:
    """A stage that computed for half of the time."""
    return PartReport(
        "stage", index, NodeId(node), took_ms * MS_NS, 0, took_ms * 500, 30_000, output_bytes, replays
    )  # fmt: skip


def test_parts_are_counted_by_place_cuts_and_class_of_computer() -> None:
    """Which plan was followed, and by whom, must be seen without the log of each request."""
    work = Inference("car", cuts=(Cut(0.2, 700), Cut(0.5, 700), Cut(0.8, 90)))
    recording = Recording(replace(city(12, 10), inference=(work,)))
    for took_ms in (10, 20, 30):
        recording.divided("car-1", "model-0", (part(0, "car-1", took_ms, 700), part(1, "rsu-0", 40, 5)))
    recording.divided("car-2", "model-0", (part(0, "car-2", 10, 90), part(1, "car-3", 40, 5, replays=2)))
    found = outcome(recording).parts
    assert [(runs.index, runs.between, runs.by, runs.device, runs.runs, runs.replays) for runs in found] == [
        (0, "inputs to cut 1", "here", "car-computer", 3, 0), (0, "inputs to cut 3", "here", "car-computer", 1, 0),
        (1, "cut 1 to outputs", "rsu", "rsu", 3, 0), (1, "cut 3 to outputs", "car", "car-computer", 1, 2),
    ]  # fmt: skip
    assert found[0].took_p50_ms == pytest.approx(20, rel=0.05)
    assert found[0].compute_p50_ms == pytest.approx(10, rel=0.05)
    assert {runs.of for runs in found} == {2}


def test_parts_beyond_their_bound_are_mentioned() -> None:
    """A model that is planned anew each second must not fill the memory."""
    recording = Recording(city(12, 10))
    for number in range(MAX_ROWS + 3):
        recording.divided("car-1", f"model-{number}", (part(0, "car-1", 1, 5),))
    result = outcome(recording)
    assert len(result.parts) == MAX_ROWS
    assert f"parts: 3 runs beside the first {MAX_ROWS} kinds" in result.left_out


def test_distances_put_each_pair_into_its_bin() -> None:
    """Delivery over distance is compared with field trials, so the axis has to be right."""
    recording = Recording(city(12, 10))
    recording.wanted(24.9, True)
    recording.wanted(25.0, False)
    recording.aware(60.0, True)
    recording.wanted(1e9, False)
    distances = outcome(recording).distances
    assert distances.width_m == 25
    assert (distances.wanted[:3], distances.delivered[:3]) == ([1, 1, 0], [1, 0, 0])
    assert distances.known[2] == distances.in_range[2] == distances.wanted[-1] == 1


# --- bounds ----------------------------------------------------------------------------------------------------------
def test_record_of_a_long_run_stays_small_and_says_what_is_missing() -> None:
    """A day of simulation must not need a day of memory."""
    scenario = city(300, 86_400)
    recording = Recording(scenario)
    for second in range(0, 86_400, 40):
        for name in scenario.names[::10]:
            recording.placed(second * SECOND_NS, name, 1.0, 2.0)
        recording.occurred("met", second * SECOND_NS, "car-1", "car-2")
        recording.busy(second * SECOND_NS, 0.5)
    recording.occurred("crash", SECOND_NS, "car-1")
    result = outcome(recording)
    assert sum(len(track) for track in result.places.values()) <= MAX_PLACES
    assert sum(happening.kind == "met" for happening in result.happenings) == MAX_HAPPENINGS_OF_KIND
    assert any(happening.kind == "crash" for happening in result.happenings)
    assert result.sometimes["met"] == 2160
    assert len(result.load) <= 1_201
    assert any("met" in note for note in result.left_out)
    assert any(note.startswith("map: a place every") for note in result.left_out)


def test_map_of_too_many_nodes_shows_some_of_them_and_says_so() -> None:
    """Five thousand nodes at one place each are no map."""
    scenario = city(5_000, 60)
    recording = Recording(scenario)
    for second in (0, 1, 59):
        for name in scenario.names:
            recording.placed(second * SECOND_NS, name, 1.0, 2.0)
    result = outcome(recording)
    assert 1_000 < len(result.places) <= MAX_PLACES // 60
    assert any("of 5000 nodes" in note for note in result.left_out)


def test_traces_beyond_their_bound_are_thinned_over_the_whole_run() -> None:
    """Only the first or the last minutes would hide what happened in the others."""
    scenario = city(12, 10)
    recording = Recording(scenario)
    for second in range(600):  # sixty times as long as the scenario promised
        for origin in scenario.names[:TRACED_NODES]:
            recording.published(second * SECOND_NS, origin, "k", second)
            for step in range(20):
                recording.delivered(second * SECOND_NS + step, f"n{step}", origin, "k", second, second * SECOND_NS)
    result = outcome(recording)
    arrivals = sum(len(message.arrivals) for message in result.messages)
    assert len(result.messages) <= MAX_MESSAGES
    assert MAX_ARRIVALS // 4 < arrivals <= MAX_ARRIVALS
    seconds = [message.published_s for message in result.messages]
    assert seconds[0] < 20
    assert seconds[-1] > 580
    assert seconds == sorted(seconds)


def test_followed_entries_are_bounded_and_leave_room_for_those_of_the_scenario() -> None:
    """A thousand addresses at the start must not hide the one entry that the scenario is about."""
    recording = Recording(city(12, 60))
    for number in range(1_000):
        recording.spread(0, f"n{number}", f"n{number}", 1)
    recording.spread(30 * SECOND_NS, "car-3", "car-3", 1)
    result = outcome(recording)
    assert len(result.dissemination) <= MAX_ENTRIES
    assert result.dissemination[-1].author == "car-3"
    assert any(note.startswith("dissemination:") for note in result.left_out)


def test_kinds_of_happenings_are_bounded() -> None:
    """A kind with a number in its name would grow for ever."""
    recording = Recording(city(12, 10))
    for number in range(200):
        recording.occurred(f"kind-{number}", 0, "car-1")
    assert len(outcome(recording).happenings) == MAX_KINDS


# --- on disk ---------------------------------------------------------------------------------------------------------
def test_equal_histories_give_equal_bytes() -> None:
    """Results are compared and kept; anything that leans on hash order would differ between processes."""
    assert encode(result_of(24, 20, seed=5)) == encode(result_of(24, 20, seed=5))
    assert encode(result_of(24, 20, seed=5)) != encode(result_of(24, 20, seed=6))


def test_saved_result_is_read_back_as_it_was(tmp_path: Path) -> None:
    """What a report shows later is what happened."""
    result = result_of(24, 20)
    save(tmp_path / "run", result, render(result))
    assert load(tmp_path / "run") == load(tmp_path / "run" / "result.json")
    assert encode(load(tmp_path / "run")) == encode(result)
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"result.json", "report.html", "latency_histogram.csv", "distances.csv", "happenings.csv"} <= names
    assert {"dissemination.csv", "load.csv"} <= names
    assert not [name for name in names if name.startswith(".")]


def test_tables_add_up_to_the_result(tmp_path: Path) -> None:
    """A table that says something else than the result is worse than none."""
    result = result_of(24, 20)
    save(tmp_path, result)
    assert not (tmp_path / "report.html").exists()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "latency_histogram.csv").read_text("utf-8"))))
    assert sum(int(row["count"]) for row in rows) == result.latency.count
    assert all(float(row["from_ms"]) < float(row["to_ms"]) for row in rows)
    happenings = list(csv.DictReader(io.StringIO((tmp_path / "happenings.csv").read_text("utf-8"))))
    assert len(happenings) == len(result.happenings)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a result"),
        (b'{"version": 1', "not a result, or cut off"),
        (b"[]", "not a result"),
        (b"\xff\xfe", "not a result"),
    ],
)
def test_file_that_is_no_result_is_refused_by_name(data: bytes, says: str, tmp_path: Path) -> None:
    """A person passes the wrong file; a trace of the interpreter helps nobody."""
    file = tmp_path / "odd.json"
    file.write_bytes(data)
    with pytest.raises(ResultError, match=says) as raised:
        load(file)
    assert "odd.json" in str(raised.value)


def test_result_of_another_version_is_refused(tmp_path: Path) -> None:
    """Fields may mean something else by then."""
    result = result_of(12, 5)
    result.version = 99
    (tmp_path / "result.json").write_bytes(encode(result))
    with pytest.raises(ResultError, match="version 99"):
        load(tmp_path)


def test_missing_result_says_where_it_was_looked_for(tmp_path: Path) -> None:
    """A folder without a result is the likeliest mistake."""
    with pytest.raises(ResultError, match=r"result\.json"):
        load(tmp_path)


def test_result_schema_is_plain_json() -> None:
    """Other programs read it with any JSON reader."""
    result = result_of(12, 5)
    plain = msgspec.json.decode(encode(result))
    assert plain["happenings"][0][1]
    assert plain["scenario"] == "city"


def test_scenario_of_the_fixture_is_one() -> None:
    """The fixture builds it without the checks of a file."""
    assert isinstance(city(), Scenario)
    assert len(city().names) == 200


def test_meetings_of_a_short_run_are_counted_in_tenths_of_a_second() -> None:
    """Within the first second everybody meets; in whole seconds that would be one step."""
    recording = Recording(city(12, 10))
    for at_ns in (SECOND_NS // 20, SECOND_NS // 4, SECOND_NS // 4):
        recording.met(at_ns, "car-1", "car-2", 0)
    result = outcome(recording)
    assert (result.meetings_every_s, result.meetings) == (0.1, [1, 0, 2])
    long = outcome(Recording(city(12, 86_400)))
    assert long.meetings_every_s == long.load_every_s == 72
