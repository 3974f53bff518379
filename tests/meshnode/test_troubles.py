"""What does not work in a node is kept, bounded and told in one form."""

import logging

import pytest

from meshnode.troubles import MAX_TROUBLES, MAX_WHY_CHARACTERS, Troubles


def test_trouble_that_is_reported_again_keeps_its_beginning_and_takes_the_new_reason() -> None:
    """A person wants to know for how long, and what is wrong now."""
    troubles = Troubles()
    troubles.begin("model", "plate", "no such file")
    (first,) = troubles.current()
    troubles.begin("model", "plate", "not a model")
    (second,) = troubles.current()
    assert (second.part, second.name, second.why) == ("model", "plate", "not a model")
    assert second.since_ns == first.since_ns
    assert troubles.reported == 1


def test_trouble_that_ends_is_forgotten_but_stays_counted() -> None:
    """A part that fails for a second each minute shows in a counter, not in the list."""
    troubles = Troubles()
    for _ in range(3):
        troubles.begin("sensor", "camera", "unplugged")
        troubles.end("sensor", "camera")
    assert troubles.current() == []
    assert troubles.reported == 3


def test_essential_troubles_come_first() -> None:
    """Whoever reads only the first line reads what keeps the node out of the mesh."""
    troubles = Troubles()
    troubles.begin("model", "plate", "bad")
    troubles.begin("clock", "", "1970", essential=True)
    assert [trouble.part for trouble in troubles.current()] == ["clock", "model"]


def test_trouble_is_logged_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    """A part that tries again each second must not fill the log."""
    caplog.set_level(logging.INFO, logger="meshnode.troubles")
    troubles = Troubles()
    for why in ("a", "a", "a", "b", "b"):
        troubles.begin("outbox", "", why)
    troubles.end("outbox")
    troubles.end("outbox")
    assert [record.message for record in caplog.records] == [
        "outbox does not work: a", "outbox does not work: b", "outbox works again",
    ]  # fmt: skip


def test_troubles_without_end_are_bounded_and_counted() -> None:
    """Names may come from others; a list that grows with them would be a way to fill memory."""
    troubles = Troubles()
    for number in range(MAX_TROUBLES + 10):
        troubles.begin("sensor", f"s{number}", "x" * (MAX_WHY_CHARACTERS + 1))
    assert len(troubles.current()) == MAX_TROUBLES
    assert (troubles.reported, troubles.unlisted) == (MAX_TROUBLES + 10, 10)
    assert max(len(trouble.why) for trouble in troubles.current()) == MAX_WHY_CHARACTERS
