"""Models on a Ray cluster: the same answers as here, and what is told without Ray."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloud_relay.learning.applying.cluster import outputs_on_ray
from cloud_relay.learning.candidate import outputs_of, write_candidate
from cloud_relay.learning.estimators import as_onnx, fitted
from cloud_relay.learning.recipe import read_recipe
from cloud_relay.learning.rows import read_rows
from protocols.base.errors import ConfigError
from tests.tools.exported_fixture import passages, write_export, write_recipe
from tests.tools.ray_fixture import BIN, ROOT, Cluster

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from cloud_relay.learning.applying.cluster import outputs_on_ray
address, folder, digest = sys.argv[1:]
features = np.load(Path(folder) / "features.npy")
files = {each.name: each.read_bytes() for each in (Path(folder) / "release").iterdir()}
chunks = ((number, features[number * 50 : number * 50 + 50]) for number in range(8))
told = dict(outputs_on_ray(address, files, "hotspot.onnx", digest, chunks))
np.save(Path(folder) / "told.npy", np.concatenate([told[number][0]["probability"] for number in range(8)]))
"""


@pytest.fixture(name="cluster")
def given_cluster() -> Iterator[Cluster]:
    if not (BIN / "ray").exists():
        pytest.skip("Ray is not in build/ray: run .ci/ray")
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # sockets are in it, so its name is short
        cluster = Cluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.mark.processes
def test_cluster_gives_the_answers_that_this_machine_gives(cluster: Cluster, tmp_path: Path) -> None:
    """Bit for bit, in an environment that has no pyarrow."""
    recipe = read_recipe(write_recipe(tmp_path))
    assert recipe.model is not None
    rows = read_rows(write_export(tmp_path / "a.parquet", passages(400)), recipe)
    content = as_onnx(fitted(recipe, recipe.model, rows)[0], recipe)
    model, _, _ = write_candidate(tmp_path / "release", content, recipe, rows)
    np.save(tmp_path / "features.npy", rows.features)
    done = subprocess.run(
        [BIN / "python", "-P", "-c", PROGRAM, cluster.address, tmp_path, model.digest], check=False, timeout=240,
        env=cluster.environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    assert np.array_equal(np.load(tmp_path / "told.npy"), outputs_of(model, rows.features)["probability"])


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--ray auto needs the extra 'ray': pip install 'meshnode\[ray\]'"):
        next(outputs_on_ray("auto", {}, "x.onnx", json.dumps(0), iter(())))
