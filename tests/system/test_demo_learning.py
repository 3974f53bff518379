"""The demonstration of learning, as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cloud_relay.learning.recipe import read_recipe
from cloud_relay.learning.rows import LearningRows
from demo.learning.stage import FILES
from demo.learning.story import balanced_accuracy

ROOT = Path(__file__).resolve().parents[2]


def test_recipe_of_the_demonstration_is_that_of_its_page() -> None:
    """Who copies it from there gets what was tried."""
    text = (FILES / "hotspot.toml").read_text()
    assert text.strip() in (ROOT / "docs" / "howto" / "train-a-model.md").read_text()
    assert list(read_recipe(FILES / "hotspot.toml").features) == [
        "latitude_deg", "longitude_deg", "speed_mps", "heading_deg",
    ]  # fmt: skip


def test_accuracy_of_answers_is_the_mean_over_classes() -> None:
    rows = LearningRows(
        np.zeros((4, 1)), np.asarray([0, 0, 0, 1]), np.arange(4), np.full(4, "v"), np.arange(4), ("no", "yes")
    )
    assert balanced_accuracy([0, 0, 1, 1], rows) == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.processes
@pytest.mark.timeout(600)
def test_hotspots_are_learned_released_and_served_by_a_rollout(tmp_path: Path) -> None:
    """The whole way, with a real relay and real nodes: the report has the accuracy of both releases."""
    command = [sys.executable, "-m", "demo.learning", "--short", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=580)
    told = json.loads((tmp_path / "summary.json").read_text()) if done.returncode in (0, 1) else {}
    assert done.returncode == 0, (done.stdout[-3_000:], done.stderr[-3_000:])
    assert {promise["outcome"] for promise in told["promises"]} == {"kept"}
    assert len(told["promises"]) == 4
    assert [run["release"] for run in told["runs"]] == [1, 2]
    assert "| balanced_accuracy, answered by rsu-1 |" in (tmp_path / "report.md").read_text()
