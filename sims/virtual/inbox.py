"""The inbox of a simulated node: frames on their way to it, which are put in order when they are taken out."""

from typing import Final

from sims.virtual.node import Coming

_FEW: Final = 32
"""Up to this many frames are sorted by insertion."""


def taken(inbox: list[Coming], until_ns: int) -> list[Coming]:
    """Take out what comes in until ``until_ns``, in order. The inbox must not be empty."""
    if len(inbox) > 1:
        _put_in_order(inbox)
    if inbox[-1].tick_ns <= until_ns:
        due = inbox[:]
        inbox.clear()
        return due
    count = 0
    while inbox[count].tick_ns <= until_ns:
        count += 1
    due = inbox[:count]
    del inbox[:count]
    return due


def _put_in_order(inbox: list[Coming]) -> None:
    """Sort by tick; frames of one tick keep their order. There are usually few, nearly in order, which is where
    insertion is fast."""
    if len(inbox) > _FEW:
        inbox.sort(key=_when)
        return
    for at in range(1, len(inbox)):
        coming = inbox[at]
        place = at
        while place and inbox[place - 1].tick_ns > coming.tick_ns:
            inbox[place] = inbox[place - 1]
            place -= 1
        inbox[place] = coming


def _when(coming: Coming) -> int:
    return coming.tick_ns
