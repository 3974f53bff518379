"""All plans of a small problem, one after another and priced by the formulas in the ADR, to judge the planner by.

It shares no arithmetic with the product. Problems are made of numbers for which floats are exact.
"""

from collections.abc import Iterator
from fractions import Fraction

from hypothesis import strategies as st

from protocols.base.ids import NodeId
from protocols.inference.split.plan import CutPoint, Goal, Home, OwnerOnly, PlacedStage, Plan, Profile, StageCandidate

HOME = NodeId("home")
Problem = tuple[Profile, Home | OwnerOnly, tuple[StageCandidate, ...]]


def every_plan(problem: Problem, first_at_home: bool) -> Iterator[Plan]:
    """Each plan that the rules allow, once."""
    profile, home, neighbours = problem
    nodes = [there.node for there in neighbours] + ([HOME] if isinstance(home, Home) else [])

    def continued(stages: tuple[PlacedStage, ...], first: int) -> Iterator[tuple[PlacedStage, ...]]:
        if first == len(profile.cuts):
            yield stages
            return
        for node in nodes:
            again = stages[-1:] if node == HOME else stages
            shown = first == -1 or profile.cuts[first].inputs_bytes > 0
            if node in [stage.node for stage in again] or (first_at_home and shown and node != HOME):
                continue
            for last in range(first + 1, len(profile.cuts) + 1):
                yield from continued((*stages, PlacedStage(first, last, node)), last)

    for stages in continued((), -1):
        plan = priced(problem, stages)
        if plan is not None:
            yield plan


def priced(problem: Problem, stages: tuple[PlacedStage, ...]) -> Plan | None:
    """A plan with its costs; None: a node has too little memory."""
    profile, home, neighbours = problem
    latency, interface = Fraction(0), Fraction(0)
    services: dict[NodeId, Fraction] = {}
    for node in [*neighbours, home]:
        mine = [stage for stage in stages if stage.node == node.node]
        if not mine or isinstance(node, OwnerOnly):
            continue
        sides = [(crossing(profile, stage.first), crossing(profile, stage.last)) for stage in mine]
        weights = sum(after.weight_bytes - before.weight_bytes for before, after in sides)
        most = max(max(before.size_bytes + before.inputs_bytes, after.size_bytes) for before, after in sides)
        if 0 < node.memory_bytes < weights + most:
            return None
        services[node.node] = sum(
            ((Fraction(after.share) - Fraction(before.share)) * node.whole_ns for before, after in sides), Fraction(0)
        )
        latency += services[node.node] + len(mine) * node.queue_ns
        if isinstance(node, StageCandidate):
            ((before, after),) = sides
            transfers = (before.size_bytes + before.inputs_bytes) / Fraction(node.up_bytes_per_s) * 10**9
            transfers += after.size_bytes / Fraction(node.down_bytes_per_s) * 10**9
            interface += transfers
            latency += node.round_trip_ns + node.overhead_ns + transfers
    period = max(interface, *services.values())
    assert latency.denominator == period.denominator == 1, "the problem is not made of exact numbers"
    return Plan(stages, int(latency), int(period))


def crossing(profile: Profile, cut: int) -> CutPoint:
    """A cut, or the inputs (-1) or outputs (the number of cuts) of the model."""
    if cut == -1:
        return CutPoint(profile.input_bytes, 0.0, 0)
    if cut == len(profile.cuts):
        return CutPoint(profile.output_bytes, 1.0, profile.weight_bytes)
    return profile.cuts[cut]


def costs(plan: Plan, goal: Goal) -> tuple[int, int]:
    """By what plans are compared."""
    return (plan.latency_ns if goal == "latency" else plan.period_ns, plan.latency_ns)


@st.composite
def problems(draw: st.DrawFn, max_cuts: int, max_neighbours: int) -> Problem:
    """Random costs, memory limits, and owners that can't compute."""
    shares = sorted(draw(st.lists(st.integers(0, 16), max_size=max_cuts)))
    held = sorted(draw(st.lists(st.integers(0, 50), min_size=len(shares), max_size=len(shares))))
    sizes = st.integers(0, 40)
    used = st.just(0) | sizes
    cuts = tuple(
        CutPoint(draw(sizes), share / 16, weight, draw(used)) for share, weight in zip(shares, held, strict=True)
    )
    profile = Profile(draw(sizes), draw(sizes), cuts, draw(st.integers(held[-1] if held else 0, 60)))
    whole_ns = st.integers(0, 40).map(lambda sixteenths: 16 * sixteenths)
    memory_bytes = st.just(0) | st.integers(1, 100)
    bytes_per_s = st.integers(0, 4).map(lambda exponent: 1e9 / 2**exponent)
    small = st.integers(0, 20)
    home: Home | OwnerOnly = OwnerOnly(HOME)
    if draw(st.integers(0, 4)):
        home = Home(HOME, draw(whole_ns), draw(small), draw(memory_bytes))
    neighbours = tuple(
        StageCandidate(
            NodeId(f"n-{number}"), draw(whole_ns), draw(small), draw(bytes_per_s), draw(bytes_per_s), draw(small),
            draw(small), draw(memory_bytes),
        )
        for number in range(draw(st.integers(0, max_neighbours)))
    )  # fmt: skip
    return profile, home, neighbours
