"""Where the data of a recipe are. This is the one place that knows whether they are a file or a version of a dataset.

A version of a dataset is written into a file by the command that people use for that, ``cloud-relay dataset export``,
so it is the same file that they would get.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from cloud_relay.learning.recipe import Recipe
from meshnode.identity.private_files import make_private_folder
from meshnode.models.children import child_command, child_environment
from protocols.base.errors import ConfigError, StorageError

_CARD: Final = ".card.json"
_SAID_CHARS: Final = 400


class DataSource(NamedTuple):
    """Data that are there."""

    path: Path
    """A Parquet file with the columns of an export."""
    name: str
    """What people call them: the file, or the dataset with its version."""


@contextmanager
def data_of(recipe: Recipe, beside: Path, given: Path | None, config_path: Path, place: Path) -> Iterator[DataSource]:
    """The data of a recipe, while the block runs. ``beside``: the folder of the recipe. ``given``: a file that takes
    their place. ``place``: where a dataset may be written.

    :raises ConfigError: none were named, or there is no such dataset. :raises StorageError: there is no such file, or a
        dataset can't be written.
    """
    if given is None and recipe.data.dataset is not None:
        with exported_dataset(recipe.data.dataset, config_path, place / f".{recipe.name}.parquet") as source:
            yield source
        return
    path = given if given is not None else beside / recipe.data.file if recipe.data.file is not None else None
    if path is None:
        raise ConfigError(
            "there are no data: name a Parquet file with --data, or data.file or data.dataset in the recipe"
        )
    if not path.is_file():
        raise StorageError(f"{path} is no file: make one with 'cloud-relay export {path.name}'")
    yield DataSource(path.resolve(), path.name)


@contextmanager
def exported_dataset(dataset: str, config_path: Path, file: Path) -> Iterator[DataSource]:
    """A version of a dataset, ``NAME@VERSION`` or the newest of ``NAME``, as a file, while the block runs. ``file``:
    where; what is there is replaced, and removed at the end.

    :raises ConfigError: there is no such dataset. :raises StorageError: it can't be written.
    """
    try:
        make_private_folder(file.parent)
        command = child_command(
            "cloud_relay", "dataset", "export", "--config", config_path, "--overwrite", dataset, file
        )
        done = subprocess.run(  # noqa: S603 - a command of ours
            command, env=child_environment(), capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())[-_SAID_CHARS:]
            raise ConfigError(f"the dataset {dataset!r} can't be had: {said}")
        yield DataSource(file.resolve(), _version_in(file, dataset))
    except OSError as error:
        raise StorageError(f"{file} can't be written ({error.strerror or error}): free space on that disk") from error
    finally:
        for each in file.parent.glob(f"{file.name}*"):
            each.unlink(missing_ok=True)


def _version_in(file: Path, dataset: str) -> str:
    """The dataset with its version, as the card says, also where the newest one was asked for."""
    try:
        told = json.loads(file.with_name(file.name + _CARD).read_text("utf-8"))["meshnode"]
        return f"{told['dataset']}@{told['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return dataset
