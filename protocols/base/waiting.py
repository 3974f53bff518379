"""The jobs that wait for a worker: those of this node first, then those of neighbours in turn.

Neighbours take turns, one job each, however many each of them has. Of this node's jobs, and of those of one neighbour,
the one whose deadline ends first leaves first. A job of several runs waits for its turn before each of them.
"""

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")


class WaitingJobs(Generic[T]):
    """A queue with one part for this node and one for each neighbour. It has no bound of its own."""

    def __init__(self) -> None:
        self._own: list[tuple[float, int, T]] = []
        self._served: OrderedDict[str, list[tuple[float, int, T]]] = OrderedDict()  # whose turn it is stands first
        self._next = 0

    def __len__(self) -> int:
        return len(self._own) + sum(map(len, self._served.values()))

    def own(self) -> Iterator[T]:
        """The jobs of this node, in no particular order."""
        return (job for _, _, job in self._own)

    def served(self) -> Iterator[T]:
        """The jobs of neighbours, in no particular order."""
        return (job for jobs in self._served.values() for _, _, job in jobs)

    def all(self) -> Iterator[T]:
        """Every job, in no particular order."""
        yield from self.own()
        yield from self.served()

    def put(self, job: T, asked_by: str | None, deadline_ns: int | None, number: int | None = None) -> int:
        """Add a job, and return its number: of those with equal deadlines, the smallest leaves first. ``asked_by``: the
        neighbour that wants it; None: this node. ``number``: of one that has begun and waits for its next turn."""
        jobs = self._own if asked_by is None else self._served.setdefault(asked_by, [])
        if number is None:
            self._next += 1
            number = self._next
        heappush(jobs, (inf if deadline_ns is None else deadline_ns, number, job))
        return number

    def has_turn_after(self, asked_by: str | None) -> bool:
        """Whether another neighbour has its turn after this one has had one run. Nobody has it after this node."""
        return asked_by is not None and any(other != asked_by for other in self._served)

    def take(self) -> T:
        """Remove the job whose turn it is. :raises KeyError: when none waits."""
        if self._own:
            return heappop(self._own)[2]
        neighbour, jobs = self._served.popitem(last=False)
        job = heappop(jobs)[2]
        if jobs:
            self._served[neighbour] = jobs
        return job

    def remove(self, job: T, asked_by: str | None) -> bool:
        """Remove a job that nobody wants any more, and return whether it was still waiting."""
        jobs = self._own if asked_by is None else self._served.get(asked_by, [])
        at = next((at for at, entry in enumerate(jobs) if entry[2] is job), None)
        if at is None:
            return False
        del jobs[at]
        heapify(jobs)
        if asked_by is not None and not jobs:
            del self._served[asked_by]
        return True
