"""A message that a broker gives again is known, and one that is equal to an earlier one is not taken for it."""

from meshnode.mqtt.delivered import MAX_REMEMBERED, MIN_DIFFERENT, Delivered


def given(count: int) -> Delivered:
    """After as many messages, with numbers from 1."""
    delivered = Delivered()
    for mid in range(1, count + 1):
        assert not delivered.is_repeated(mid, False, "t", b"same")
    return delivered


def test_message_that_comes_again_is_known_as_often_as_it_comes() -> None:
    """The broker may be restarted several times. Other content under the number is another message."""
    delivered = given(30)
    assert delivered.is_repeated(7, True, "t", b"same")
    assert delivered.is_repeated(7, True, "t", b"same")
    assert not delivered.is_repeated(8, True, "t", b"other")
    assert not delivered.is_repeated(9, True, "other", b"same")
    assert delivered.is_repeated(8, True, "t", b"other"), "this is what came last under the number"
    assert not delivered.is_repeated(31, True, "t", b"same"), "its first sending was lost"


def test_number_that_is_used_anew_is_no_repetition() -> None:
    """Without DUP it is a new message, whatever it says."""
    delivered = given(30)
    assert not delivered.is_repeated(7, False, "t", b"same")


def test_broker_that_uses_numbers_at_once_again_is_believed() -> None:
    """Such a broker numbers an equal message, whose first sending was lost, as the one before."""
    delivered = given(30)
    for _ in range(3):
        assert not delivered.is_repeated(1, False, "t", b"closed")
    assert not delivered.is_repeated(1, True, "t", b"closed")
    for mid in range(1, MAX_REMEMBERED + 1):
        delivered.is_repeated(mid, False, "t", b"open")
    assert delivered.is_repeated(5, True, "t", b"open"), "so many different numbers in a row: it counts on after all"


def test_few_numbers_do_not_tell_how_a_broker_counts() -> None:
    """Until then nothing is left out."""
    delivered = given(MIN_DIFFERENT - 1)
    assert not delivered.is_repeated(1, True, "t", b"same")
    delivered.is_repeated(MIN_DIFFERENT, False, "t", b"same")
    assert delivered.is_repeated(1, True, "t", b"same")


def test_new_session_begins_with_nothing() -> None:
    """The broker numbers from 1 again."""
    delivered = given(30)
    delivered.forget()
    assert not delivered.is_repeated(1, True, "t", b"same")


def test_memory_is_bounded() -> None:
    """The oldest is forgotten."""
    delivered = given(MAX_REMEMBERED + 1)
    assert not delivered.is_repeated(1, True, "t", b"same")
    assert delivered.is_repeated(MAX_REMEMBERED, True, "t", b"same")
