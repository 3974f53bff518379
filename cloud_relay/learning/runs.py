"""Runs: each training has a folder that says what came of it, and from what, so that it can be told later why a model
is as it is, and be done again.

    RUNS/NAME/20261130T231500Z-1a2b3c4d/
        recipe.toml   order.json      what was asked for
        run.json                      what came of it (:class:`TrainingRun`), written last
        release/                      the model, its manifest and golden vectors, as they are published
        card.md       output.txt      for people; what the libraries or the command printed

A folder without ``run.json`` is a run that is under way, or was killed.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from cloud_relay.learning.scoring import Comparison
from meshnode.identity.private_files import make_private_folder
from protocols.base.errors import LocalProtocolError, StorageError

RUN_FILE: Final = "run.json"
ORDER_FILE: Final = "order.json"
RECIPE_FILE: Final = "recipe.toml"
RELEASE_FOLDER: Final = "release"
OUTPUT_FILE: Final = "output.txt"
CARD_FILE: Final = "card.md"
DATA_FILE: Final = "training.parquet"
"""The rows for a command, while it runs."""
MAX_RUNS_KEPT: Final = 200
"""Of one name. Older ones are removed, because a trigger may train every hour."""
_MAX_RUN_BYTES: Final = 4 * 1024 * 1024


class DataUsed(Struct, frozen=True):
    """The data of a run."""

    name: str
    """The file, or the dataset with its version."""
    sha256: str
    """Of the file."""
    rows_sha256: str = ""
    """Of what was learned from and measured by, whatever the order in the file."""
    rows: int = 0
    training_rows: int = 0
    test_rows: int = 0
    dropped: int = 0
    """Rows that the recipe selects, and that were left out."""
    begins_utc_ns: int = 0
    ends_utc_ns: int = 0
    origins: int = 0
    dropped_reasons: Mapping[str, int] = {}
    """Rows by why they were left out."""
    dropped_origins: Mapping[str, int] = {}
    """Rows that were left out by the nodes that sent most of them."""


class TrainingOrder(Struct, frozen=True):
    """What the process of a run is to do."""

    recipe_folder: str
    """Where a command is run."""
    data: str
    data_name: str
    serving: str | None = None
    """The file of the model that serves."""
    serving_name: str = ""
    is_background: bool = False
    """Whether it gets only the processor time that nobody else wants."""


class TrainingRun(Struct, frozen=True, kw_only=True):
    """What came of a run."""

    id: str
    name: str
    state: Literal["done", "failed"]
    began_utc_s: float
    took_s: float = 0.0
    processor_s: float = 0.0
    error: str = ""
    recipe: str = ""
    """The digest of the recipe."""
    code: str = ""
    """The digest of the code that trained: the room of learning, or the program of the command."""
    seed: int = 0
    versions: Mapping[str, str] = {}
    data: DataUsed | None = None
    metric: str = ""
    metrics: Mapping[str, float] = {}
    """Of the model, on the rows that were held out."""
    without_model: Mapping[str, float] = {}
    """Of who answers without features."""
    serving: str = ""
    """The release that it was compared with; empty: nothing serves yet."""
    serving_metrics: Mapping[str, float] = {}
    comparison: Comparison | None = None
    model: str = ""
    """The digest of the model, as nodes name it."""
    model_sha256: str = ""
    """Of the file alone."""
    warnings: tuple[str, ...] = ()
    told: Mapping[str, float] = {}
    """What a command wrote into ``metrics.json``; nothing is decided by it."""
    release: int = 0
    """The counter of the release that it became; 0: none."""
    not_released: str = ""
    """Why it was not released."""

    @property
    def is_better(self) -> bool:
        """Whether it may take the place of what serves."""
        return self.state == "done" and self.comparison is not None and self.comparison.is_better


def new_run(runs: Path, name: str, recipe: bytes, digest: str) -> tuple[str, Path]:
    """Make the folder of a run. Returns its id and the folder. :raises StorageError: it can't be made."""
    stem = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{digest[:8]}"
    try:
        make_private_folder(runs)
        make_private_folder(runs / name)
        number = 0
        while (runs / name / (run_id := f"{stem}-{number}" if number else stem)).exists():
            number += 1
        folder = runs / name / run_id
        make_private_folder(folder)
        (folder / RECIPE_FILE).write_bytes(recipe)
    except OSError as error:
        raise StorageError(f"{runs} can't be written ({error.strerror}): name another folder with --runs") from error
    return run_id, folder


def keep_run(folder: Path, run: TrainingRun) -> None:
    """Write what came of a run, whole or not at all. :raises StorageError: it can't be written."""
    try:
        fresh = folder / f".{RUN_FILE}.{os.getpid()}"
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1))
        fresh.replace(folder / RUN_FILE)
    except OSError as error:
        raise StorageError(f"{folder} can't be written ({error.strerror}): free space on that disk") from error


def read_run(folder: Path) -> TrainingRun | None:
    """What came of a run; None: it is under way, was killed, or its file is damaged."""
    try:
        with (folder / RUN_FILE).open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_RUN_BYTES), type=TrainingRun)
    except (OSError, msgspec.DecodeError):
        return None


def runs_in(runs: Path, name: str | None = None) -> Iterator[TrainingRun]:
    """All runs, or those of a name, the oldest first."""
    folders = sorted(runs.glob(f"{name or '*'}/*/"), key=lambda folder: (folder.name, folder.parent.name))
    yield from (run for folder in folders if (run := read_run(folder)) is not None)


def run_called(runs: Path, run_id: str) -> tuple[TrainingRun, Path]:
    """A run by its id or the beginning of it. :raises LocalProtocolError: none or several begin with it."""
    found = [folder for folder in sorted(runs.glob("*/*/")) if folder.name.startswith(run_id)]
    if len(found) != 1:
        raise LocalProtocolError(
            f"{len(found)} runs in {runs} begin with {run_id[:60]!r}: 'cloud-relay runs list' shows their ids"
        )
    run = read_run(found[0])
    if run is None:
        raise LocalProtocolError(f"the run {found[0].name} is under way, or was killed: there is no {RUN_FILE} yet")
    return run, found[0]


def forget_old_runs(runs: Path, name: str) -> None:
    """Remove the oldest runs of a name beyond ``MAX_RUNS_KEPT``; released ones stay."""
    import shutil

    folders = sorted((runs / name).glob("*/"))
    for folder in folders[: max(len(folders) - MAX_RUNS_KEPT, 0)]:
        run = read_run(folder)
        if run is None or not run.release:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def alone(runs: Path) -> Iterator[None]:
    """Nobody else trains into this folder meanwhile; a process that is killed lets go.

    :raises LocalProtocolError: somebody does. :raises StorageError: the folder can't be made.
    """
    try:
        make_private_folder(runs)
        descriptor = os.open(runs / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{runs} can't be used ({error.strerror}): name another folder with --runs") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalProtocolError(f"another training is under way in {runs}: wait for it") from error
        yield
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The digest of a file. :raises StorageError: it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path} can't be read ({error.strerror}): name an exported Parquet file") from error
