"""What types can't say of a scenario: names that must exist, times within the run, and settings that must be used.

A setting that its fault or radio does not use, and a fault that can't have an effect, are errors like a misspelt name:
a fault that never happens would be a false proof. :mod:`sims.roads.traces` judges what is in trace files. The names of
checks are judged where the checks are known.
"""

import math
from collections.abc import Iterator
from typing import Final

from sims.errors import ScenarioError
from sims.scenario.parts import (
    ExpectedRecords,
    Fault,
    Fixed,
    Group,
    Inference,
    PublishedRelease,
    RandomFaults,
    Scenario,
    Trace,
    Traffic,
    Waypoints,
)
from sims.scenario.schema import nearest, shown

MAX_NODES: Final = 20_000
"""Four times what fits a simulation in 16 GB. A larger number is most likely a typing error."""
MAX_SPEED_MPS: Final = 100.0
"""A vehicle that moves faster on a road is an error of the data."""
SLACK_S: Final = 0.01
"""Times that were drawn and rounded may add up to a little more than the duration."""
MAX_BATCH_BYTES: Final = 64_000_000
"""Each request keeps its inputs and outputs until it has ended."""
MIN_WAY_S: Final = 0.001
"""The least time between two waypoints."""


def check(scenario: Scenario) -> None:
    """Judge a scenario that was read, made or changed. :raises ScenarioError: names the place and the value."""
    for wrong in _wrong(scenario):
        raise ScenarioError(wrong)


def _wrong(scenario: Scenario) -> Iterator[str]:
    yield from _wrong_groups(scenario)
    yield from _wrong_links(scenario)
    yield from _wrong_names(scenario)
    yield from _wrong_curation(scenario)
    yield from _wrong_splits(scenario)
    if scenario.releases is not None:
        yield from (f"releases.{wrong}" for wrong in _wrong_release(scenario, scenario.releases))
    for number, fault in enumerate(scenario.faults):
        yield from (f"faults[{number}]{wrong}" for wrong in _wrong_fault(scenario, fault))
    if scenario.random_faults is not None:
        yield from _wrong_random_faults(scenario, scenario.random_faults)


def _wrong_groups(scenario: Scenario) -> Iterator[str]:
    total = sum(group.count for group in scenario.groups)
    if total > MAX_NODES:
        yield f"groups have {total} nodes together: {MAX_NODES} are the most"
    members = {name: group.name for group in scenario.groups for name in scenario.members(group.name)}
    seen: set[str] = set()
    for number, group in enumerate(scenario.groups):
        place = f"groups[{number}]"
        if group.name in seen:
            yield f"{place}.name is {group.name!r}, which another group has: give each its own"
        if group.name in members:
            yield f"{place}.name is {group.name!r}, which a node of group {members[group.name]!r} has: rename one"
        seen.add(group.name)
        last_s = group.start_s + (group.count - 1) * group.stagger_s
        if last_s >= scenario.duration_s:
            yield f"{place}: its last node starts at {last_s:g} s, beyond duration_s = {scenario.duration_s:g}"
        yield from (f"{place}.mobility.{wrong}" for wrong in _wrong_mobility(group))


def _wrong_mobility(group: Group) -> Iterator[str]:
    match group.mobility:
        case Fixed(points=points) if len(points) != group.count:
            yield f"points are {len(points)}, but the group has count = {group.count}: give one for each node"
        case Waypoints(points=points):
            for number in range(1, len(points)):
                (from_s, from_x, from_y), (to_s, to_x, to_y) = points[number - 1 : number + 1]
                way_m = math.hypot(to_x - from_x, to_y - from_y)
                if to_s - from_s < MIN_WAY_S:
                    yield f"points[{number}] is at {to_s:g} s, not after the one before at {from_s:g} s"
                elif way_m > MAX_SPEED_MPS * (to_s - from_s):
                    yield f"points[{number}] is {way_m:g} m away, {to_s - from_s:g} s later: nobody drives so fast"
        case Trace(vehicles=vehicles) if vehicles:
            if len(vehicles) != group.count:
                yield f"vehicles are {len(vehicles)}, but the group has count = {group.count}: name one for each node"
            if len(set(vehicles)) != len(vehicles):
                yield f"vehicles has {shown(max(vehicles, key=vehicles.count))} more than once"


def _wrong_links(scenario: Scenario) -> Iterator[str]:
    radio = scenario.radio
    if radio.model != "logistic" and (radio.d50_m is not None or radio.slope_m is not None):
        yield f"radio.model is {radio.model!r}, which has no d50_m and slope_m: leave them out, or use 'logistic'"
    for number, wires in enumerate(scenario.backbone):
        nodes = sum(group.count for group in scenario.groups if group.name in wires.groups)
        yield from _unknown_groups(scenario, f"backbone[{number}].groups", wires.groups)
        if nodes < 2:
            yield f"backbone[{number}].groups have {nodes} node: a wire needs two"


def _wrong_names(scenario: Scenario) -> Iterator[str]:
    for number, traffic in enumerate(scenario.traffic):
        yield from _unknown_groups(scenario, f"traffic[{number}].group", (traffic.group,))
        yield from _unknown_groups(scenario, f"traffic[{number}].to", traffic.to)
        if traffic.value != "zeros" and traffic.size_bytes != Traffic(traffic.group).size_bytes:
            yield f"traffic[{number}].size_bytes means nothing to a value that is a {traffic.value}: leave it out"
    for number, work in enumerate(scenario.inference):
        yield from _unknown_groups(scenario, f"inference[{number}].group", (work.group,))
        yield from _unknown_groups(scenario, f"inference[{number}].offered_by", work.offered_by)
    names = scenario.names
    for number, entry in enumerate(scenario.gossip):
        if entry.author not in names:
            yield f"gossip[{number}].author is {shown(entry.author)}, no node{nearest(entry.author, names)}"
        if entry.at_s >= scenario.duration_s:
            yield f"gossip[{number}].at_s is {entry.at_s:g}, beyond duration_s = {scenario.duration_s:g}"
        if entry.size_bytes > entry.room_bytes:
            room = f"beside the certificate of {shown(entry.author)} an entry has room for {entry.room_bytes}"
            yield f"gossip[{number}].size_bytes is {entry.size_bytes}: {room}"


def _wrong_curation(scenario: Scenario) -> Iterator[str]:
    """What is wrong with rules and expected records. Whether the rules themselves can be used is judged where they are
    compiled."""
    curation = scenario.curation
    recording = [group for group in scenario.groups if group.relay]
    for number, group in enumerate(scenario.groups):
        if group.rules is not None and not group.relay:
            yield f"groups[{number}].rules: only nodes that make records run rules: set relay = true, or leave it out"
    if curation.rules and all(group.rules is not None for group in recording):
        none = "no group has relay = true" if not recording else "every group with relay = true has rules of its own"
        yield f"curation.rules: {none}: nobody would run them"
    known = [*(group.name for group in recording), *(n for g in recording for n in scenario.members(g.name))]
    for number, expected in enumerate(curation.expected):
        place = f"curation.expected[{number}]"
        if not recording:
            yield f"{place}: no group has relay = true: nobody makes records"
        for name in expected.nodes:
            if name not in known:
                yield f"{place}.nodes has {shown(name)}, no node or group that makes records{nearest(name, known)}"
        yield from (f"{place}{wrong}" for wrong in _wrong_expected(expected))


def _wrong_expected(expected: ExpectedRecords) -> Iterator[str]:
    least, most = expected.at_least, expected.at_most
    if most is not None and most < least:
        yield f".at_most is {most}, less than at_least = {least}: set at_least too"
    if not least and most is None and expected.value is None:
        yield ".at_least is 0, and nothing else is asked: any run is as expected"
    ranges = expected.value if isinstance(expected.value, dict) else {"": expected.value}
    for at, found in ranges.items():
        if found is None:
            continue
        place = f".value.{at}" if at else ".value"
        if not all(map(math.isfinite, found)):
            yield f"{place} is {shown(list(found))}: give two finite numbers"
        elif found[0] > found[1]:
            yield f"{place} is {shown(list(found))}: give the least number first"


def _wrong_release(scenario: Scenario, release: PublishedRelease) -> Iterator[str]:
    known = [*(group.name for group in scenario.groups), *scenario.names]
    for seed in release.seeds:
        if seed not in known:
            yield f"seeds has {shown(seed)}, no node or group{nearest(seed, known)}"
    if release.published_at_s >= scenario.duration_s:
        yield f"published_at_s is {release.published_at_s:g}, beyond duration_s = {scenario.duration_s:g}"
    if not release.seeds and not any(group.relay for group in scenario.groups):
        yield "seeds is empty, but no group has relay = true: nobody would ever get the release"
    if not scenario.may_have_release:
        yield f"forbidden has {', '.join(release.forbidden)}: nobody may have the release"


def _wrong_splits(scenario: Scenario) -> Iterator[str]:
    """What is wrong with models that can be cut, and with those who would run parts of them."""
    for number, work in enumerate(scenario.inference):
        place = f"inference[{number}]"
        if work.rows > 1 and work.cuts:
            yield f"{place}.rows is {work.rows}, but a model with cuts takes one: leave out rows or cuts"
        if work.rows * max(work.input_bytes, work.output_bytes) > MAX_BATCH_BYTES:
            yield f"{place}.rows is {work.rows}: a batch has {MAX_BATCH_BYTES} bytes at most, give fewer rows"
        if work.cuts:
            yield from (f"{place}.{wrong}" for wrong in _wrong_cuts(work))
            if work.split != "off":
                yield from (f"{place}.{wrong}" for wrong in _never_split(scenario, work))
        else:
            plain = Inference(work.group)
            for field in ("weight_bytes", "split"):
                if getattr(work, field) != getattr(plain, field):
                    yield f"{place}.{field} means nothing to a model without cuts: leave it out, or add cuts"
    if not any(work.cuts for work in scenario.inference):
        for number, group in enumerate(scenario.groups):
            if group.accept_stages:
                yield f"groups[{number}].accept_stages is true, but no [[inference]] has cuts: add some, or remove it"


def _wrong_cuts(work: Inference) -> Iterator[str]:
    for number in range(1, len(work.cuts)):
        before, after = work.cuts[number - 1 : number + 1]
        if after.share <= before.share:
            yield f"cuts[{number}].share is {after.share:g}, not above {before.share:g} of the cut before it: sort them"
        if after.weight_bytes < before.weight_bytes:
            yield (
                f"cuts[{number}].weight_bytes is {after.weight_bytes}, less than {before.weight_bytes} of the cut "
                "before it: give the weights of all that is computed before a cut"
            )
    last_bytes = work.cuts[-1].weight_bytes
    if work.weight_bytes < last_bytes:
        yield f"weight_bytes is {work.weight_bytes}, less than {last_bytes} before the last cut: give all of them"


def _never_split(scenario: Scenario, work: Inference) -> Iterator[str]:
    if work.offered_by and work.group not in work.offered_by:
        yield f"offered_by lacks {work.group!r}, whose nodes are to cut the model: add it, or set split = 'off'"
    if not any(g.accept_stages and (g.name != work.group or g.count > 1) for g in scenario.groups):
        yield f"split is {work.split!r}, but no neighbour runs stages: set accept_stages of a group, or split = 'off'"


def _unknown_groups(scenario: Scenario, place: str, names: tuple[str, ...]) -> Iterator[str]:
    known = [group.name for group in scenario.groups]
    for name in names:
        if name not in known:
            yield f"{place} is {shown(name)}, no group{nearest(name, known)}"


_USED_BY: Final = {
    "others": ("partition", "one-way-loss", "clog"),
    "keep_disk": ("crash",),
    "share": ("one-way-loss",),
    "delay_ms": ("clog",),
    "factor": ("slow-node", "false-load"),
    "jump_s": ("clock-jump",),
}
"""The settings that only some faults have."""


def _wrong_fault(scenario: Scenario, fault: Fault) -> Iterator[str]:
    """What is wrong with a fault, to be put behind its place."""
    plain = Fault(fault.kind, fault.at_s)
    for field, kinds in _USED_BY.items():
        if getattr(fault, field) != getattr(plain, field) and fault.kind not in kinds:
            yield f".{field} means nothing to a {fault.kind!r}: leave it out (it is for {', '.join(kinds)})"
    if (fault.kind == "relay-outage") == bool(fault.nodes):
        yield f".nodes is {shown(fault.nodes)}: a {fault.kind!r} " + ("has none" if fault.nodes else "needs some")
    sides: dict[str, set[str]] = {}
    for field, names in (("nodes", fault.nodes), ("others", fault.others)):
        try:
            sides[field] = {node for name in names for node in scenario.members(name)}
        except ScenarioError as error:
            yield f".{field}: {error}"
    both = sorted(sides.get("nodes", set()) & sides.get("others", set()))
    if both:
        yield f".others: {both[0]!r} is on both sides"
    if fault.kind == "partition" and not fault.others and len(sides.get("nodes", ())) == len(scenario.names):
        yield ".nodes are all there are: leave out those on the far side"
    yield from _without_effect(scenario, "", fault.kind)
    end_s = fault.at_s + fault.for_s
    if fault.at_s >= scenario.duration_s or end_s > scenario.duration_s + SLACK_S:
        yield f" is from {fault.at_s:g} to {end_s:g} s, beyond duration_s = {scenario.duration_s:g}"
    elif fault.for_s:
        yield from _no_time_to_settle(scenario, " ends", end_s)


def _wrong_random_faults(scenario: Scenario, random_faults: RandomFaults) -> Iterator[str]:
    for number, kind in enumerate(random_faults.kinds):
        yield from _without_effect(scenario, f"random_faults.kinds[{number}]", kind)
    if random_faults.until_s <= random_faults.from_s:
        yield f"random_faults.until_s is {random_faults.until_s:g}, not after from_s = {random_faults.from_s:g}"
    yield from _no_time_to_settle(scenario, "random_faults.until_s is", random_faults.until_s)


def _without_effect(scenario: Scenario, place: str, kind: str) -> Iterator[str]:
    if kind == "relay-outage" and not any(group.relay for group in scenario.groups):
        yield f"{place} is a {kind!r}, but no group has relay = true"
    if kind == "false-load" and not scenario.inference:
        yield f"{place} is a {kind!r}, but nobody asks for work: add an [[inference]]"


def _no_time_to_settle(scenario: Scenario, what: str, end_s: float) -> Iterator[str]:
    settled_s = end_s + scenario.checks.settle_s
    if settled_s > scenario.duration_s + SLACK_S:
        yield (
            f"{what} at {end_s:g} s; with checks.settle_s = {scenario.checks.settle_s:g} nothing is judged until "
            f"{settled_s:g} s, beyond duration_s = {scenario.duration_s:g}: make it longer"
        )
