"""The process of one run: it reads the rows, makes the model, and measures it beside the one that serves.

    python -m cloud_relay.learning.child FOLDER PARENT

It is a process of its own so that whatever a library or a model does, its time and memory are bounded, and neither the
relay nor a person's terminal waits for more than it was told. ``FOLDER`` has the order, and gets ``run.json``.
``PARENT`` is the process whose end ends this one.
"""

import contextlib
import hashlib
import importlib
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

import msgspec

from cloud_relay.learning.candidate import (
    check_comparable,
    outputs_of,
    outputs_where_possible,
    without_incomputable,
    write_candidate,
)
from cloud_relay.learning.card import card_of
from cloud_relay.learning.estimators import as_onnx, check_rows, check_same, features_of, fitted, library_versions
from cloud_relay.learning.external import code_digest_of, model_by_command
from cloud_relay.learning.recipe import Recipe, read_recipe
from cloud_relay.learning.rows import MAX_NODES_TOLD, MAX_REASONS_TOLD, LearningRows, read_rows
from cloud_relay.learning.runs import (
    CARD_FILE,
    ORDER_FILE,
    RECIPE_FILE,
    RELEASE_FOLDER,
    DataUsed,
    TrainingOrder,
    TrainingRun,
    keep_run,
    sha256_of,
)
from cloud_relay.learning.scoring import compared, measured, without_model
from cloud_relay.learning.splitting import split, without_rare_classes
from meshnode.models import ModelSpec, load_model
from meshnode.models.children import end_with, is_about_memory
from protocols.base.errors import LocalProtocolError, MeshError

_ESTIMATORS: Final = ("sklearn.ensemble", "skl2onnx")
_LOWEST: Final = 19
_MAX_ERROR_CHARS: Final = 2_000


def main(folder: Path) -> int:
    """Carry out the order in a folder. Returns the exit status: 0 done, 1 it failed and said why."""
    order = msgspec.json.decode((folder / ORDER_FILE).read_bytes(), type=TrainingOrder)
    began_utc_s, began_s = time.time(), time.monotonic()
    failed: dict[str, Any] = {"id": folder.name, "name": folder.parent.name, "began_utc_s": began_utc_s}
    recipe: Recipe | None = None
    try:
        recipe = read_recipe(folder / RECIPE_FILE)
        if order.is_background:
            os.nice(_LOWEST)
        _bound_memory(recipe)
        done = _train(folder, order, recipe)
        run = TrainingRun(**failed, state="done", **done, took_s=_since(began_s), processor_s=_processor_s())
        (folder / CARD_FILE).write_text(card_of(run, recipe), "utf-8")
        keep_run(folder, run)
    except Exception as error:  # noqa: BLE001 - whatever it is, whoever asked has to be told
        if not isinstance(error, MeshError) and not is_about_memory(error):
            traceback.print_exc()
        told = _explained(error, recipe)[:_MAX_ERROR_CHARS]
        keep_run(folder, TrainingRun(**failed, state="failed", error=told, took_s=_since(began_s),
                                     recipe=recipe.digest() if recipe is not None else ""))  # fmt: skip
        return 1
    return 0


def _train(folder: Path, order: TrainingOrder, recipe: Recipe) -> dict[str, Any]:
    data = Path(order.data)
    sha256 = sha256_of(data)
    rows = read_rows(data, recipe)
    check_rows(rows)
    rows = without_rare_classes(rows, recipe)
    training, test = split(rows, recipe)
    told: dict[str, float] = {}
    warned: list[str] = []
    estimator: Any = None
    if recipe.command is not None:
        beside = Path(order.recipe_folder)
        code = code_digest_of(recipe.command, beside)
        content, told = model_by_command(recipe.command, recipe, training, folder, beside)
    else:
        assert recipe.model is not None
        code = _own_digest()
        estimator, warned = fitted(recipe, recipe.model, training)
        content = as_onnx(estimator, recipe)
    model, outputs, test = write_candidate(folder / RELEASE_FOLDER, content, recipe, test, rows.left_out)
    metrics = measured(outputs, test)
    if estimator is not None:
        check_same(estimator, outputs, test)
    naive = without_model(training, test)
    against, serving_metrics, not_released = naive, {}, ""
    if order.serving is not None:
        try:
            check_comparable(Path(order.serving), test.labels, recipe, features_of(content))
            serving = load_model(ModelSpec(recipe.name, Path(order.serving)))
            _, can = outputs_where_possible(serving, test.features)
            both = without_incomputable(can, test, "the model that serves", rows.left_out)
            outputs = {name: array[can] for name, array in outputs.items()}
            against, test = outputs_of(serving, both.features), both
            metrics, serving_metrics = measured(outputs, test), measured(against, test)
        except MeshError as error:
            not_released = f"it can't be compared with {order.serving_name}: {error}"
    comparison = None
    if not not_released:
        try:
            comparison = compared(outputs, against, test, recipe.metric, recipe.evaluation, recipe.seed)
        except LocalProtocolError as error:
            not_released = str(error)
    used = _used(order, sha256, rows, training, test)
    return {
        "recipe": recipe.digest(), "code": code, "seed": recipe.seed, "versions": library_versions(), "data": used,
        "metric": recipe.metric, "metrics": metrics, "without_model": measured(naive, test),
        "serving": order.serving_name, "serving_metrics": serving_metrics, "comparison": comparison,
        "model": model.digest, "model_sha256": hashlib.sha256(content).hexdigest(), "warnings": tuple(warned),
        "told": told, "not_released": not_released,
    }  # fmt: skip


def _used(
    order: TrainingOrder, sha256: str, rows: LearningRows, training: LearningRows, test: LearningRows
) -> DataUsed:
    reasons, origins = rows.left_out.reasons, rows.left_out.origins
    return DataUsed(
        order.data_name, sha256, rows.digest(), len(rows), len(training), len(test), rows.left_out.total,
        int(rows.time_ns[0]), int(rows.time_ns[-1]), len(set(rows.origin.tolist())),
        dict(reasons.most_common(MAX_REASONS_TOLD)), dict(origins.most_common(MAX_NODES_TOLD)),
    )  # fmt: skip


def _own_digest() -> str:
    """SHA-256 of the code of this room."""
    told = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        told.update(path.read_bytes())
    return told.hexdigest()


def _bound_memory(recipe: Recipe) -> None:
    """Limit the data of this process and of its children. Libraries are loaded before, because they are none of the
    run's."""
    for library in ("onnxruntime", "pyarrow.parquet", *(_ESTIMATORS if recipe.model is not None else ())):
        with contextlib.suppress(ImportError):  # it is told where it is needed
            importlib.import_module(library)

    limit_bytes = (recipe.limits.memory_mib << 20) + _data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0


def _explained(error: Exception, recipe: Recipe | None) -> str:
    if is_about_memory(error) and recipe is not None:
        limit_mib = recipe.limits.memory_mib
        return f"it needs more than the {limit_mib} MiB of limits.memory_mib: raise it, or select fewer rows"
    return str(error) if isinstance(error, MeshError) else f"it failed in an unforeseen way: {error!r}"


def _since(began_s: float) -> float:
    return round(time.monotonic() - began_s, 3)


def _processor_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(each.ru_utime + each.ru_stime for each in used), 3)


if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    sys.exit(main(Path(sys.argv[1])))
