"""The demonstration of releases, as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from demo.promises import Outcome
from demo.update.stage import BAD, GOOD, HONEST, PATH, PLAYERS
from demo.update.story import Stage, judged
from meshnode.models.plate import find_detector
from protocols.base.errors import ModelInvalid

ROOT = Path(__file__).resolve().parents[2]
GENUINE = {player.name: True for player in PLAYERS}


def told_well(folder: Path) -> Stage:
    """What a stage knows when all promises were kept."""
    stage = Stage(folder)
    for player in PLAYERS:
        serving = GOOD if player.name in HONEST else 0
        stage.take(player.name, {
            "kind": "figures", "serving": serving, "metadata": 0, "store_bytes": 0, "peers": 5, "answers": 9,
            "failures": 0,
        })  # fmt: skip
    stage.take("veh-1", {"kind": "ChunkForged", "node": "veh-1", "source": "veh-liar"})
    return stage


def broken(stage: Stage, verified: dict[str, bool]) -> list[str]:
    promises = judged(stage, {"bad_gone_s": 1.0}, verified)
    return [promise.name for promise in promises if promise.outcome is not Outcome.KEPT]


def test_bad_release_that_served_between_two_samples_is_told(tmp_path: Path) -> None:
    """Figures come twice a second, and a node can serve a release and give it up in less."""
    stage = told_well(tmp_path)
    assert broken(stage, GENUINE) == []
    for state in ("fetched", "staged", "shadowing"):
        stage.take("veh-3", {"kind": "ReleaseState", "path": PATH, "counter": BAD, "state": state})
    assert broken(stage, GENUINE) == []
    stage.take("veh-3", {"kind": "ReleaseState", "path": PATH, "counter": BAD, "state": "serving"})
    assert broken(stage, GENUINE) == ["nobody but canaries ever served the bad release"]
    stage.take("veh-parked", {"kind": "ReleaseState", "path": PATH, "counter": BAD, "state": "soaking"})
    assert len(broken(stage, GENUINE)) == 2


def test_chunks_that_nobody_has_checked_are_not_genuine(tmp_path: Path) -> None:
    """A story that ends early proves nothing about what nodes hold."""
    name = "everything that nodes hold is genuine"
    assert broken(told_well(tmp_path), {}) == [name]
    assert broken(told_well(tmp_path), {**GENUINE, "veh-3": False}) == [name]
    assert broken(told_well(tmp_path), dict.fromkeys(HONEST, True)) == [name]


@pytest.mark.processes
@pytest.mark.timeout(600)
def test_releases_spread_and_are_taken_back_with_the_relay_gone(tmp_path: Path) -> None:
    """The whole way, with real processes: publish, gossip, fetch, try, serve, halt, go back, return, be refused."""
    try:
        find_detector()
    except ModelInvalid as error:
        pytest.skip(str(error))
    out = tmp_path / "told.json"
    done = subprocess.run(
        [sys.executable, "-m", "demo.update", "--out", str(out)], capture_output=True, text=True, check=False, cwd=ROOT,
        timeout=580,
    )  # fmt: skip
    told = json.loads(out.read_text()) if out.exists() else {}
    assert done.returncode == 0, (done.stdout[-3_000:], done.stderr[-3_000:])
    assert len(told["promises"]) == 8
    assert {promise["outcome"] for promise in told["promises"]} == {"kept"}
