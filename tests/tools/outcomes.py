"""Collects the outcomes of jobs, for tests of the runner of models."""

import threading

from meshnode.models import Outcome
from tests.tools.eventually import LIMIT_S


class Outcomes:
    """Collects what the runner says, and from which thread."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.threads: list[str] = []
        self._condition = threading.Condition()

    def __call__(self, outcome: Outcome) -> None:
        with self._condition:
            self.outcomes.append(outcome)
            self.threads.append(threading.current_thread().name)
            self._condition.notify_all()

    def wait_for(self, count: int) -> list[Outcome]:
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.outcomes) >= count, LIMIT_S), self.outcomes
            return list(self.outcomes)
