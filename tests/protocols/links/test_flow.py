"""What is under way on a lane: as much as the link carries in 50 ms, and at least one frame."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.base.limits import MS, SECOND
from protocols.links.flow import (
    FIRST_WINDOW_BYTES,
    LATE_NS,
    LEAST_BASE_NS,
    MAX_WINDOW_BYTES,
    MOST_BASE_NS,
    SLOW_NS,
    TARGET_NS,
    Flow,
)

ENOUGH_NS = LEAST_BASE_NS + TARGET_NS


def hand_over(flow: Flow, size_bytes: int, now: int) -> None:
    flow.sent_bytes += size_bytes
    if not flow.marked_ns:
        flow.measure(now)


def late_ns(flow: Flow, unconfirmed_bytes: int, now: int) -> int:
    """By how much a frame was late, if the look has shown that; otherwise 0."""
    sample = flow.confirmed(unconfirmed_bytes, now)
    return 0 if sample is None else sample[0]


def used_up(flow: Flow, took_ns: int, now: int) -> int:
    """Use the window up, and have everything confirmed after ``took_ns``. Returns the time then."""
    size = flow.window_bytes
    hand_over(flow, size, now)
    assert flow.is_full(size, now)
    now += took_ns
    flow.confirmed(0, now)
    assert not flow.is_full(0, now)
    return now


def test_window_grows_while_it_is_confirmed_soon_and_shrinks_to_one_frame_when_not() -> None:
    """On a fast link nothing may be held up; on a slow one seconds of readings would be out of reach."""
    flow, now = Flow(), SECOND
    for _ in range(20):
        now = used_up(flow, 5 * MS, now)
    assert flow.window_bytes == MAX_WINDOW_BYTES
    for _ in range(40):
        now = used_up(flow, MOST_BASE_NS + TARGET_NS + MS, now)
    assert flow.window_bytes == 1
    assert not flow.is_full(0, now), "one frame may always be under way"
    assert flow.is_full(300, now)


def test_frame_under_way_for_long_holds_up_what_follows_however_small_it_is() -> None:
    """Behind it everything waits, and here it can be replaced."""
    flow = Flow()
    hand_over(flow, 100, SECOND)
    assert not flow.is_full(100, SECOND + ENOUGH_NS)
    assert flow.is_full(100, SECOND + ENOUGH_NS + 1)
    assert not flow.is_full(0, SECOND + ENOUGH_NS + 1)
    assert flow.window_bytes == FIRST_WINDOW_BYTES


def test_sample_is_slow_only_if_a_look_found_the_frame_unconfirmed() -> None:
    """Who looks once a second would otherwise take every frame for a slow one."""
    flow = Flow()
    assert late_ns(flow, 0, SECOND) == 0, "nothing is under way"
    hand_over(flow, 100, SECOND)
    assert late_ns(flow, 100, SECOND + LEAST_BASE_NS + LATE_NS) == 0
    assert late_ns(flow, 0, 2 * SECOND) == LATE_NS, "nobody knows since when"
    hand_over(flow, 100, 2 * SECOND)
    assert late_ns(flow, 0, 2 * SECOND + MS) == 1
    assert flow.marked_ns == 0
    hand_over(flow, 100, 2 * SECOND)
    hand_over(flow, 100, 2 * SECOND)
    assert LATE_NS < late_ns(flow, 150, 2 * SECOND + LEAST_BASE_NS + LATE_NS + 1) <= SLOW_NS
    assert late_ns(flow, 150, 2 * SECOND + LEAST_BASE_NS + SLOW_NS) == 0, "it is told once"
    assert late_ns(flow, 150, 2 * SECOND + LEAST_BASE_NS + SLOW_NS + 1) > SLOW_NS
    assert late_ns(flow, 150, 2 * SECOND + 4 * SLOW_NS) == 0, "it is told once"
    assert late_ns(flow, 100, 3 * SECOND) == 0, "the frame is confirmed, the one behind it is not"
    assert flow.marked_ns == 0


def test_way_that_is_long_even_when_it_is_empty_is_not_taken_for_a_full_one() -> None:
    """Over a cellular network every frame takes 90 ms with its acknowledgement, however few there are."""
    flow, now, slow = Flow(), SECOND, 0
    for _ in range(100):
        hand_over(flow, 100, now)
        slow += sum(late_ns(flow, 100, now + ms * MS) > SLOW_NS for ms in range(4, 90, 4))
        slow += late_ns(flow, 0, now + 90 * MS) > SLOW_NS
        assert not flow.is_full(0, now)
        now += 100 * MS
    assert slow <= 1, "the first one"
    hand_over(flow, 100, now)
    assert not flow.is_full(100, now + 95 * MS)
    assert late_ns(flow, 100, now + 140 * MS) > SLOW_NS, "later than ever"


@given(st.lists(st.tuples(st.integers(1, 100_000), st.integers(0, 300), st.integers(0, 300)), max_size=60))
def test_any_history_keeps_the_window_within_bounds_and_ends_not_full(steps: list[tuple[int, int, int]]) -> None:
    """A lane that stays full once all is confirmed would be dead without a word."""
    flow, now, waiting = Flow(), SECOND, 0
    for size, confirmed, pause_ms in steps:
        if not flow.is_full(waiting, now):
            hand_over(flow, size, now)
            waiting += size
        now += pause_ms * MS
        waiting -= min(waiting, confirmed * 300)
        assert late_ns(flow, waiting, now) >= 0
        assert 1 <= flow.window_bytes <= MAX_WINDOW_BYTES
    assert late_ns(flow, 0, now) >= 0
    assert not flow.is_full(0, now)
    assert flow.marked_ns == 0
