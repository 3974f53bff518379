"""The process that looks for reasons to train, and trains: one model at a time, with time that nobody else wants.

    python -m cloud_relay.learning.retraining.watching CONFIG PARENT

The relay starts it if its configuration has a table ``[[training]]``; ``cloud-relay train --watch`` is the same in a
terminal. A run is a process of its own below this one, ``cloud-relay train``. All of them end with the relay.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NoReturn

from cloud_relay.config import RelayConfig, load_config
from cloud_relay.learning.launching import serving_release, unpacked
from cloud_relay.learning.recipe import Recipe
from cloud_relay.learning.retraining.arriving import new_records, newest_number
from cloud_relay.learning.retraining.drift import DriftWatch
from cloud_relay.learning.retraining.triggers import (
    ERROR,
    MAX_ATTEMPTS,
    TrainingTrigger,
    TriggerState,
    after_run,
    keep_state,
    read_state,
    triggers_of,
    why_due,
)
from meshnode.models.children import child_command, child_environment, end_with
from protocols.base.errors import MeshError

LOOK_S: Final = 5.0
"""Between two looks. A look costs what the new records cost."""
RUNS_FOLDER: Final = "training"
GRACE_S: Final = 3.0
"""How long a run may take to end what it has started."""
_WATCH_FOLDER: Final = ".watch"
_LOWEST: Final = 19
_SAID_CHARS: Final = 600
_log = logging.getLogger("cloud_relay.training")


class TrainingWatch:
    """Looks at the store for all triggers of a relay."""

    def __init__(self, config: RelayConfig) -> None:
        """:raises ConfigError: a table or a recipe is wrong."""
        self._config = config
        self._runs = config.state_dir / RUNS_FOLDER
        self._states = self._runs / _WATCH_FOLDER
        self._triggers = triggers_of(config)
        self._drifts: dict[str, DriftWatch] = {}
        self._process: subprocess.Popen[str] | None = None

    def look(self) -> list[str]:
        """Look once, and train what is due. Returns the models that were trained, also in vain.

        :raises MeshError: the store or the disk can't be used, or a trigger has a path that leads nowhere, say; all
            others were looked at.
        """
        trained: list[str] = []
        failed: MeshError | None = None
        for trigger, path, recipe in self._triggers:
            try:
                if self._look_for(trigger, path, recipe):
                    trained.append(recipe.name)
            except MeshError as error:  # what is wrong with one trigger holds up no other
                failed = failed or error
        if failed is not None:
            raise failed
        return trained

    def _look_for(self, trigger: TrainingTrigger, path: Path, recipe: Recipe) -> bool:
        """Look for one trigger. Returns whether it trained, also in vain."""
        self._take_new(trigger, recipe)
        state = read_state(self._states, recipe.name)
        why = why_due(trigger, state, time.time())
        if not why:
            return False
        _log.info("%s is trained, because of: %s", recipe.name, why)
        failure = self._train(trigger, path, recipe)
        state = after_run(state, failure, time.time())
        keep_state(self._states, recipe.name, state)
        if not failure:
            self._drifts.pop(recipe.name, None)
        elif state.attempts:
            wait_s = state.retry_utc_s - time.time()
            _log.error(
                "%s could not be trained, attempt %d of %d, next in %.0f s: %s",
                recipe.name, state.attempts, MAX_ATTEMPTS, wait_s, failure,
            )  # fmt: skip
        else:
            _log.error(
                "%s could not be trained %d times; it waits for new records: %s", recipe.name, MAX_ATTEMPTS, failure
            )
        return True

    def _take_new(self, trigger: TrainingTrigger, recipe: Recipe) -> None:
        """Take the records that are new since the last look."""
        state = read_state(self._states, recipe.name)
        if state.number > (newest := newest_number(self._config.store)):
            _log.warning(
                "%s: its trigger has looked at records up to number %d, and the store has %d: it is another one now, "
                "and the trigger begins anew", recipe.name, state.number, newest,
            )  # fmt: skip
            state = TriggerState(last_utc_s=state.last_utc_s)
            keep_state(self._states, recipe.name, state)
            self._drifts.pop(recipe.name, None)
        watch = self._drift_watch(trigger, recipe)
        before = state.number, state.records
        for number, row in new_records(self._config.store, state.number, recipe.data.keys, recipe.data.rule):
            state.number = max(state.number, number)
            if row is not None:
                state.records += 1
                if watch is not None:
                    watch.take(row)
        if watch is not None:
            watch.finish()
            state.has_drifted = state.has_drifted or watch.has_drifted
        if before != (state.number, state.records):
            keep_state(self._states, recipe.name, state)

    def _drift_watch(self, trigger: TrainingTrigger, recipe: Recipe) -> DriftWatch | None:
        """The detector of a trigger. It begins anew with each run, and when this process does."""
        if trigger.drift is None:
            return None
        if recipe.name not in self._drifts:
            with tempfile.TemporaryDirectory(prefix="serving-") as folder:
                serving = self._serving(recipe, Path(folder)) if trigger.drift == ERROR else None
                self._drifts[recipe.name] = DriftWatch(trigger, recipe, serving)
        return self._drifts[recipe.name]

    def _serving(self, recipe: Recipe, folder: Path) -> Path | None:
        from cloud_relay.releases.repository import ReleaseRepository
        from cloud_relay.releases.shown import BUNDLE_FILE

        if not (self._config.releases / BUNDLE_FILE).exists():
            return None
        repository = ReleaseRepository(self._config.releases).load()
        release = serving_release(repository, f"models/{recipe.name}")
        return None if release is None else unpacked(repository, release, folder / "release")

    # --- one run -----------------------------------------------------------------------------------------------------
    def _train(self, trigger: TrainingTrigger, path: Path, recipe: Recipe) -> str:
        """Export the records and train. Returns why it failed; empty: it did not."""
        data = self._states / f"{recipe.name}.parquet"
        place = ("--config", str(self._config.path))
        filters = [("--key", recipe.data.keys), ("--rule", recipe.data.rule)]
        words = [word for name, text in filters if text is not None for word in (name, text)]
        failure = self._command("export", *place, *words, "--overwrite", str(data))
        if failure:
            return failure
        more = ("--publish",) if trigger.publish else ()
        try:
            return self._command("train", *place, "--background", "--data", str(data), *more, str(path))
        finally:
            data.unlink(missing_ok=True)

    def _command(self, *words: str) -> str:
        """Run a command of the relay. Returns what it said when it failed."""
        parent = os.getpid()
        process = subprocess.Popen(  # noqa: S603 - a command of ours
            child_command("cloud_relay", *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", env=child_environment(),
            preexec_fn=lambda: end_with(parent),  # noqa: PLW1509 - this process has one thread
        )  # fmt: skip
        self._process = process
        said, _ = process.communicate()
        self._process = None
        told = " ".join(said.split())[-_SAID_CHARS:]
        if process.returncode == 0:
            _log.info("%s: %s", words[0], told)
            return ""
        return told or f"'cloud-relay {words[0]}' ended with status {process.returncode}"

    def close(self) -> None:
        """End the run that is under way, with all that it has started."""
        process = self._process
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            process.kill()


def watch(config: RelayConfig) -> NoReturn:
    """Look again and again until SIGTERM or SIGINT, which end a run that is under way. Call it on the main thread.

    :raises ConfigError: a table or a recipe is wrong.
    """
    watching, said = TrainingWatch(config), ""

    def end(number: int, _: object) -> None:
        watching.close()
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    while True:
        try:
            watching.look()
            said = ""
        except MeshError as error:  # a store that does not exist yet, a full disk: it may be well again
            if str(error) != said:
                _log.error("triggers of training: %s", error)
            said = str(error)
        time.sleep(LOOK_S)


def main(config_path: Path, parent: int) -> NoReturn:
    """Watch until it is told to end, or its parent ends."""
    end_with(parent)
    os.nice(_LOWEST)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    watch(load_config(config_path))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
