"""A node that follows orders: what it does next, in every state."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocols.releases.catalogue import Gates
from protocols.releases.events import Measures, ServeRelease, StageRelease
from protocols.releases.rollout.tally import FAILED, HEALTHY, Decision
from tests.protocols.releases.rollout.fleet import (
    ALL,
    BAD,
    NEW,
    PATH,
    SILENCE_S,
    SOAK_S,
    Installer,
    canary,
    order,
    speak,
)


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


def test_halt_by_silence_that_verdicts_bear_out_is_told_once() -> None:
    """Two halts of one order in the log would be looked for in vain: nothing has changed for anybody."""
    node = canary(NEW, ALL)
    node.measures[2] = BAD
    node.pass_s(SILENCE_S + 1)
    assert node.rollouts.decision(2) is Decision.SILENT
    speak(node, failed=2)
    assert node.rollouts.decision(2) is Decision.HALTED
    assert node.concluded(2) == ["waiting", "halted"]


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
