"""``cloud-relay train`` as an operator types it: a repository of releases, exported records, recipes.

Its fixture is ``trainer``: import ``given_trainer`` where it is used.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from cloud_relay.cli import main
from cloud_relay.learning.runs import TrainingRun
from tests.tools.exported_fixture import RECIPE, passages, write_export, write_recipe


class Trainer:
    """Somebody who types commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.repository = folder, folder / "runs", folder / "repository"

    def __call__(self, *words: str | Path, status: int = 0) -> str:
        result = CliRunner().invoke(main, [*map(str, words)])
        assert result.exit_code == status, result.output + repr(result.exception)
        return result.output

    def data(self, count: int = 1_500, name: str = "a.parquet", **how: Any) -> Path:
        """Exported records."""
        return write_export(self.folder / name, passages(count, **how))

    def recipe(self, *changes: tuple[str, str], text: str = RECIPE) -> Path:
        """The recipe with some texts exchanged."""
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        return write_recipe(self.folder, text)

    def train(self, recipe: Path, data: Path, *more: str | Path, status: int = 0) -> str:
        """Run the command."""
        words = ("train", recipe, "--data", data, "--runs", self.runs, "--folder", self.repository, *more)
        return self(*words, status=status)

    def run(self, recipe: Path, data: Path, *more: str | Path, status: int = 0) -> TrainingRun:
        """The same, with what came of it."""
        out = self.train(recipe, data, "--json", *more, status=status)
        return msgspec.json.decode(out[out.index("{\n") :], type=TrainingRun)

    def make_repository(self) -> None:
        """As for the first release."""
        keys: list[str | Path] = []
        for number in (1, 2):
            self("release", "key", "make", self.folder / f"{number}.pem")
            keys += ["--root-key", self.folder / f"{number}.pem"]
        self("release", "init", "--folder", self.repository, *keys)


@pytest.fixture(name="trainer")
def given_trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path)
