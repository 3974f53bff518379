"""The inbox of a simulated node: frames on their way to it, which are put in order when they are taken out.

Frames come out by tick, and those of one tick in the order in which they were sent. As long as few wait, they lie in
the list ``SimNode.inbox``, which is sorted at each look: that is the usual case, and the fastest. When more wait, as
where a channel or a processor is full, they go onto the heap ``SimNode.crowd``, each of them once. So a frame costs no
more than the logarithm of what waits, however often the receiver looks. New frames lie in the list in either case.
"""

from heapq import heapify, heappop, heappush
from typing import Final

from sims.virtual.frames import SimFrame
from sims.virtual.node import Coming, Pipe, SimNode

FEW: Final = 32
"""Up to this many frames are sorted by insertion at each look."""


def taken(node: SimNode, until_ns: int) -> list[Coming]:
    """Take out frames that come in until ``until_ns``, in order: all of them, or one when many wait. No frames are
    returned only when none has come in."""
    inbox = node.inbox
    if node.crowd or len(inbox) > FEW:
        return _first_of_many(node, until_ns)
    if len(inbox) > 1:
        _put_in_order(inbox)
    elif not inbox:
        return []
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


def put_back(node: SimNode, due: list[Coming]) -> None:
    """Put frames that were taken out, in order, before all others again."""
    if not node.crowd:
        node.inbox[:0] = due
        return
    for coming in reversed(due):
        node.joined += 1
        heappush(node.crowd, (coming.tick_ns, -node.joined, coming))


def all_of(node: SimNode) -> list[Coming]:
    """All frames on their way to a node, in no order."""
    return [*node.inbox, *[coming for _, _, coming in node.crowd]]


def drop(pipe: Pipe) -> list[SimFrame]:
    """Take out all frames that are on a pipe, in no order."""
    node = pipe.receiver
    dropped = [coming.frame for coming in all_of(node) if coming.pipe is pipe]
    if dropped:
        node.inbox[:] = [coming for coming in node.inbox if coming.pipe is not pipe]
        node.crowd[:] = [place for place in node.crowd if place[2].pipe is not pipe]
        heapify(node.crowd)
    return dropped


def clear(node: SimNode) -> None:
    """Drop all frames on their way to a node."""
    node.inbox.clear()
    node.crowd.clear()


def _first_of_many(node: SimNode, until_ns: int) -> list[Coming]:
    inbox, crowd = node.inbox, node.crowd
    for coming in inbox:
        node.joined += 1
        heappush(crowd, (coming.tick_ns, node.joined, coming))
    inbox.clear()
    return [heappop(crowd)[2]] if crowd[0][0] <= until_ns else []


def _put_in_order(inbox: list[Coming]) -> None:
    """Sort by tick; frames of one tick keep their order. There are few, nearly in order, which is where insertion is
    fast."""
    for at in range(1, len(inbox)):
        coming = inbox[at]
        place = at
        while place and inbox[place - 1].tick_ns > coming.tick_ns:
            inbox[place] = inbox[place - 1]
            place -= 1
        inbox[place] = coming
