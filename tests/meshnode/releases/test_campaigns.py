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


def test_journal_that_went_back_after_a_kill_is_told() -> None:
    """A node that forgets an install it had finished would serve an older model, and look well."""
    first = {"what": "serves", "journal": 1, "amount": 1.0, "fell_back": {}, "digest_is_right": True}
    served = [{"what": "staging"}, {"what": "serving", "counter": 2}, {"what": "dropping", "counter": 2}]
    about_to = [*served, {"what": "staging"}, {"what": "serving", "counter": 3}]
    assert install_kills.journals_after(first, []) == {1}
    assert install_kills.journals_after(first, served) == {2}
    assert install_kills.journals_after(first, about_to) == {2, 3}
    assert install_kills.not_recovered(first, {1}) == ""
    assert install_kills.not_recovered(first, {2, 3}) == "the journal says 1, and not 2 or 3"
    assert "could not be served" in install_kills.not_recovered({**first, "fell_back": {"models/adder": "why"}}, {1})
    assert "something else" in install_kills.not_recovered({**first, "amount": 0.5}, {1})


def test_fault_at_any_step_of_an_install_leaves_a_release_that_serves(tmp_path: Path) -> None:
    """A vehicle is switched off, and disks fill up, in every instant that there is."""
    figures = install_kills.fail_everywhere(tmp_path, ("full", "power", "reordered"))
    assert sum(figures.tried.values()) == 3 * len(figures.steps)
    assert install_kills.missed_promises(None, figures) == []


def test_install_without_a_step_that_fails_is_told() -> None:
    """What is written past the disk of the benchmark would never fail in it."""
    (missed,) = install_kills.missed_promises(None, install_kills.Faults(steps=["write a", "rename b"]))
    assert missed.startswith("an install has no step of the kind allocate, append, link, sync")


async def test_swaps_under_load_fail_no_request_here_or_of_a_neighbour(tmp_path: Path) -> None:
    """An update must be no reason for an outage of even one frame."""
    figures = await swaps.measure(tmp_path, count=6, hz=30.0, quiet_s=0.5)
    assert swaps.missed_promises(figures) == []
    assert sum(asked.count for asked in figures.swapping.values()) > 20
