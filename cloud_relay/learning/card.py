"""The card of a model, in Markdown: what it is for, what it learned from, and how good it is, for whoever has to decide
whether it may drive."""

import time
from collections.abc import Mapping

from cloud_relay.learning.recipe import Recipe
from cloud_relay.learning.runs import DataUsed, TrainingRun
from cloud_relay.learning.scoring import Comparison
from protocols.base.limits import SECOND


def card_of(run: TrainingRun, recipe: Recipe) -> str:
    """The card of a run that is done."""
    assert run.data is not None
    data, columns = run.data, [("this model", run.metrics)]
    if run.serving_metrics:
        columns.append((run.serving, run.serving_metrics))
    columns.append(("without a model", run.without_model))
    lines = [
        f"# {recipe.name}", "", recipe.description or f"Tells {recipe.target.path}.", "",
        f"Licence: {recipe.licence or 'not stated'}. Run {run.id}, seed {run.seed}.", "",
        "## How good it is", "",
        f"On {data.test_rows} rows that it has never seen, held out by {recipe.split.by}:", "",
        f"| | {' | '.join(name for name, _ in columns)} |", f"|---|{'---|' * len(columns)}",
        *(_line(metric, [each for _, each in columns]) for metric in recipe.metrics), "",
        told_comparison(run.comparison, run.serving) if run.comparison is not None else run.not_released, "",
        "## What it learned from", "",
        _told_data(data), "", *_told_left_out(data),
        "| feature | path |", "|---|---|", *(f"| {name} | `{path}` |" for name, path in recipe.features.items()), "",
        "## How to do it again", "",
        f"Rows {run.data.rows_sha256}, recipe {run.recipe}, code {run.code}; model {run.model}.", "",
        ", ".join(f"{name} {version}" for name, version in run.versions.items()) + ".", "",
    ]  # fmt: skip
    if run.warnings:
        lines += ["## Warnings", "", *(f"- {warning}" for warning in run.warnings), ""]
    return "\n".join(lines)


def told_comparison(comparison: Comparison, serving: str) -> str:
    """What a comparison says, in one sentence."""
    against = serving or "answers without a model"
    word = "better than" if comparison.is_better else "not surely better than"
    return (
        f"It is {word} {against}: {comparison.metric} {comparison.new:g} against {comparison.old:g}, a gain of "
        f"{comparison.gain:+g}, at {comparison.confidence:.4g} at least {comparison.low:+g} ({comparison.rows} rows in "
        f"{comparison.blocks} situations)."
    )


def _told_data(data: DataUsed) -> str:
    return (
        f"{data.name} (SHA-256 {data.sha256}): {data.rows} rows of {data.origins} nodes, from "
        f"{_shown_time(data.begins_utc_ns)} to {_shown_time(data.ends_utc_ns)}; {data.training_rows} to learn from, "
        f"{data.test_rows} held out, {data.dropped} left out."
    )


def _told_left_out(data: DataUsed) -> list[str]:
    if not data.dropped:
        return []
    reasons = [f"| {count} | {_cell(reason)} |" for reason, count in data.dropped_reasons.items()]
    origins = ", ".join(f"{count} of {origin}" for origin, count in data.dropped_origins.items())
    return ["| rows left out | because of |", "|---|---|", *reasons, "", f"They are {origins}.", ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _line(metric: str, columns: list[Mapping[str, float]]) -> str:
    return f"| {metric} | {' | '.join(f'{each.get(metric, 0):g}' for each in columns)} |"


def _shown_time(utc_ns: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(max(min(utc_ns // SECOND, 2**37), 0)))
