"""Checks: each deliberate bug is caught by the check that is there for it, and without the bug nothing is."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from protocols.base.errors import LocalProtocolError
from protocols.base.ids import UtcNs
from protocols.links.queues import URGENT
from protocols.membership.settings import MembershipSettings
from protocols.records.ledger import Ledger
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Acknowledgement
from sims.checks.contract import Check, known_checks, make_checks, overridden, register
from sims.checks.safety import ReadingsInOrderOnce
from sims.errors import ScenarioError
from sims.results.recorder import Recording
from sims.results.result import Result
from sims.runs.run import Run, simulate
from sims.scenario.file import (
    Cellular,
    Checks,
    Curation,
    Cut,
    Fault,
    Fixed,
    Group,
    Inference,
    PublishedRelease,
    Radio,
    Scenario,
    Spread,
    Traffic,
    load,
)
from sims.virtual.arrivals import Arrival, Issue, Series
from sims.world.bugs import BUGS
from sims.world.world import World

QUIET = Scenario(
    "quiet", "For tests.", 20.0,
    (
        Group("car", 4, Fixed(((0.0, 0.0), (10.0, 0.0), (20.0, 0.0), (30.0, 0.0))), clock_skew_ms=5),
        Group("rsu", 1, Fixed(((15.0, 10.0),)), role="rsu", device="rsu"),
    ),
    radio=Radio("ideal", range_m=500.0, bit_rate_mbps=100.0, shared=False),
    traffic=(Traffic("car", rate_hz=2.0), Traffic("rsu", "signal", rate_hz=5.0)),
    inference=(Inference("car", rate_hz=2.0, compute_ms=20.0),),
    gossip=(Spread(2.0, "car-0"), Spread(3.0, "car-1"), Spread(5.0, "car-0")),
    checks=Checks(settle_s=9.0),
)  # fmt: skip
BACKLOG = Traffic(
    "rsu", "signal", rate_hz=200.0, lifespan_ms=20_000, priority=URGENT
)  # or newer ones would replace those that wait
LONG_CUT = Fault("partition", 4.0, 6.0, ("car-0", "car-1"))
OF_RSU = Fault("partition", 5.0, 3.0, ("rsu-0",))
LIES = Fault("false-adverts", 4.0, 6.0, ("car-0",))
DIAMOND = replace(
    QUIET,
    groups=(Group("car", 4, Fixed(((0.0, 0.0), (300.0, 100.0), (300.0, -100.0), (600.0, 0.0)))),),
    radio=replace(QUIET.radio, range_m=400.0), traffic=(Traffic("car", rate_hz=2.0, hops=1),), inference=(),
)  # fmt: skip
"""Two cars at the ends hear each other only by the two between them, each reading twice."""
RECORDING = replace(
    QUIET,
    groups=tuple(replace(group, relay=True) for group in QUIET.groups),
    cellular=Cellular(latency_ms=300), curation=Curation(interval_s=0, max_records=6),
    faults=(Fault("relay-outage", 4.0, 6.0),),
)  # fmt: skip
"""Each reading of a car becomes a record, and the uplink is always busy."""
SPLIT = replace(
    QUIET,
    groups=(QUIET.groups[0], replace(QUIET.groups[1], device="rsu-gpu", accept_stages=True)),
    inference=(Inference(
        "car", rate_hz=2.0, input_bytes=30_000, compute_ms=200.0, deadline_ms=1_000, offered_by=("car",), private=True,
        cuts=(Cut(0.1, 300_000, 10_000), Cut(0.9, 1_000, 90_000)), weight_bytes=100_000,
    ),),
)  # fmt: skip
"""The unit runs stages of a private model. It would run the first one too if that were cut off behind the large
boundary."""
RELEASING = replace(
    QUIET, duration_s=50.0, inference=(), gossip=(),
    releases=PublishedRelease(
        size_mib=0.1, published_at_s=3.0, seeds=("car", "rsu"), liars=0.2, canaries=4, soak_s=20.0, failing=0.2
    ),
    checks=Checks(("bad_release_stays_with_canaries", "kept_chunks_are_genuine"), settle_s=5.0),
)  # fmt: skip
"""A bad release, and one node of five that lies about it."""
SPREADING = replace(
    RELEASING, duration_s=30.0,
    releases=PublishedRelease(size_mib=0.3, published_at_s=3.0, seeds=("car-0",)),
    checks=Checks(("kept_chunks_are_genuine", "forbidden_nodes_get_nothing"), settle_s=5.0),
)  # fmt: skip
PROVOKED: dict[str, Scenario] = {
    "frames-before-hello": replace(QUIET, faults=(LIES,)),
    "strangers-admitted": replace(QUIET, faults=(LIES,)),
    "nobody-dies": replace(QUIET, faults=(Fault("crash", 4.0, 6.0, ("car-1",)),)),
    "hints-raise-the-dead": replace(
        QUIET, faults=(Fault("crash", 3.0, 7.0, ("car-1",)), replace(LIES, nodes=("car-0", "car-2")))
    ),
    "the-dead-are-not-dialled": replace(QUIET, faults=(LONG_CUT,)),
    "redial-is-forgotten": replace(QUIET, faults=(Fault("crash", 4.0, 2.0, ("car-1",)),)),
    "duplicates-taken": DIAMOND,
    "delivered-backwards": replace(QUIET, traffic=(BACKLOG,), faults=(replace(OF_RSU, for_s=1.5),)),
    "interest-told-once": replace(QUIET, faults=(Fault("crash", 4.0, 6.0, ("car-1",)),)),
    "drops-uncounted": replace(QUIET, traffic=(BACKLOG,), faults=(LONG_CUT,)),
    "queues-unbounded": replace(
        QUIET,
        traffic=tuple(replace(BACKLOG, topic=topic, rate_hz=1_000.0) for topic in ("a", "b")),
        faults=(replace(OF_RSU, at_s=2.2),), duration_s=6.0, gossip=(),
        checks=Checks(("queues_within_bounds",), settle_s=0.5),
    ),
    "answered-twice": QUIET,
    "answers-mixed-up": QUIET,
    "lost-on-failover": replace(
        QUIET,
        inference=(Inference("car", rate_hz=2.0, compute_ms=200.0, deadline_ms=4_000, offered_by=("rsu",)),),
        faults=(Fault("crash", 5.0, 3.0, ("rsu-0",)),),
    ),
    "deadlines-ignored": replace(
        QUIET, inference=(Inference("car", rate_hz=2.0, compute_ms=20.0, offered_by=("rsu",)),), faults=(OF_RSU,)
    ),
    "boundaries-mixed-up": SPLIT,
    "shards-in-the-wrong-place": replace(
        QUIET, inference=(Inference("car", rate_hz=0.5, input_bytes=500, compute_ms=2.0, deadline_ms=2_000, rows=64),)
    ),
    "stages-told-to-the-caller": SPLIT,
    "private-inputs-offloaded": replace(SPLIT, inference=(replace(SPLIT.inference[0], offered_by=()),)),
    "first-stages-lent": SPLIT,
    "entries-go-back": replace(QUIET, faults=(Fault("stale-gossip", 6.0, 5.0, ("car-1", "car-2", "car-3")),)),
    "signatures-unchecked": replace(QUIET, faults=(Fault("forged-gossip", 6.0, 4.0, ("car-3",)),)),
    "entries-kept-to-oneself": replace(QUIET, faults=(LONG_CUT,)),
    "acknowledgements-counted-twice": replace(
        QUIET, groups=tuple(replace(group, relay=True) for group in QUIET.groups)
    ),
    "fates-untold": RECORDING,
    "acknowledged-before-stored": RECORDING,
    "stored-again": replace(RECORDING, faults=(Fault("crash", 6.3, 2.0, ("car",)),)),
    "given-up-for-good": replace(RECORDING, curation=Curation()),
    "neighbours-unheard": load("hotspots"),
    "promoted-by-one": RELEASING,
    "releases-staged-in-part": SPREADING,
    "releases-for-anybody": replace(SPREADING, releases=PublishedRelease(seeds=("car-0",), forbidden=("rsu",))),
}  # fmt: skip
"""What brings each bug to light."""


@cache
def clean(bug: str) -> Result:
    """The same run without the bug."""
    return simulate(PROVOKED[bug], 1)


def test_every_bug_is_provoked_and_there_are_enough() -> None:
    """A bug that no test plants shows nothing."""
    assert set(PROVOKED) == set(BUGS)
    assert len(BUGS) >= 14
    assert {bug.check for bug in BUGS.values()} <= set(known_checks())


def test_every_check_has_its_bug_or_is_known_to_have_none() -> None:
    """A check that can't fail proves nothing; ``sometimes`` judges nothing."""
    assert set(known_checks()) - {bug.check for bug in BUGS.values()} == {"sometimes"}


def test_page_of_checks_names_them_all_and_each_bug_beside_its_check() -> None:
    """What a scenario can ask for must be found by a reader."""
    page = (Path(__file__).parents[3] / "docs" / "reference" / "checks.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [name for name in known_checks() if name != "sometimes" and f"`{name}`" not in "".join(rows)] == []
    for name, bug in BUGS.items():
        assert any(f"`{name}`" in row and row.endswith(f"| `{bug.check}` |") for row in rows), name


@pytest.mark.parametrize("bug", sorted(PROVOKED))
def test_bug_is_caught_by_its_check(bug: str) -> None:
    """And its check is seen to judge, and to be content, without it."""
    check = BUGS[bug].check
    without = clean(bug)
    assert without.broken == []
    assert without.checks[check].passed > 0
    spoilt = simulate(PROVOKED[bug], 1, bugs=frozenset({bug}))
    assert check in spoilt.broken, f"{check} did not notice; broken: {spoilt.broken}"
    assert spoilt.checks[check].details


@pytest.mark.parametrize(("canaries", "liars", "seed", "lying", "judged"), [
    (1, 0.4, 1, 0, 1), (1, 0.4, 2, 1, 0), (2, 0.4, 1, 0, 2), (2, 0.4, 2, 1, 0), (3, 0.4, 2, 1, 3), (3, 0.4, 3, 2, 0),
    (4, 0.4, 1, 1, 4), (4, 0.6, 3, 3, 0),
])  # fmt: skip
def test_bad_release_is_judged_only_where_too_few_canaries_lie_to_decide(
    canaries: int, liars: float, seed: int, lying: int, judged: int
) -> None:
    """Two lying canaries of three promote what they like: that is what the order says, and no fault of a node."""
    release = RELEASING.releases
    assert release is not None
    run = Run(replace(RELEASING, releases=replace(release, canaries=canaries, liars=liars)), seed)
    assert run.world.releases is not None
    assert len(run.world.releases.canaries.intersection(run.world.releases.lies)) == lying
    result = run.go()
    check = result.checks["bad_release_stays_with_canaries"]
    assert (check.passed, check.failed) == (judged, 0)


# --- the contract --------------------------------------------------------------------------------------------------
class Nobody:
    """A world of which only the records of one node can be seen."""

    scenario = QUIET
    settings = MembershipSettings()
    now = 0
    names = ("car-0",)

    def __init__(self, ledger: Ledger, stored: tuple[int, ...]) -> None:
        self._ledger, self._stored = ledger, stored

    def ledger(self, name: str) -> Ledger:
        assert name == "car-0"
        return self._ledger

    def stored(self, name: str) -> tuple[int, ...]:
        assert name == "car-0"
        return self._stored

    def records_complaints(self, name: str) -> tuple[str, ...]:
        assert name == "car-0"
        return ()


def delivered(number: int) -> Ledger:
    """A ledger all of whose records the relay has acknowledged."""
    ledger = Ledger(100, 10_000)
    for _ in range(number):
        ledger.issue(10, 3, 0, UtcNs(0))
    plan = ledger.next_batch(UtcNs(0))
    assert plan is not None
    ledger.acknowledged(plan, Acknowledgement(plan.sequences))
    return ledger


@pytest.mark.parametrize(("stored", "broken"), [
    ((1, 2, 3), []), ((1, 2, 3, 4), []), ((1, 2), ["record_in_one_state"]), ((1, 2, 2, 3), ["record_in_one_state"]),
])  # fmt: skip
def test_record_that_the_relay_lacks_or_has_twice_is_noticed(stored: tuple[int, ...], broken: list[str]) -> None:
    """A record delivered is at the relay, once; one more may be there whose acknowledgement is on its way."""
    recorder = Recording(QUIET)
    world: Any = Nobody(delivered(3), stored)
    (check,) = make_checks(["record_in_one_state"], world, recorder)
    check.sampled(0)
    check.finished(0, 0)
    result = recorder.result("simulator", 1, 1.0, 1.0)
    assert result.broken == broken
    assert result.checks["record_in_one_state"].passed + len(broken) == 2


def test_checks_by_name_and_none_means_all() -> None:
    """A misspelt check that never judges would be a false proof."""
    world: Any = Nobody(delivered(1), ())
    recorder = Recording(QUIET)
    assert [check.name for check in make_checks((), world, recorder)] == known_checks()
    with pytest.raises(ScenarioError, match=r"'gossip_forward'.*gossip_forward_only"):
        make_checks(["gossip_forward"], world, recorder)


def test_overridden_lists_only_hooks_that_do_something() -> None:
    """The world calls nothing for nothing: some hooks are called for every reading."""
    world: Any = Nobody(delivered(1), ())
    checks = make_checks(["readings_in_order_once", "record_in_one_state"], world, Recording(QUIET))
    assert overridden(checks, "delivered") == (checks[0].delivered,)
    assert overridden(checks, "published") == ()


def test_register_refuses_a_name_that_is_taken() -> None:
    """Two checks of one name would hide one another."""

    class Twin(Check):
        name = "gossip_forward_only"

    with pytest.raises(LocalProtocolError, match="gossip_forward_only"):
        register(Twin)


def test_planting_an_unknown_bug_names_the_nearest() -> None:
    """A bug that is not planted is caught by nothing."""
    with pytest.raises(ScenarioError, match="'nobody-dies'"):
        simulate(QUIET, 1, bugs=frozenset({"nobody-dis"}))


def test_checks_change_nothing_of_the_history() -> None:
    """With and without them a seed has the same digest."""
    scenario = replace(QUIET, duration_s=10.5, checks=Checks(("sometimes",), settle_s=1.0))
    alone = simulate(scenario, 3)
    judged = simulate(replace(scenario, checks=Checks(settle_s=1.0)), 3)
    assert alone.checks == {}
    assert len(judged.checks) > 10
    assert alone.digest == judged.digest


def test_order_after_a_life_with_smaller_sequences_is_judged_within_one_batch() -> None:
    """Deliveries are told in batches: what one of them hides would be hidden for good."""
    recording = Recording(QUIET)
    world = World(QUIET, 1, recording, frozenset())
    check = ReadingsInOrderOnce(world, recording)
    check.started("car-0")
    check._lives["car-1"] = [2_000, 1_000]  # its clock went back and its disk is lost
    place, how, series = Position(1.0, 1.0, 1.0), Provenance("sim", "1"), Series("car-1", "k/x")

    def came(life: int, number: int) -> Arrival:
        reading = Reading("k/x", "car-1", (life << 32) + number, 1, place, EventTime(1, 1), how, 3, 0, 0)
        return 0, Issue(reading, series, 1, 0)

    check.delivered("car-0", [came(2_000, 5)])
    check.delivered("car-0", [came(1_000, 1), came(1_000, 2), came(1_000, 2), came(1_000, 1), came(1_000, 3)])
    judged = recording.result("simulator", 1, 1.0, 1.0).checks[check.name]
    assert judged.failed == 2
