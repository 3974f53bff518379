"""Real models that packages of the index carry: the packages are installed for their files, and never imported."""

import importlib.util
from pathlib import Path

import pytest


def packaged(package: str, *place: str) -> Path:
    """A file of an installed package. Without the package the test is skipped, as `make test` installs it."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"the package {package!r} is not installed: pip install --no-deps {package.replace('_', '-')}")
    return next(path for folder in spec.submodule_search_locations or () if (path := Path(folder, *place)).is_file())


def light(name: str) -> Path:
    """A well-known network in small, as ``onnx`` ships it for its own tests: its weights are all equal."""
    return packaged("onnx", "backend", "test", "data", "light", f"light_{name}.onnx")
