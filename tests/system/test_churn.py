"""The churn must find what piles up: its judgement on made-up samples, and the run itself, short, on both engines."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.churn import MAX_GROWTH_BYTES, Outcome, Sample, judge
from benchmarks.churners import ENDINGS, LINK_ENDINGS
from tests.tools.eventually import eventually

FLAT = Sample(80_000_000, 16, 10, 0, 0, 0, 0, True)


def outcome_of(*samples: Sample) -> Outcome:
    """Judged."""
    outcome = Outcome("express", 1.0, samples=list(samples))
    judge(outcome)
    return outcome


def test_growth_of_a_flat_run_after_its_warm_up_is_none() -> None:
    """Caches fill up at first; that is no leak, and noise is none either."""
    warm_up = [replace(FLAT, resident_bytes=60_000_000 + 2_000_000 * n, pipes_in=n) for n in range(10)]
    rest = [replace(FLAT, resident_bytes=80_000_000 + 500_000 * (n % 3), pipes_in=10 + n) for n in range(20)]
    outcome = outcome_of(*warm_up, *rest)
    assert outcome.missed_bars() == []
    assert abs(outcome.resident_growth_bytes) <= 500_000


def test_growth_of_memory_descriptors_or_threads_is_named_each() -> None:
    """A leak of one link in a thousand must not hide behind a mean."""
    memory = [replace(FLAT, resident_bytes=80_000_000 + 300_000 * n, pipes_in=100 * n) for n in range(30)]
    (missed,) = (outcome := outcome_of(*memory)).missed_bars()
    assert "memory grew by 3.0 MB" in missed
    assert outcome.resident_growth_bytes >= MAX_GROWTH_BYTES
    assert outcome.resident_bytes_per_1000_links == 3_000_000
    (missed,) = outcome_of(*(replace(FLAT, descriptors=16 + n // 20) for n in range(30))).missed_bars()
    assert "descriptors grew by 1" in missed
    (missed,) = outcome_of(*(replace(FLAT, threads=10 + n // 20) for n in range(30))).missed_bars()
    assert "threads grew by 1" in missed


def test_run_too_short_or_never_at_rest_proves_nothing() -> None:
    """A check that measured nothing must not pass."""
    assert "too few" in outcome_of(FLAT, FLAT).missed_bars()[0]
    assert "1 of 6 rounds" in outcome_of(*[FLAT] * 5, replace(FLAT, at_rest=False)).missed_bars()[0]


@pytest.mark.processes
def test_churn_of_a_few_seconds_does_all_it_says_and_leaves_no_process(tmp_path: Path) -> None:
    """Ten minutes of it on both engines are a release's business; that it works at all is every commit's."""
    out = tmp_path / "build" / "churn.json"
    command = [sys.executable, "-m", "benchmarks.churn", "--minutes", "0.01", "--round-s", "0.5", "--engine", "express"]
    with subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, text=True) as process:
        own = psutil.Process(process.pid)
        children = eventually(lambda: own.children(recursive=True), "it has started others")
        printed, _ = process.communicate(timeout=280)
    assert process.returncode == 0, printed
    eventually(lambda: not any(child.is_running() for child in children), "they have ended")
    content = json.loads(out.read_text())
    (run,) = content["runs"]
    assert set(content) == {"runs", "missed", "machine"}
    assert (run["engine"], run["faults"]) == ("express", [])
    assert run["rounds"] == len(run["samples"]) >= 6
    assert run["rotations"] == run["rounds"]
    assert set(run["links"]) == set(LINK_ENDINGS)
    assert set(run["lives"]) == set(ENDINGS)
    assert min(run["pipes_in"], run["dials"], run["readings"]) > 20
    assert all(sample["at_rest"] for sample in run["samples"])
