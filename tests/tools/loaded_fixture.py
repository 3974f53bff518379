"""Models that are loaded in this process: a quick one, and one that takes long until it is ended."""

from typing import Any

import numpy as np
import pytest

from meshnode.models import LoadedModel, ModelSpec, load_model
from tests.tools.tiny_onnx import write_model


@pytest.fixture(scope="module", name="doubler")
def given_doubler(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """It adds its input to itself."""
    path = write_model(tmp_path_factory.mktemp("doubler") / "m.onnx", ("batch", 4), "Add")
    return load_model(ModelSpec("doubler", path))


@pytest.fixture(scope="module", name="slow")
def given_slow(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """About ten seconds if nobody ends it: 2,000 operators, so that an end is looked for often."""
    path = write_model(tmp_path_factory.mktemp("slow") / "m.onnx", (1_000_000,), "Sin", repeat=2_000)
    return load_model(ModelSpec("slow", path))


def ones(rows: int = 1) -> dict[str, Any]:
    """Inputs of the doubler."""
    return {"x": np.ones((rows, 4), np.float32)}
