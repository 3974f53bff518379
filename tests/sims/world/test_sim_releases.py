"""Releases of a scenario: they spread, the figures say so, and the checks notice what must never happen."""

import hashlib
from typing import Any

import pytest

from sims.errors import ScenarioError
from sims.runs.run import Run, simulate
from sims.scenario.file import loads

TOWN = """
name = "town"
description = "Two units and six cars"
duration_s = 40
radio = { model = "ideal", range_m = 300 }
traffic = [{ group = "car", rate_hz = 1 }]

[releases]
size_mib = 0.2
published_at_s = 5
%s

[[groups]]
name = "unit"
count = 2
role = "rsu"
relay = true
mobility = { kind = "lattice", spacing_m = 40 }

[[groups]]
name = "car"
count = 6
mobility = { kind = "lattice", spacing_m = 20, corner = [0, 80] }
"""


def test_release_of_a_scenario_reaches_all_and_the_result_says_when() -> None:
    """Whoever plans a mesh asks how long an update takes, and what the uplink carries."""
    result = simulate(loads(TOWN % ""), 1)
    assert result.broken == []
    assert result.figures["release_fetched_share"] == 1
    assert 0 < result.figures["release_half_s"] <= result.figures["release_all_s"] < 35
    assert result.figures["release_relay_egress_files"] < 2.1
    spread = {entry.author: entry for entry in result.dissemination if entry.author.startswith("release/")}
    assert spread.keys() == {"release/metadata", "release/fetched", "release/serving"}
    assert all(entry.holders == 9 for entry in spread.values())  # with the publisher
    assert result.checks["kept_chunks_are_genuine"].passed >= 8
    assert result.checks["forbidden_nodes_get_nothing"].passed == 0


def test_release_that_vehicles_may_not_have_stays_with_the_units() -> None:
    """A simulation shows what the table of access does."""
    result = simulate(loads(TOWN % 'forbidden = ["vehicle"]'), 1)
    assert result.broken == []
    assert result.figures["release_fetched_share"] == 1
    assert result.counters["releases_refused_forbidden"] == 0  # who may have nothing is told of nothing
    assert result.checks["forbidden_nodes_get_nothing"].passed == 1


def test_release_spreads_among_liars_and_the_same_seed_gives_the_same_run() -> None:
    """A history that can't be repeated can't be looked into."""
    scenario = loads(TOWN % 'liars = 0.5\nseeds = ["unit-0"]')
    results = [simulate(scenario, 3) for _ in range(2)]
    assert results[0].digest == results[1].digest
    assert results[0].counters == results[1].counters
    assert results[0].broken == []


@pytest.mark.parametrize("bug", ["forged", "forbidden", "staged"])
def test_check_of_releases_catches_what_must_never_happen(bug: str) -> None:
    """A check that never fails proves nothing."""
    run = Run(loads(TOWN % 'forbidden = ["vehicle"]'), 1)
    releases = run.world.releases
    assert releases is not None

    def plant(_: Any) -> None:
        node = run.world.node("car-0")
        data = b"anything"
        digest = hashlib.sha256(data if bug != "forged" else b"else").digest()
        if bug == "forbidden":
            releases.publisher.chunks[digest] = data
        releases.disk("car-0").chunks[digest] = data
        if bug == "staged":
            assert releases.on_staged is not None
            releases.on_staged(node, "models/plate", 1)
        else:
            assert releases.on_kept is not None
            releases.on_kept(node, digest)

    run.world.driver.push(20 * 1_000_000_000, plant, None)
    broken = run.go().broken
    assert broken == (["forbidden_nodes_get_nothing"] if bug == "forbidden" else ["kept_chunks_are_genuine"])


@pytest.mark.parametrize(("keys", "says"), [
    ('seeds = ["nobody"]', "seeds has 'nobody'"),
    ("published_at_s = 50", "published_at_s is 50"),
    ('forbidden = ["vehicle", "rsu"]', "nobody may have the release"),
    ("size_mib = 0", "size_mib is 0"),
])  # fmt: skip
def test_release_that_can_not_be_published_is_refused(keys: str, says: str) -> None:
    """A misspelt seed would be a simulation of nothing."""
    text = TOWN % keys
    if "published_at_s = 50" in keys or "size_mib" in keys:
        text = text.replace("size_mib = 0.2\npublished_at_s = 5\n", "", 1)
    with pytest.raises(ScenarioError, match=says):
        loads(text)


def test_release_without_seeds_and_without_relay_is_refused() -> None:
    """Nobody would ever get it."""
    with pytest.raises(ScenarioError, match="no group has relay = true"):
        loads((TOWN % "").replace("relay = true\n", ""))
