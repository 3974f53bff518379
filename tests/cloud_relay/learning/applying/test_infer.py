"""``cloud-relay infer``: a prediction for each record, the same whoever computes it, and nothing computed twice."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cloud_relay.cli import main
from cloud_relay.learning.applying.chunks import ApplyOrder, compute_chunk, loaded
from cloud_relay.learning.applying.commands import order_for
from cloud_relay.learning.applying.processes import on_processes, path_of_chunk
from cloud_relay.learning.applying.work import PARTS, apply_model
from cloud_relay.learning.candidate import write_candidate
from cloud_relay.learning.estimators import as_onnx, fitted
from cloud_relay.learning.recipe import read_recipe
from cloud_relay.learning.rows import read_rows
from meshnode.models import ModelSpec, load_model
from protocols.base.errors import InferenceError, LocalProtocolError, MeshError
from tests.tools.exported_fixture import passage, passages, write_export, write_recipe
from tests.tools.stored_fixture import store_passages


@pytest.fixture(name="model", scope="module")
def given_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    recipe = read_recipe(write_recipe(folder))
    assert recipe.model is not None
    rows = read_rows(write_export(folder / "a.parquet", passages(300)), recipe)
    write_candidate(folder / "release", as_onnx(fitted(recipe, recipe.model, rows)[0], recipe), recipe, rows)
    return folder / "release" / "hotspot.onnx"


def data_in(folder: Path, count: int = 250) -> Path:
    """Records, some of which lack a feature."""
    rows = passages(count, seed=4)
    rows.insert(7, passage(count + 1, "veh-1", 5, {"deceleration_mps2": 1.0}))
    return write_export(folder / "data.parquet", rows)


def small(model: Path, data: Path) -> ApplyOrder:
    """An order of several chunks."""
    order = order_for(model, "hotspot", data, None)
    return ApplyOrder(*(getattr(order, name) for name in order.__struct_fields__[:-1]), chunk_rows=40)


def one_by_one(order: ApplyOrder, numbers: Any, folder: Path) -> Any:
    model = loaded(order)
    for number in numbers:
        yield (number, *compute_chunk(order, model, number, path_of_chunk(folder, number)))


def quiet(_done: int, _total: int) -> None:
    """Nobody looks."""


def test_predictions_are_those_of_the_model_and_join_the_records(model: Path, tmp_path: Path) -> None:
    """By origin and sequence, in any program; the model by the digest that nodes name."""
    data = data_in(tmp_path)
    order = small(model, data)
    applied = apply_model(order, tmp_path / "p.parquet", one_by_one, quiet)
    assert (applied.predictions, applied.left_out.total, applied.resumed) == (250, 1, 0)
    table = pq.read_table(tmp_path / "p.parquet")
    served = load_model(ModelSpec("hotspot", model))
    assert set(table["model"].to_pylist()) == {served.digest}
    with duckdb.connect() as db:
        joined = "p.origin = d.origin AND p.sequence = d.sequence"
        found = db.execute(
            "SELECT latitude_deg, longitude_deg, CAST(value->'speed_mps' AS DOUBLE), p.label, p.probability[2], "
            f"label_name FROM '{data}' d JOIN '{tmp_path}/p.parquet' p ON {joined}"
        ).fetchall()
    assert len(found) == 250
    told = dict(served.run({"features": np.asarray([row[:3] for row in found], np.float32)}))
    assert told["label"].tolist() == [row[3] for row in found]
    assert told["probability"][:, 1].tolist() == [row[4] for row in found]
    assert {(row[3], row[5]) for row in found} == {(0, "false"), (1, "true")}
    assert not (tmp_path / f"p.parquet{PARTS}").exists()
    with pytest.raises(LocalProtocolError, match="is there already"):
        apply_model(order, tmp_path / "p.parquet", one_by_one, quiet)


def test_interrupted_call_goes_on_and_damaged_chunks_are_computed_again(model: Path, tmp_path: Path) -> None:
    """The file is the same to the byte as one that was made at once."""
    order = small(model, data_in(tmp_path))
    apply_model(order, tmp_path / "whole.parquet", one_by_one, quiet)
    out, computed = tmp_path / "p.parquet", list[int]()

    def interrupted(order: ApplyOrder, numbers: Any, folder: Path) -> Any:
        for each in one_by_one(order, numbers, folder):
            computed.append(each[0])
            yield each
            if len(computed) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply_model(order, out, interrupted, quiet)
    assert not out.exists()
    parts = tmp_path / f"p.parquet{PARTS}"
    whole = (parts / "00000001.parquet").read_bytes()
    (parts / "00000001.parquet").write_bytes(whole[:-20])
    (parts / ".00000005.parquet.part").write_bytes(b"half")
    computed.extend([0])
    assert apply_model(order, out, interrupted, quiet).resumed == 2
    assert computed == [0, 1, 2, 0, 1, 3, 4, 5, 6]
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_parts_of_another_order_are_not_gone_on_with(model: Path, tmp_path: Path) -> None:
    """Half of a file would be by one model and half by another."""
    data = data_in(tmp_path)
    order = small(model, data)
    parts = tmp_path / f"p.parquet{PARTS}"

    def nobody(*_: Any) -> Any:
        raise InferenceError("no")

    with pytest.raises(InferenceError):
        apply_model(order, tmp_path / "p.parquet", nobody, quiet)
    data_in(tmp_path, 200)
    with pytest.raises(LocalProtocolError, match="begun with another data_sha256"):
        apply_model(small(model, data), tmp_path / "p.parquet", one_by_one, quiet)
    (parts / "order.json").unlink()
    (parts / "x").touch()
    with pytest.raises(LocalProtocolError, match="holds other things"):
        apply_model(order, tmp_path / "p.parquet", one_by_one, quiet)


@pytest.mark.processes
def test_processes_compute_what_one_does_and_a_killed_one_is_replaced(model: Path, tmp_path: Path) -> None:
    """On all cores; the first process that begins is killed."""
    order = small(model, data_in(tmp_path))
    apply_model(order, tmp_path / "whole.parquet", one_by_one, quiet)

    def killing(order: ApplyOrder, numbers: Any, folder: Path) -> Any:
        is_first = True
        for each in on_processes(order, numbers, folder, 2):
            yield each
            if is_first:
                is_first = False
                for child in psutil.Process().children():
                    with suppress(psutil.NoSuchProcess):  # one may have ended just now
                        if "spawn_main" in " ".join(child.cmdline()):
                            child.kill()

    assert apply_model(order, tmp_path / "p.parquet", killing, quiet).predictions == 250
    assert (tmp_path / "p.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.processes
def test_command_that_is_killed_goes_on_when_it_is_repeated(model: Path, tmp_path: Path) -> None:
    """By SIGKILL, while it computes; no process of it is left."""
    data, out = data_in(tmp_path, 600), tmp_path / "p.parquet"
    words = ["infer", "--model", str(model), "--data", str(data), "--out", str(out), "--jobs", "1"]
    process = subprocess.Popen([sys.executable, "-P", "-m", "cloud_relay", *words], env=dict(os.environ))
    ends_s = time.monotonic() + 60
    while not (tmp_path / f"p.parquet{PARTS}").exists() and not out.exists() and time.monotonic() < ends_s:
        time.sleep(0.01)
    assert (tmp_path / f"p.parquet{PARTS}").exists() or out.exists(), "it never began"
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert psutil.wait_procs(family, timeout=60)[1] == []
    result = CliRunner().invoke(main, [*words, "--overwrite"])
    assert result.exit_code == 0, result.output
    assert "600 predictions of hotspot" in result.output
    assert "1 left out: 1 because of value.speed_mps that is missing or not finite; 1 of veh-1" in result.output
    assert pq.read_table(out).num_rows == 600


@pytest.mark.processes
@pytest.mark.skipif("dataset" not in main.commands, reason="this relay has no datasets")
def test_version_of_a_dataset_is_computed_over(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name; the file that it is written into is removed."""
    store_passages(tmp_path / "state" / "relay.sqlite", 120)
    (tmp_path / "relay.toml").write_text('[relay]\nid = "relay-1"\n')
    monkeypatch.chdir(tmp_path)
    for words in (
        ["dataset", "create", "passages", "--rule", "passage"],
        ["infer", "--model", str(model), "--data", "passages@1", "--out", "p.parquet", "--jobs", "1"],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
    assert pq.read_table("p.parquet").num_rows == 120
    assert sorted(each.name for each in tmp_path.glob(".p*")) == []


def test_wrong_words_are_named(model: Path, tmp_path: Path) -> None:
    """Status 2 and one line."""
    data = data_in(tmp_path, 30)
    (tmp_path / "text.onnx").write_text("hello")

    def said(model_name: str | Path, data: Path) -> str:
        words = ("infer", "--model", model_name, "--data", data, "--out", tmp_path / "p.parquet", "--folder", tmp_path)
        result = CliRunner().invoke(main, [*map(str, words)])
        assert result.exit_code == 2, result.output
        return result.output

    assert "is no file: name an ONNX file" in said("none.onnx", data)
    assert "is not an ONNX file" in said(tmp_path / "text.onnx", data)
    assert "can't be read as Parquet" in said(model, tmp_path / "none.parquet")
    assert "there is no repository" in said("hotspot@1", data)
    with pytest.raises(MeshError, match="has no records"):
        order_for(model, "hotspot", write_export(tmp_path / "empty.parquet", []), None)
