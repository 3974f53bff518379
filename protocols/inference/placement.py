"""Where to compute: here or at one neighbour.

A request leaves home only for a neighbour that

- beats this node where it counts: the 95th percentile there is below that here by ``GAIN_NS`` or one in ``GAIN_SHARE``
  parts of it, whichever is more, and the mean is not above that here. A small gain is not worth the use of the radio,
  and predictions are noisy;
- has others wait for no more than a quarter of the time that is gained there, unless this node would probably miss the
  deadline itself. Whoever can help itself leaves the queue of a fast node to those who can't;
- will probably stay in reach until it has answered. A contact that has lasted for t is expected to last for t more,
  since contacts of vehicles have heavy tails; one that is silent for longer than usual is expected to end;
- has lately given results. One that has not is tried only when a hedge could be paid for, so that a neighbour that
  stalls costs no more than the hedge.

Whoever would miss the deadline here goes where the queue is shortest, of the neighbours that make it even at their 95th
percentile. Otherwise the fastest is taken, and of those whose difference to it is smaller than the errors of both
predictions, one at random. Whoever takes the best one by name, as everybody else does, waits in a crowd before it.
"""

from collections.abc import Sequence
from random import Random
from typing import Final

from msgspec import Struct

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.inference.signature import ModelSignature

GAIN_NS: Final = 2 * limits.MS
GAIN_SHARE: Final = 10
"""One in so many parts of the time here."""
WAIT_SHARE: Final = 4
"""Runs may wait at a neighbour for one in so many parts of the time that is gained there."""


class LocalModel(Struct, frozen=True):
    """A model that this node has loaded."""

    name: str
    digest: str
    compute_ns: int
    """The time of one run, before any run of the same kind was seen."""
    queue_ns: int
    """The time until a run for a neighbour that comes now would begin."""
    served: bool
    """Whether this node computes it for neighbours too."""
    local: bool = True
    """Whether this node computes its own requests; False leaves them all to neighbours."""
    own_queue_ns: int | None = None
    """The time until a run of this node itself would begin, which goes first. None: as long as one for neighbours."""
    signature: ModelSignature | None = None
    """What the model takes and gives, to check answers of neighbours. None: their shapes are not checked."""
    p95_ns: int = 0
    """The 95th percentile of runs; 0: it is not known."""
    fallback: str = ""
    """A smaller model that may be run in its place; empty: there is none, or the configuration names it."""
    stage_of: str = ""
    """The name of the whole model, when this is a stage of it that a neighbour has asked for. Only who knows its digest
    can ask for it, and the table of access decides by the whole."""
    former: tuple[str, ...] = ()
    """Digests of the files that had the name before and are still loaded. Who asks for one of them gets it, because
    requests that were placed before the change are under way; nobody is told of them."""

    def answers_to(self, digest: str) -> bool:
        """Whether this node computes the file with this digest under the model's name."""
        return digest == self.digest or digest in self.former


class Candidate(Struct, frozen=True):
    """A node that could compute, and when it would be done. Times are nanoseconds from now."""

    node: NodeId
    expected_ns: int
    p95_ns: int
    soonest_ns: int = 0
    """It can't be done before; 0: that is not known."""
    uncertain_ns: int = 0
    """How far such predictions are off."""
    proven: bool = True
    """Whether the last that was heard of it is a result."""
    doubtful: bool = False
    """Whether it has lately given no result (:mod:`protocols.inference.standing`), or will probably be out of reach."""
    service_ns: int = 0
    """The part of ``expected_ns`` that is the run itself."""
    late_ns: int = 0
    """What takes longer is late; 0: longer than ``p95_ns``."""
    queue_ns: int = 0
    """The part of ``expected_ns`` that is waiting for others."""
    usual_wait_ns: int = 0
    """How long runs wait there, now or usually, whichever is longer."""


def is_worthwhile(there: Candidate, here: Candidate) -> bool:
    """Whether a neighbour is so much faster than this node that a request should leave home."""
    gain_ns = max(GAIN_NS, here.p95_ns // GAIN_SHARE)
    return there.p95_ns + gain_ns <= here.p95_ns and there.expected_ns <= here.expected_ns


def order(
    here: Candidate | None, there: Sequence[Candidate], remaining_ns: int, random: Random, may_risk: bool = True
) -> list[Candidate]:
    """Which nodes to ask, best first.

    This node comes first unless a neighbour is worthwhile, and is always in the list if it can compute at all.
    Neighbours that would miss the deadline, or are doubtful, come last: they are better than nothing. ``may_risk``:
    whether neighbours that are not proven may come before this node and before those that are.
    """
    ranked = sorted(
        there,
        key=lambda candidate: (
            candidate.doubtful, not (candidate.proven or may_risk), candidate.expected_ns > remaining_ns,
            candidate.expected_ns, candidate.node,
        ),
    )  # fmt: skip
    if here is None:
        return _with_one_of_the_best(ranked, ranked, remaining_ns, random)
    makes_it = here.p95_ns <= remaining_ns
    leaving = [
        candidate for candidate in ranked
        if not candidate.doubtful and (candidate.proven or may_risk) and is_worthwhile(candidate, here)
        and (not makes_it or WAIT_SHARE * candidate.usual_wait_ns <= here.expected_ns - candidate.expected_ns)
    ]  # fmt: skip
    if not leaving:
        return [here, *ranked]
    if not makes_it:
        leaving = _shortest_queues(leaving, remaining_ns)
    first, *others = _with_one_of_the_best(ranked, leaving, remaining_ns, random)
    return [first, here, *others]


def _shortest_queues(eligible: list[Candidate], remaining_ns: int) -> list[Candidate]:
    """Of those that will make the deadline even at their 95th percentile, the ones with the shortest queue; all when
    there are none."""
    sure = [candidate for candidate in eligible if candidate.p95_ns <= remaining_ns]
    shortest_ns = min((candidate.usual_wait_ns for candidate in sure), default=0)
    return [candidate for candidate in sure if candidate.usual_wait_ns == shortest_ns] or eligible


def _with_one_of_the_best(
    ranked: list[Candidate], eligible: list[Candidate], remaining_ns: int, random: Random
) -> list[Candidate]:
    """``ranked`` with one of the best of ``eligible``, which has the same order, before all others."""
    if not eligible:
        return ranked
    best = eligible[0]
    near = [
        candidate for candidate in eligible
        if candidate.doubtful == best.doubtful and candidate.proven == best.proven
        and (candidate.expected_ns > remaining_ns) == (best.expected_ns > remaining_ns)
        and candidate.expected_ns - best.expected_ns <= min(best.uncertain_ns, candidate.uncertain_ns)
    ]  # fmt: skip
    chosen = near[random.randrange(len(near))] if len(near) > 1 else best
    return [chosen, *(candidate for candidate in ranked if candidate is not chosen)]
