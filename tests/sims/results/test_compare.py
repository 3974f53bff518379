"""Comparing the harnesses: what is judged, what counts as agreement, and that a difference is explained by evidence."""

import pytest

from sims.results.compare import ComparedFigure, Comparison, compare, host_of, slowness_of
from sims.results.result import Dissemination, Distances, Distribution, Result
from sims.runs.run import Run
from sims.scenario.file import load
from sims.virtual.processors import WIRE_NS, Processors


def _result(harness: str, latency_ms: float = 4.0, discovery_s: float = 0.1, spread_s: float = 0.02) -> Result:
    spreads = [Dissemination(f"car-{n}/spread", 1, spread_s / 2, spread_s, spread_s * 1.2, 12) for n in range(8)]
    own = [Dissemination(f"car-{n}/address", 1, 5.0, 9.0, None, 12) for n in range(8)]
    return Result(
        1, harness, "crossing", 7, 12, 60.0, 61.0, versions={"cores": "2"},
        figures={"nodes_cpu_s": 12.0, "wire_cpu_s": 6.0, "wire_late_p99_ms": 0.1},
        latency=_spread("ms", latency_ms), discovery=_spread("s", discovery_s), age=_spread("ms", 60.0),
        distances=Distances(25.0, [100, 100], [99, 98]), dissemination=spreads + own, load=[0.1] * 60,
    )  # fmt: skip


def _spread(unit: str, middle: float) -> Distribution:
    return Distribution(unit, 100, middle, {"p50": middle, "p90": 2 * middle, "p99": 4 * middle})


def _row(comparison: Comparison, figure: str) -> ComparedFigure:
    return next(row for row in comparison.rows if row.figure == figure)


def test_compare_equal_results_agree_in_everything() -> None:
    """The same figures must not look different, whatever is judged."""
    comparison = compare(_result("emulator"), _result("simulator"))
    assert comparison.agrees
    assert all(row.agrees and row.ratio == 1.0 and not row.why for row in comparison.rows)


def test_compare_judges_discovery_latency_and_dissemination() -> None:
    """These are what a person plans with; a test must notice when one is no longer judged."""
    judged = [row.figure for row in compare(_result("emulator"), _result("simulator")).rows if row.judged]
    assert judged == ["discovery p50", "reading latency p50", "dissemination t90, median", "dissemination t100, median"]


@pytest.mark.parametrize(("ours_ms", "agrees"), [(4.9, True), (5.1, False), (3.3, True), (3.1, False)])
def test_compare_latency_agrees_up_to_a_quarter_either_way(ours_ms: float, agrees: bool) -> None:
    """The bound is symmetric: a simulator that is too pessimistic is as wrong as one that is too hopeful."""
    comparison = compare(_result("emulator", latency_ms=ours_ms), _result("simulator"))
    assert _row(comparison, "reading latency p50").agrees is agrees
    assert comparison.agrees is agrees


def test_compare_judges_inferences_where_somebody_asked_for_any() -> None:
    """A harness in which nobody was answered must not agree with one in which all were."""
    emulated, simulated = _result("emulator"), _result("simulator")
    assert not [row for row in compare(emulated, simulated).rows if row.figure.startswith("inference")]
    emulated.inference, emulated.inference_by = _spread("ms", 80.0), {"here": 25, "rsu": 75}
    assert _row(compare(emulated, simulated), "inference p50").agrees is False
    simulated.inference, simulated.inference_by = _spread("ms", 81.0), {"here": 100}
    comparison = compare(emulated, simulated)
    assert _row(comparison, "inference p50").agrees is True
    assert (_row(comparison, "inferences here").emulator, _row(comparison, "inferences here").simulator) == (0.25, 1.0)
    assert not _row(comparison, "inferences here").judged


def test_compare_tail_that_differs_is_shown_and_not_judged() -> None:
    """One stall of TCP in a minute moves a 99th percentile: it is no verdict on the model."""
    emulated = _result("emulator")
    emulated.latency.quantiles["p99"] = 400.0
    comparison = compare(emulated, _result("simulator"))
    assert comparison.agrees
    assert "stalls" in _row(comparison, "reading latency p99").why


def test_compare_difference_on_a_busy_channel_says_so() -> None:
    """Near capacity a small error in load is a large one in delay: that is the reason, and has to be given."""
    emulated, simulated = _result("emulator", latency_ms=70.0), _result("simulator", latency_ms=30.0)
    emulated.load, simulated.load = [0.9] * 60, [0.8] * 60
    assert "the channel was 90% (emulator) and 80%" in _row(compare(emulated, simulated), "reading latency p50").why


def test_compare_difference_on_a_busy_host_says_so() -> None:
    """Forty processes on two cores wait for one another, which simulated nodes never do."""
    emulated = _result("emulator", discovery_s=0.5)
    emulated.figures["nodes_cpu_s"] = 100.0
    assert "of this host's processors were busy" in _row(compare(emulated, _result("simulator")), "discovery p50").why


def test_compare_simulates_on_a_host_as_slow_as_the_emulation_had() -> None:
    """A shared host is half as fast on some days, for real nodes and their wire alike: no fault of a model."""
    emulated = _result("emulator")
    assert slowness_of(emulated) == 1.0, "nothing was measured"
    emulated.figures |= {"wire_frames": 20_000.0, "wire_cpu_s": 2 * 20_000 * WIRE_NS / 1e9}
    emulated.versions["cores"] = "3"
    host = host_of(emulated)
    assert host.slowness == pytest.approx(2.0)
    assert compare(emulated, _result("simulator")).wire["host_slowness"] == pytest.approx(2.0)
    assert [host.occupy(0, 1) for _ in range(4)] == [0, 0, 0, 1], "three processors"
    scenario = load("pair")
    slow, usual = (Run(scenario, 1, processors=Processors(2, slowness)).world for slowness in (2.0, 1.0))
    for name in scenario.names:
        assert slow.node(name).frame_ns == 2 * usual.node(name).frame_ns > 0
        assert slow.node(name).handshake_ns == 2 * usual.node(name).handshake_ns > 0
    emulated.figures["wire_cpu_s"] = 1e6
    assert slowness_of(emulated) == 4.0, "a figure that can't be is bounded"


def test_compare_shows_what_was_useful_and_urgent_without_judging_it() -> None:
    """On a channel that is nearly full both hang on every queue, so they explain a difference and are none."""
    emulated, simulated = _result("emulator"), _result("simulator")
    emulated.offered_per_s, emulated.useful_per_s = 90.0, 45.0
    simulated.offered_per_s = simulated.useful_per_s = 90.0
    emulated.urgent = Distribution("ms", 20, 9.0, {"p50": 9.0})
    simulated.urgent = Distribution("ms", 20, 3.0, {"p50": 3.0})
    comparison = compare(emulated, simulated)
    assert comparison.agrees
    assert _row(comparison, "readings offered").ratio == 1.0
    assert _row(comparison, "readings useful").ratio == 0.5
    assert _row(comparison, "urgent readings p50").ratio == 3.0


def test_compare_difference_without_evidence_admits_it() -> None:
    """A made-up reason would be worse than none."""
    why = _row(compare(_result("emulator", latency_ms=9.0), _result("simulator")), "reading latency p50").why
    assert why == "nothing measured explains it"


def test_compare_figure_of_one_harness_only_is_a_difference() -> None:
    """No reading delivered in one harness must not pass as agreement for want of a ratio."""
    emulated = _result("emulator")
    emulated.latency = Distribution("ms")
    comparison = compare(emulated, _result("simulator"))
    assert not comparison.agrees
    assert _row(comparison, "reading latency p50").why == "only the simulator has it"


def test_compare_entries_of_the_nodes_themselves_are_left_out() -> None:
    """Addresses are authored while nodes still meet: their spread measures discovery, not gossip."""
    row = _row(compare(_result("emulator"), _result("simulator")), "dissemination t90, median")
    assert row.emulator == pytest.approx(0.02)


def test_compare_invalid_emulation_is_passed_on() -> None:
    """A wire that was late is another radio: whoever reads the comparison must see that it proves nothing."""
    emulated = _result("emulator", latency_ms=9.0)
    emulated.valid, emulated.why_invalid = False, "the wire was 30 ms late"
    comparison = compare(emulated, _result("simulator"))
    assert not comparison.valid
    assert comparison.why_invalid == "the wire was 30 ms late"
    assert "the emulation is invalid" in _row(comparison, "reading latency p50").why
