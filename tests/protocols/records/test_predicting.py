"""Rules that have a model compute something: who waits, what is late, and what is derived."""

from collections.abc import Sequence
from typing import Any

import pytest

from protocols.base.errors import BoundExceeded, LocalProtocolError
from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.limits import MAX_LINEAGE, SECOND
from protocols.records.curation import CurationOutput, Curator, ReadingDerived, RecordChosen
from protocols.records.deriving.output import Output
from protocols.records.deriving.sources import Source
from protocols.records.predicting import Failure, ModelStep, PredictionRule
from protocols.records.wanted import PredictionWanted
from protocols.wire.readings import EventTime, Provenance, Reading
from tests.tools.strategies import HERE

UTC_NS = 1_700_000_000 * SECOND
NODE = NodeId("veh-1")


class Asking:
    """A curator with one rule that asks a model."""

    def __init__(self, **step: Any) -> None:
        step = {"model": "plate", "input_name": "x", "max_waiting": 2, **step}
        output = Output("veh/{node}/plate", "1", priority=5)
        self.rule = PredictionRule("plates", NODE, Source("veh/*/camera"), ModelStep(**step), output, lambda _: "")
        self.curator = Curator((), [self.rule])
        self.sequence = 0

    def show(self, value: Any, at_s: float = 1.0, lineage: tuple[str, ...] = ()) -> list[PredictionWanted]:
        self.sequence += 1
        how, when = Provenance("cam", "jpeg", 0.5, "", lineage), EventTime(int(UTC_NS + at_s * SECOND), 7)
        reading = Reading("veh/veh-1/camera", NODE, self.sequence, value, HERE, when, how, 3)
        outputs = self.curator.receive(reading, True, MonotonicNs(int(at_s * SECOND)), UtcNs(when.utc_ns))
        return questions(outputs)

    def answer(self, wanted: PredictionWanted, value: Any, at_s: float = 1.0, failure: Failure = "") -> Sequence[Any]:
        return self.curator.predicted(wanted, value, failure, MonotonicNs(int(at_s * SECOND)))

    @property
    def counters(self) -> dict[str, int]:
        return {what: number for what, number in self.rule.counters().items() if number}


def questions(outputs: Sequence[CurationOutput]) -> list[PredictionWanted]:
    return [output for output in outputs if isinstance(output, PredictionWanted)]


def test_prediction_is_derived_with_the_context_of_the_reading_and_is_a_record() -> None:
    here = Asking(outputs=("y",))
    (wanted,) = here.show(b"jpeg", lineage=("cut",))
    assert (wanted.rule, wanted.model, wanted.inputs, wanted.input_name, wanted.outputs, wanted.budget_ns) == (
        "plates", "plate", b"jpeg", "x", ("y",), SECOND,
    )  # fmt: skip
    (derived,) = here.answer(wanted, {"y": [1.0]}, 1.5)
    assert isinstance(derived, ReadingDerived)
    assert (derived.key, derived.value, derived.priority) == ("veh/veh-1/plate", {"y": [1.0]}, 5)
    assert (derived.where, derived.when.utc_ns) == (HERE, UTC_NS + SECOND)
    assert (derived.how.lineage, derived.how.unit, derived.how.quality) == (("plates", "cut"), "1", 0.5)
    back = Reading(derived.key, NODE, 1, derived.value, derived.where, derived.when, derived.how, derived.priority)
    (record,) = here.curator.receive(back, True, MonotonicNs(2 * SECOND), UtcNs(UTC_NS))
    assert isinstance(record, RecordChosen)
    assert here.answer(wanted, {"y": [2.0]}) == [], "an answer counts once"


def test_newest_waits_least_and_the_oldest_gives_way() -> None:
    """A model that is slower than the camera sees the newest pictures, and nothing piles up."""
    here = Asking()
    (first,) = here.show(1)
    assert [here.show(value) for value in (2, 3, 4)] == [[]] * 3
    assert here.counters == {"taken": 4, "gave_way": 1}
    derived, second = here.answer(first, 10)
    assert (derived.value, second.inputs) == (10, 4)
    (third,) = here.answer(second, None, failure="not_predicted")
    assert third.inputs == 3
    assert here.answer(third, None, failure="late") == []
    assert here.counters == {"taken": 4, "gave_way": 1, "derived": 1, "not_predicted": 1, "late": 1}


def test_several_are_asked_at_once_when_it_says_so() -> None:
    here = Asking(at_once=2)
    assert [len(here.show(value)) for value in (1, 2, 3)] == [1, 1, 0]


def test_reading_that_has_waited_too_long_is_late_and_the_rest_of_the_time_is_what_is_left() -> None:
    here = Asking()
    (first,) = here.show(1, 1.0)
    here.show(2, 1.2)
    here.show(3, 1.5)
    derived, second = here.answer(first, 10, 2.1)
    assert (second.inputs, second.budget_ns) == (3, 400_000_000)
    assert len(here.answer(second, 20, 2.3)) == 1
    assert here.counters == {"taken": 3, "derived": 2, "late": 1}
    assert derived.value == 10


def test_reading_that_is_too_large_or_has_no_room_in_its_lineage_is_unfit() -> None:
    here = Asking()
    assert here.show(b"x" * (8 << 20)) == []
    assert here.show(1, lineage=tuple(map(str, range(MAX_LINEAGE)))) == []
    assert here.counters == {"unfit": 2}


def test_answer_for_a_rule_that_is_used_no_more_comes_to_nothing() -> None:
    here = Asking()
    (wanted,) = here.show(1)
    here.curator.exchange([])
    assert not here.answer(wanted, 1)


def test_answer_for_a_rule_of_before_is_not_taken_by_the_one_of_its_name() -> None:
    """What the model of before says of an earlier reading is not said of a later one."""
    here, after = Asking(), Asking(model="better plate")
    (wanted,) = here.show(1)
    here.curator.exchange([after.rule])
    (again,) = here.show(2)
    assert not here.answer(wanted, "of before")
    (derived,) = here.answer(again, "of now")
    assert derived.value == "of now"


@pytest.mark.parametrize(
    ("step", "error", "why"),
    [
        ({"model": ""}, LocalProtocolError, "name one"),
        ({"outputs": ("y",) * 100}, BoundExceeded, "100 outputs"),
        ({"deadline_ns": 61 * SECOND}, BoundExceeded, "use at most 60 s"),
        ({"max_waiting": 17}, BoundExceeded, "max_waiting is 17"),
        ({"at_once": 0}, BoundExceeded, "at_once 0"),
    ],
)
def test_step_that_can_not_be_is_refused(step: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        Asking(**step)
