"""``python -m benchmarks.planning``: how long it takes to find the three best plans for the stages of a model.

Random problems: a model with 40 cuts, its owner, and five neighbours behind slow, usual or fast links. The kinds differ
in what makes a search hard:

- ``roomy``: each node could hold the whole model;
- ``bounded``: each has room for 20 to 120 % of it;
- ``small-home``: the owner is the fastest and has room for 30 to 60 %, so that its memory is worth most;
- ``alike``: blocks are equal, and nodes differ by 1 %, so that very many plans cost nearly the same. The owner has room
  for 30 % of the model, and each neighbour for 22 %.

It prints the processor time of one search, the median and the longest, and writes ``build/planning.json``. Bars, for
each link and goal: a median of 0.5 s and a longest of 1 s, or 1.5 and 3 s for ``small-home`` and ``alike``.
"""

import statistics
import sys
import time
from random import Random
from typing import Final

from benchmarks import command
from benchmarks.command import between, finish
from protocols.base.ids import NodeId
from protocols.base.limits import MS
from protocols.inference.split.plan import CutPoint, Goal, Home, Profile, StageCandidate
from protocols.inference.split.planner import plans

LINKS: Final = {"slow": (5e5, 5e6), "usual": (1e7, 1.2e8), "fast": (1e9, 1e10)}
"""Bytes a second."""
GOALS: Final[tuple[Goal, ...]] = ("latency", "throughput")
WEIGHT_BYTES: Final = 100_000_000
BARS_MS: Final = {"roomy": (500, 1_000), "bounded": (500, 1_000), "small-home": (1_500, 3_000), "alike": (1_500, 3_000)}

Problem = tuple[Profile, Home, list[StageCandidate]]


def problem(kind: str, link: str, cuts: int, neighbours: int, random: Random) -> Problem:
    """A model, its owner, and its neighbours."""
    if kind == "alike":
        return _alike(link, cuts, neighbours, random)
    whole_ms = (100, 200, 300, 3_000) if kind == "small-home" else (200, 1_000, 100, 1_000)
    rooms = {"roomy": ((0.0, 0.0), (0.0, 0.0)), "bounded": ((0.2, 1.2), (0.2, 1.2)), "small-home": ((0.3, 0.6), (0, 0))}
    home_room, room = rooms[kind]
    points = zip(_sorted(cuts, random), _sorted(cuts, random), strict=True)
    profile = Profile(
        600_000, 4_000,
        tuple(CutPoint(int(2 ** random.uniform(12, 21)), share, int(held * WEIGHT_BYTES)) for share, held in points),
        WEIGHT_BYTES,
    )  # fmt: skip
    home = Home(NodeId("home"), int(random.uniform(*whole_ms[:2]) * MS), 0, _bytes(random.uniform(*home_room)))
    return profile, home, [
        StageCandidate(
            NodeId(f"n-{number}"), int(random.uniform(*whole_ms[2:]) * MS), int(random.uniform(1, 20) * MS),
            random.uniform(*LINKS[link]), random.uniform(*LINKS[link]), 0, int(random.uniform(0, 10) * MS),
            _bytes(random.uniform(*room)),
        )
        for number in range(neighbours)
    ]  # fmt: skip


def _alike(link: str, cuts: int, neighbours: int, random: Random) -> Problem:
    places = [(number + 1) / (cuts + 1) for number in range(cuts)]
    profile = Profile(
        100_000, 100_000,
        tuple(CutPoint(100_000, place, int(place * WEIGHT_BYTES)) for place in places), WEIGHT_BYTES,
    )  # fmt: skip
    bytes_per_s = LINKS[link][0]
    return profile, Home(NodeId("home"), 400 * MS, 0, _bytes(0.3)), [
        StageCandidate(
            NodeId(f"n-{number}"), int(random.uniform(396, 404) * MS), int(random.uniform(4.9, 5.1) * MS),
            random.uniform(0.99, 1.01) * bytes_per_s, random.uniform(0.99, 1.01) * bytes_per_s, 0, 0, _bytes(0.22),
        )
        for number in range(neighbours)
    ]  # fmt: skip


def _sorted(count: int, random: Random) -> list[float]:
    return sorted(random.random() for _ in range(count))


def _bytes(room: float) -> int:
    """A bound of memory: a part of the weights; 0: none."""
    return int(room * WEIGHT_BYTES)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("planning", __doc__, "a search takes longer than it may")
    parser.add_argument("--problems", type=between(1, 1_000), default=40, help="of each sort; default: %(default)s")
    parser.add_argument("--cuts", type=between(1, 40), default=40, help="default: %(default)s")
    parser.add_argument("--neighbours", type=between(1, 5), default=5, help="default: %(default)s")
    options = parser.parse_args(arguments)
    figures, missed = [], []
    print(f"{'kind':<12}{'link':<8}{'goal':<12}{'median ms':>10}{'longest ms':>12}")
    for kind, link, goal in ((kind, link, goal) for kind in BARS_MS for link in LINKS for goal in GOALS):
        took_ms = []
        for seed in range(options.problems):
            made = problem(kind, link, options.cuts, options.neighbours, Random(f"{seed}/{kind}/{link}"))
            began_ns = time.process_time_ns()
            plans(*made, goal, first_at_home=seed % 2 == 1)
            took_ms.append((time.process_time_ns() - began_ns) / MS)
        median_ms, longest_ms = statistics.median(took_ms), max(took_ms)
        figures.append({"kind": kind, "link": link, "goal": goal, "median_ms": median_ms, "longest_ms": longest_ms})
        print(f"{kind:<12}{link:<8}{goal:<12}{median_ms:10.0f}{longest_ms:12.0f}", flush=True)
        if median_ms > BARS_MS[kind][0] or longest_ms > BARS_MS[kind][1]:
            missed.append(f"{kind}, {link} links, {goal}: median {median_ms:.0f} ms, longest {longest_ms:.0f} ms")
    return finish(options, {"searches": figures}, missed)


if __name__ == "__main__":
    sys.exit(main())
