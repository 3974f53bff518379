"""How large a crowd is, as far as one node can tell, and how long its members may be silent on a channel that is full.

A node in a crowd has to know how many others there are, because all of them share one channel. It is sure of those that
have proved who they are. While a crowd forms, these are few, and adverts tell of the others. Strangers send adverts
too, so these count for no more than the proven ones and ``CROWD`` together.

On a full channel each lane waits for its turn, and a neighbour waits about as long to send to us as we wait to send to
it, or longer: one that has met more of the crowd has more lanes to serve. So what our own lanes wait is taken times
what the size of the crowd makes of it. A neighbour that is new may have its turn last of all, at the least pace that
there is.
"""

from typing import Final

from protocols.base import limits
from protocols.links.pace import crowd_gap_ns, longest_gap_ns

CROWD: Final = 12
"""Fewer nodes are no crowd."""
_MANY: Final = 30
"""In a larger crowd the least pace is what most nodes keep, and one that is faster for a while must not judge by its
own."""
_USUAL_NS: Final = 10 * limits.SECOND
_GAPS: Final = 4
_LONGEST_NS: Final = 60 * limits.SECOND


def crowd_size(proven: int, known: int) -> int:
    """How many others there are. ``proven``: how many have proved who they are. ``known``: how many there are with
    those of which only adverts tell."""
    return max(proven, min(known, 2 * proven + CROWD))


def most_patience_ns(gap_ns: int) -> int:
    """How long any neighbour may be silent where the turns of one lane are ``gap_ns`` apart: ten seconds, or four
    turns, but never more than a minute. Sixty nodes whose hazards take most of their pace have a turn in 25 s."""
    return min(max(_USUAL_NS, _GAPS * gap_ns), _LONGEST_NS)


def gaps_ns(line_ns: int, neighbours: int, known: int) -> tuple[int, int]:
    """How far apart the turns are that a neighbour has for us: of one that was met long ago, and of one that is new.
    ``line_ns``: how long our own lanes wait for a turn; 0: they don't. ``known``: as of :func:`crowd_size`."""
    crowd = crowd_size(neighbours, known)
    if not (line_ns and neighbours):
        return 0, crowd_gap_ns(crowd)
    longest_ns = longest_gap_ns(crowd)
    gap_ns = max(line_ns * longest_ns // longest_gap_ns(neighbours), longest_ns if crowd > _MANY else 0)
    return gap_ns, max(gap_ns, crowd_gap_ns(crowd))
