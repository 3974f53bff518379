"""Makes a failing run small: fewer faults, then fewer nodes and less load, then less time, while the same check fails.

Faults and what depends on a node are left out by delta debugging after Zeller and Hildebrandt, *Simplifying and
Isolating Failure-Inducing Input* (2002): halves first, then smaller parts, until no single one can go. A smaller run is
another history, so it may fail for another reason. The same check has to fail in it; more can't be asked.

The number of runs is bounded. The smallest run that was found by then is the result.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from protocols.base import limits
from sims.errors import ReplayError, ScenarioError
from sims.results.result import Result
from sims.runs.bundle import SavedRun, play, taped, with_result
from sims.scenario.file import Curation, Fault, Fixed, Group, Scenario, Trace, check
from sims.world.faults import end_ns

T = TypeVar("T")
MAX_RUNS = 400
_MIN_DURATION_S = 1.0
_TIME_STEP_S = 0.5
"""Nobody reads a timeline more finely than this."""


class Shrunk(Struct, frozen=True):
    """The outcome of shrinking a run."""

    run: SavedRun
    check: str
    """The check that fails in the run."""
    runs: int
    exhausted: bool
    """Whether the bound on runs ended it: the run may get smaller still."""


class _Exhausted(Exception):
    """The bound on runs is reached."""


class _Shrinker:
    def __init__(self, saved: SavedRun, check_name: str, run: Callable[[SavedRun], Result], max_runs: int) -> None:
        self.best, self.check_name = saved, check_name
        self.runs = 0
        self._run, self._max_runs = run, max_runs

    def try_(self, scenario: Scenario) -> bool:
        """Whether the check fails in ``scenario`` too. Then it is the smallest scenario so far."""
        scenario = _without_idle_hosts(scenario)
        if scenario == self.best.scenario:
            return False
        try:
            check(scenario)
        except ScenarioError:  # too short to judge, or a fault without victims: not a smaller case of this one
            return False
        if self.runs >= self._max_runs:
            raise _Exhausted
        self.runs += 1
        candidate = taped(scenario, self.best.seed, frozenset(self.best.bugs))
        try:
            result = self._run(candidate)
        except ScenarioError:  # records are expected of a rule that nobody is left to run
            return False
        if self.check_name not in result.broken:
            return False
        self.best = with_result(candidate, result)
        return True


def shrink(
    saved: SavedRun,
    check_name: str = "",
    run: Callable[[SavedRun], Result] = play,
    max_runs: int = MAX_RUNS,
    told: Callable[[str], None] = lambda _: None,
) -> Shrunk:
    """The smallest run found in which ``check_name`` (empty: the first check that fails) fails. ``told`` is called with
    lines about the progress.

    :raises ReplayError: when the check doesn't fail in ``saved`` itself.
    """
    result = run(saved)
    failing = check_name or next(iter(result.broken), "")
    if failing not in result.broken:
        raise ReplayError(
            f"{'check ' + repr(check_name) if check_name else 'no check'} fails in this run: there is nothing to shrink"
            + (f"; failing are {', '.join(result.broken)}" if result.broken else "")
        )
    work = _Shrinker(with_result(saved, result), failing, run, max_runs)
    exhausted = False
    try:
        before: Scenario | None = None
        while before != work.best.scenario:  # less of one thing may make another one needless
            before = work.best.scenario
            for step in (_fewer_faults, _fewer_nodes, _less_load, _fewer_victims, _less_time):
                step(work)
                told(f"{work.runs} runs: {described(work.best.scenario)}")
    except _Exhausted:
        exhausted = True
    return Shrunk(work.best, failing, work.runs, exhausted)


def described(scenario: Scenario) -> str:
    """How large a scenario is, in words."""
    parts = [f"{len(scenario.faults)} fault{'s' * (len(scenario.faults) != 1)}"]
    parts += [f"{len(scenario.names)} node{'s' * (len(scenario.names) != 1)}", f"{scenario.duration_s:g} s"]
    return ", ".join(parts)


def minimised(items: Sequence[T], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """The fewest of ``items``, in order, for which ``fails`` still holds. The result is 1-minimal, found by ddmin
    without its test of subsets. ``fails`` must hold for all items, and is never asked that."""
    left, parts = tuple(items), 2
    if left and fails(()):
        return ()
    while len(left) > 1:
        size = math.ceil(len(left) / parts)
        for first in range(0, len(left), size):
            without = left[:first] + left[first + size :]
            if without and fails(without):
                left, parts = without, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(left))
    return left


# --- steps ---------------------------------------------------------------------------------------------------------
def _fewer_faults(work: _Shrinker) -> None:
    minimised(work.best.scenario.faults, lambda faults: work.try_(replace(work.best.scenario, faults=faults)))


def _fewer_victims(work: _Shrinker) -> None:
    for number in range(len(work.best.scenario.faults)):
        for side in ("nodes", "others"):

            def fails(names: tuple[str, ...], number: int = number, side: str = side) -> bool:
                faults = list(work.best.scenario.faults)
                faults[number] = replace(faults[number], **{side: names})
                return bool(names) and work.try_(replace(work.best.scenario, faults=tuple(faults)))

            minimised(getattr(work.best.scenario.faults[number], side), fails)


def _fewer_nodes(work: _Shrinker) -> None:
    names = work.best.scenario.names
    whole = work.best.scenario
    minimised(names, lambda kept: bool(kept) and work.try_(only(whole, kept)))


def _less_load(work: _Shrinker) -> None:
    for part in ("traffic", "inference", "gossip", "backbone"):
        minimised(
            getattr(work.best.scenario, part),
            lambda items, part=part: work.try_(replace(work.best.scenario, **{part: items})),  # type: ignore[misc]
        )


def _without_idle_hosts(scenario: Scenario) -> Scenario:
    """Nobody accepts stages when no model has cuts any more."""
    if any(work.cuts for work in scenario.inference) or not any(group.accept_stages for group in scenario.groups):
        return scenario
    return replace(scenario, groups=tuple(replace(group, accept_stages=False) for group in scenario.groups))


def _less_time(work: _Shrinker) -> None:
    _sooner(work)
    _shorter_faults(work)
    scenario = work.best.scenario
    least_s = max(end_ns(scenario.faults) / limits.SECOND + scenario.checks.settle_s, _MIN_DURATION_S)
    if scenario.duration_s > least_s and work.try_(_lasting(scenario, least_s)):
        return
    low_s, high_s = _MIN_DURATION_S, scenario.duration_s
    while high_s - low_s > _TIME_STEP_S:  # a check that fails at once fails in any run that is long enough
        middle_s = round((low_s + high_s) / 2, 1)
        if work.try_(_lasting(work.best.scenario, middle_s)):
            high_s = middle_s
        else:
            low_s = middle_s


def _sooner(work: _Shrinker) -> None:
    """Move all faults to earlier times by the same amount, and the end of the run too."""
    shift_s = min((fault.at_s for fault in work.best.scenario.faults), default=0.0)
    while shift_s >= _TIME_STEP_S:
        scenario = work.best.scenario
        if scenario.duration_s - shift_s >= _MIN_DURATION_S:
            faults = tuple(replace(fault, at_s=round(fault.at_s - shift_s, 3)) for fault in scenario.faults)
            if faults[0].at_s >= 0 and work.try_(
                replace(scenario, faults=faults, duration_s=round(scenario.duration_s - shift_s, 3))
            ):
                continue
        shift_s = round(shift_s / 2, 3)


def _shorter_faults(work: _Shrinker) -> None:
    for number in range(len(work.best.scenario.faults)):
        while (for_s := work.best.scenario.faults[number].for_s) >= 2 * _TIME_STEP_S:
            faults = list(work.best.scenario.faults)
            faults[number] = replace(faults[number], for_s=round(for_s / 2, 1))
            if not work.try_(replace(work.best.scenario, faults=tuple(faults))):
                break


def _lasting(scenario: Scenario, duration_s: float) -> Scenario:
    """The same scenario ending at ``duration_s``, without the faults that would begin later."""
    return replace(
        scenario,
        duration_s=duration_s,
        faults=tuple(fault for fault in scenario.faults if fault.at_s < duration_s),
        gossip=tuple(entry for entry in scenario.gossip if entry.at_s < duration_s),
    )


# --- leaving out nodes ---------------------------------------------------------------------------------------------
def only(scenario: Scenario, kept: Sequence[str]) -> Scenario:
    """The scenario with those nodes alone, renumbered, and without what only concerned the others. The faults must be a
    tape: every victim has its own name."""
    keep = frozenset(kept)
    renamed: dict[str, str] = {}
    groups = []
    for group in scenario.groups:
        members = [number for number in range(group.count) if f"{group.name}-{number}" in keep]
        renamed |= {f"{group.name}-{number}": f"{group.name}-{new}" for new, number in enumerate(members)}
        if members:
            groups.append(_smaller(group, members))
    there = {group.name for group in groups}

    def left(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(renamed[name] for name in names if name in renamed)

    faults = [replace(fault, nodes=left(fault.nodes), others=left(fault.others)) for fault in scenario.faults]
    return replace(
        scenario,
        groups=tuple(groups),
        curation=_curation_of(scenario, groups, {**renamed, **{name: name for name in there}}),
        faults=tuple(new for new, old in zip(faults, scenario.faults, strict=True) if _complete(new, old)),
        gossip=tuple(replace(e, author=renamed[e.author]) for e in scenario.gossip if e.author in renamed),
        traffic=tuple(
            replace(t, to=tuple(name for name in t.to if name in there)) for t in scenario.traffic
            if t.group in there and (not t.to or there & set(t.to))
        ),
        inference=tuple(
            replace(w, offered_by=tuple(name for name in w.offered_by if name in there)) for w in scenario.inference
            if w.group in there and (not w.offered_by or there & set(w.offered_by))
        ),
        backbone=tuple(
            replace(b, groups=tuple(name for name in b.groups if name in there)) for b in scenario.backbone
            if sum(group.count for group in groups if group.name in b.groups) > 1
        ),
    )  # fmt: skip


def _curation_of(scenario: Scenario, groups: Sequence[Group], renamed: Mapping[str, str]) -> Curation:
    """What is left of curation with those groups. ``renamed``: the nodes and groups that are left."""
    recording = [group for group in groups if group.relay]
    expected = tuple(
        replace(one, nodes=tuple(renamed[name] for name in one.nodes if name in renamed))
        for one in scenario.curation.expected
        if recording and (not one.nodes or any(name in renamed for name in one.nodes))
    )
    rules = scenario.curation.rules if any(group.rules is None for group in recording) else ()
    return replace(scenario.curation, rules=rules, expected=expected)


def _smaller(group: Group, members: list[int]) -> Group:
    mobility = group.mobility
    if isinstance(mobility, Fixed):
        mobility = replace(mobility, points=tuple(mobility.points[number] for number in members))
    elif isinstance(mobility, Trace) and mobility.vehicles:
        mobility = replace(mobility, vehicles=tuple(mobility.vehicles[number] for number in members))
    return replace(group, count=len(members), mobility=mobility)


def _complete(fault: Fault, before: Fault) -> bool:
    """Whether a fault still has victims on every side on which it had some."""
    return bool(fault.nodes) == bool(before.nodes) and bool(fault.others) == bool(before.others)
