"""The jobs that wait for a worker: those of this node first, then those of neighbours in turn.

Own jobs leave in the order in which they came. Neighbours take turns, one job each, however many each of them has; of
one neighbour's jobs, the one whose deadline ends first leaves first.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")


class WaitingJobs(Generic[T]):
    """A queue with one part for this node and one for each neighbour. It has no bound of its own."""

    def __init__(self) -> None:
        self._own: deque[T] = deque()
        self._served: OrderedDict[str, list[tuple[float, int, T]]] = OrderedDict()  # whose turn it is stands first
        self._next = 0

    def __len__(self) -> int:
        return len(self._own) + sum(map(len, self._served.values()))

    @property
    def own(self) -> int:
        """The number of jobs of this node."""
        return len(self._own)

    def all(self) -> Iterator[T]:
        """Every job, in no particular order."""
        yield from self._own
        for jobs in self._served.values():
            yield from (job for _, _, job in jobs)

    def put(self, job: T, asked_by: str | None, deadline_ns: int | None) -> None:
        """Add a job. ``asked_by``: the neighbour that wants it; None: this node."""
        if asked_by is None:
            self._own.append(job)
            return
        self._next += 1
        heappush(self._served.setdefault(asked_by, []), (inf if deadline_ns is None else deadline_ns, self._next, job))

    def take(self) -> T:
        """Remove the job whose turn it is. :raises KeyError: when none waits."""
        if self._own:
            return self._own.popleft()
        neighbour, jobs = self._served.popitem(last=False)
        job = heappop(jobs)[2]
        if jobs:
            self._served[neighbour] = jobs
        return job

    def remove(self, job: T, asked_by: str | None) -> bool:
        """Remove a job that nobody wants any more, and return whether it was still waiting."""
        if asked_by is None:
            if job not in self._own:
                return False
            self._own.remove(job)
            return True
        jobs = self._served.get(asked_by, [])
        left = [entry for entry in jobs if entry[2] is not job]
        if len(left) == len(jobs):
            return False
        if left:
            heapify(left)
            self._served[asked_by] = left
        else:
            del self._served[asked_by]
        return True
