"""Requests that are made of others: the stages of a pipeline, the shards of a batch."""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from protocols.inference.events import Answered, Decided


class Divided(Protocol):
    """The requests of one kind that are made of others."""

    def owns(self, child: int) -> bool:
        """Whether a request is a part of one of them."""

    def child_ended(self, event: Answered, now: int) -> list[Answered]:
        """A part has ended. Returns the answers of requests that have ended with it."""


def carry(decided: Decided, kinds: Sequence[Divided], now: int) -> None:
    """Take the ends of parts out of the events, and go on with what they are parts of."""
    pending, decided.events = deque(decided.events), []
    answers: list[Answered] = []
    while pending:
        event = pending.popleft()
        kind = next((kind for kind in kinds if kind.owns(event.request)), None)
        if kind is None:
            answers.append(event)
        else:
            answers += kind.child_ended(event, now)
            pending += decided.events  # parts that were asked for and could not even begin
            decided.events = []
    decided.events = answers
