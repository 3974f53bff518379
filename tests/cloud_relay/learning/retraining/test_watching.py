"""The process that trains beside a relay: it trains when it is due, tells what fails, and ends with the relay."""

import time
from pathlib import Path

import psutil
import pytest

from cloud_relay.config import load_config
from cloud_relay.learning.retraining.triggers import read_state
from cloud_relay.learning.retraining.watching import TrainingWatch
from cloud_relay.learning.runs import runs_in
from protocols.base.errors import ConfigError
from tests.tools.eventually import eventually
from tests.tools.exported_fixture import RECIPE, write_recipe
from tests.tools.relay_fixture import RelayProcess
from tests.tools.stored_fixture import store_passages

pytestmark = pytest.mark.processes
BY_TIME = RECIPE.replace('by = "origin"', 'by = "time"').replace("n_estimators = 20", "n_estimators = 5")
BY_TIME += "[evaluation]\nblock_s = 0\n"


def configured(folder: Path, table: str, recipe: str = BY_TIME) -> Path:
    write_recipe(folder, recipe)
    config = folder / "relay.toml"
    config.write_text(
        f'[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n[[training]]\nrecipe = "hotspot.toml"\n{table}'
    )
    return config


def test_relay_trains_by_itself_and_takes_all_with_it_when_it_is_killed(tmp_path: Path) -> None:
    """As with a relay that an operator runs: nothing else has to be started or ended."""
    configured(tmp_path, "records = 300\npublish = false\n")
    store_passages(tmp_path / "state" / "relay.sqlite", 300)
    with RelayProcess(tmp_path) as relay:
        family = psutil.Process(relay.process.pid)
        eventually(lambda: list(runs_in(tmp_path / "state" / "training")) != [], lambda: "it trains", 120)
        (run,) = runs_in(tmp_path / "state" / "training")
        assert (run.state, run.error) == ("done", "")
        eventually(
            lambda: read_state(tmp_path / "state" / "training" / ".watch", "hotspot").last_utc_s > 0,
            lambda: "it notes that", 60,
        )  # fmt: skip
        beside = family.children(recursive=True)
        assert [process.nice() for process in beside if "watching" in " ".join(process.cmdline())] == [19]
    eventually(lambda: not any(map(_lives, beside)), lambda: f"all end: {beside}", 60)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_run_that_fails_is_told_and_waits_for_its_next_attempt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """It neither hides the failure nor tries again at once."""
    text = BY_TIME[: BY_TIME.index("[model]")] + '[command]\nrun = ["false"]\n'
    watch = TrainingWatch(load_config(configured(tmp_path, "records = 300\n", text)))
    store = tmp_path / "state" / "relay.sqlite"
    store_passages(store, 200)
    assert watch.look() == []
    assert read_state(tmp_path / "state" / "training" / ".watch", "hotspot").records == 200
    store_passages(store, 100, first=201, seed=2)
    assert watch.look() == ["hotspot"]
    state = read_state(tmp_path / "state" / "training" / ".watch", "hotspot")
    assert (state.attempts, state.records, state.number) == (1, 300, 300)
    assert state.retry_utc_s > time.time() + 30
    assert "attempt 1 of 5" in caplog.text
    assert watch.look() == []
    assert not (tmp_path / "state" / "training" / ".watch" / "hotspot.parquet").exists()


def test_trigger_begins_anew_when_the_store_is_another_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After an older copy was restored, it would be silent until the copy has as many records as there were before."""
    text = BY_TIME[: BY_TIME.index("[model]")] + '[command]\nrun = ["false"]\n'
    watch = TrainingWatch(load_config(configured(tmp_path, "records = 300\n", text)))
    store = tmp_path / "state" / "relay.sqlite"
    store_passages(store, 250)
    assert watch.look() == []
    for path in store.parent.glob("relay.sqlite*"):
        path.unlink()
    store_passages(store, 100, seed=2)
    assert watch.look() == []
    state = read_state(tmp_path / "state" / "training" / ".watch", "hotspot")
    assert (state.number, state.records) == (100, 100)
    assert "up to number 250, and the store has 100: it is another one now" in caplog.text


def test_trigger_that_can_not_be_looked_at_holds_up_no_other(tmp_path: Path) -> None:
    """A misspelt path, or a model that can't be loaded, is one team's trouble."""
    text = BY_TIME[: BY_TIME.index("[model]")] + '[command]\nrun = ["false"]\n'
    write_recipe(tmp_path, text.replace('name = "hotspot"', 'name = "other"'), "other.toml")
    more = 'drift = "latitude"\n[[training]]\nrecipe = "other.toml"\nrecords = 100\n'
    watch = TrainingWatch(load_config(configured(tmp_path, more, text)))
    store_passages(tmp_path / "state" / "relay.sqlite", 100)
    with pytest.raises(ConfigError, match="'latitude'"):
        watch.look()
    state = read_state(tmp_path / "state" / "training" / ".watch", "other")
    assert (state.attempts, state.records, state.number) == (1, 100, 100)
