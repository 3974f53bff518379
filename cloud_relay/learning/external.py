"""A recipe's own command: it gets the rows to learn from, and writes a model.

It never gets the rows that are held out. In its environment and, in braces, in its arguments:

    MESHNODE_DATA   {data}   Parquet: a column for each feature, ``target``, ``origin``, ``event_utc_ns``
    MESHNODE_OUT    {out}    the folder for ``model.onnx`` and, if it likes, ``metrics.json``
    MESHNODE_SEED   {seed}   the seed of the recipe

What it prints is kept up to a bound. Its memory is limited with that of the run, and the whole group of processes is
killed when the time of the run is over.
"""

import hashlib
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Final

from cloud_relay.learning.recipe import Recipe, RecipeCommand
from cloud_relay.learning.rows import LearningRows
from cloud_relay.learning.runs import DATA_FILE, OUTPUT_FILE
from cloud_relay.learning.tables import write_table
from meshnode.models.children import end_with, how_it_exited
from protocols.base.errors import ConfigError, LocalProtocolError

MODEL_FILE: Final = "model.onnx"
METRICS_FILE: Final = "metrics.json"
MAX_OUTPUT_BYTES: Final = 1024 * 1024
"""Of what a command prints. The rest is read and dropped, so that it is never stuck."""
MAX_METRICS: Final = 100
_MAX_METRICS_BYTES: Final = 64 * 1024
_MAX_MODEL_BYTES: Final = 2**31 - 1
_SHOWN_BYTES: Final = 400


def model_by_command(
    command: RecipeCommand, recipe: Recipe, training: LearningRows, folder: Path, beside: Path
) -> tuple[bytes, dict[str, float]]:
    """Run the command. Returns the model, and what it told of it. ``folder``: of the run. ``beside``: where the command
    is run.

    :raises ConfigError: it can't be started. :raises LocalProtocolError: it ended with another status than 0, or wrote
        no model.
    """
    out, data = folder / "made", folder / DATA_FILE
    out.mkdir(exist_ok=True)
    columns = {name: training.features[:, number] for number, name in enumerate(recipe.features)}
    write_table(data, {
        **columns, "target": training.target, "origin": training.origin.astype(object),
        "event_utc_ns": training.time_ns,
    }, {"labels": json.dumps(training.labels)})  # fmt: skip
    told = {"data": str(data), "out": str(out), "seed": str(recipe.seed)}
    words = [word.replace("{data}", told["data"]).replace("{out}", told["out"]).replace("{seed}", told["seed"])
             for word in command.run]  # fmt: skip
    try:
        status = _carried_out(words, folder / OUTPUT_FILE, beside, told)
    finally:
        data.unlink(missing_ok=True)  # a copy of the rows in each run would fill the disk
    if status:
        raise LocalProtocolError(
            f"the command {words[0]!r} {how_it_exited(status)}: {_last_words(folder / OUTPUT_FILE)}"
        )
    model = out / MODEL_FILE
    if not model.is_file():
        raise LocalProtocolError(f"the command {words[0]!r} ended well and wrote no {MODEL_FILE} into {{out}}")
    if model.stat().st_size > _MAX_MODEL_BYTES:
        raise LocalProtocolError(f"the {MODEL_FILE} of {words[0]!r} is larger than ONNX allows")
    return model.read_bytes(), _metrics(out / METRICS_FILE, words[0])


def code_digest_of(command: RecipeCommand, beside: Path) -> str:
    """SHA-256 of the command and of those of its words that are files beside the recipe."""
    told = hashlib.sha256(json.dumps(command.run).encode())
    for word in command.run:
        if "\0" not in word and len(word) < 1_000 and (beside / word).is_file():
            with (beside / word).open("rb") as file:
                told.update(hashlib.file_digest(file, "sha256").digest())
    return told.hexdigest()


def _carried_out(words: list[str], output: Path, beside: Path, told: dict[str, str]) -> int:
    environment = os.environ | {f"MESHNODE_{name.upper()}": value for name, value in told.items()}
    parent = os.getpid()
    try:
        process = subprocess.Popen(  # noqa: S603 - the recipe's author is its operator
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=beside,
            env=environment, preexec_fn=lambda: end_with(parent),  # noqa: PLW1509 - this process has one thread
        )  # fmt: skip
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"the command {words[0]!r} can't be started ({why}): correct command.run") from error
    assert process.stdout is not None
    left = MAX_OUTPUT_BYTES
    with output.open("ab") as kept, process.stdout:
        while some := os.read(process.stdout.fileno(), 65_536):
            kept.write(some[:left])
            left -= min(len(some), left)
    return process.wait()


def _last_words(output: Path) -> str:
    text = output.read_bytes()[-_SHOWN_BYTES:].decode(errors="replace").split()
    return f"it printed … {' '.join(text)}" if text else "it printed nothing"


def _metrics(path: Path, word: str) -> dict[str, float]:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(_MAX_METRICS_BYTES + 1))
    except (ValueError, RecursionError) as error:
        raise LocalProtocolError(f"the {METRICS_FILE} of {word!r} is no JSON object of numbers: {error}") from error
    if not isinstance(told, dict) or len(told) > MAX_METRICS:
        raise LocalProtocolError(f"the {METRICS_FILE} of {word!r} is no JSON object of at most {MAX_METRICS} numbers")
    return {
        name[:100]: float(value) for name, value in told.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        and math.isfinite(value)
    }  # fmt: skip
