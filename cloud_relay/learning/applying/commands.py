"""``cloud-relay infer``: a model over all records of an exported file."""

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from cloud_relay.learning.applying.chunks import ApplyOrder
from cloud_relay.learning.applying.cluster import on_ray
from cloud_relay.learning.applying.processes import on_processes
from cloud_relay.learning.applying.work import Applied, Computing, apply_model
from cloud_relay.learning.candidate import check_form
from cloud_relay.learning.estimators import features_of
from cloud_relay.learning.launching import unpacked
from cloud_relay.learning.recipe import Recipe, read_recipe
from cloud_relay.learning.runs import sha256_of
from cloud_relay.learning.sources import exported_dataset
from cloud_relay.learning.tables import opened_table
from cloud_relay.releases.commands.opening import places, published_last
from meshnode.models import ModelSpec, load_model
from protocols.base.errors import LocalProtocolError, ModelInvalid

_RELEASE: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})@([1-9]\d{0,8})")
_TOLD_EACH_S: Final = 0.5


@click.command()
@places
@click.option("--model", required=True, metavar="MODEL",
              help="An ONNX file, or a release as NAME@COUNTER.")  # fmt: skip
@click.option("--data", required=True, metavar="DATA",
              help="A Parquet file of 'cloud-relay export', or a dataset as NAME@VERSION.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Where predictions go.")
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE",
              help="Says which records are meant, and the features of a model that does not name them.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 1_024), default=os.cpu_count() or 1, show_default="the cores there are",
              help="Processes that compute.")  # fmt: skip
@click.option(
    "--ray", metavar="ADDRESS", help="Compute on this Ray cluster, as HOST:6379 or auto; needs meshnode[ray]."
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
def infer(
    config_path: Path, folder: Path | None, model: str, data: str, out: Path, recipe: Path | None, jobs: int,
    ray: str | None, overwrite: bool,
) -> None:  # fmt: skip
    """Run MODEL over all records of DATA and write a prediction for each that has all features. An interrupted call
    goes on where it was when it is repeated."""
    parsed = None if recipe is None else read_recipe(recipe)
    with _file_of(model, config_path, folder) as (file, name), _data_of(data, config_path, out) as path:
        order = order_for(file, name, path, parsed)

        def compute(order: ApplyOrder, numbers: "list[int]", parts: Path) -> Iterator[tuple[int, int, int]]:
            if ray is not None:
                return on_ray(order, numbers, parts, ray)
            return on_processes(order, numbers, parts, min(jobs, max(len(numbers), 1)))

        computing: Computing = compute  # type: ignore[assignment]
        began_s = time.monotonic()
        applied = apply_model(order, out, computing, _Progress().told, overwrite=overwrite)
    _say(applied, order, out, time.monotonic() - began_s)


def order_for(file: Path, name: str, data: Path, recipe: Recipe | None) -> ApplyOrder:
    """What is to be computed. :raises MeshError: the model or the data can't be used, or the features are not known."""
    loaded = load_model(ModelSpec(name, file))
    features = features_of(file.read_bytes()) or (None if recipe is None else dict(recipe.features))
    if features is None:
        raise ModelInvalid(f"{file} does not say which features it takes: name its recipe with --recipe")
    check_form(loaded, len(features))
    with opened_table(data) as table:
        rows = table.count
    if not rows:
        raise LocalProtocolError(f"{data} has no records: export others")
    return ApplyOrder(
        str(data.resolve()), sha256_of(data), str(file.resolve()), loaded.digest, name, dict(features), rows,
        None if recipe is None else recipe.data.keys, None if recipe is None else recipe.data.rule,
    )  # fmt: skip


@contextmanager
def _file_of(model: str, config_path: Path, folder: Path | None) -> Iterator[tuple[Path, str]]:
    """The file of a model, and its name. :raises ReleaseInvalid: there is no such release."""
    path, found = Path(model), _RELEASE.fullmatch(model)
    if path.is_file():
        yield path, path.stem[:100] or "model"
        return
    if found is None:
        raise LocalProtocolError(f"{model[:200]} is no file: name an ONNX file, or a release as NAME@COUNTER")
    repository = published_last(config_path, folder)

    from cloud_relay.releases.publishing import description_of

    with tempfile.TemporaryDirectory(prefix="model-") as place:
        release = description_of(repository, f"models/{found[1]}", int(found[2]))
        yield unpacked(repository, release, Path(place) / "release"), found[1]


@contextmanager
def _data_of(data: str, config_path: Path, out: Path) -> Iterator[Path]:
    """The file of the data. A version of a dataset is written anew each time, with the same bytes, so a call that is
    repeated goes on."""
    if Path(data).exists() or not _RELEASE.fullmatch(data):
        yield Path(data)
        return
    with exported_dataset(data, config_path, out.with_name(f".{out.name}.data.parquet")) as source:
        yield source.path


class _Progress:
    """How far it is, on a terminal."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def told(self, done: int, total: int) -> None:
        """Say so, now and then."""
        if not sys.stderr.isatty() or (time.monotonic() < self._next_s and done < total):
            return
        self._next_s = time.monotonic() + _TOLD_EACH_S
        sys.stderr.write(f"\r{done} of {total} chunks\x1b[K" + ("\r\x1b[K" if done == total else ""))
        sys.stderr.flush()


def _say(applied: Applied, order: ApplyOrder, out: Path, took_s: float) -> None:
    resumed = f", {applied.resumed} of {order.chunks} chunks were there already" if applied.resumed else ""
    click.echo(
        f"{applied.predictions} predictions of {order.name} {order.model_digest[:12]} in {out}, "
        f"{applied.left_out.told() or '0 left out'}, {took_s:.1f} s{resumed}"
    )
