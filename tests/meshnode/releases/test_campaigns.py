"""The campaigns of ``benchmarks`` about installs and swaps, in short: the commands make them long."""

from pathlib import Path

import pytest

from benchmarks import install_kills, swaps

pytestmark = pytest.mark.processes


def test_kills_at_random_moments_of_installs_leave_a_model_that_serves(tmp_path: Path) -> None:
    """Vehicles are switched off without a word."""
    figures = install_kills.kill(tmp_path, kills=4, seed=3, longest_s=1.5)
    assert figures.kills == 4
    assert install_kills.missed_promises(figures, None) == []


async def test_swaps_under_load_fail_no_request_here_or_of_a_neighbour(tmp_path: Path) -> None:
    """An update must be no reason for an outage of even one frame."""
    figures = await swaps.measure(tmp_path, count=6, hz=30.0, quiet_s=0.5)
    assert swaps.missed_promises(figures) == []
    assert sum(asked.count for asked in figures.swapping.values()) > 20
