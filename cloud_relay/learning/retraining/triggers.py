"""When a model is trained again: tables ``[[training]]`` of the relay's configuration.

    [[training]]
    recipe = "hotspot.toml"     # beside relay.toml
    records = 10_000            # after so many new ones that the recipe selects
    every = "1d"                # and after this time, if there are new ones
    drift = "error"             # and when the serving model errs otherwise than before; or a path
    detector = "adwin"          # or page_hinkley, kswin
    publish = true              # make a release of what is surely better

A state of a trigger says how far it has looked at the store, and what it found since the last run. It is a file, so a
relay that is restarted goes on where it was. A run that fails is repeated, later each time, and at last only when the
trigger fires anew.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from cloud_relay.config import RelayConfig
from cloud_relay.learning.recipe import Recipe, read_recipe
from cloud_relay.spans import untrusted_span_s
from meshnode.config.parsing import Problem, Section, TableReader, problem_report, shown
from meshnode.identity.private_files import make_private_folder
from protocols.base.errors import ConfigError, StorageError

ERROR: Final = "error"
MAX_TRIGGERS: Final = 100
MAX_ATTEMPTS: Final = 5
"""Of one firing. What fails five times in half an hour fails for a reason that only a person or new records remove."""
FIRST_RETRY_S: Final = 60.0
"""Each further one waits twice as long."""
MIN_BETWEEN_S: Final = 30.0
"""Between the end of a run and the begin of the next one of a recipe, whatever its triggers say."""


def _check_span(value: str) -> str | None:
    return None if untrusted_span_s(value) else "is no span of time: use one as in 90s, 10m, 2h or 1d"


class TrainingTrigger(Section, frozen=True, kw_only=True):
    """A table ``[[training]]``."""

    recipe: Annotated[str, Meta(min_length=1, description="The file of the recipe, beside the relay's configuration.")]
    records: Annotated[
        int | None, Meta(ge=1, le=10**12, description="Train after so many new records that the recipe selects.")
    ] = None
    every: Annotated[
        str | None,
        Meta(description="Train after this time, if there are new records.", extra={"check": _check_span}),
    ] = None
    drift: Annotated[
        str | None,
        Meta(
            min_length=1,
            description="Train when this changes from before: `error`, those of the model that serves, or a path of a "
            "recipe.",
        ),
    ] = None
    detector: Annotated[
        Literal["adwin", "page_hinkley", "kswin"], Meta(description="How a change is found, by river.")
    ] = "adwin"
    publish: Annotated[bool, Meta(description="Whether what is surely better becomes a release.")] = True

    def conflicts(self) -> Iterator[Problem]:
        """A trigger that never fires."""
        if self.records is None and self.every is None and self.drift is None:
            yield Problem("records", None, "is missing, and so are 'every' and 'drift': say when to train")

    @property
    def every_s(self) -> float | None:
        """``every`` in seconds."""
        span_s = untrusted_span_s(self.every)
        return None if span_s is None else float(span_s)


class TriggerState(Struct):
    """How far a trigger is."""

    number: int = 0
    """Up to which record of the store it has looked."""
    records: int = 0
    """New ones since the last run that was done."""
    last_utc_s: float = 0.0
    """When the last run ended; 0: there was none."""
    has_drifted: bool = False
    attempts: int = 0
    """Failed runs in a row."""
    retry_utc_s: float = 0.0
    last_failure: str = ""


def triggers_of(config: RelayConfig) -> list[tuple[TrainingTrigger, Path, Recipe]]:
    """The triggers of a relay with their recipes and the files of these.

    :raises ConfigError: a table or a recipe is wrong, or two train one model.
    """
    if len(config.trainings) > MAX_TRIGGERS:
        raise ConfigError(f"{config.path}: {len(config.trainings)} tables [[training]]: use at most {MAX_TRIGGERS}")
    found: list[tuple[TrainingTrigger, Path, Recipe]] = []
    for number, table in enumerate(config.trainings):
        reader, key = TableReader(), f"training[{number}]"
        trigger: Any = reader.read_table(TrainingTrigger, table, key)
        if reader.problems or not isinstance(trigger, TrainingTrigger):
            raise ConfigError(problem_report(str(config.path), tuple(reader.problems)))
        path = config.path.parent / trigger.recipe
        recipe = read_recipe(path)
        if any(each.name == recipe.name for _, _, each in found):
            raise ConfigError(
                f"{config.path}: {key}.recipe = {shown(trigger.recipe)}: two tables train {recipe.name!r}"
            )
        if recipe.data.file is not None or recipe.data.dataset is not None:
            raise ConfigError(
                f"{path}: data.file and data.dataset name data that stay as they are: leave them out, and the relay "
                "exports its records for each run"
            )
        found.append((trigger, path, recipe))
    return found


def why_due(trigger: TrainingTrigger, state: TriggerState, now_utc_s: float) -> str:
    """Why a model is to be trained now; empty: it is not."""
    if now_utc_s < max(state.retry_utc_s, state.last_utc_s + MIN_BETWEEN_S if state.last_utc_s else 0.0):
        return ""
    if not state.records:
        return ""
    if state.has_drifted:
        return f"{trigger.drift} has drifted"
    if trigger.records is not None and state.records >= trigger.records:
        return f"{state.records} new records"
    if trigger.every_s is not None and now_utc_s - state.last_utc_s >= trigger.every_s:
        return f"{trigger.every} are over"
    return ""


def after_run(state: TriggerState, failure: str, now_utc_s: float) -> TriggerState:
    """The state after a run. ``failure``: empty: it was done."""
    if not failure:
        return TriggerState(number=state.number, last_utc_s=now_utc_s)
    attempts = state.attempts + 1
    state = msgspec.structs.replace(
        state, attempts=attempts, last_failure=failure[:1_000],
        retry_utc_s=now_utc_s + FIRST_RETRY_S * 2 ** (attempts - 1),
    )  # fmt: skip
    if attempts < MAX_ATTEMPTS:
        return state
    # Given up: what has come until now fires nothing any more, what comes later does.
    return msgspec.structs.replace(state, records=0, has_drifted=False, attempts=0, last_utc_s=now_utc_s)


def read_state(folder: Path, name: str) -> TriggerState:
    """The state of the trigger of a recipe. One that is lost begins anew, which trains once too often."""
    try:
        return msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=TriggerState)
    except (OSError, msgspec.DecodeError):
        return TriggerState()


def keep_state(folder: Path, name: str, state: TriggerState) -> None:
    """Write a state. :raises StorageError: it can't be written."""
    try:
        make_private_folder(folder)
        fresh = folder / f".{name}.{os.getpid()}"
        fresh.write_bytes(msgspec.json.encode(state))
        fresh.replace(folder / f"{name}.json")
    except OSError as error:
        raise StorageError(f"{folder} can't be written ({error.strerror}): free space on that disk") from error
