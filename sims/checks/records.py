"""The check of expected records: what a scenario says of the records of its rules, so that a run can gate a change of
them.

Numbers in values are judged at each record that reaches the relay, and how many there are at the end of the run, of all
nodes together that an expectation is about. Records that still wait at a node then are not at the relay.
"""

from typing import Any

from protocols.wire.readings import Reading
from sims.checks.contract import Check, WorldView, register
from sims.results.result import Recorder
from sims.scenario.file import ExpectedRecords
from sims.scenario.schema import shown


class _Expectation:
    """One expectation of a scenario, and how many records it has met."""

    def __init__(self, expected: ExpectedRecords, makers: frozenset[str]) -> None:
        """``makers``: the names of the nodes whose records it is about; empty: all."""
        self.expected, self._makers, self.records = expected, makers, 0
        value = expected.value
        self._ranges = {} if value is None else value if isinstance(value, dict) else {"": value}

    def is_about(self, node: str, rule: str) -> bool:
        """Whether records of that rule from that node are meant."""
        return rule == self.expected.rule and (not self._makers or node in self._makers)

    def wrong_in(self, value: Any) -> list[str]:
        """What numbers in the value of a record are not as expected, in words."""
        found = []
        for at, (least, most) in self._ranges.items():
            number, where = _number_at(value, at), f" at {at!r}" if at else ""
            if number is None:
                found.append(f"its value {shown(value)} has no number{where}, where {least:g} to {most:g} was expected")
            elif not least <= number <= most:
                found.append(f"its value has {number:g}{where}, where {least:g} to {most:g} was expected")
        return found

    def wrong_number(self) -> str:
        """How the number of records is not as expected, in words; empty: it is."""
        least, most = self.expected.at_least, self.expected.at_most
        if self.records >= least and (most is None or self.records <= most):
            return ""
        of = f" of {', '.join(self.expected.nodes)}" if self.expected.nodes else ""
        wanted = f"at least {least}" if most is None else f"{least}" if least == most else f"{least} to {most}"
        plural = "" if self.records == 1 else "s"
        return (
            f"the relay has {self.records} record{plural}{of} by rule {self.expected.rule!r}, where {wanted} "
            "were expected"
        )


@register
class RecordsAsExpected(Check):
    """The relay has the records that the scenario expects of its rules, with the numbers that it expects in them."""

    name = "expected_records"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        scenario = world.scenario
        self._expectations = [
            _Expectation(expected, frozenset(name for what in expected.nodes for name in scenario.members(what)))
            for expected in scenario.curation.expected
        ]

    def record_stored(self, node: str, rule: str, reading: Reading) -> None:
        """See :class:`Check`."""
        for expectation in self._expectations:
            if expectation.is_about(node, rule):
                expectation.records += 1
                for wrong in expectation.wrong_in(reading.value):
                    self.judge(False, f"a record of {node} by rule {rule!r}: {wrong}")

    def finished(self, now: int, faults_end_ns: int) -> None:
        """See :class:`Check`."""
        del now, faults_end_ns
        for expectation in self._expectations:
            wrong = expectation.wrong_number()
            self.judge(not wrong, wrong)


def _number_at(value: Any, at: str) -> float | None:
    """The number at a place in a value, such as ``readings.0.value``; None: there is none."""
    for step in at.split(".") if at else ():
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list | tuple) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
