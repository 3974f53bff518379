"""Models in worker processes, for tests: patience that is short where something is bound to go wrong."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.misbehaving import LIMIT_MIB, Kind, write_misbehaving
from meshnode.models import Cancellation, ModelSpec
from meshnode.models.worker import Patience, WorkerModel, Workers

SHORT = Patience(grace_s=0.2, first_pause_s=2.0)
"""A pause that a test may still be in after a stall."""


class Troubled:
    """What was told about models that are out of service."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str | None]] = []

    def __call__(self, model: str, why: str | None) -> None:
        self.told.append((model, why))


@pytest.fixture(name="troubled")
def given_troubled() -> Troubled:
    return Troubled()


@pytest.fixture(name="workers")
def given_workers(troubled: Troubled) -> Iterator[Workers]:
    made = Workers(troubled, SHORT)
    with contextlib.closing(made):
        yield made


@pytest.fixture(name="bad")
def given_bad(workers: Workers, tmp_path: Path) -> Callable[[Kind], WorkerModel]:
    """Load a model that crashes, hangs or grows when it is told to."""

    def load(kind: Kind) -> WorkerModel:
        path = write_misbehaving(tmp_path / f"{kind}.onnx", kind)
        return workers.load(ModelSpec(kind, path, memory_limit_mib=LIMIT_MIB))

    return load


def within(seconds: float) -> Cancellation:
    """A switch of a run with a deadline."""
    return Cancellation(time.monotonic_ns() + int(seconds * 1e9))


def running(process_id: int) -> bool:
    """Whether there is such a process, dead ones that nobody has waited for left out."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def open_files(process_id: int) -> list[str]:
    """What its descriptors lead to."""
    found = []
    for path in Path(f"/proc/{process_id}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(path.readlink()))
    return found
