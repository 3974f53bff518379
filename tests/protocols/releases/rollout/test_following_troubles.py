"""A node that follows orders: what it does when something fails, and when its operator holds it back."""

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
    ALL,
    NEW,
    PATH,
    SILENCE_S,
    SOAK_S,
    Installer,
    canary,
    listed,
    order,
    speak,
)


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


def step_of(node: Installer, serial: int) -> str:
    """What people are told of how far a node has got with an order."""
    (path,) = node.rollouts.followed(node.now)
    return next(step for each, _, _, _, step in path.orders if each == serial)


def test_release_that_was_aborted_and_revoked_is_not_shown_as_being_fetched() -> None:
    """Nothing was fetched, and whoever looked waited for it for ever."""
    node = canary(name="v-1")
    node.learn(NEW, ALL)
    assert step_of(node, 2) == "staged"
    node.learn(replace(NEW, state="aborted"), ALL)
    assert step_of(node, 2) == ""
    node.learn(replace(NEW, state="aborted"), ALL, counters=(1,))
    assert step_of(node, 2) == ""


def test_release_that_is_fetched_is_shown_as_that_until_its_metadata_has_expired() -> None:
    """Expired metadata begins nothing."""
    node = canary()
    node.rollouts.releases(listed(1, 2), node.now)
    node.rollouts.orders((NEW, ALL), node.now)
    assert step_of(node, 2) == "fetching"
    node.rollouts.expired(True, node.now)
    assert step_of(node, 2) == ""


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


def test_release_that_waits_for_others_to_be_staged_is_not_given_up() -> None:
    """Three models that hung before it took longer than one may take, and it was called failed for ever."""
    node = canary()
    node.rollouts.releases(listed(1, 2), node.now)
    node.rollouts.orders((NEW, ALL), node.now)
    node.rollouts.complete(PATH, 2, node.now)
    assert StageRelease(PATH, 2) in node.rollouts.outgoing()
    node.pass_s(2 * STAGING_PATIENCE_NS / SECOND)
    assert node.verdicts(2) == 0
    node.rollouts.staging(PATH, 2, node.now)
    node.pass_s(STAGING_PATIENCE_NS / SECOND - 1)
    assert node.verdicts(2) == 0
    node.pass_s(2)
    assert node.verdicts(2) == FAILED


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
    node.rollouts.not_shadowed(PATH, 2, "memory: 900 MiB are allowed", node.now)
    node.settle()
    assert node.served == 1
    assert node.verdicts(2) == FAILED
    assert node.dropped == [2]


def test_shadow_that_fails_while_its_release_is_swapped_in_is_not_the_answer_to_the_swap() -> None:
    """The swap went on, and the node took it for over: it gave up a release that came to serve a moment later, and
    could have begun a second swap meanwhile."""
    node = canary(NEW, ALL)
    node.holds = frozenset({ServeRelease})
    node.learn(replace(NEW, state="promoted"), ALL)
    assert [effect.counter for effect in node.waiting] == [2]
    node.rollouts.not_shadowed(PATH, 2, "memory: there is not enough for both", node.now)
    node.settle()
    assert node.states(2)[-1] == "shadowing"
    node.answer_all()
    assert node.served == 2
    assert node.verdicts(2) == 0
    assert node.states(2)[-1] == "serving"


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
