"""Chunks over all cores of this machine: spawned processes, each with the model loaded once.

A process that is killed fails its chunks; they are computed again, a few times, by new ones. All end with the process
that started them, however that ended.
"""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Final

from cloud_relay.learning.applying.chunks import ApplyOrder, compute_chunk, loaded
from meshnode.models import LoadedModel
from meshnode.models.children import end_with
from protocols.base.errors import InferenceError

MAX_ATTEMPTS: Final = 3
"""Of a chunk whose process is killed. A chunk that kills its process would go on for ever otherwise."""
_PER_PROCESS: Final = 2
_model: LoadedModel | None = None
"""Of the process that computes."""


def on_processes(
    order: ApplyOrder, numbers: Sequence[int], folder: Path, jobs: int
) -> Iterator[tuple[int, int, int]]:  # fmt: skip
    """Compute chunks. Yields the number of each, how many predictions it has and how many rows were left out.

    :raises MeshError: the data can't be read, the model fails, or a chunk kills its process again and again.
    """
    waiting, attempts = list(reversed(numbers)), Counter[int]()
    while waiting:
        under_way: dict[Future[tuple[int, int]], int] = {}
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin, (order, os.getpid()))
        try:
            while waiting or under_way:
                while waiting and len(under_way) < jobs * _PER_PROCESS:
                    number = waiting.pop()
                    attempts[number] += 1
                    under_way[pool.submit(_compute, order, number, path_of_chunk(folder, number))] = number
                ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in sorted(ended, key=under_way.__getitem__):
                    count, skipped = future.result()
                    yield under_way.pop(future), count, skipped
        except BrokenProcessPool as error:
            lost = sorted(under_way.values(), reverse=True)
            if worst := [number for number in lost if attempts[number] >= MAX_ATTEMPTS]:
                raise InferenceError(
                    f"rows {worst[-1] * order.chunk_rows} and following were begun {MAX_ATTEMPTS} times, and each "
                    "time a process was killed: is memory short? Use fewer --jobs"
                ) from error
            waiting += lost
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def path_of_chunk(folder: Path, number: int) -> Path:
    """The file of a chunk."""
    return folder / f"{number:08}.parquet"


def _begin(order: ApplyOrder, parent: int) -> None:
    global _model
    end_with(parent)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    _model = None


def _compute(order: ApplyOrder, number: int, path: Path) -> tuple[int, int]:
    """In a process of the pool. The model is loaded here, because errors of ``_begin`` would only break the pool."""
    global _model
    if _model is None:
        _model = loaded(order)
    return compute_chunk(order, _model, number, path)
