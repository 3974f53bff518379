"""How many handshakes one node begins: few at once, slowly in a crowd, and many where there is room."""

from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.membership.dial_limit import FIRST, FIRST_SHARE_HZ, LEAST_SHARE_HZ, MOST, DialLimit


def in_a_crowd(of: int = 29) -> DialLimit:
    """The limit of a node that knows of so many others."""
    limit = DialLimit()
    limit.crowd = of
    return limit


def slow(limit: DialLimit, now: int) -> int:
    """A handshake begins and takes a second. Returns when it ends."""
    limit.answered(now, now + SECOND)
    return now + SECOND


def test_quick_answers_let_more_dials_be_under_way_up_to_a_bound() -> None:
    """Where links are free, a node meets hundreds in a moment."""
    limit, now = in_a_crowd(), 10 * SECOND
    assert limit.room_at([now] * (FIRST - 1), now) == now
    assert limit.room_at([now] * FIRST, now) > now
    for _ in range(2 * MOST):
        limit.began([], now)
        limit.answered(now - 20 * MS, now)
    assert limit.limit == MOST
    assert limit.room_at([now] * (MOST - 1), now) == now
    assert limit.room_at([now] * MOST, now) == NEVER


def test_slow_answers_halve_the_numbers_once_for_all_that_began_before() -> None:
    """All of them waited for the same channel."""
    limit, now = in_a_crowd(), 10 * SECOND
    for _ in range(12):
        limit.answered(now - 20 * MS, now)
    for _ in range(5):
        now += 10 * MS
        limit.answered(now - SECOND, now)
    assert limit.limit == (FIRST + 12) // 2
    assert limit.share_hz == FIRST_SHARE_HZ
    for _ in range(20):
        now = slow(limit, now)
    assert limit.limit == FIRST
    assert limit.share_hz == LEAST_SHARE_HZ, "some are always allowed"


def test_few_peers_are_no_crowd_however_slow_they_answer() -> None:
    """Ten nodes whose network has changed wait for ARP, and have to find one another within seconds."""
    limit, now = in_a_crowd(of=9), 10 * SECOND
    for _ in range(5):
        now = slow(limit, now)
    assert limit.limit == FIRST
    limit.began([], now)
    assert limit.pause_ns == 0
    assert limit.room_at([], now) == now


def test_dials_of_a_whole_crowd_are_as_many_a_second_however_large_it_is() -> None:
    """Sixty nodes with two a second each filled the channel, and none of their handshakes ended in time."""
    for others in (14, 29, 59, 119):
        limit, now = in_a_crowd(others), 10 * SECOND
        now = slow(limit, now)
        limit.began([], now)
        pause_s = (limit.room_at([], now) - now) / SECOND
        assert abs((others + 1) / pause_s - FIRST_SHARE_HZ) < 0.1


def test_node_that_keeps_a_pace_leaves_pauses_before_a_handshake_was_slow() -> None:
    """The channel is full, so there is no need to find that out at the expense of all."""
    limit, now = in_a_crowd(), 10 * SECOND
    limit.began([], now)
    assert limit.room_at([], now) == now
    limit.is_paced = True
    assert limit.room_at([], now) > now + 500 * MS
    limit.answered(now - 20 * MS, now)
    assert FIRST_SHARE_HZ < limit.share_hz < 1.2 * FIRST_SHARE_HZ


def test_quick_answers_end_the_pauses_soon_where_the_node_keeps_no_pace() -> None:
    """One slow handshake on a free channel costs little, and a crowd on a full one grows slowly."""
    answers = {}
    for is_paced in (False, True):
        limit, now = in_a_crowd(), 10 * SECOND
        limit.is_paced = is_paced
        now = slow(limit, now)
        answers[is_paced] = 0
        while limit.share_hz:
            limit.answered(now - 20 * MS, now)
            answers[is_paced] += 1
    assert answers[False] <= 5
    assert 20 <= answers[True] <= 40


def test_node_that_nobody_has_answered_yet_dials_a_crowd_slowly() -> None:
    """Whoever comes to a channel that is full of handshakes gets no slow answer that would tell it."""
    limit, now = in_a_crowd(), 10 * SECOND
    limit.began([], now)
    assert limit.pause_ns == 0
    limit.began([now] * FIRST, now)
    assert limit.share_hz == FIRST_SHARE_HZ


def test_dials_in_vain_cause_no_pauses_once_somebody_has_answered() -> None:
    """Adverts of vehicles that are gone stay for a quarter of an hour, and those that come are to be met at once."""
    limit, now = in_a_crowd(), 10 * SECOND
    limit.answered(now - 20 * MS, now)
    limit.began([now] * MOST, now)
    assert limit.pause_ns == 0


def test_time_out_of_a_peer_that_said_hello_is_a_slow_answer_and_a_refusal_is_not() -> None:
    """Where no handshake ends in time, time-outs are all that tells."""
    limit, now = in_a_crowd(), 10 * SECOND
    limit.timed_out(now - 20 * MS, now)
    assert not limit.share_hz
    limit.timed_out(now - 5 * SECOND, now)
    assert limit.share_hz == FIRST_SHARE_HZ


def test_dials_without_an_answer_stop_counting_after_a_while() -> None:
    """A stranger's adverts lead nowhere, and must not keep real nodes waiting."""
    limit, now = DialLimit(), 10 * SECOND
    waiting = [now] * FIRST
    free_ns = limit.room_at(waiting, now)
    assert now < free_ns <= now + 300 * MS
    assert limit.room_at(waiting, free_ns) == free_ns


def test_peer_in_a_large_crowd_has_longer_to_dial_back() -> None:
    """It has all others to dial, and giving it up costs both of them the handshake."""
    assert in_a_crowd(of=9).round_ns == 0
    assert in_a_crowd(of=19).round_ns == 20 * SECOND
    assert 100 * SECOND < in_a_crowd(of=59).round_ns <= 120 * SECOND
    assert in_a_crowd(of=200).round_ns == 120 * SECOND
