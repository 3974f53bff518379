"""``meshnode trial``: a node that publishes by plan and keeps a journal."""

import base64
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from meshnode.trial.trial import Journal, load_plan
from protocols.base.errors import ConfigError
from protocols.wire.entries import decode_untrusted_entry
from tests.tools.eventually import eventually
from tests.tools.node_fixture import environment, prepare

pytestmark = pytest.mark.processes

PLAN = """\
subscribe = ["veh/*/position"]
[[publish]]
key = "veh/veh-1/position"
rate_hz = 50
[[spread]]
at_s = 7.0
[[models]]
name = "echo"
compute_ms = 4
output_bytes = 100
[[infer]]
model = "echo"
rate_hz = 25
input_bytes = 5
deadline_ms = 60_000
[[infer]]
model = "nobody's"
rate_hz = 50
"""
QUIET = "[http]\nenabled = false\n"
QUICK_NS = 20_000_000
"""An answer takes longer while the computing is five times as slow."""


def _lines(journal: Path) -> list[list[Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def _of(journal: Path, kind: str) -> list[list[Any]]:
    return [line for line in _lines(journal) if line[0] == kind]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("publish = [{ rate_hz = 10 }]", "key"),
        ('publish = [{ key = "a/b", rate_hz = 0 }]', "> 0"),
        ('publishes = [{ key = "a/b" }]', "publishes"),
        ('subscribe = "veh/*/position"', "array"),
        ("subscribe = [", "wrong"),
        ('models = [{ name = "m", compute_ms = 0 }]', "> 0"),
        ('infer = [{ model = "m", deadline_ms = 0 }]', ">= 1"),
    ],
)
def test_plan_that_is_wrong_names_what(text: str, said: str, tmp_path: Path) -> None:
    """A misspelt plan would be a trial that proves nothing."""
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_plan(plan)


def test_plan_that_is_missing_names_its_path(tmp_path: Path) -> None:
    """The most common mistake of all."""
    with pytest.raises(ConfigError, match=r"plan\.toml can't be read"):
        load_plan(tmp_path / "plan.toml")


def test_journal_keeps_every_line_in_order_and_appends(tmp_path: Path) -> None:
    """A restarted node goes on in the same file; what is still in memory at the end belongs to it too."""
    path = tmp_path / "journal.jsonl"
    for life in range(2):
        with Journal(path) as journal:
            journal.note("met", f"car-{life}")
            journal.note_at(17, "published", "a/b", life)
    found = _lines(path)
    assert [line[0] for line in found] == ["met", "published"] * 2
    assert found[1] == ["published", 17, "a/b", 0]
    assert found[2][2] == "car-1"


def test_journal_that_can_not_be_written_is_refused_at_once(tmp_path: Path) -> None:
    """Not after an hour on the road."""
    with pytest.raises(ConfigError, match="can't be written"):
        Journal(tmp_path / "missing" / "journal.jsonl")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[Any]], int]:
    """Lines of a trial that was held, told things and ended, and the incarnation of its node."""
    tmp_path = tmp_path_factory.mktemp("trial")
    config = prepare(tmp_path, "veh-1", "vehicle", QUIET)
    (tmp_path / "plan.toml").write_text(PLAN)
    journal = tmp_path / "journal.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "meshnode.cli", "trial", str(config), "--plan", str(tmp_path / "plan.toml"),
         "--journal", str(journal), "--hold"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "holding veh-1\n"
        assert _lines(journal) == []
        process.stdin.write('["clock", 3600000000000, 0, 0]\n["slow", 5]\n')  # still held
        process.stdin.write("6.5\n")  # the entry is due half a second after that
        process.stdin.flush()
        assert process.stdout.readline().startswith("ready veh-1")
        eventually(lambda: any(line[0] == "entry" and line[3] == "spread" for line in _lines(journal)), "the entry")
        eventually(lambda: len(_of(journal, "published")) > 10 and len(_of(journal, "asked")) > 20, "the plan goes on")
        eventually(lambda: any(line[6] for line in _of(journal, "result")), "one was answered while it was slow")
        process.stdin.write('["slow", 1]\n["entries"]\n["send", "AAAA"]\n["fly"]\n["understate", 0.5]\n')
        process.stdin.flush()
        eventually(lambda: len(_of(journal, "failed")) == 2, "complaints")
        eventually(lambda: any(line[6] and line[4] < QUICK_NS for line in _of(journal, "result")), "it is quick again")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    return _lines(journal), int(next(tmp_path.rglob("incarnation")).read_text())


def test_trial_held_waits_then_publishes_and_writes_its_account(held: tuple[list[list[Any]], int]) -> None:
    """The whole command: nothing happens before the line, then readings by the plan, and counters at the end."""
    found, _ = held
    kinds = [line[0] for line in found]
    assert kinds[0] == "started"
    assert "ready" in kinds
    published = [line for line in found if line[0] == "published"]
    assert len(published) > 10
    assert [line[3] - published[0][3] for line in published] == list(range(len(published)))
    ended = next(line for line in found if line[0] == "ended")
    assert ended[4]["readings_published"] == len(published)
    assert all(line[1] >= found[0][1] for line in found)


def test_trial_asks_for_inferences_and_says_whether_the_answers_are_its_own(held: tuple[list[list[Any]], int]) -> None:
    """An emulation judges the nodes by these lines: each request has one, and what nobody computes has failed."""
    found, _ = held
    asked = {line[2]: line[3] for line in found if line[0] == "asked"}
    results = [line[2:] for line in found if line[0] == "result"]
    assert len(asked) > 20
    numbers = [number for number, *_ in results]
    assert len(numbers) == len(set(numbers)) >= len(asked) - 3  # the last ones were under way when it left
    for number, by, took_ns, failure, right in results:
        if asked[number] == "echo":
            assert (by, failure, right) == ("veh-1", "", True)
            assert took_ns >= 4_000_000
        else:
            assert (by, failure, right) == ("", "unknown", None)


def test_trial_obeys_what_it_is_told_and_says_what_it_can_not(held: tuple[list[list[Any]], int]) -> None:
    """A fault that was not done, silently, would be a false proof."""
    found, incarnation = held
    assert 3_300 < incarnation - time.time() < 3_700  # its clock was an hour ahead when it chose it
    took_ns = [line[4] for line in found if line[0] == "result" and line[6]]
    assert took_ns[0] > QUICK_NS  # five times as long, until it was told that all is well again
    assert min(took_ns) < QUICK_NS
    entries = [
        decode_untrusted_entry(base64.b64decode(data)) for line in found if line[0] == "entries" for data in line[2]
    ]
    assert {(entry.author, entry.kind) for entry in entries} == {("veh-1", "address"), ("veh-1", "spread")}
    assert [line[2] for line in found if line[0] == "sent"] == [0]  # it is alone
    complaints = [line[3] for line in found if line[0] == "failed"]
    assert "fly" in complaints[0]
    assert ">= 1" in complaints[1]


@pytest.mark.parametrize("line", ["", "soon\n", "nan\n", "-1\n"])
def test_trial_held_and_told_nonsense_ends_with_a_message(line: str, tmp_path: Path) -> None:
    """Whoever holds it may die: then it must end, not run for ever."""
    config = prepare(tmp_path, "veh-1", "vehicle", QUIET)
    (tmp_path / "plan.toml").write_text(PLAN)
    done = subprocess.run(
        [sys.executable, "-m", "meshnode.cli", "trial", str(config), "--plan", str(tmp_path / "plan.toml"),
         "--journal", str(tmp_path / "journal.jsonl"), "--hold"],
        input=line, capture_output=True, text=True, env=environment(), timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "age of the trial" in done.stderr
