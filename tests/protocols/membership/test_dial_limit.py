"""How many handshakes one node begins at once: few in a crowd, many where there is room."""

from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.membership.dial_limit import FIRST, MOST, DialLimit

MANY = 29


def test_quick_answers_let_more_dials_be_under_way_up_to_a_bound() -> None:
    """Where links are free, a node meets hundreds in a moment."""
    limit, now = DialLimit(), 10 * SECOND
    assert limit.room_at([now] * (FIRST - 1), now) == now
    assert limit.room_at([now] * FIRST, now) > now
    for _ in range(2 * MOST):
        limit.began(now)
        limit.answered(now - 20 * MS, MANY, now)
    assert limit.limit == MOST
    assert limit.room_at([now] * (MOST - 1), now) == now
    assert limit.room_at([now] * MOST, now) == NEVER


def test_slow_answers_halve_the_number_once_for_all_that_began_before() -> None:
    """All of them waited for the same channel."""
    limit, now = DialLimit(), 10 * SECOND
    for _ in range(12):
        limit.answered(now - 20 * MS, MANY, now)
    for _ in range(5):
        now += 10 * MS
        limit.answered(now - SECOND, MANY, now)
    assert limit.limit == (FIRST + 12) // 2
    for _ in range(20):
        now += 2 * SECOND
        limit.answered(now - SECOND, MANY, now)
    assert limit.limit == 2, "some are always allowed"


def test_few_peers_are_no_crowd_however_slow_they_answer() -> None:
    """Ten nodes whose network has changed wait for ARP, and have to find one another within seconds."""
    limit, now = DialLimit(), 10 * SECOND
    for _ in range(5):
        now += 2 * SECOND
        limit.answered(now - SECOND, 9, now)
    assert limit.limit == FIRST
    limit.began(now)
    assert limit.room_at([], now) == now


def test_in_a_crowd_the_limit_is_one_of_dials_a_second_though_they_are_answered() -> None:
    """Otherwise handshakes would follow one another until the channel is full of them."""
    limit, now = DialLimit(), 10 * SECOND
    limit.answered(now - SECOND, MANY, now)
    assert limit.limit == FIRST // 2
    for _ in range(FIRST // 2):
        limit.began(now)
    free_ns = limit.room_at([], now)
    assert free_ns == now + SECOND
    limit.answered(free_ns - 20 * MS, MANY, free_ns)
    limit.answered(free_ns - 20 * MS, MANY, free_ns)
    assert limit.room_at([], now) == now, "it is not crowded any more"


def test_the_more_are_reached_the_fewer_dials_begin_in_a_second() -> None:
    """All of them dial, on one channel."""
    spans = {}
    for reached in (15, 29, 59, 119):
        limit, now = DialLimit(), 10 * SECOND
        limit.answered(now - SECOND, reached, now)
        for _ in range(limit.limit):
            limit.began(now)
        spans[reached] = (limit.room_at([], now) - now) / SECOND
    assert spans == {15: 1.0, 29: 1.0, 59: 2.0, 119: 4.0}


def test_dials_without_an_answer_stop_counting_after_a_while() -> None:
    """A stranger's adverts lead nowhere, and must not keep real nodes waiting."""
    limit, now = DialLimit(), 10 * SECOND
    waiting = [now] * FIRST
    free_ns = limit.room_at(waiting, now)
    assert now < free_ns <= now + 300 * MS
    assert limit.room_at(waiting, free_ns) == free_ns
