"""How many handshakes one node begins at once: few in a crowd, many where there is room."""

from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.membership.handshakes import FIRST, MOST, Handshakes


def test_quick_answers_let_more_dials_be_under_way_up_to_a_bound() -> None:
    """Where links are free, a node meets hundreds in a moment."""
    handshakes, now = Handshakes(), 10 * SECOND
    assert handshakes.room_at(False, [now] * (FIRST - 1), now) == now
    assert handshakes.room_at(False, [now] * FIRST, now) > now
    for _ in range(2 * MOST):
        handshakes.began(False, now)
        handshakes.answered(now - 20 * MS, now)
    assert handshakes.limit == MOST
    assert handshakes.room_at(False, [now] * (MOST - 1), now) == now
    assert handshakes.room_at(False, [now] * MOST, now) == NEVER


def test_slow_answers_halve_the_number_once_for_all_that_began_before() -> None:
    """All of them waited for the same channel."""
    handshakes, now = Handshakes(), 10 * SECOND
    for _ in range(12):
        handshakes.answered(now - 20 * MS, now)
    for _ in range(5):
        now += 10 * MS
        handshakes.answered(now - SECOND, now)
    assert handshakes.limit == (FIRST + 12) // 2
    for _ in range(20):
        now += 2 * SECOND
        handshakes.answered(now - SECOND, now)
    assert handshakes.limit == 1, "one is always allowed"


def test_in_a_crowd_the_limit_is_one_of_dials_a_second_though_they_are_answered() -> None:
    """Otherwise handshakes would follow one another until the channel is full of them."""
    handshakes, now = Handshakes(), 10 * SECOND
    handshakes.answered(now - SECOND, now)
    assert handshakes.limit == FIRST // 2
    for _ in range(FIRST // 2):
        handshakes.began(False, now)
    free_ns = handshakes.room_at(False, [], now)
    assert free_ns == now + SECOND
    assert handshakes.room_at(True, [], now) == now, "a peer that said Hello does not wait for hints"
    handshakes.answered(free_ns - 20 * MS, free_ns)
    handshakes.answered(free_ns - 20 * MS, free_ns)
    assert handshakes.room_at(False, [], now) == now, "it is not crowded any more"


def test_dials_without_an_answer_stop_counting_after_a_while() -> None:
    """A stranger's adverts lead nowhere, and must not keep real nodes waiting."""
    handshakes, now = Handshakes(), 10 * SECOND
    waiting = [now] * FIRST
    free_ns = handshakes.room_at(False, waiting, now)
    assert now < free_ns <= now + 300 * MS
    assert handshakes.room_at(False, waiting, free_ns) == free_ns
