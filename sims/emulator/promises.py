"""Promises judged by what real nodes wrote down, under the names that the simulator's checks have.

- ``one_answer_per_request``, ``answer_is_right`` and ``requests_end_by_deadline`` judge each inference, except those
  that were under way when their node was killed, slowed down or told to leave.
- ``no_frame_from_unverified``: every node that is met, and whose readings reach callbacks, is a node of the scenario.
- ``gossip_forward_only`` and ``gossip_author_only``: entries are replaced by newer ones, and were put in by their
  authors. What an author that was killed had not written down yet is not held against it.
- ``commands_obeyed``, which the simulator does not have: a node did what the harness told it to do.
"""

from collections.abc import Sequence
from typing import Any

from protocols.base.limits import MS, SECOND
from sims.checks.liveness import DEADLINE_SLACK_NS
from sims.results.result import Recorder
from sims.scenario.file import Fault

_Request = tuple[str, int]
"""The node, and the number of the request in its present life."""


class Promises:
    """The promises of one run. It is told every line in order of time; times are nanoseconds since the start."""

    def __init__(self, names: Sequence[str], tape: Sequence[Fault], recorder: Recorder) -> None:
        self._names, self._recorder = dict.fromkeys(names), recorder
        self._slowed = [fault for fault in tape if fault.kind == "slow-node"]
        self._crashes = {name for fault in tape if fault.kind == "crash" for name in fault.nodes}
        self._open: dict[_Request, int] = {}
        """The deadlines of open requests."""
        self._verified = 0
        self._held: dict[str, dict[tuple[str, str], int]] = {}
        self._made: dict[tuple[str, str, int], None] = {}
        self._taken: dict[tuple[str, str, int], tuple[int, str]] = {}
        """Entries of others: when the first node held it, and which node that was."""

    def tell(self, now_ns: int, node: str, line: list[Any]) -> None:
        """Take in one line of a journal."""
        match line:
            case ["delivered", _, str(origin), *_]:
                self._verified += origin in self._names
                self._suspect(now_ns, node, origin, "took readings from")
            case ["met", _, str(other), *_]:
                self._suspect(now_ns, node, other, "has met")
            case ["entry", _, str(author), str(kind), int(version), str(source)]:
                self._entry(now_ns, node, (author, kind), version, source)
            case ["asked", _, int(number), str(_), int(deadline_ms)]:
                self._open[node, number] = now_ns + deadline_ms * MS
            case ["result", _, int(number), str(by), int(_), str(failure), right]:
                self._result(now_ns, node, number, by, failure, right)
            case ["started", *_]:
                self._held[node] = {}
                self._forget(node)
            case ["ended", *_]:  # a node that leaves cancels what is under way
                self._judge_overdue(now_ns, node)
                self._forget(node)
            case ["failed", _, "control", str(why)]:
                self._recorder.judge("commands_obeyed", False, f"{node} was told {why}", now_ns)
            case _:
                pass

    def end(self, now_ns: int) -> None:
        """Judge what is left, once there are no more lines."""
        for node in dict.fromkeys(node for node, _ in self._open):
            if node in self._crashes:  # its last lines may have been lost with it
                self._forget(node)
            else:
                self._judge_overdue(now_ns, node)
        self._recorder.judge("no_frame_from_unverified", True, "", now_ns, times=self._verified)
        for (author, kind, version), (at_ns, node) in self._taken.items():
            if author in self._crashes:
                continue
            kept = (author, kind, version) in self._made
            detail = f"{node} holds version {version} of the {kind} entry in the name of {author}, who never made it"
            self._recorder.judge("gossip_author_only", kept, detail, at_ns)

    def _suspect(self, now_ns: int, node: str, other: str, what: str) -> None:
        if other not in self._names:
            detail = f"{node} {what} {other}, who is nobody here"
            self._recorder.judge("no_frame_from_unverified", False, detail, now_ns)

    # --- inference -------------------------------------------------------------------------------------------------
    def _result(self, now_ns: int, node: str, number: int, by: str, failure: str, right: object) -> None:
        judge = self._recorder.judge
        deadline_ns = self._open.pop((node, number), None)
        detail = f"{node} got an answer to request {number}, which is not open"
        judge("one_answer_per_request", deadline_ns is not None, detail, now_ns)
        if not failure:
            judge("answer_is_right", right is True, f"request {number} of {node} was answered wrongly by {by}", now_ns)
        if deadline_ns is not None and not self._was_slow(node, deadline_ns):
            late_ns = now_ns - deadline_ns
            detail = f"request {number} of {node} ended {late_ns / MS:.0f} ms late"
            judge("requests_end_by_deadline", late_ns <= DEADLINE_SLACK_NS, detail, now_ns)

    def _judge_overdue(self, now_ns: int, node: str) -> None:
        for (asker, number), deadline_ns in self._open.items():
            if asker == node and deadline_ns + DEADLINE_SLACK_NS < now_ns and not self._was_slow(node, deadline_ns):
                detail = f"request {number} of {node} is past its deadline without an answer"
                self._recorder.judge("requests_end_by_deadline", False, detail, now_ns)

    def _was_slow(self, node: str, deadline_ns: int) -> bool:
        return any(
            node in fault.nodes
            and fault.at_s * SECOND <= deadline_ns + DEADLINE_SLACK_NS
            and (not fault.for_s or deadline_ns <= (fault.at_s + fault.for_s) * SECOND + DEADLINE_SLACK_NS)
            for fault in self._slowed
        )

    def _forget(self, node: str) -> None:
        for request in [request for request in self._open if request[0] == node]:
            del self._open[request]

    # --- gossip ----------------------------------------------------------------------------------------------------
    def _entry(self, now_ns: int, node: str, key: tuple[str, str], version: int, source: str) -> None:
        held = self._held.setdefault(node, {})
        if node == key[0] == source:
            if (*key, version) in self._made and held.get(key) == version:
                return  # the journal names it twice: where it was put in, and where the node accepted it
            self._made[*key, version] = None
        elif node != key[0]:
            self._taken.setdefault((*key, version), (now_ns, node))
        before = held.get(key, -1)
        detail = f"{node} took version {version} of the {key[1]} entry of {key[0]} after {before}"
        self._recorder.judge("gossip_forward_only", version > before, detail, now_ns)
        held[key] = version


def passed_over(runs: Sequence[Sequence[Any]], winner: str) -> tuple[str, str] | None:
    """The first run of an answered request that did not lead to its answer, as (node, outcome); None when all went
    well. A run that was cancelled because another was faster does not count.

    ``runs``: (node, outcome, nanoseconds) each.
    """
    took_ns = next((int(run[2]) for run in runs if run[0] == winner and run[1] == "done"), 0)
    for node, outcome, ran_ns in runs:
        if (node, outcome) != (winner, "done") and (outcome != "cancelled" or ran_ns > took_ns):
            return node, outcome
    return None
