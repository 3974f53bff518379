"""``cloud-relay train`` and ``cloud-relay runs``."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cloud_relay.config import load_config
from cloud_relay.learning.card import told_comparison
from cloud_relay.learning.launching import release_candidate, train
from cloud_relay.learning.recipe import read_recipe
from cloud_relay.learning.retraining.watching import RUNS_FOLDER, watch
from cloud_relay.learning.runs import CARD_FILE, TrainingRun, alone, keep_run, run_called, runs_in
from cloud_relay.learning.sources import data_of
from cloud_relay.releases.commands.opening import changed, folder_of, published_last, signing
from cloud_relay.releases.shown import BUNDLE_FILE
from protocols.base.errors import LocalProtocolError

if TYPE_CHECKING:
    from cloud_relay.releases.repository import ReleaseRepository

_RUNS = click.option(
    "--runs", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Where runs are kept; default: training in the relay's state folder.",
)  # fmt: skip
_CONFIG = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default="relay.toml", show_default=True,
    help="The relay's configuration.",
)  # fmt: skip


@click.command(name="train")
@signing
@_RUNS
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE",
              help="A Parquet file of 'cloud-relay export', in place of what the recipe names.")  # fmt: skip
@click.option("--publish", "publishes", is_flag=True, help="Publish the model as a release if it is better.")
@click.option("--alone", "is_alone", is_flag=True, help="Compare it with no release; a repository is not read.")
@click.option("--background", is_flag=True, help="Use only processor time that nobody else wants.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", "watches", is_flag=True, help="Train by the tables [[training]] of the relay, until Ctrl-C.")
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
def train_command(
    config_path: Path, folder: Path | None, keys: tuple[Path, ...], runs: Path | None, data: Path | None,
    publishes: bool, is_alone: bool, background: bool, as_json: bool, watches: bool,
    recipe: Path | None,
) -> None:  # fmt: skip
    """Train the model of RECIPE on exported records, measure it on rows that it has not seen beside the release that
    serves, and with --publish make a release of it if it is surely better. The exit status is 1 when the run failed."""
    if watches:
        if recipe is not None:
            raise click.UsageError("--watch trains by the tables [[training]] of the relay: leave RECIPE out")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        watch(load_config(config_path))
    if recipe is None:
        raise click.UsageError("name a RECIPE")
    if publishes and is_alone:
        raise click.UsageError("--publish needs the release that serves: leave --alone out")
    parsed = read_recipe(recipe)
    place = _runs_of(config_path, runs)
    with alone(place), data_of(parsed, recipe.parent, data, config_path, place) as source:
        repository = None if is_alone else _repository(config_path, folder)
        if publishes and repository is None:
            published_last(config_path, folder)  # says why there is none
        run, run_folder = train(parsed, recipe, source, place, repository, is_background=background)
        if publishes and run.state == "done":
            run = _released(config_path, folder, keys, run, run_folder)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(run)).decode())
    else:
        for line in told(run):
            click.echo(line)
    if run.state == "failed":
        raise SystemExit(1)


def _released(
    config_path: Path, folder: Path | None, keys: tuple[Path, ...], run: TrainingRun, run_folder: Path
) -> TrainingRun:
    if not run.is_better:
        run = msgspec.structs.replace(run, not_released=run.not_released or "it is not surely better")
    else:
        with changed(config_path, folder, keys) as repository:
            run = release_candidate(repository, run, run_folder)
    keep_run(run_folder, run)
    return run


def _repository(config_path: Path, folder: Path | None) -> "ReleaseRepository | None":
    """The repository of releases; None: there is none yet."""
    if not (folder_of(config_path, folder) / BUNDLE_FILE).exists():
        return None
    return published_last(config_path, folder)


@click.group(name="runs")
def runs_group() -> None:
    """Show what was trained, from what, and how good it is."""


@runs_group.command(name="list")
@_CONFIG
@_RUNS
@click.option("--name", help="Only those of this model.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_runs(config_path: Path, runs: Path | None, name: str | None, as_json: bool) -> None:
    """Show all runs, the oldest first."""
    if name is not None and ("/" in name or name.startswith(".")):
        raise LocalProtocolError(f"{name[:60]!r} is no name of a model")
    found = list(runs_in(_runs_of(config_path, runs), name))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    for run in found:
        click.echo(f"{run.id}  {run.name}  {_summary(run)}")
    if not found:
        click.echo("nothing was trained: 'cloud-relay train RECIPE'")


@runs_group.command(name="show")
@_CONFIG
@_RUNS
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("run_id")
def show_run(config_path: Path, runs: Path | None, as_json: bool, run_id: str) -> None:
    """Show a run by its id, or the beginning of it: its card, or all that is known of it as JSON."""
    run, folder = run_called(_runs_of(config_path, runs), run_id)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(run)).decode())
    elif run.state == "failed":
        for line in told(run):
            click.echo(line)
    else:
        with _readable(folder):
            click.echo((folder / CARD_FILE).read_text("utf-8"), nl=False)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalProtocolError(f"{folder} can't be read ({error.strerror}): look who owns it") from error


def told(run: TrainingRun) -> Iterator[str]:
    """What a person is told of a run, by lines."""
    yield f"run {run.id} of {run.name}, {run.took_s:.1f} s"
    if run.state == "failed":
        yield f"it failed: {run.error}"
        return
    if run.data is not None:
        yield f"{run.data.name}: {run.data.training_rows} rows to learn from, {run.data.test_rows} held out"
    yield "the model:   " + _numbers(run.metrics)
    if run.serving_metrics:
        yield f"{run.serving + ':':<13}" + _numbers(run.serving_metrics)
    yield "without one: " + _numbers(run.without_model)
    if run.comparison is not None:
        yield told_comparison(run.comparison, run.serving)
    for warning in run.warnings:
        yield f"warning: {warning}"
    if run.release:
        order = f"cloud-relay rollout start {run.name} {run.release}"
        yield f"published as release {run.release}: '{order}' has nodes serve it"
    elif run.not_released:
        yield f"not published: {run.not_released}"


def _summary(run: TrainingRun) -> str:
    if run.state == "failed":
        return f"failed: {run.error[:100]}"
    became = f", release {run.release}" if run.release else ""
    return f"{run.metric} {run.metrics.get(run.metric, 0):g}{became}"


def _numbers(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in metrics.items() if name != "rows")


def _runs_of(config_path: Path, runs: Path | None) -> Path:
    return runs if runs is not None else load_config(config_path).state_dir / RUNS_FOLDER
