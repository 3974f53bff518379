"""Several nodes: restarts, late joiners, strangers, and what is kept."""

from collections.abc import Callable
from hashlib import sha256

import msgspec
import pytest
from msgspec.structs import replace

from protocols.base import limits
from protocols.base.ids import Role
from protocols.machine import HeardEntry
from protocols.releases.rollout.rollouts import Rollouts, RolloutsState
from protocols.releases.rollout.tally import FAILED, HEALTHY, Decision
from protocols.wire.releases import HEALTH_KIND
from tests.protocols.releases.rollout.fleet import (
    BAD,
    CANARIES,
    GOOD,
    PATH,
    SILENCE_S,
    SOAK_S,
    Installer,
    listed,
    order,
    said,
)

ALL = order(1, 1, ())
NEW = order(2, 2)


def fleet(*names: str) -> list[Installer]:
    """Nodes that serve release 1 and know of the order for release 2."""
    nodes = [Installer(name) for name in names]
    for node in nodes:
        node.learn(ALL)
        node.learn(NEW, ALL)
    return nodes


def talk(nodes: list[Installer]) -> None:
    """Everybody hears everybody, until nobody has anything new to say."""
    for _ in range(5):
        for node in nodes:
            node.hear(*(other for other in nodes if other is not node))


def live(nodes: list[Installer], seconds: float) -> None:
    """Time passes, and everybody hears everybody now and then."""
    for _ in range(20):
        for node in nodes:
            node.pass_s(seconds / 20)
        talk(nodes)


def test_good_release_reaches_everybody_after_the_canaries() -> None:
    """The whole point, without a relay."""
    nodes = fleet(*CANARIES, "v-1", "v-2", "v-3")
    live(nodes, SOAK_S)
    assert [node.served for node in nodes] == [2] * 5 + [1] * 3
    live(nodes, SOAK_S)
    assert [node.served for node in nodes] == [2] * 8


def test_bad_release_ends_at_the_canaries() -> None:
    """No other node ever serves it, and the canaries go back."""
    nodes = fleet(*CANARIES, "v-1", "v-2", "v-3")
    for node in nodes:
        node.measures[2] = BAD
    live(nodes, 3 * SOAK_S)
    assert [node.served for node in nodes] == [1] * 8
    assert all(node.rollouts.decision(2) is Decision.HALTED for node in nodes)
    assert all("soaking" not in node.states(2) and "serving" not in node.states(2) for node in nodes[5:])


@pytest.mark.parametrize("is_bad", [True, False])
def test_two_liars_of_five_canaries_change_nothing(is_bad: bool) -> None:
    """They say healthy of a bad release and failed of a good one."""
    nodes = fleet(*CANARIES[:3], "v-1", "v-2")
    for node in nodes:
        node.measures[2] = BAD if is_bad else GOOD
        for liar in CANARIES[3:]:
            node.rollouts.heard(said(liar, HEALTHY if is_bad else FAILED), node.now)
    live(nodes, 3 * SOAK_S)
    assert {node.served for node in nodes} == {1 if is_bad else 2}


@pytest.mark.parametrize("is_bad", [True, False])
def test_late_joiner_reads_what_the_canaries_said_and_does_the_same(is_bad: bool) -> None:
    """A vehicle that was away for a year finds an order and old words, and nobody to ask."""
    nodes = fleet(*CANARIES, "v-1")
    for node in nodes:
        node.measures.update({2: BAD} if is_bad else {})
    live(nodes, 3 * SOAK_S)
    late, fresh = Installer("v-8", now_s=31_536_000), Installer("v-9", now_s=99)
    late.learn(ALL)
    late.hear(*nodes)  # gossip is faster than metadata
    late.learn(NEW, ALL)
    fresh.learn(NEW, ALL)
    fresh.hear(*nodes)
    assert (late.served, fresh.served) == ((1, 1) if is_bad else (2, 2))


def test_late_canary_of_a_halted_order_does_not_try_it() -> None:
    """Three have found out; the fourth must not suffer it again."""
    nodes = fleet(*CANARIES[:4])
    for node in nodes:
        node.measures[2] = BAD
    live(nodes, 3 * SOAK_S)
    late = Installer("c5")
    late.learn(ALL)
    late.hear(*nodes)
    late.learn(NEW, ALL)
    assert late.served == 1
    assert late.states(2) == []


def test_strangers_can_promote_and_halt_nothing() -> None:
    """A thousand signed words of nodes that the order does not name."""
    (node,) = fleet("v-1")
    for number in range(1_000):
        node.rollouts.heard(said(f"x-{number}", HEALTHY if number % 2 else FAILED), node.now)
    node.settle()
    assert node.rollouts.decision(2) is Decision.WAITING
    assert node.served == 1


def test_words_of_strangers_are_bounded_and_do_not_displace_those_of_canaries() -> None:
    """The table is as large as that of gossip; what canaries said is counted already, or still to be counted."""
    node = Installer("v-1")
    node.learn(ALL)
    for canary in CANARIES[:3]:
        node.rollouts.heard(said(canary, HEALTHY), node.now)
    for number in range(limits.MAX_ENTRIES - 3):
        node.rollouts.heard(said(f"x-{number}", FAILED), node.now)
    assert len(node.rollouts.reports(2)) == limits.MAX_ENTRIES
    node.learn(NEW, ALL)
    assert node.served == 2
    for number in range(10):
        node.rollouts.heard(said(f"y-{number}", FAILED), node.now)
    assert len(node.rollouts.reports(2)) == limits.MAX_ENTRIES
    assert node.rollouts.decision(2) is Decision.PROMOTED


def test_malformed_words_are_counted_and_change_nothing() -> None:
    """An author may sign any bytes."""
    (node,) = fleet("v-1")
    for body in (b"", b"\xc1", b"\x91\x91\x95\x02\x02\x00\xff\x00", bytes(200)):
        node.rollouts.heard(HeardEntry(CANARIES[0], HEALTH_KIND, 1, 0, body, CANARIES[0]), node.now)
    assert node.rollouts.counters()["health_malformed"] == 4
    assert node.rollouts.decision(2) is Decision.WAITING


def test_canary_that_says_both_counts_as_failed() -> None:
    """Two entries of one version, or a change of mind: it can't be trusted to promote."""
    for words in ((HEALTHY, FAILED), (FAILED, HEALTHY)):
        (node,) = fleet("v-1")
        for canary in CANARIES[:2]:
            node.rollouts.heard(said(canary, HEALTHY), node.now)
        for version, word in enumerate(words):
            node.rollouts.heard(said(CANARIES[2], word, version=version), node.now)
        node.settle()
        order_at = words.index(HEALTHY)
        assert node.rollouts.decision(2) is (Decision.PROMOTED if order_at == 0 else Decision.WAITING)
        node.rollouts.heard(said(CANARIES[3], HEALTHY), node.now)
        node.settle()
        assert node.served == 2


# --- restarts --------------------------------------------------------------------------------------------------------
def ready(nodes: list[Installer]) -> None:
    pass


def shadowing(nodes: list[Installer]) -> None:
    live(nodes, SOAK_S / 20)


def soaking(nodes: list[Installer]) -> None:
    live(nodes, SOAK_S / 2)


def healthy(nodes: list[Installer]) -> None:
    live(nodes[:2], 1.3 * SOAK_S)
    talk(nodes)


def promoted(nodes: list[Installer]) -> None:
    live(nodes, 1.5 * SOAK_S)


def settled(nodes: list[Installer]) -> None:
    live(nodes, 3 * SOAK_S)


def silent(nodes: list[Installer]) -> None:
    nodes[0].pass_s(SILENCE_S + 1)


MOMENTS = [ready, shadowing, soaking, healthy, promoted, settled, silent]


@pytest.mark.parametrize("is_clean", [True, False])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: str(moment.__name__))
@pytest.mark.parametrize("is_bad", [True, False])
def test_restart_at_any_moment_changes_the_end_of_nothing(
    moment: Callable[[list[Installer]], None], is_bad: bool, is_clean: bool
) -> None:
    """Every node restarts at the same bad moment, and the rollout ends as it would have."""
    nodes = fleet(*CANARIES, "v-1", "v-2")
    for node in nodes:
        node.measures.update({2: BAD} if is_bad else {})
    moment(nodes)
    for node in nodes:
        served = node.served
        node.restart(NEW, ALL, is_clean=is_clean)
        assert node.served == served or is_bad
    live(nodes, 4 * SOAK_S)
    assert {node.served for node in nodes} == {1 if is_bad else 2}


def test_promoted_node_serves_on_after_a_restart_without_neighbours() -> None:
    """The words that promoted the release are gone; the release is not."""
    nodes = fleet(*CANARIES, "v-1")
    live(nodes, 2 * SOAK_S)
    (vehicle,) = nodes[5:]
    vehicle.restart(NEW, ALL)
    vehicle.pass_s(10 * SILENCE_S)
    assert vehicle.served == 2
    assert vehicle.rollouts.decision(2) is Decision.PROMOTED


def test_halted_order_stays_halted_after_a_restart_without_neighbours() -> None:
    """Otherwise a canary would try the bad release after each start."""
    nodes = fleet(*CANARIES)
    for node in nodes:
        node.measures[2] = BAD
    live(nodes, 2 * SOAK_S)
    nodes[0].restart(NEW, ALL)
    nodes[0].pass_s(10 * SOAK_S)
    assert nodes[0].served == 1
    assert nodes[0].rollouts.decision(2) is Decision.HALTED


def test_state_is_kept_until_the_orders_are_known_again() -> None:
    """Metadata is read from the disk after the state; a save in between must lose nothing."""
    nodes = fleet(*CANARIES, "v-1")
    live(nodes, 2 * SOAK_S)
    node = nodes[0]
    kept = node.rollouts.state(node.now, is_clean=True)
    again = Rollouts(node.name, node.role, (), ("models/*",), lambda data: sha256(data).digest())
    again.restored(kept, 0)
    again.serving(PATH, 2, "", 0)
    assert again.outgoing() == []
    assert again.health_body() is None
    assert again.kept() >= {(PATH, 1), (PATH, 2)}
    assert again.state(0, is_clean=True) == kept


def test_crash_between_a_swap_and_the_save_is_healed_by_what_the_installer_says() -> None:
    """What is served is the installer's word, and not the memory of the rollouts."""
    (node,) = fleet("c1")
    kept = node.rollouts.state(node.now)
    node.pass_s(SOAK_S / 10)
    assert node.served == 2
    node.rollouts = Rollouts(node.name, node.role, (), ("models/*",), lambda data: sha256(data).digest())
    node.rollouts.restored(kept, node.now)
    node.rollouts.serving(PATH, 2, "", node.now)
    node.learn(NEW, ALL)
    assert node.served == 2
    assert node.rollouts.kept() == {(PATH, 1), (PATH, 2)}
    for canary in CANARIES[1:4]:
        node.rollouts.heard(said(canary, FAILED), node.now)
    node.settle()
    assert node.served == 1


def test_order_that_is_read_again_keeps_its_place_meanwhile() -> None:
    """A pause changes the bytes of an order; until these have come, nobody must fall back to the order below."""
    nodes = fleet(*CANARIES, "v-1")
    live(nodes, 2 * SOAK_S)
    node = nodes[5]
    node.rollouts.orders((ALL,), node.now, listed=(1, 2))
    node.settle()
    assert node.served == 2
    assert node.rollouts.decision(2) is Decision.PROMOTED
    node.rollouts.orders((ALL,), node.now, listed=(1,))
    node.settle()
    assert node.served == 1


def test_orders_that_are_read_one_by_one_after_a_restart_change_nothing() -> None:
    """The one below is often read first."""
    nodes = fleet(*CANARIES, "v-1")
    live(nodes, 2 * SOAK_S)
    for node in nodes:
        kept = node.rollouts.state(node.now)
        node.rollouts = Rollouts(node.name, node.role, (), ("models/*",), lambda data: sha256(data).digest())
        node.rollouts.restored(kept, node.now)
        node.rollouts.serving(PATH, 2, "", node.now)
        node.rollouts.releases(listed(1, 2), node.now)
        version = node.version
        for read in ((), (ALL,), (ALL, NEW)):
            node.rollouts.orders(read, node.now, listed=(1, 2))
            node.settle()
            assert node.served == 2
            assert node.rollouts.state(node.now).counts[0].is_promoted
            if NEW not in read:
                assert node.version == version, "it must not sign an entry without its verdict"
        assert node.rollouts.decision(2) is Decision.PROMOTED


def test_release_that_vanished_from_the_disk_is_staged_again_and_not_blamed() -> None:
    """Somebody cleaned the disk while the node was off; a canary must not halt the rollout for that."""
    (node,) = fleet("c1")
    node.rollouts.measured(PATH, 2, GOOD, node.now)
    node.restart(NEW, ALL, is_clean=True)
    node.staged.discard(2)
    node.serve_failures[2] = "digest: it is not on the disk"
    node.settle()
    node.pass_s(SOAK_S / 10)
    assert node.verdicts(2) == 0
    del node.serve_failures[2]
    node.pass_s(SOAK_S / 10)
    node.pass_s(SOAK_S)
    assert node.served == 2
    assert node.verdicts(2) == HEALTHY


@pytest.mark.parametrize("is_clean", [False, True])
def test_release_whose_drop_was_lost_with_the_life_of_the_node_is_dropped_in_the_next(is_clean: bool) -> None:
    """Power is cut, or the node is stopped, between the decision and the drop. Such releases stayed for ever."""
    node = Installer("v-1")
    for last in range(1, 5):
        node.learn(*(order(serial, serial, ()) for serial in range(last, 0, -1)))
    node.staged |= {1, 2}
    node.restart(*(order(serial, serial, ()) for serial in range(4, 0, -1)), is_clean=is_clean)
    assert node.staged == {3, 4}
    assert node.served == 4


def test_state_of_another_version_is_read_as_far_as_it_is_known() -> None:
    """Names of phases may be added; an older node must still start."""
    (node,) = fleet("c1")
    kept = node.rollouts.state(node.now)
    path = kept.paths[0]
    odd = replace(kept, paths=(replace(path, adoptions=tuple(replace(a, phase="dreaming") for a in path.adoptions)),))
    again = Rollouts(node.name, Role.VEHICLE, (), ("models/*",), lambda data: sha256(data).digest())
    again.restored(msgspec.msgpack.decode(msgspec.msgpack.encode(odd), type=RolloutsState), 0)
    again.releases(listed(1, 2), 0)
    again.orders((NEW, ALL), 0)
    assert again.decision(2) is Decision.WAITING


# --- what it says ----------------------------------------------------------------------------------------------------
def test_reports_are_few_and_verdicts_are_told_at_once() -> None:
    """Each report costs every node of the mesh a kilobyte."""
    (node,) = fleet("c1")
    node.pass_s(3 * SOAK_S)
    assert node.verdicts(2) == HEALTHY
    assert node.version <= 6


def test_canary_with_many_paths_tells_of_those_that_it_tries() -> None:
    """An entry has room for eight orders; verdicts must not be the ones left out."""
    node = Installer("c1")
    paths = [f"models/m{number:02}" for number in range(20)]
    orders = [replace(order(100 + n, 1, ()), path=path) for n, path in enumerate(paths)]
    node.rollouts.releases([one for path in paths for one in listed(1, path=path)] + list(listed(1, 2)), node.now)
    node.rollouts.orders([*orders, NEW, ALL], node.now)
    for path in paths:
        node.rollouts.complete(path, 1, node.now)
        node.rollouts.staged(path, 1, "", node.now)
        node.rollouts.serving(path, 1, "", node.now)
    node.rollouts.complete(PATH, 2, node.now)
    node.rollouts.staged(PATH, 2, "golden", node.now)
    node.rollouts.outgoing()
    node.pass_s(31)
    assert len(node.said()) == limits.MAX_REPORTED_RELEASES
    assert node.verdicts(2) == FAILED


def test_view_for_people_tells_where_each_path_stands() -> None:
    """``meshnode models list`` shows it."""
    (node,) = fleet("c1")
    (path,) = node.rollouts.followed(node.now)
    assert (path.path, path.current, path.before, path.pinned) == (PATH, 1, 0, None)
    assert [(serial, counter, state, step) for serial, counter, state, _, step in path.orders] == [
        (2, 2, "waiting", "shadowing"),
        (1, 1, "promoted", "serving"),
    ]


def test_revision_grows_with_what_has_to_be_kept() -> None:
    """The driver writes the state when it grows."""
    (node,) = fleet("c1")
    before = node.rollouts.revision
    node.pass_s(SOAK_S)
    assert node.rollouts.revision > before


def test_verdict_that_counts_is_told_before_those_on_orders_that_were_promoted_by_hand() -> None:
    """An entry has room for eight. Nodes that came late heard no verdict on the one order that was still open."""
    paths = [f"models/m{number}" for number in range(limits.MAX_REPORTED_RELEASES + 1)]
    orders = [replace(order(1 + number, 1), path=path, soak_s=0) for number, path in enumerate(paths)]
    node = Installer("c1")
    node.rollouts.releases([each for path in paths for each in listed(1, path=path)], node.now)
    node.rollouts.orders(orders, node.now)
    for path in paths:
        node.rollouts.complete(path, 1, node.now)
        node.rollouts.staged(path, 1, "golden: output 0 differs", node.now)
    node.rollouts.outgoing()
    node.pass_s(60)
    assert node.verdicts(1) == 0, "there are too many"
    node.rollouts.orders([orders[0], *(replace(each, state="promoted") for each in orders[1:])], node.now)
    node.pass_s(60)
    assert node.verdicts(1) == FAILED
    assert len(node.said()) == limits.MAX_REPORTED_RELEASES
