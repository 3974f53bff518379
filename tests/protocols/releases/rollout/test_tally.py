"""Canaries decide by quorum, and what they said is never forgotten."""

from itertools import permutations

import pytest
from msgspec.structs import replace

from protocols.base.ids import NodeId
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.releases.catalogue import Order
from protocols.releases.rollout.tally import FAILED, HEALTHY, Decision, Quorums, Tally, quorums_of
from tests.protocols.releases.rollout.fleet import SILENCE_S, order


def some(canaries: int, promote: int = 0, halt: int = 0) -> Order:
    return order(1, 1, [f"c{n}" for n in range(1, canaries + 1)], promote_quorum=promote, halt_quorum=halt)


@pytest.mark.parametrize(
    ("canaries", "promote", "halt", "expected"),
    [
        (1, 0, 0, (1, 1)),
        (2, 0, 0, (2, 1)),
        (3, 0, 0, (2, 2)),
        (5, 0, 0, (3, 3)),
        (20, 0, 0, (11, 10)),
        (20, 18, 0, (18, 3)),
        (5, 1, 1, (2, 2)),
        (3, 3, 0, (3, 2)),
        (2, 1, 2, (1, 2)),
    ],
)
def test_quorums_of_an_order_are_never_one_where_three_can_speak(
    canaries: int, promote: int, halt: int, expected: tuple[int, int]
) -> None:
    """One liar decides nothing, even when an operator wrote 1."""
    assert quorums_of(some(canaries, promote, halt)) == Quorums(*expected)


def test_canary_named_twice_counts_once() -> None:
    """Otherwise one canary could be a quorum."""
    twice = order(1, 1, ["c1", "c1", "c1"])
    assert quorums_of(twice) == (1, 1)


@pytest.mark.parametrize(
    ("said", "state", "seconds", "expected"),
    [
        ("", "running", 0, Decision.WAITING),
        ("", "running", SILENCE_S, Decision.SILENT),
        ("", "paused", SILENCE_S, Decision.PAUSED),
        ("", "aborted", 0, Decision.ABORTED),
        ("", "promoted", 0, Decision.PROMOTED),
        ("H", "running", 0, Decision.WAITING),
        ("HH", "running", 0, Decision.WAITING),
        ("HHH", "running", 0, Decision.PROMOTED),
        ("HHH", "running", SILENCE_S, Decision.PROMOTED),
        ("HHH", "paused", 0, Decision.PAUSED),
        ("HHH", "aborted", 0, Decision.ABORTED),
        ("HH", "running", SILENCE_S, Decision.SILENT),
        ("HHF", "running", SILENCE_S, Decision.SILENT),
        ("FF", "running", 0, Decision.WAITING),
        ("FFF", "running", 0, Decision.HALTED),
        ("FFF", "paused", 0, Decision.HALTED),
        ("FFF", "promoted", 0, Decision.PROMOTED),
        ("HHFFF", "running", 0, Decision.HALTED),
        ("HHHFF", "running", 0, Decision.PROMOTED),
        ("BBB", "running", 0, Decision.HALTED),
        ("HHB", "running", 0, Decision.WAITING),
        ("HHBBB", "running", 0, Decision.HALTED),
    ],
)
def test_decision_follows_the_table(said: str, state: str, seconds: float, expected: Decision) -> None:
    """H: the canary called it healthy; F: failed; B: both, at once. Of five canaries, three decide."""
    counted = replace(some(5), state=state)
    tally = Tally(counted, 0)
    for number, letter in enumerate(said, 1):
        tally.say(NodeId(f"c{number}"), {"H": HEALTHY, "F": FAILED, "B": HEALTHY | FAILED}[letter])
    assert tally.decide(int(seconds * SECOND)) is expected


def test_tally_is_told_in_words() -> None:
    """It is what an operator sees of a rollout at a node."""
    tally = Tally(some(5), 0)
    tally.say(NodeId("c1"), HEALTHY)
    tally.say(NodeId("c2"), FAILED)
    assert str(tally) == "1 of 5 canaries healthy (3 promote), 1 failed (3 halt), 3 without a verdict"
    assert str(Tally(some(0), 0)) == "no canaries"


def test_same_words_in_any_order_give_the_same_decision() -> None:
    """Gossip brings entries in any order, and all nodes must come to the same end."""
    for words in ("HHHFF", "HHFFF", "HHFF-", "HHH--", "FFF--"):
        said = [(f"c{n}", HEALTHY if w == "H" else FAILED) for n, w in enumerate(words, 1) if w != "-"]
        ends = set()
        for heard in permutations(said):
            tally = Tally(some(5), 0)
            for author, verdict in heard:
                tally.say(NodeId(author), verdict)
                tally.decide(0)
            ends.add(tally.decide(0))
        assert len(ends) == 1, words


def test_words_of_others_are_not_counted() -> None:
    """Every vehicle may sign a verdict; only the canaries of the order decide."""
    tally = Tally(some(3), 0)
    for number in range(50):
        assert not tally.say(NodeId(f"liar-{number}"), HEALTHY)
    assert tally.decide(0) is Decision.WAITING


def test_canary_that_changes_its_mind_after_promotion_halts_nothing_alone() -> None:
    """One liar that promoted with two honest ones must not take the release back from those who serve it."""
    tally = Tally(some(5), 0)
    for canary in ("c1", "c2", "c3"):
        tally.say(NodeId(canary), HEALTHY)
    assert tally.decide(0) is Decision.PROMOTED
    tally.say(NodeId("c3"), FAILED)
    assert tally.decide(2 * SILENCE_S * SECOND) is Decision.PROMOTED
    tally.say(NodeId("c2"), FAILED)
    tally.say(NodeId("c1"), FAILED)
    assert tally.decide(0) is Decision.HALTED


def test_silent_canary_that_speaks_at_last_is_counted() -> None:
    """A parked canary comes back healthy: the others must not stay halted for ever."""
    tally = Tally(some(3), 0)
    late = SILENCE_S * SECOND
    assert tally.decide(late) is Decision.SILENT
    tally.say(NodeId("c1"), HEALTHY)
    assert tally.decide(late) is Decision.SILENT
    tally.say(NodeId("c2"), HEALTHY)
    assert tally.decide(late) is Decision.PROMOTED


def test_pause_is_no_silence() -> None:
    """An operator who pauses over a weekend must not find the rollout halted."""
    running, paused = some(3), replace(some(3), state="paused")
    tally = Tally(running, 0)
    tally.renew(paused, (SILENCE_S - 10) * SECOND)
    assert tally.silent_at() == NEVER
    tally.renew(running, 100 * SILENCE_S * SECOND)
    assert tally.silent_at() == (100 * SILENCE_S + 10) * SECOND


def test_time_of_a_former_life_counts_and_the_time_between_does_not() -> None:
    """A vehicle that is parked for months holds no silence against the canaries that it could not hear."""
    tally = Tally(some(3), 0)
    tally.say(NodeId("c2"), FAILED)
    kept = tally.state((SILENCE_S - 100) * SECOND)
    again = Tally(some(3), 5_000_000 * SECOND, kept)
    assert again.silent_at() == 5_000_100 * SECOND
    assert again.failed == 1


def test_promotion_is_remembered_over_a_restart() -> None:
    """The entries that promoted a release may have expired when the node starts again."""
    tally = Tally(some(3), 0)
    tally.say(NodeId("c1"), HEALTHY)
    tally.say(NodeId("c2"), HEALTHY)
    assert tally.decide(0) is Decision.PROMOTED
    tally.say(NodeId("c2"), FAILED)
    assert Tally(some(3), 0, tally.state(0)).decide(0) is Decision.PROMOTED


def test_canary_that_is_taken_off_the_list_counts_no_more() -> None:
    """An operator who finds a lying canary signs the order anew without it."""
    tally = Tally(some(5), 0)
    for canary in ("c1", "c2", "c5"):
        tally.say(NodeId(canary), FAILED)
    assert tally.decide(0) is Decision.HALTED
    tally.renew(some(4), 0)
    assert tally.decide(0) is Decision.HALTED, "of four canaries, two halt"
    tally.renew(some(4, 2, 3), 0)
    assert tally.decide(0) is Decision.WAITING
