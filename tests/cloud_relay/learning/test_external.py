"""Commands of recipes that fail: each is told with how it ended and its last words."""

import sys
from pathlib import Path

import pytest

from cloud_relay.learning.external import model_by_command
from cloud_relay.learning.recipe import RecipeCommand, read_recipe
from cloud_relay.learning.rows import read_rows
from protocols.base.errors import ConfigError, MeshError
from tests.tools.exported_fixture import passages, write_export, write_recipe

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print('no data today'); raise SystemExit(7)", "ended with status 7: it printed … no data today"),
        ("import os; os.kill(os.getpid(), 11)", r"crashed \(SIGSEGV\): it printed nothing"),
        ("pass", "ended well and wrote no model.onnx"),
        ("open(out + '/model.onnx', 'w'); open(out + '/metrics.json', 'w').write('[')", "is no JSON object"),
        ("open(out + '/model.onnx', 'w'); open(out + '/metrics.json', 'w').write('[1]')", "is no JSON object"),
    ],
)
def test_command_that_fails_is_told_with_its_last_words(tmp_path: Path, program: str, said: str) -> None:
    """Its author sees only what the run says."""
    recipe = read_recipe(write_recipe(tmp_path))
    rows = read_rows(write_export(tmp_path / "a.parquet", passages(60)), recipe)
    command = RecipeCommand(run=(sys.executable, "-S", "-c", f"import sys; out = sys.argv[1]; {program}", "{out}"))
    with pytest.raises(MeshError, match=said):
        model_by_command(command, recipe, rows, tmp_path, tmp_path)


def test_command_that_can_not_be_started_is_named(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path))
    rows = read_rows(write_export(tmp_path / "a.parquet", passages(60)), recipe)
    for word in ("./none", "a\0b"):
        with pytest.raises(ConfigError, match="can't be started"):
            model_by_command(RecipeCommand(run=(word,)), recipe, rows, tmp_path, tmp_path)


def test_metrics_of_a_command_are_numbers(tmp_path: Path) -> None:
    """What else it writes is passed over: nothing is decided by it."""
    recipe = read_recipe(write_recipe(tmp_path))
    rows = read_rows(write_export(tmp_path / "a.parquet", passages(60)), recipe)
    told = '{"a": 1, "b": NaN, "c": true, "d": "x", "e": 1e999}'
    program = f"open(out + '/model.onnx', 'w').write('m'); open(out + '/metrics.json', 'w').write({told!r})"
    command = RecipeCommand(run=(sys.executable, "-S", "-c", f"import sys; out = sys.argv[1]; {program}", "{out}"))
    assert model_by_command(command, recipe, rows, tmp_path, tmp_path) == (b"m", {"a": 1.0})
