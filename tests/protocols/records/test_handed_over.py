"""The account of records of which a neighbour carries some: each ends once, whichever way tells of it first."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.base.ids import UtcNs
from protocols.base.limits import MAX_BATCH_RECORDS, MAX_CARRIED_BATCH_BYTES, SECOND
from protocols.records.ledger import Ledger
from protocols.wire.records import Acknowledgement, Fate, RefusedRecord

NOW = UtcNs(SECOND)


def ledger(*sizes: int) -> Ledger:
    made = Ledger(10_000, 2**30)
    made.introduce()
    for size in sizes:
        made.issue(size, 3, 0, NOW)
    return made


def handed(made: Ledger, *before: tuple[int, int]) -> tuple[int, ...]:
    plan = made.batch_to_hand_over(NOW, before)
    return () if plan is None else plan.sequences


def test_batches_to_hand_over_follow_one_another_within_their_bounds() -> None:
    """A large record must not hold up a lane for seconds."""
    many = ledger(*[10] * 600)
    assert handed(many) == tuple(range(1, MAX_BATCH_RECORDS + 1))
    assert handed(many, (1, 256)) == tuple(range(257, 513))
    assert handed(many, (1, 256), (257, 512)) == tuple(range(513, 601))
    assert handed(many, (1, 256), (257, 600)) == ()
    assert handed(many, (257, 512)) == tuple(range(1, 257)), "one that was lost is made again, and ends before the next"
    large = ledger(MAX_CARRIED_BATCH_BYTES, 10, 10)
    assert handed(large) == (1,)
    assert handed(large, (1, 1)) == (2, 3)


def test_batch_under_way_to_the_relay_is_handed_over_too() -> None:
    """The node can't know whether its own request arrives."""
    made = ledger(10, 10)
    plan = made.next_batch(NOW)
    assert plan is not None
    assert handed(made) == (1, 2)
    assert made.carried(Acknowledgement((1, 2))) == 2
    assert made.acknowledged(plan, Acknowledgement((1, 2))) == 2, "the relay did say something of them"
    assert (made.statistics()["delivered"], made.pending, made.adds_up()) == (2, 0, True)


def test_expired_records_are_not_handed_over_and_their_fate_goes_along() -> None:
    """The relay must hear of a loss before what comes behind it."""
    made = ledger()
    made.issue(10, 3, 2 * SECOND, NOW)
    made.issue(10, 3, 0, NOW)
    later = UtcNs(3 * SECOND)
    plan = made.batch_to_hand_over(later, ())
    assert plan is not None
    assert (plan.sequences, plan.fates) == ((2,), (Fate(1, 1, "expired"),))
    made.carried(Acknowledgement((2,)), plan.fates)
    assert (made.fates(), made.pending, made.adds_up()) == ([], 0, True)


def test_reply_about_records_that_ended_changes_nothing() -> None:
    """A carrier comes back after a week, with what the node has delivered itself or given up."""
    made = ledger(10, 10, 10)
    plan = made.next_batch(NOW)
    assert plan is not None
    made.acknowledged(plan, Acknowledgement((1, 2)))
    assert made.carried(Acknowledgement((1, 2), (RefusedRecord(3, ""), RefusedRecord(99, "")))) == 1
    assert made.carried(Acknowledgement((1, 2, 3, 77))) == 0
    counted = made.statistics()
    assert (counted["delivered"], counted["refused"], made.adds_up()) == (2, 1, True)
    assert made.first_pending == 4


@given(st.lists(st.sampled_from(["issue", "hand", "reply", "twice", "direct"]), max_size=40), st.randoms())
def test_any_order_of_ways_and_replies_ends_each_record_once(steps: list[str], random: object) -> None:
    """Direct and carried answers overtake each other."""
    made, on_their_way, replies = ledger(), [], []
    for step in steps:
        if step == "issue":
            made.issue(10, 3, 0, NOW)
        elif step == "hand":
            bounds = sorted((plan.sequences[0], plan.sequences[-1]) for plan in on_their_way)
            if (plan := made.batch_to_hand_over(NOW, bounds)) is not None:
                on_their_way.append(plan)
        elif step == "reply" and on_their_way:
            plan = random.choice(on_their_way)  # type: ignore[attr-defined]
            on_their_way.remove(plan)
            replies.append(plan)
            made.carried(Acknowledgement(plan.sequences), plan.fates)
        elif step == "twice" and replies:
            assert made.carried(Acknowledgement(replies[0].sequences)) == 0
        elif step == "direct" and (direct := made.next_batch(NOW)) is not None:
            assert made.acknowledged(direct, Acknowledgement(direct.sequences)) == len(direct.sequences)
        assert made.adds_up()
    made.carried(Acknowledgement(tuple(range(1, made.next_sequence))))
    assert made.statistics()["delivered"] == made.next_sequence - 1
