"""A run from outside: its process, the bounds of it, and the release that it may become.

The process computes; signing keys, the repository and the decision stay here. One run at a time writes into a folder of
runs, whoever starts it.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from cloud_relay.export.whole_file import ends_by_signals
from cloud_relay.learning.recipe import Recipe
from cloud_relay.learning.runs import (
    DATA_FILE,
    ORDER_FILE,
    OUTPUT_FILE,
    TrainingOrder,
    TrainingRun,
    forget_old_runs,
    keep_run,
    new_run,
    read_run,
)
from cloud_relay.learning.sources import DataSource
from meshnode.models.children import child_command, child_environment, how_it_exited
from protocols.base.errors import ReleaseInvalid

if TYPE_CHECKING:
    from cloud_relay.releases.repository import ReleaseRepository
    from protocols.releases.catalogue import Description

SERVING_FOLDER: Final = "serving"
_KILLS: Final = 200
_BETWEEN_KILLS_S: Final = 0.01
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""With more, sums come in another order, and the last bits of a model would depend on the computer."""


def train(
    recipe: Recipe, recipe_path: Path, source: DataSource, runs: Path, repository: "ReleaseRepository | None" = None,
    *, is_background: bool = False,
) -> tuple[TrainingRun, Path]:  # fmt: skip
    """Make a run, and wait for its end. ``repository``: where the model that serves is; None: nothing is compared but
    answers without a model. The caller holds :func:`cloud_relay.learning.runs.alone`.

    Returns what came of it, also when it failed, and its folder. :raises StorageError: the folder can't be written.
    """
    run_id, folder = new_run(runs, recipe.name, recipe_path.read_bytes(), recipe.digest())
    serving = None if repository is None else release_to_beat(repository, f"models/{recipe.name}")
    order = TrainingOrder(str(recipe_path.resolve().parent), str(source.path), source.name, is_background=is_background)
    if serving is not None and repository is not None:
        model = unpacked(repository, serving, folder / SERVING_FOLDER)
        order = replace(order, serving=str(model), serving_name=f"release {serving.counter}")
    (folder / ORDER_FILE).write_bytes(msgspec.json.encode(order))
    began_s, began_utc_s = time.monotonic(), time.time()
    try:
        with ends_by_signals():
            why = _carried_out(folder, recipe)
    finally:
        shutil.rmtree(folder / SERVING_FOLDER, ignore_errors=True)
        (folder / DATA_FILE).unlink(missing_ok=True)
    run = read_run(folder)
    if run is None:
        run = TrainingRun(
            id=run_id, name=recipe.name, state="failed", error=why or "it left nothing behind", seed=recipe.seed,
            began_utc_s=began_utc_s, took_s=round(time.monotonic() - began_s, 3), recipe=recipe.digest(),
        )  # fmt: skip
        keep_run(folder, run)
    forget_old_runs(runs, recipe.name)
    return run, folder


def _carried_out(folder: Path, recipe: Recipe) -> str:
    """Run the process to its end, or to that of its time. Returns why it ended badly; empty: it did not."""
    environment = {**child_environment(), **dict.fromkeys(_THREADS, "1"), "PYTHONHASHSEED": "0"}
    command = child_command("cloud_relay.learning.child", folder, os.getpid())
    with (folder / OUTPUT_FILE).open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - a module of ours
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        status = process.wait(recipe.limits.timeout_s)
    except subprocess.TimeoutExpired:
        return f"it took longer than the {recipe.limits.timeout_s:g} s of limits.timeout_s, and was ended"
    finally:
        _kill_group(process)
    said = f"the process {how_it_exited(status)}: see {OUTPUT_FILE} of the run"
    return "" if status in (0, 1) else f"{said}, or raise limits.memory_mib if it was short of memory"


def _kill_group(leader: "subprocess.Popen[bytes]") -> None:
    """Kill a process with all that it has started, until nobody is left: a shell that is just starting something leaves
    that behind when its group is killed once."""
    for _ in range(_KILLS):
        try:
            os.killpg(leader.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            break
        leader.poll()
        time.sleep(_BETWEEN_KILLS_S)
    leader.wait()


def release_to_beat(repository: "ReleaseRepository", path: str) -> "Description | None":
    """What a candidate is compared with: the release that serves, or a newer one that no order has named yet. Otherwise
    a relay would publish the same improvement again and again until somebody rolls it out. None: there is none."""
    from cloud_relay.releases.ordering import orders_in
    from cloud_relay.releases.publishing import description_of, listed_releases

    serving = serving_release(repository, path)
    named = {order.counter for order in orders_in(repository) if order.path == path}
    least = 0 if serving is None else serving.counter
    waiting = [
        counter for each, counter in listed_releases(repository)
        if each == path and counter > least and counter not in named
    ]  # fmt: skip
    return description_of(repository, path, waiting[-1]) if waiting else serving


def serving_release(repository: "ReleaseRepository", path: str) -> "Description | None":
    """The release that is out: that of the newest order that was not aborted, else the newest that is listed; None:
    there is none."""
    from cloud_relay.releases.ordering import orders_in
    from cloud_relay.releases.publishing import description_of, listed_releases

    listed = [counter for each, counter in listed_releases(repository) if each == path]
    ordered = [
        order.counter for order in orders_in(repository)
        if order.path == path and order.state != "aborted" and order.counter in listed
    ]  # fmt: skip
    known = ordered or listed
    return description_of(repository, path, known[-1]) if known else None


def unpacked(repository: "ReleaseRepository", release: "Description", folder: Path) -> Path:
    """Write the files of a release into a folder. Returns that of the model.

    :raises StorageError: chunks are missing.
    """
    return repository.shelf.unpack(release, folder)


def release_candidate(repository: "ReleaseRepository", run: TrainingRun, folder: Path) -> TrainingRun:
    """List the model of a run as a release, if it is better than what serves now; the caller commits. Returns the run
    with what became of it.

    :raises ReleaseInvalid: it can't be listed: its keys are not at hand, say.
    """
    from cloud_relay.releases.publishing import publish

    now = release_to_beat(repository, f"models/{run.name}")
    if not run.is_better:
        assert run.comparison is not None or run.not_released or run.state == "failed"
        return replace(run, not_released=run.not_released or "it is not surely better")
    if run.serving != ("" if now is None else f"release {now.counter}"):
        raise ReleaseInvalid(
            f"release {now.counter if now else 0} is to be beaten by now, and {run.id} was compared with "
            f"{run.serving or 'none'}: train again"
        )
    assert run.comparison is not None
    gain = run.comparison
    described = publish(
        repository, folder / "release", name=run.name,
        changelog=f"{gain.metric} {gain.new:g} against {gain.old:g} of {run.serving or 'no model'} on {gain.rows} "
                  f"rows; run {run.id}",
    )  # fmt: skip
    return replace(run, release=described.counter)
