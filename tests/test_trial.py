"""``meshnode trial``: a node that publishes by plan and keeps a journal."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshnode.trial import Journal, load_plan
from protocols.errors import ConfigError
from tests.node_fixture import environment, eventually, prepare

PLAN = """\
subscribe = ["veh/*/position"]
[[publish]]
key = "veh/veh-1/position"
rate_hz = 50
[[spread]]
at_s = 7.0
"""
QUIET = "[http]\nenabled = false\n"


def _lines(journal: Path) -> list[list[Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("publish = [{ rate_hz = 10 }]", "key"),
        ('publish = [{ key = "a/b", rate_hz = 0 }]', "> 0"),
        ('publishes = [{ key = "a/b" }]', "publishes"),
        ('subscribe = "veh/*/position"', "array"),
        ("subscribe = [", "wrong"),
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


def test_trial_held_waits_then_publishes_and_writes_its_account(tmp_path: Path) -> None:
    """The whole command: nothing happens before the line, then readings by the plan, and counters at the end."""
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
        process.stdin.write("6.5\n")  # the entry is due half a second after that
        process.stdin.flush()
        assert process.stdout.readline().startswith("ready veh-1")
        eventually(lambda: any(line[0] == "entry" and line[3] == "spread" for line in _lines(journal)), "the entry")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
    found = _lines(journal)
    kinds = [line[0] for line in found]
    assert kinds[0] == "started"
    assert "ready" in kinds
    published = [line for line in found if line[0] == "published"]
    assert len(published) > 10
    assert [line[3] - published[0][3] for line in published] == list(range(len(published)))
    ended = next(line for line in found if line[0] == "ended")
    assert ended[4]["readings_published"] == len(published)
    assert all(line[1] >= found[0][1] for line in found)


@pytest.mark.parametrize("line", ["", "soon\n", "nan\n", "-1\n"])
def test_trial_held_and_told_nonsense_ends_with_a_message(line: str, tmp_path: Path) -> None:
    """Whoever holds it may die: then it must end, not run for ever."""
    config = prepare(tmp_path, "veh-1", "vehicle", QUIET)
    (tmp_path / "plan.toml").write_text(PLAN)
    done = subprocess.run(
        [sys.executable, "-m", "meshnode.cli", "trial", str(config), "--plan", str(tmp_path / "plan.toml"),
         "--journal", str(tmp_path / "journal.jsonl"), "--hold"],
        input=line, capture_output=True, text=True, env=environment(), timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "age of the trial" in done.stderr
