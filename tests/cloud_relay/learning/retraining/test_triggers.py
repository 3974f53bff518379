"""When a model is trained again: what fires, what waits, and what is given up."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_relay.config import load_config
from cloud_relay.learning.retraining.triggers import (
    FIRST_RETRY_S,
    MAX_ATTEMPTS,
    MIN_BETWEEN_S,
    TrainingTrigger,
    TriggerState,
    after_run,
    keep_state,
    read_state,
    triggers_of,
    why_due,
)
from protocols.base.errors import ConfigError
from tests.tools.exported_fixture import RECIPE, write_recipe


def configured(folder: Path, *tables: str, recipe: str = RECIPE) -> Any:
    write_recipe(folder, recipe)
    (folder / "relay.toml").write_text('[relay]\nid = "relay-1"\n' + "\n".join(tables))
    return load_config(folder / "relay.toml")


def test_triggers_fire_by_count_by_time_and_by_drift_when_there_are_new_records() -> None:
    """Nothing is trained on what it was trained on already."""
    count, time, both = (
        TrainingTrigger(recipe="x", **each)
        for each in ({"records": 10}, {"every": "2h"}, {"records": 10, "drift": "error"})
    )
    now_s = 1_000_000.0
    assert why_due(count, TriggerState(records=9), now_s) == ""
    assert why_due(count, TriggerState(records=10), now_s) == "10 new records"
    assert why_due(count, TriggerState(records=10, last_utc_s=now_s - MIN_BETWEEN_S / 2), now_s) == ""
    assert why_due(time, TriggerState(records=1), now_s) == "2h are over"
    assert why_due(time, TriggerState(records=1, last_utc_s=now_s - 7_100), now_s) == ""
    assert why_due(time, TriggerState(records=0, last_utc_s=1), now_s) == ""
    assert why_due(both, TriggerState(records=1, has_drifted=True), now_s) == "error has drifted"


@given(records=st.integers(1, 10**6), failures=st.integers(0, 3 * MAX_ATTEMPTS))
def test_failures_are_retried_later_each_time_and_given_up_until_something_new_comes(
    records: int, failures: int
) -> None:
    """At most five runs for one firing, in half an hour and more."""
    trigger, state, now_s, runs = (
        TrainingTrigger(recipe="x", records=1),
        TriggerState(number=9, records=records),
        1e6,
        0,
    )
    for _ in range(failures):
        if not why_due(trigger, state, now_s):
            break
        runs += 1
        state = after_run(state, "no", now_s)
        assert not why_due(trigger, state, now_s + 1)
        now_s += FIRST_RETRY_S * 2**runs
    assert runs == min(failures, MAX_ATTEMPTS)
    assert state.number == 9
    if runs == MAX_ATTEMPTS:
        state.records += 1
        assert why_due(trigger, state, now_s) == "1 new records"
    assert after_run(state, "", now_s) == TriggerState(number=9, last_utc_s=now_s)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[training]", "write tables, [[training]]"),
        ('[[training]]\nrecipe = "hotspot.toml"', "say when to train"),
        ('[[training]]\nrecipe = "hotspot.toml"\nrecords = 0', "training[0].records"),
        ('[[training]]\nrecipe = "hotspot.toml"\nevery = "1w"', "training[0].every"),
        ('[[training]]\nrecipe = "hotspot.toml"\nrecord = 5', "did you mean 'records'"),
        ('[[training]]\nrecipe = "none.toml"\nrecords = 5', "there is no such recipe"),
        ('[[training]]\nrecipe = "hotspot.toml"\nrecords = 5\n' * 2, "two tables train 'hotspot'"),
        ('[[training]]\nrecipe = "hotspot.toml"\nrecords = 5\ndetector = "eddm"', "'adwin', 'page_hinkley', 'kswin'"),
    ],
)
def test_table_with_a_mistake_is_refused_by_name(tmp_path: Path, table: str, said: str) -> None:
    """When the relay starts, and not when the model would have been trained."""
    with pytest.raises(ConfigError) as raised:
        triggers_of(configured(tmp_path, table))
    assert said in str(raised.value)


def test_recipe_with_data_of_its_own_is_refused(tmp_path: Path) -> None:
    """They would never change."""
    recipe = RECIPE.replace("[data]", '[data]\nfile = "a.parquet"')
    with pytest.raises(ConfigError, match="leave them out"):
        triggers_of(configured(tmp_path, '[[training]]\nrecipe = "hotspot.toml"\nevery = "1d"', recipe=recipe))


def test_state_survives_and_a_damaged_one_begins_anew(tmp_path: Path) -> None:
    """A relay is restarted more often than a model is trained."""
    state = TriggerState(5, 6, 7.0, True, 2, 8.0, "because")
    keep_state(tmp_path / "a", "x", state)
    assert read_state(tmp_path / "a", "x") == state
    (tmp_path / "a" / "x.json").write_bytes(b"{")
    assert read_state(tmp_path / "a", "x") == TriggerState()
