"""The demonstration of releases, as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from meshnode.models.plate import find_detector
from protocols.base.errors import ModelInvalid

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.processes


def test_releases_spread_and_are_taken_back_with_the_relay_gone(tmp_path: Path) -> None:
    """The whole way, with real processes: publish, gossip, fetch, try, serve, halt, go back, return, be refused."""
    try:
        find_detector()
    except ModelInvalid as error:
        pytest.skip(str(error))
    out = tmp_path / "told.json"
    done = subprocess.run(
        [sys.executable, "-m", "demo.update", "--out", str(out)], capture_output=True, text=True, check=False, cwd=ROOT,
        timeout=280,
    )  # fmt: skip
    told = json.loads(out.read_text()) if out.exists() else {}
    assert done.returncode == 0, (done.stdout[-3_000:], done.stderr[-3_000:])
    assert len(told["promises"]) == 8
    assert {promise["outcome"] for promise in told["promises"]} == {"kept"}
