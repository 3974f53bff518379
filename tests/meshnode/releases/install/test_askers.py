"""Whose runs count: one neighbour must not take a good release back, nor may a bad one hide behind that."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from meshnode.releases.install.askers import MAX_ASKERS, AskedRuns, p95s_ns
from protocols.releases.rollout.health import FEW_RUNS


def asked(**counts: tuple[int, int]) -> AskedRuns:
    """Good and bad runs by who asked for them."""
    runs = AskedRuns()
    for asker, (good, bad) in counts.items():
        for number in range(good + bad):
            runs.note(None if asker == "own" else asker, is_bad=number >= good)
    return runs


@pytest.mark.parametrize(
    ("runs", "counted"),
    [
        (asked(own=(100, 0), liar=(0, 100)), (100, 0)),
        (asked(own=(50, 50), liar=(0, 100)), (100, 50)),
        (asked(one=(100, 0), two=(0, 30), three=(0, 20)), (120, 20)),
        (asked(one=(100, 10)), (110, 10)),
        (asked(own=(FEW_RUNS - 1, 0), one=(0, 10)), (FEW_RUNS + 9, 10)),
        (asked(own=(FEW_RUNS, 0), one=(0, 10)), (FEW_RUNS, 0)),
    ],
)
def test_failures_of_one_neighbour_do_not_count_beside_runs_of_others(
    runs: AskedRuns, counted: tuple[int, int]
) -> None:
    """What fails for several of them, or for the node itself, is a bad release; so is what fails for its only user."""
    assert runs.counted() == counted


def test_neighbours_that_pass_by_are_counted_and_not_kept() -> None:
    """A roadside unit meets thousands of vehicles while it judges a release, and one of them lies."""
    runs = AskedRuns()
    for _ in range(100):
        runs.note("liar", is_bad=True)
    for number in range(10 * MAX_ASKERS):
        runs.note(f"vehicle-{number}", is_bad=False)
    assert runs.counted() == (10 * MAX_ASKERS, 0)


def test_slow_runs_of_one_neighbour_do_not_make_a_release_slow() -> None:
    """It asks for small pictures before the swap and for large ones after it."""
    others = [(asker, 100) for asker in (None, "one") for _ in range(50)]
    before, now = [*others, *[("liar", 50)] * 100], [*others, *[("liar", 900)] * 100]
    assert p95s_ns(now, before) == (100, 100)
    slow = [(asker, 300) for asker, _ in now]
    assert p95s_ns(slow, before)[0] == 300, "it is slow for all of them"
    assert p95s_ns([("one", 300)] * 50, [("one", 100)] * 50) == (300, 100), "nobody else asks"
    assert p95s_ns(now, []) == (900, 0)
    assert p95s_ns([], []) == (0, 0)


def test_threads_that_count_at_once_lose_nothing() -> None:
    """Readings of neighbours come on many threads, and vehicles pass by without end."""
    runs, before_s = AskedRuns(), sys.getswitchinterval()

    def count(thread: int) -> None:
        for number in range(2_000):
            runs.note(f"veh-{thread}-{number}", is_bad=False)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(count, range(2)))
    finally:
        sys.setswitchinterval(before_s)
    assert runs.counted() == (4_000, 0)
