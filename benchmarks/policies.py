"""Policies of placement that ours is compared with, put into an engine in the place of ours, and the neighbourhood in
which they are compared.

- ``ours``: as nodes decide;
- ``local``: each computes everything itself;
- ``random``: any computer, by lot;
- ``least-loaded``: the one with the shortest queue, by what the neighbours report; of several, by lot.

The others have no hedges, refuse nothing themselves and never try out what a run at home costs. Whom they ask is all
that they decide: a neighbour refuses what it can't compute within its budget, and the next node of the policy is asked
then.
"""

from collections.abc import Callable
from random import Random
from typing import Final, Literal

from protocols.base.limits import MS, SECOND
from protocols.inference.asking import Asking
from protocols.inference.placement import Candidate
from protocols.inference.requests import OwnRequest
from sims.scenario.devices import DEVICES

Device = Literal["server", "rsu", "rsu-gpu", "car-computer", "single-board"]
POLICIES: Final = ("ours", "local", "random", "least-loaded")
COMPUTERS: Final[dict[Device, int]] = {"single-board": 4, "car-computer": 4, "rsu": 2, "server": 1}
"""The classes of computers of the neighbourhood in which policies are compared, and how many there are of each."""
SERVER: Final[Device] = "server"
"""The class that computes for others and asks for nothing itself."""
MODEL: Final = "model"
COMPUTE_MS: Final = 40
DEADLINE_MS: Final = 250
INPUT_BYTES: Final = 30_000
OUTPUT_BYTES: Final = 1_000
LINK_BYTES_PER_S: Final = 5_000_000
LINK_DELAY_NS: Final = 2 * MS

Chosen = Callable[[OwnRequest, int], list[Candidate]]


def mean_between_ns(load: float) -> int:
    """The mean time between two requests of one node, so that all ask for that share of what they can do together."""
    runs_per_s = sum(count / DEVICES[device].factor for device, count in COMPUTERS.items()) * 1_000 / COMPUTE_MS
    askers = sum(count for device, count in COMPUTERS.items() if device != SERVER)
    return int(SECOND * askers / (load * runs_per_s))


def set_policy(asking: Asking, policy: str, lot: Random) -> None:
    """Have an engine decide by that policy from now on. ``lot``: the randomness of those that cast lots."""
    if policy == "ours":
        return
    asking._explored = _best  # type: ignore[method-assign]
    if policy == "local":
        asking.candidates.offload = False
    elif policy == "random":
        asking._candidates = _by_lot(asking, lot)  # type: ignore[method-assign, assignment]
    else:
        asking._candidates = _by_queue(asking, lot)  # type: ignore[method-assign, assignment]


def _best(candidates: list[Candidate], remaining_ns: int, planned: bool) -> Candidate:
    del remaining_ns, planned
    return candidates[0]


def _everybody(asking: Asking, request: OwnRequest, now: int) -> list[Candidate]:
    here = asking.candidates.here(request, request.model, request.demand, now)
    there = asking.candidates.there(request, request.model, request.demand, now)
    return [*([here] if here is not None else []), *there]


def _by_lot(asking: Asking, lot: Random) -> Chosen:
    def candidates(request: OwnRequest, now: int) -> list[Candidate]:
        everybody = _everybody(asking, request, now)
        lot.shuffle(everybody)
        return everybody

    return candidates


def _by_queue(asking: Asking, lot: Random) -> Chosen:
    def queue_ns(candidate: Candidate, now: int) -> int:
        if candidate.node == asking._node:
            return candidate.queue_ns
        return asking.loads.queue_ns(candidate.node, now)

    def candidates(request: OwnRequest, now: int) -> list[Candidate]:
        everybody = _everybody(asking, request, now)
        lot.shuffle(everybody)
        return sorted(everybody, key=lambda candidate: queue_ns(candidate, now))

    return candidates
