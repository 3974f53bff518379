"""Where the data of a recipe are. This is the one place that knows whether they are a file or a version of a
dataset."""

from pathlib import Path
from typing import NamedTuple

from cloud_relay.learning.recipe import Recipe
from protocols.base.errors import ConfigError, StorageError


class DataSource(NamedTuple):
    """Data that are there."""

    path: Path
    """A Parquet file with the columns of an export."""
    name: str
    """What people call them: the file, or the dataset with its version."""


def source_of_data(recipe: Recipe, beside: Path, given: Path | None) -> DataSource:
    """The data of a recipe. ``beside``: the folder of the recipe. ``given``: a file that takes their place.

    :raises ConfigError: neither was named, or a dataset was. :raises StorageError: there is no such file.
    """
    if given is None and recipe.data.dataset is not None:
        raise ConfigError(
            f"data.dataset is {recipe.data.dataset!r}, and datasets are not read here yet: export it to a file and "
            "name that with --data"
        )
    path = given if given is not None else beside / recipe.data.file if recipe.data.file is not None else None
    if path is None:
        raise ConfigError("there are no data: name a Parquet file with --data, or as data.file in the recipe")
    if not path.is_file():
        raise StorageError(f"{path} is no file: make one with 'cloud-relay export {path.name}'")
    return DataSource(path.resolve(), path.name)
