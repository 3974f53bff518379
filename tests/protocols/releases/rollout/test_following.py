"""A node that follows orders: what it does next, in every state."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocols.base.limits import SECOND
from protocols.releases.catalogue import Gates
from protocols.releases.events import Measures, ServeRelease, StageRelease
from protocols.releases.rollout.adoption import MAX_CRASHES
from protocols.releases.rollout.following import ROOM_PAUSE_NS
from protocols.releases.rollout.preparing import STAGING_PATIENCE_NS, Preparations
from protocols.releases.rollout.tally import FAILED, HEALTHY, Decision
from tests.protocols.releases.rollout.fleet import (
    BAD,
    CANARIES,
    PATH,
    SILENCE_S,
    SOAK_S,
    Installer,
    listed,
    order,
    said,
)

ALL = order(1, 1, ())
"""Everybody serves release 1."""
NEW = order(2, 2)
"""Release 2 is tried by the canaries."""


def canary(*orders: object, name: str = "c1") -> Installer:
    """A canary that serves release 1, and knows the orders."""
    node = Installer(name)
    node.learn(ALL)
    assert node.served == 1
    if orders:
        node.learn(*orders)  # type: ignore[arg-type]
    return node


def speak(node: Installer, *, healthy: int = 0, failed: int = 0, serial: int = 2, counter: int = 2) -> None:
    """Canaries other than ``c1`` say what they think."""
    words = [HEALTHY] * healthy + [FAILED] * failed
    for name, verdict in zip(CANARIES[1:], words, strict=False):
        node.rollouts.heard(said(name, verdict, serial, counter), node.now)
    node.settle()


# --- the way of a release --------------------------------------------------------------------------------------------
def test_order_without_canaries_is_served_at_once() -> None:
    """An operator who trusts a release needs no canaries."""
    node = Installer("v-1")
    node.learn(ALL)
    assert node.served == 1
    assert node.states(1) == ["staged", "serving"]
    assert node.concluded(1) == ["promoted"]


def test_canary_shadows_then_soaks_then_calls_it_healthy() -> None:
    """The first that serve a release have tried it beside the one before, and say so only after the soak time."""
    node = canary(NEW, ALL)
    assert (node.served, node.shadowed) == (1, 2)
    node.pass_s(SOAK_S / 10)
    assert (node.served, node.shadowed) == (2, None)
    node.pass_s(SOAK_S - 1)
    assert node.verdicts(2) == 0
    node.pass_s(1)
    assert node.verdicts(2) == HEALTHY
    assert node.states(2) == ["staged", "shadowing", "soaking", "healthy"]
    node.pass_s(SOAK_S)
    assert node.states(2)[-1] == "serving"
    assert node.dropped == []


def test_other_nodes_stage_at_once_and_serve_when_enough_canaries_are_healthy() -> None:
    """Promotion then takes one swap, not one download."""
    node = canary(NEW, ALL, name="v-1")
    assert node.states(2) == ["staged"]
    speak(node, healthy=2)
    assert node.served == 1
    speak(node, healthy=3)
    assert node.served == 2
    assert node.concluded(2) == ["waiting", "promoted"]


def test_verdicts_for_another_serial_or_release_promote_nothing() -> None:
    """A liar, or a mixed-up canary, must not lend the trust in one release to another."""
    node = canary(NEW, ALL, name="v-1")
    speak(node, healthy=4, serial=3)
    speak(node, healthy=4, counter=3)
    assert node.served == 1
    assert node.rollouts.decision(2) is Decision.WAITING


def test_canary_goes_back_and_says_so_when_a_gate_is_broken() -> None:
    """A bad release ends at the canary, which serves the release before again."""
    node = canary(NEW, ALL)
    node.pass_s(SOAK_S / 10)
    assert node.served == 2
    node.measures[2] = BAD
    node.pass_s(1)
    node.rollouts.measured(PATH, 2, BAD, node.now)
    node.settle()
    assert node.served == 1
    assert node.verdicts(2) == FAILED
    assert node.states(2)[-2:] == ["failed", "rolled_back"]
    assert node.dropped == [2]


def test_canary_that_fails_in_shadow_never_serves_the_release() -> None:
    """What live input shows beside the release before costs no request."""
    node = canary()
    node.measures[2] = BAD
    node.learn(NEW, ALL)
    node.pass_s(SOAK_S)
    assert node.served == 1
    assert node.verdicts(2) == FAILED
    assert "soaking" not in node.states(2)


def test_canary_shadows_anew_after_a_swap_to_another_release() -> None:
    """A swap ends what runs beside, whatever it is about. The canary waited for measures of it for ever."""
    few, promoted = Measures(2, 0, 10, 10, 2, 2), order(2, 2, ("c9",), state="promoted")
    judged = order(3, 3, gates=Gates(min_agreement=0.9, min_runs=10))
    node = canary(promoted, ALL)
    node.measures[3] = few
    node.learn(judged, promoted, ALL)
    assert (node.served, node.shadowed) == (2, 3)
    node.learn(judged, replace(promoted, state="aborted"), ALL)
    assert (node.served, node.shadowed) == (1, 3)
    del node.measures[3]
    node.pass_s(SOAK_S / 10)
    assert node.served == 3


@pytest.mark.parametrize(
    ("gates", "measures", "expected"),
    [
        (Gates(min_runs=1_000), Measures(100, 0, 1, 1, 100, 100), 0),
        (Gates(min_runs=1_000), Measures(1_000, 0, 1, 1, 1_000, 1_000), HEALTHY),
        (Gates(min_agreement=0.9), Measures(100, 0, 1, 1, 0, 0), 0),
        (Gates(max_errors=0.5), Measures(3, 2, 1, 1, 3, 3), FAILED),
        (Gates(), Measures(0, 0, 0, 0, 0, 0), HEALTHY),
    ],
)
def test_verdict_needs_as_many_runs_as_the_gates_ask_for(gates: Gates, measures: Measures, expected: int) -> None:
    """A vehicle without traffic signs must not call a reader of signs healthy."""
    node = canary()
    node.measures[2] = measures
    node.learn(replace(NEW, gates=gates), ALL)
    node.pass_s(2 * SOAK_S)
    assert node.verdicts(2) == expected


def test_release_that_is_never_measured_gets_no_verdict() -> None:
    """A worker that hangs measures nothing. That is silence, and not health."""
    node = canary(NEW, ALL)
    node._measure = lambda: None  # type: ignore[method-assign]
    node.pass_s(SILENCE_S / 2)
    assert node.verdicts(2) == 0
    assert node.served == 1


# --- the way back ----------------------------------------------------------------------------------------------------
def test_halted_release_is_taken_back_by_all_who_serve_it() -> None:
    """A leak that shows after promotion must still end."""
    node = canary(NEW, ALL, name="v-1")
    speak(node, healthy=3)
    assert node.served == 2
    speak(node, failed=3)
    assert node.served == 1
    assert node.concluded(2) == ["waiting", "promoted", "halted"]
    assert node.dropped == [2]


def test_healthy_canary_goes_back_when_the_others_halt_and_does_not_call_it_failed() -> None:
    """Its own measures were good; whoever comes late must not count it twice."""
    node = canary(NEW, ALL)
    node.pass_s(2 * SOAK_S)
    speak(node, failed=3)
    assert node.served == 1
    assert node.verdicts(2) == HEALTHY
    assert node.said()[0].reason != 0


def test_aborted_order_takes_the_release_back_and_a_promoted_one_serves_it() -> None:
    """The operator has the last word, for as long as anybody can sign."""
    node = canary(NEW, ALL)
    node.pass_s(SOAK_S)
    assert node.served == 2
    node.learn(replace(NEW, state="aborted"), ALL)
    assert node.served == 1
    node.learn(replace(NEW, state="promoted"), ALL)
    assert node.served == 2


def test_operator_may_promote_what_a_gate_broke() -> None:
    """A gate that was set too tight must not need a new release."""
    node = canary()
    node.measures[2] = BAD
    node.learn(NEW, ALL)
    node.pass_s(SOAK_S)
    assert node.verdicts(2) == FAILED
    node.learn(replace(NEW, state="promoted"), ALL)
    assert node.served == 2


def test_paused_order_begins_nothing_and_takes_nothing_back() -> None:
    """Pausing is for looking closer, in either direction."""
    waiting, tried = canary(NEW, ALL, name="v-1"), canary(NEW, ALL)
    tried.pass_s(SOAK_S / 2)
    paused = replace(NEW, state="paused")
    for node in (waiting, tried):
        node.learn(paused, ALL)
        speak(node, healthy=3)
        node.pass_s(10 * SILENCE_S)
    assert (waiting.served, tried.served) == (1, 2)
    assert tried.verdicts(2) == 0
    for node in (waiting, tried):
        node.learn(NEW, ALL)
        node.pass_s(1)
    assert (waiting.served, tried.served) == (2, 2)
    assert tried.verdicts(2) == HEALTHY


def test_silence_takes_canaries_back_until_the_silent_ones_speak() -> None:
    """A model that takes whole computers down is found by the silence of its canaries."""
    node = canary(NEW, ALL)
    node.pass_s(SILENCE_S - 1)
    assert node.served == 2
    node.pass_s(2)
    assert node.served == 1
    assert node.concluded(2) == ["waiting", "halted"]
    (path,) = node.rollouts.followed(node.now)
    assert [decision for serial, _, decision, _, _ in path.orders if serial == 2] == ["halted"], "as the event says"
    speak(node, healthy=2)
    assert node.served == 2
    assert node.concluded(2)[-1] == "promoted"


def test_swap_back_that_fails_is_tried_again_while_the_bad_release_serves() -> None:
    """There is always a model that serves, even when the disk is failing."""
    node = canary(NEW, ALL)
    node.pass_s(SOAK_S)
    node.serve_failures[1] = "digest: the file is damaged"
    speak(node, failed=3)
    assert node.served == 2
    del node.serve_failures[1]
    node.pass_s(61)
    assert node.served == 1


def test_node_without_a_release_before_goes_back_to_its_own_model() -> None:
    """The first release of a path has nothing before it but what the node's own file names."""
    node = Installer("c1")
    node.learn(NEW)
    node.pass_s(SOAK_S)
    assert node.served == 2
    speak(node, failed=3)
    assert node.served == 0
    assert node.dropped == [2]


# --- several orders --------------------------------------------------------------------------------------------------
def fetching(node: Installer) -> None:
    node.holds = frozenset({StageRelease})
    node.learn(NEW, ALL)


def shadowing(node: Installer) -> None:
    node.learn(NEW, ALL)


def starting(node: Installer) -> None:
    node.holds = frozenset({ServeRelease})
    node.learn(NEW, ALL)
    node.pass_s(SOAK_S / 10)


def soaking(node: Installer) -> None:
    node.learn(NEW, ALL)
    node.pass_s(SOAK_S / 2)


def healthy(node: Installer) -> None:
    node.learn(NEW, ALL)
    node.pass_s(1.5 * SOAK_S)


def failed(node: Installer) -> None:
    node.measures[2] = BAD
    node.learn(NEW, ALL)
    node.pass_s(SOAK_S)


def halted(node: Installer) -> None:
    healthy(node)
    speak(node, failed=3)


def going_back(node: Installer) -> None:
    healthy(node)
    node.holds = frozenset({ServeRelease})
    speak(node, failed=3)


STATES = [fetching, shadowing, starting, soaking, healthy, failed, halted, going_back]


@pytest.mark.parametrize("state", STATES, ids=lambda state: str(state.__name__))
def test_newer_order_takes_over_in_every_state(state: Callable[[Installer], None]) -> None:
    """Two orders at once for one path must not leave a mixture."""
    node = canary()
    state(node)
    node.learn(order(3, 3, ()), NEW, ALL)
    node.holds = frozenset()
    node.answer_all()
    node.answer_all()
    node.pass_s(61)
    assert node.served == 3
    assert node.rollouts.kept() == {(PATH, 1), (PATH, 3)}, "the release on trial proved nothing"
    assert node.rollouts.next_timer_at() > node.now


@pytest.mark.parametrize("state", STATES, ids=lambda state: str(state.__name__))
def test_newer_order_that_is_aborted_leads_back_in_every_state(state: Callable[[Installer], None]) -> None:
    """A late third order must not save a release that was on trial."""
    node = canary()
    state(node)
    third = order(3, 3, ())
    node.learn(third, NEW, ALL)
    node.holds = frozenset()
    node.answer_all()
    node.answer_all()
    node.pass_s(61)
    node.learn(replace(third, state="aborted"), replace(NEW, state="aborted"), ALL)
    assert node.served == 1
    assert node.rollouts.kept() == {(PATH, 1)}


@pytest.mark.parametrize("state", STATES, ids=lambda state: str(state.__name__))
def test_order_that_is_no_longer_listed_begins_nothing_more(state: Callable[[Installer], None]) -> None:
    """Newest metadata that lists less is what counts."""
    node = canary()
    state(node)
    node.learn(ALL)
    node.holds = frozenset()
    node.answer_all()
    node.pass_s(2 * SILENCE_S)
    assert node.served == 1
    assert node.said() == () or {said.serial for said in node.said()} == {1}


def test_order_for_an_older_release_rolls_back_by_the_same_way() -> None:
    """A rollback is an order like others, for a release that the metadata still lists."""
    node = canary(order(2, 2, ()), ALL)
    assert node.served == 2
    node.learn(order(3, 1, ()), order(2, 2, ()), ALL)
    assert node.served == 1
    assert node.rollouts.kept() == {(PATH, 1), (PATH, 2)}


def test_release_halted_by_a_newer_order_is_not_served_by_an_older_one() -> None:
    """The wider cohort found out what the narrow one did not."""
    first, wider = order(2, 2, ()), order(3, 2)
    node = canary(first, ALL)
    assert node.served == 2
    node.learn(wider, first, ALL)
    assert node.served == 2
    speak(node, failed=3, serial=3)
    assert node.served == 1


def test_aborted_newest_order_leaves_the_one_below_in_force() -> None:
    """A node that joins after a failed rollout gets the release that the others serve."""
    node = Installer("v-9")
    node.learn(replace(order(3, 3), state="aborted"), replace(NEW, state="promoted"), ALL)
    assert node.served == 2
    assert 3 not in node.staged


def test_order_for_others_changes_nothing_here() -> None:
    """A cohort of RSUs must not stop what vehicles do."""
    from protocols.base.ids import Role
    from protocols.releases.catalogue import Cohort

    node = canary(NEW, ALL)
    node.learn(order(3, 3, ("r-1",), cohort=Cohort(roles=(Role.RSU,))), NEW, ALL)
    node.pass_s(2 * SOAK_S)
    assert node.served == 2
    assert node.states(3) == []


# --- trouble ---------------------------------------------------------------------------------------------------------
def test_expired_metadata_begins_nothing_and_takes_back_all_the_same() -> None:
    """A vehicle parked for months must start with the model that it has, and must leave a halted one."""
    node = canary()
    node.rollouts.expired(True, node.now)
    node.learn(NEW, ALL)
    node.pass_s(2 * SOAK_S)
    assert node.served == 1
    assert node.rollouts.wanted() == frozenset()
    node.rollouts.expired(False, node.now)
    node.settle()
    node.pass_s(SOAK_S)
    assert node.served == 2
    node.rollouts.expired(True, node.now)
    speak(node, failed=3)
    assert node.served == 1


def test_release_that_is_not_listed_is_not_begun() -> None:
    """An order alone installs nothing: the release behind it must be signed for by its publisher."""
    node = canary()
    node.learn(NEW, ALL, counters=(1,))
    assert node.rollouts.wanted() == frozenset()
    node.learn(NEW, ALL, counters=(1, 2))
    assert node.states(2)[-1] == "shadowing"


def test_path_that_access_forbids_is_refused_by_name() -> None:
    """A node that gets nothing must say why."""
    from hashlib import sha256

    from protocols.releases.rollout.rollouts import Rollouts

    node = Installer("v-1")
    node.rollouts = Rollouts(node.name, node.role, (), ("models/*",), lambda d: sha256(d).digest(), lambda path: False)
    node.learn(ALL)
    assert node.served == 0
    assert node.states(1) == ["refused"]


@pytest.mark.parametrize("failure", ["golden: output 0 differs", "runtime: 1.17 is needed", "load", "no_room: full"])
def test_release_that_can_not_be_staged_is_reported_and_counts_for_canaries_only(failure: str) -> None:
    """A vehicle with an old runtime must not stop the release of all others."""
    nodes = [Installer(name) for name in ("c1", "c2", "c3", "v-1", "v-2", "v-3")]
    watcher = canary(NEW, ALL, name="v-9")
    for node in nodes:
        node.learn(ALL)
        node.stage_failures[2] = failure
        node.learn(NEW, ALL)
        assert node.states(2)[-1] == "failed"
        node.pass_s(301)  # those who are no canaries are in no hurry to tell
        assert node.verdicts(2) == FAILED
    watcher.hear(*nodes[3:])
    watcher.hear(nodes[0])
    assert watcher.rollouts.decision(2) is Decision.WAITING
    assert len(watcher.rollouts.reports(2)) == 4
    watcher.hear(*nodes)
    assert watcher.rollouts.decision(2) is Decision.HALTED


def test_node_that_had_no_room_tries_again_later() -> None:
    """Disks get room again, and nobody wants to sign an order anew for that."""
    node = canary(name="v-1")
    node.stage_failures[2] = "no_room: 12 MB are free"
    node.learn(replace(NEW, state="promoted"), ALL)
    assert node.served == 1
    del node.stage_failures[2]
    node.pass_s(ROOM_PAUSE_NS / SECOND + 1)
    assert node.served == 2


def test_release_that_hangs_while_it_is_staged_fails_after_a_time() -> None:
    """Somebody has to notice, and other paths go on meanwhile."""
    node = canary()
    node.holds = frozenset({StageRelease})
    node.learn(NEW, ALL)
    node.pass_s(STAGING_PATIENCE_NS / SECOND + 1)
    assert node.verdicts(2) == FAILED
    node.answer_all()
    assert node.served == 1
    assert node.dropped[-1] == 2


def test_stuck_path_does_not_hold_up_another() -> None:
    """One model that never completes must not keep security fixes of others away."""
    node = canary()
    node.holds = frozenset({StageRelease, ServeRelease})
    node.learn(NEW, ALL)
    other = replace(order(9, 1, ()), path="models/signs")
    node.rollouts.releases((*listed(1, 2), *listed(1, path="models/signs")), node.now)
    node.rollouts.orders((other, NEW, ALL), node.now)
    node.rollouts.complete("models/signs", 1, node.now)
    assert StageRelease("models/signs", 1) in node.rollouts.outgoing()
    node.rollouts.staged("models/signs", 1, "", node.now)
    assert ServeRelease("models/signs", 1) in node.rollouts.outgoing()
    node.rollouts.serving("models/signs", 1, "", node.now)
    assert node.rollouts.serves("models/signs") == 1
    assert node.rollouts.serves(PATH) == 1


def test_release_that_stops_serving_is_left_and_called_failed() -> None:
    """The worker process may die of it after the swap."""
    node = canary(NEW, ALL)
    node.pass_s(SOAK_S / 2)
    node.rollouts.serving(PATH, 2, "crashed: signal 11", node.now)
    node.settle()
    assert node.served == 1
    assert node.verdicts(2) == FAILED


def test_release_that_can_not_be_shadowed_is_called_failed() -> None:
    """It loads beside the release before, or it never will."""
    node = canary(NEW, ALL)
    node.rollouts.serving(PATH, 2, "memory: 900 MiB are allowed", node.now)
    node.settle()
    assert node.served == 1
    assert node.verdicts(2) == FAILED
    assert node.dropped == [2]


def test_release_that_fails_long_after_it_proved_itself_is_no_verdict() -> None:
    """The computer of one canary may break a year later. It goes back by itself, and tries again."""
    node = canary(NEW, ALL)
    node.pass_s(3 * SOAK_S)
    speak(node, healthy=3)
    assert node.states(2)[-1] == "serving"
    node.rollouts.serving(PATH, 2, "crashed: signal 11", node.now)
    node.settle()
    assert node.served == 1
    assert node.verdicts(2) == HEALTHY
    node.pass_s(3_601)
    assert node.served == 2


def test_release_whose_delta_did_not_work_is_completed_and_staged_again() -> None:
    """The files themselves are fetched then, and nobody waits for the answer to the first attempt."""
    node = canary()
    node.holds = frozenset({StageRelease})
    node.learn(NEW, ALL)
    assert node.rollouts.wanted() == frozenset()
    node.rollouts.incomplete(PATH, 2, node.now)
    assert node.rollouts.wanted() == {(PATH, 2)}
    node.holds = frozenset()
    node.settle()
    assert node.states(2)[-1] == "shadowing"


def test_nodes_that_end_while_they_try_a_release_call_it_failed_after_a_few_times() -> None:
    """A model that takes the whole node down leaves nobody to report it, but the next life."""
    node = canary(NEW, ALL)
    for _ in range(MAX_CRASHES):
        assert node.verdicts(2) == 0
        node.restart(NEW, ALL)
    assert node.verdicts(2) == FAILED
    assert node.served == 1
    assert node.said()[0].reason != 0


def test_nodes_that_are_stopped_in_an_orderly_way_blame_nobody() -> None:
    """Short trips are no crashes, and the soak time adds up over them."""
    node = canary(NEW, ALL)
    node.pass_s(SOAK_S / 10)
    for _ in range(10):
        node.restart(NEW, ALL, is_clean=True)
        node.pass_s(SOAK_S / 10)
    assert node.verdicts(2) == HEALTHY


@pytest.mark.parametrize(
    ("gates", "trips", "expected"),
    [
        (Gates(), (Measures(19, 19, 0, 10, 0, 0), Measures(0, 0, 0, 0, 0, 0)), FAILED),
        (Gates(), (Measures(15, 0, 100, 10, 0, 0), Measures(15, 0, 100, 0, 0, 0)), FAILED),
        (Gates(min_agreement=0.9), (Measures(10, 0, 10, 10, 10, 1), Measures(10, 0, 10, 0, 0, 0)), FAILED),
        (Gates(min_runs=150), (Measures(100, 0, 10, 10, 0, 0), Measures(100, 0, 10, 0, 0, 0)), HEALTHY),
    ],
)
def test_canary_judges_by_what_it_measured_on_all_trips(
    gates: Gates, trips: tuple[Measures, Measures], expected: int
) -> None:
    """On short trips the soak time added up and the runs did not: what failed on every trip was called healthy."""
    judged = replace(NEW, gates=gates)
    node = canary(judged, ALL)
    node.pass_s(SOAK_S / 10)
    assert node.served == 2
    for measures in trips:
        node.measures[2] = measures
        node.pass_s(SOAK_S / 2)
        if measures is trips[0]:
            node.restart(judged, ALL, is_clean=True)
    assert node.verdicts(2) == expected


# --- pins ------------------------------------------------------------------------------------------------------------
def test_pinned_release_is_served_whatever_orders_say() -> None:
    """The operator of a node can hold it back, for as long as they like."""
    node = canary(order(2, 2, ()), ALL)
    node.rollouts.pin(PATH, 1, node.now)
    node.settle()
    assert node.served == 1
    node.learn(order(3, 3, ()), order(2, 2, ()), ALL)
    assert node.served == 1
    node.rollouts.pin(PATH, None, node.now)
    node.settle()
    assert node.served == 3


def test_pinned_canary_gives_no_verdict() -> None:
    """It did not try the release, so it must not vouch for it."""
    node = canary()
    node.rollouts.pin(PATH, 1, node.now)
    node.learn(NEW, ALL)
    node.pass_s(SILENCE_S)
    assert node.verdicts(2) == 0
    assert node.served == 1


def test_pin_of_a_release_that_can_not_be_had_is_lifted() -> None:
    """Better the ordered release than none."""
    node = canary(NEW, ALL, name="v-1")
    node.stage_failures[7] = "golden: output 0 differs"
    node.rollouts.pin(PATH, 7, node.now)
    node.settle()
    assert node.states(7)[-1] == "failed"
    speak(node, healthy=3)
    assert node.served == 2


def test_pin_and_restart_keep_the_pin() -> None:
    """A node that restarts at night must not surprise its operator in the morning."""
    node = canary(order(2, 2, ()), ALL)
    node.rollouts.pin(PATH, 1, node.now)
    node.settle()
    node.restart(order(2, 2, ()), ALL)
    assert node.served == 1


def test_dropped_release_is_never_one_that_is_needed() -> None:
    """Three releases in a row keep the newest and the one before, and no more of the disk."""
    node = canary()
    for serial in range(2, 7):
        node.learn(order(serial, serial, ()))
    assert node.served == 6
    assert node.staged == {5, 6}
    assert node.dropped == [1, 2, 3, 4]


def test_release_that_is_to_be_staged_again_is_dropped_once_nothing_needs_it() -> None:
    """Its files are on the disk, and nobody looked after them any more."""
    prepared = Preparations()
    prepared.listed = frozenset({2})
    prepared.want(2, 0)
    assert prepared.completed(2, 0)
    assert prepared.staged(2, "", 0)
    prepared.begin_again(2, 0)
    assert prepared.keep_only({1}) == [2]
