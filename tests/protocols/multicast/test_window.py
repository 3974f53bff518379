"""The window against replays, beside a set of all counters that were heard."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.multicast.window import SIZE, Window


@given(st.integers(0, 100), st.lists(st.integers(0, 400)))
def test_window_takes_each_counter_once_and_none_that_is_old(first: int, counters: list[int]) -> None:
    """One datagram that counts twice would be a replay."""
    window, heard = Window(first), set(range(first))
    highest = first - 1
    for counter in counters:
        expected = counter not in heard and counter > highest - SIZE
        assert window.may_take(counter) == expected
        if expected:
            assert window.take(counter) == (counter > highest)
            heard.add(counter)
            highest = max(highest, counter)
    assert window.highest == highest


def test_window_tells_the_share_of_what_was_heard_lately() -> None:
    """A neighbour of whom every second datagram is lost is served on its link."""
    window = Window(10)
    for counter in range(10, 10 + 2 * SIZE, 2):
        window.take(counter)
    assert window.heard_share() == 0.5
    window.start_again()
    assert window.heard_share() is None
