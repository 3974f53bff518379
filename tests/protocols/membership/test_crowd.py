"""How large a crowd is, and how long its members may be silent."""

from protocols.base.limits import SECOND
from protocols.membership.crowd import CROWD, crowd_size, gaps_ns, most_patience_ns


def test_adverts_count_for_no_more_than_the_proven_and_a_few() -> None:
    """A stranger may send a thousand of them."""
    assert crowd_size(0, 1_000) == CROWD
    assert crowd_size(10, 1_000) == 20 + CROWD
    assert crowd_size(10, 15) == 15
    assert crowd_size(30, 12) == 30


def test_neighbours_may_be_silent_for_four_turns_but_not_for_ever() -> None:
    """In a small crowd the patience stays what it was; in one of eighty a turn comes in half a minute."""
    assert most_patience_ns(0) == most_patience_ns(2 * SECOND) == 10 * SECOND
    assert most_patience_ns(8 * SECOND) == 32 * SECOND
    assert most_patience_ns(100 * SECOND) == 60 * SECOND


def test_neighbour_that_has_met_more_of_the_crowd_has_rarer_turns_for_us() -> None:
    """Whoever has met thirty of sixty gave up those that had met all sixty, and had to shake hands with them again."""
    settled_ns, _ = gaps_ns(2 * SECOND, 30, 30)
    forming_ns, _ = gaps_ns(2 * SECOND, 30, 59)
    assert settled_ns == 2 * SECOND
    assert 7 * SECOND < forming_ns < 9 * SECOND


def test_only_new_neighbours_have_long_without_a_pace_of_our_own() -> None:
    """Where the channel has room, a crash is noticed as soon as ever, but who has just come does not know yet."""
    assert gaps_ns(0, 0, 0) == (0, 0)
    long_known_ns, new_ns = gaps_ns(0, 5, 45)
    assert long_known_ns == 0
    assert new_ns >= SECOND


def test_node_that_is_fast_for_a_while_does_not_judge_a_large_crowd_by_itself() -> None:
    """One of sixty found room and had a turn every second; it then suspected seven that had theirs every eight."""
    gap_ns, _ = gaps_ns(SECOND, 59, 59)
    assert gap_ns > 7 * SECOND
    gap_ns, _ = gaps_ns(SECOND // 10, 12, 12)
    assert gap_ns == SECOND // 10, "twelve are judged by our own pace, which is far above the least"
