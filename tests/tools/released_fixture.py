"""Releases for tests: what :mod:`benchmarks.released` makes, and a file for the configuration."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.released import MIB, NAME, PATH, Published, Site, adder, publish, release, site
from tests.tools.eventually import eventually

__all__ = ["MIB", "NAME", "PATH", "Published", "Site", "added", "adder", "publish", "release", "site"]


def added(here: Site, number: int) -> float:
    """What was added to one in that run."""
    answer = eventually(lambda: here.answers.get(number))
    assert answer.status == "done", answer
    return float(np.asarray(answer.outputs[0].tensor)[0, 0]) - 1


@pytest.fixture(name="factory")
def given_factory(tmp_path: Path) -> Path:
    """The file of the configuration, which adds a half."""
    path = tmp_path / "factory.onnx"
    path.write_bytes(adder(0.5))
    return path
