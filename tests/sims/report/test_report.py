"""The report: one small file that works in a real browser, says what happened, and trusts nothing that it is told."""

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from sims.cli.main import main as meshsim
from sims.report.render import render
from sims.results.recorder import SECOND_NS, Recording
from sims.results.result import Happening, PartRuns, Result
from sims.results.saved import encode, save
from tests.tools.browser_fixture import Browser, given_browser
from tests.tools.result_fixture import city, result_of

__all__ = ["given_browser"]
pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[3]
MAX_REPORT_BYTES = 3_000_000


@pytest.fixture(scope="module")
def large() -> Result:
    """200 nodes, ten minutes."""
    return result_of()


@pytest.fixture(scope="module")
def large_report(large: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of it."""
    folder = tmp_path_factory.mktemp("report")
    save(folder, large, render(large))
    return folder / "report.html"


def written(folder: Path, result: Result) -> Path:
    """The page of a result."""
    page = folder / "report.html"
    page.write_text(render(result), "utf-8")
    return page


def text_of(browser: Browser, selector: str) -> str:
    """What a person reads there."""
    return str(browser.run(f"document.querySelector({selector!r}).innerText"))


# --- the file --------------------------------------------------------------------------------------------------------
def test_report_of_200_nodes_and_ten_minutes_is_below_three_megabytes(large_report: Path) -> None:
    """It goes by mail and into the artefacts of every CI run."""
    assert 100_000 < large_report.stat().st_size < MAX_REPORT_BYTES


def test_report_of_a_recording_at_all_its_bounds_is_below_three_megabytes() -> None:
    """However bad a run was, its report can be sent to somebody who knows."""
    scenario = city(200, 600)
    names, recording = scenario.names, Recording(scenario)
    for second in range(600):
        for number, name in enumerate(names):
            recording.placed(second * SECOND_NS, name, 13.7 * second % 5000, 7.1 * number)
    for number in range(1_100 * 60):
        detail = f"{number} " * 60
        recording.occurred(f"kind-{number % 60}", number * 9_000_000, names[number % 200], "car-1", detail)
    for number in range(60_000):
        origin, sent_ns = names[number % 200], number * 10_000_000
        recording.published(sent_ns, origin, "a/long/key/of/a/reading", number)
        for step in range(20):
            at_ns = sent_ns + step * 1_234_567
            recording.delivered(at_ns, names[step * 7 % 200], origin, "a/long/key/of/a/reading", number, sent_ns)
    result = recording.result("simulator", 1, 600.0, 30.0)
    assert len(result.happenings) == 60_000
    assert sum(len(message.arrivals) for message in result.messages) > 15_000
    page = render(result)
    assert 1_000_000 < len(page.encode()) < MAX_REPORT_BYTES
    assert "of 60000; all are in happenings.csv" in page


def test_report_names_no_address_but_that_of_svg(large: Result) -> None:
    """Whoever opens it on a train, or must not tell anybody what they look at, sees all of it."""
    addresses = set(re.findall(r"(?:https?:)?//[a-z][\w.-]+[/\w.-]*", re.sub(r"//[^\n]*\n", "\n", render(large))))
    assert {address for address in addresses if "www.w3.org/2000/svg" not in address} == set()


def test_report_of_hostile_names_holds_no_markup_of_theirs(browser: Browser, tmp_path: Path) -> None:
    """An emulated node's words come from a process under test; they must not run in the reader's browser."""
    evil = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><!--{{data}}"
    result = result_of(24, 20)
    result.scenario = result.why_invalid = evil
    result.valid = False
    result.happenings = [Happening(1.0, evil, evil, evil, evil)]
    result.checks["membership_converges"].failed = 1
    result.checks["membership_converges"].details.append(evil)
    result.drops[evil] = 4
    browser.open(written(tmp_path, result))
    assert browser.run("document.title") != "owned"
    assert text_of(browser, "#scenario") == evil
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.complaints == []


# --- in a browser ----------------------------------------------------------------------------------------------------
def test_report_opened_in_a_browser_shows_everything_without_a_complaint(
    browser: Browser, large_report: Path, tmp_path: Path
) -> None:
    """What a person does first: open it, read it from top to bottom."""
    browser.open(large_report)
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.run("document.querySelectorAll('svg.chart').length") >= 8
    assert browser.run("document.querySelectorAll('.tile').length") == 8
    assert text_of(browser, "#verdict") == "all 2 checks kept"
    assert "200 nodes" in text_of(browser, "#summary")
    labels = browser.run("[...document.querySelectorAll('svg.chart text')].map(text => text.textContent)")
    assert labels
    assert not [label for label in labels if "NaN" in label or "Infinity" in label or "undefined" in label]
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    for width in (400, 800):
        browser.resize(width, 900)
        browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), f"wider than {width} pixels"
    browser.run("byId('theme').click()")
    picture = tmp_path / "report.png"
    browser.screenshot(picture)
    assert picture.stat().st_size > 20_000
    assert browser.complaints == []
    assert all(address.startswith(("file:", "data:")) for address in browser.requests)


def test_playback_moves_time_and_nodes_and_stops_at_the_end(browser: Browser, large_report: Path) -> None:
    """The map is there to be played; a still picture would look the same."""
    browser.open(large_report)
    car = "meshReport.page.texts.indexOf('car-7')"
    browser.run(f"window.before = meshReport.player.track.place({car}, meshReport.player.time)")
    assert text_of(browser, "#clock") == "0.0 s"
    browser.run("byId('play').click()")
    browser.until("meshReport.player.time > 1.5")
    assert browser.run("meshReport.player.playing")
    assert text_of(browser, "#clock") != "0.0 s"
    assert browser.run(f"Math.hypot(...meshReport.player.track.place({car}, meshReport.player.time).slice(0, 2)"
                       ".map((value, axis) => value - before[axis])) > 5")  # fmt: skip
    browser.run("byId('play').click()")
    stopped = browser.run("meshReport.player.time")
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.run("meshReport.player.time") == stopped
    browser.run("meshReport.player.seek(599.5); byId('play').click()")
    browser.until("!meshReport.player.playing")
    assert browser.run("meshReport.player.time") == 600
    assert browser.complaints == []


def test_seeking_shows_the_faults_and_places_of_that_time(browser: Browser, large_report: Path, large: Result) -> None:
    """Whoever looks for a failure jumps to it."""
    browser.open(large_report)
    browser.run("byId('seek').value = 130; byId('seek').dispatchEvent(new Event('input'))")
    assert text_of(browser, "#clock") == "130.0 s"
    assert "crash: car-3" in text_of(browser, "#active")
    place = browser.run("meshReport.player.track.place(meshReport.page.texts.indexOf('car-50'), 130).slice(0, 2)")
    assert place == pytest.approx(large.places["car-50"][130], abs=0.1)
    assert "dead rsu-0 – car-3" in text_of(browser, "#recent")
    browser.run("document.querySelector('#fault-list button').click()")
    assert text_of(browser, "#clock") == "120.0 s"
    browser.run("meshReport.player.seek(400)")
    assert "crash: car-3" not in text_of(browser, "#active")
    assert browser.complaints == []


def test_node_clicked_on_the_map_is_described(browser: Browser, large_report: Path) -> None:
    """A cross on the map is worth nothing without its name."""
    browser.open(large_report)
    x, y = browser.run("meshReport.player.screen(meshReport.player.track.place(20, 0))")
    left, top = browser.run("(box => [box.x, box.y])(byId('canvas').getBoundingClientRect())")
    x, y = left + x, top + y
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    name = text_of(browser, "#node-title")
    assert name.startswith("car-")
    assert "vehicle of car" in text_of(browser, "#node")


def test_message_chosen_shows_who_had_it_when(browser: Browser, large_report: Path, large: Result) -> None:
    """The timeline of one message is the answer to 'why did it not brake?'."""
    browser.open(large_report)
    message = next(m for m in large.messages if m.origin.startswith("car") and len(m.arrivals) > 3)
    index = [m for m in large.messages if m.origin == message.origin].index(message)
    browser.run(f"byId('message-origin').value = meshReport.page.texts.indexOf('{message.origin}');"
                "byId('message-origin').dispatchEvent(new Event('change'))")  # fmt: skip
    browser.run(f"byId('message-seek').value = {index}; byId('message-seek').dispatchEvent(new Event('input'))")
    rows = browser.run("[...document.querySelectorAll('#message-table tbody tr')].map(row => row.cells[0].innerText)")
    assert rows == [node for node, _ in sorted(message.arrivals, key=lambda arrival: arrival[1])]
    assert f"reached {len(message.arrivals)}" in text_of(browser, "#message-what")
    browser.run("byId('message-show').click()")
    assert browser.run("meshReport.player.time") == pytest.approx(message.published_s, abs=0.001)
    assert browser.complaints == []


def test_urgent_readings_are_shown_where_there_were_some(browser: Browser, tmp_path: Path) -> None:
    """How late the hazard was, and who never heard of it, must not be looked for in a file."""
    result = result_of(24, 20)
    browser.open(written(tmp_path, result))
    assert "urgent" not in text_of(browser, "#link-charts")
    result.urgent, result.urgent_wanted, result.urgent_missed = result.latency, 120, 7
    result.offered_per_s, result.useful_per_s = 1_840.0, 315.5
    browser.open(written(tmp_path, result))
    assert "7 of 120 did not come within their lifespan" in text_of(browser, "#link-charts")
    assert "offered per s\t1,840\nuseful per s\t316" in text_of(browser, "#number-cards")
    assert browser.complaints == []


def test_parts_are_shown_where_requests_were_divided(browser: Browser, tmp_path: Path) -> None:
    """Who ran which stage, and what share of the answers came so, is what splitting is judged by."""
    result = result_of(24, 20)
    browser.open(written(tmp_path, result))
    assert "Who ran which part" not in text_of(browser, "#compute-charts")
    result.inference_by = {"here": 10, "pipeline": 27, "rsu": 3}
    result.inference.count = 40
    result.parts = [
        PartRuns(
            "model-0", "stage", 0, 2, "inputs to cut 1", "here", "single-board", 27, 0, 120.4, 120.0, 300_000, 40_000
        ),
        PartRuns("model-0", "stage", 1, 2, "cut 1 to outputs", "rsu", "rsu-gpu", 26, 2, 90.25, 17.0, 40_000, 2_000),
    ]
    browser.open(written(tmp_path, result))
    shown = text_of(browser, "#compute-charts")
    assert (
        "by a pipeline: 27 (68 %); by the whole model at a neighbour: 3 (8 %); by the node that asked: 10 (25 %)"
        in shown
    )
    assert "2 further runs were begun" in shown
    rows = browser.run("[...document.querySelectorAll('#compute-charts tbody tr')].map(row => row.innerText)")
    assert rows[0].split("\t")[:4] == ["model-0", "stage 1 of 2: inputs to cut 1", "here (single-board)", "27"]
    assert rows[1].split("\t")[2:] == ["rsu (rsu-gpu)", "26", "90.3", "17", "40 → 2", "2"]
    assert browser.complaints == []


def test_broken_check_and_invalid_run_stand_at_the_top(browser: Browser, tmp_path: Path) -> None:
    """Nobody may take a red or a void run for a green one."""
    result = result_of(24, 20, broken=3)
    browser.open(written(tmp_path, result))
    assert text_of(browser, "#verdict") == "1 of 2 checks broken"
    assert "one answer per request" in text_of(browser, ".check")
    assert "car-3 got two answers" in text_of(browser, ".check ul")
    result.valid, result.why_invalid, result.harness = False, "the wire was 80 ms late at p99", "emulator"
    browser.open(written(tmp_path, result))
    assert text_of(browser, "#verdict") == "not valid"
    assert "80 ms late" in text_of(browser, "#invalid")
    assert "real processes" in text_of(browser, "#harness")
    assert browser.complaints == []


def test_report_of_a_run_in_which_nothing_happened_says_why_it_is_empty(browser: Browser, tmp_path: Path) -> None:
    """An empty frame looks like a broken page."""
    browser.open(written(tmp_path, Recording(city(12, 10)).result("simulator", 1, 10.0, 0.1)))
    browser.run("new Promise(requestAnimationFrame)")
    assert browser.run("document.querySelectorAll('p.empty:not([hidden])').length") >= 12
    assert "no map" in text_of(browser, "#map-empty")
    assert "scenario has no traffic" in text_of(browser, "#link-charts")
    browser.run("byId('play').click()")
    browser.until("meshReport.player.time > 0.1")
    assert browser.complaints == []


# --- the command -----------------------------------------------------------------------------------------------------
def test_report_command_makes_the_page_of_a_saved_result(tmp_path: Path) -> None:
    """CI keeps only the result; the page comes when somebody wants to look."""
    (tmp_path / "result.json").write_bytes(encode(result_of(12, 5)))
    done = CliRunner().invoke(meshsim, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert "report.html" in done.output


def test_report_command_on_no_result_says_so_with_status_two(tmp_path: Path) -> None:
    """A script has to tell a missing file from a broken promise."""
    done = CliRunner().invoke(meshsim, ["report", str(tmp_path / "nothing")])
    assert done.exit_code == 2
    assert "nothing" in done.output


# --- the browser of the tests ----------------------------------------------------------------------------------------
def _install(folder: Path, user: int, apt_get: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the script on a machine that has nothing but a shell, ``id`` and an ``apt-get``; and what that was asked."""
    asked = folder / "asked"
    asked.touch()
    programs = {"id": f"echo {user}", "apt-get": f'echo "$@" >> {asked}\n{apt_get}'}
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", ROOT / ".ci" / "browser"], env={"PATH": str(folder)}, capture_output=True, text=True, check=False
    )
    return done, asked.read_text().splitlines()


def test_browser_is_installed_where_that_can_be_done(tmp_path: Path) -> None:
    """CI starts on a machine where nobody has installed anything, with package lists that are missing."""
    make = f'[ "$1" = update ] && touch {tmp_path}/lists; [ -e {tmp_path}/lists ] || exit 100\n'
    make += f'[ "$1" = update ] || {{ echo "#!/bin/sh" > {tmp_path}/chromium; /bin/chmod +x {tmp_path}/chromium; }}'
    (tmp_path / "touch").symlink_to("/usr/bin/touch")
    done, asked = _install(tmp_path, 0, make)
    assert done.returncode == 0
    assert [line.split()[0] for line in asked] == ["install", "update", "install"]
    assert asked[-1].endswith(" chromium")
    assert "could not" not in done.stderr
    _, again = _install(tmp_path, 0, make)
    assert again == asked


def test_browser_missing_without_root_tells_the_command(tmp_path: Path) -> None:
    """A developer who may not install is told once, and everything else goes on."""
    done, asked = _install(tmp_path, 1000, "exit 1")
    assert (done.returncode, asked) == (0, [])
    assert "sudo .ci/browser" in done.stderr
