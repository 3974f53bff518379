"""The page of a sweep: what it draws over the setting that varied, and that it shows it in a real browser."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sims.cli.main import main as meshsim
from sims.report.render import render_sweep
from sims.report.sweep import MAX_FAMILIES, MAX_ROWS, compact_sweep
from sims.results.saved import load
from sims.results.sweep_table import SweepTable, SweptRun, load_table
from tests.tools.browser_fixture import Browser, given_browser

__all__ = ["given_browser"]


def table(*runs: tuple[tuple[str, ...], float], paths: tuple[str, ...] = ("groups.car.count",)) -> SweepTable:
    """A table whose runs have one figure."""
    return SweepTable("jam", paths, [SweptRun(values, 1, {"useful_per_s": figure}, False) for values, figure in runs])


# --- what is drawn ---------------------------------------------------------------------------------------------------
def test_points_are_medians_over_the_seeds_in_the_order_of_the_numbers() -> None:
    """A line that goes back and forth, or shows the seed that was worst, says something else."""
    page = compact_sweep(table((("30",), 5.0), (("4",), 1.0), (("30",), 9.0), (("30",), 6.0)))
    assert page["axis"] == "groups.car.count"
    ((name, points),) = page["families"]
    assert name == ""
    assert [(x, page["rows"][row][3]["useful_per_s"]) for x, row in points] == [
        (4.0, [1.0, 1.0, 1.0]), (30.0, [6.0, 5.0, 9.0])
    ]  # fmt: skip
    assert [page["rows"][row][1] for _, row in points] == [1, 3]


def test_figures_are_drawn_over_the_setting_with_most_numbers_once_for_each_combination_of_the_others() -> None:
    """Both environments in one line would be a saw."""
    paths = ("radio.environment", "radio.loss", "groups.car.count", "duration_s")
    runs = [((air, loss, count, "9"), 1.0) for air in ("urban", "highway") for loss in ("0", "0.1") for count in "468"]
    page = compact_sweep(table(*runs, paths=paths))
    assert page["axis"] == "groups.car.count"
    assert [name for name, _ in page["families"]] == [
        f"radio.environment = {air}, radio.loss = {loss}" for air in ("urban", "highway") for loss in ("0", "0.1")
    ]
    assert all([x for x, _ in points] == [4.0, 6.0, 8.0] for _, points in page["families"])


def test_sweep_without_numbers_has_a_table_and_no_charts() -> None:
    """Seeds alone, or words, have no axis; not-a-number is no number either."""
    for runs in ([((), 1.0), ((), 2.0)], [(("urban",), 1.0), (("highway",), 2.0)], [(("nan",), 1.0), (("inf",), 2.0)]):
        page = compact_sweep(table(*runs, paths=("p",) if runs[0][0] else ()))
        assert page["axis"] is None
        assert page["families"] == []
        assert len(page["rows"]) == len({values for values, _ in runs})


def test_page_of_a_large_sweep_says_what_it_leaves_out() -> None:
    """It must open in a browser, whatever somebody varied."""
    runs = [((str(one), str(other)), 1.0) for one in range(50) for other in range(60)]
    page = compact_sweep(table(*runs, paths=("a", "b")))
    assert len(page["rows"]) == MAX_ROWS
    assert len(page["families"]) == MAX_FAMILIES
    assert page["left_out"] == [
        "combinations: the first 2000 of 3000; all are in sweep.csv",
        "charts: the first 12 of 34 sets; the table has all",
    ]  # fmt: skip


# --- in a browser ----------------------------------------------------------------------------------------------------
@pytest.mark.processes
def test_sweep_of_jam_has_its_figures_in_table_and_page(browser: Browser, tmp_path: Path) -> None:
    """From the command to the picture, with real runs."""
    out = tmp_path / "sweep"
    settings = ("groups.car.count=2,4", "duration_s=5", "traffic.1.rate_hz=2")
    asked = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(meshsim, ["sweep", "jam", *asked, "--jobs", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    small, large = load_table(out).runs
    result = load(out / "groups.car.count=4,duration_s=5,traffic.1.rate_hz=2" / "seed-1")
    assert large.figures["offered_per_s"] == pytest.approx(result.offered_per_s, rel=1e-5)
    assert large.figures["useful_per_s"] == pytest.approx(result.useful_per_s, rel=1e-5)
    assert large.figures["urgent_p99_ms"] == pytest.approx(result.urgent.quantiles["p99"], rel=1e-5)
    assert large.figures["urgent_missed_share"] == 0
    assert 5 < large.figures["useful_per_s"] / small.figures["useful_per_s"] < 7, "n × (n - 1)"

    made = CliRunner().invoke(meshsim, ["report", str(out)])
    assert made.exit_code == 0, made.output
    browser.open(out / "report.html")
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.run("[...document.querySelectorAll('h2')].map(title => title.innerText)") == [
        "Over groups.car.count", "Medians"
    ]  # fmt: skip
    charts: list[Any] = browser.run(
        "[...document.querySelectorAll('svg.chart')].map(chart => [chart.getAttribute('aria-label'),"
        " chart.querySelectorAll('circle').length, chart.querySelectorAll('path').length])"
    )
    assert charts == [
        ["readings a second over groups.car.count", 4, 2],
        ["milliseconds over groups.car.count", 4, 2],
        ["milliseconds over groups.car.count", 4, 2],
        ["% over groups.car.count", 2, 1],
        ["% busy over groups.car.count", 2, 1],
        ["seconds over groups.car.count", 4, 2],
    ]
    labels = browser.run("[...document.querySelectorAll('svg.chart text')].map(text => text.textContent)")
    assert not [label for label in labels if "NaN" in label or "Infinity" in label or "undefined" in label]
    assert browser.run("document.querySelectorAll('#table tbody tr').length") == 2
    for width in (400, 800):
        browser.resize(width, 900)
        browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), f"wider than {width} pixels"
    browser.run("byId('theme').click()")
    assert browser.complaints == []
    assert all(address.startswith(("file:", "data:")) for address in browser.requests)


@pytest.mark.processes
def test_page_of_hostile_values_holds_no_markup_of_theirs(browser: Browser, tmp_path: Path) -> None:
    """A sweep may be of a scenario that somebody sent."""
    evil = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>{{data}}"
    page = tmp_path / "report.html"
    runs = [((count, word), 1.0) for count in "12" for word in (evil, "good")]
    page.write_text(render_sweep(table(*runs, paths=("count", evil))), "utf-8")
    browser.open(page)
    assert browser.run("document.title") != "owned"
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.querySelectorAll('h2').length") == 3
    assert browser.complaints == []


@pytest.mark.processes
def test_page_without_any_figure_says_why_it_is_empty(browser: Browser, tmp_path: Path) -> None:
    """Runs that all failed leave a table of nothing."""
    page = tmp_path / "report.html"
    runs = [SweptRun((count,), 1, {}, True) for count in "12"]
    page.write_text(render_sweep(SweepTable("jam", ("count",), runs)), "utf-8")
    browser.open(page)
    assert browser.run("document.querySelectorAll('p.empty').length") == 6
    assert browser.run("byId('verdict').innerText") == "2 of 2 runs broken"
    assert browser.complaints == []


def test_report_command_on_a_sweep_without_a_table_ends_with_status_two(tmp_path: Path) -> None:
    """As for any input that can't be used."""
    (tmp_path / "sweep.json").write_text('{"scenario": "jam"}')
    done = CliRunner().invoke(meshsim, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "sweep.csv is missing" in done.output
