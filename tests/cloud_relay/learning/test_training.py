"""``cloud-relay train``: from exported records to a release, and everything that may go wrong on the way."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from cloud_relay.cli import main
from cloud_relay.learning.estimators import as_onnx, fitted
from cloud_relay.learning.recipe import read_recipe
from cloud_relay.learning.rows import read_rows
from cloud_relay.learning.runs import RECIPE_FILE, TrainingRun, alone, runs_in
from cloud_relay.learning.splitting import split
from cloud_relay.releases.publishing import description_of
from cloud_relay.releases.repository import ReleaseRepository
from meshnode.models import ModelSpec, load_model
from tests.tools.eventually import eventually
from tests.tools.exported_fixture import RECIPE
from tests.tools.stored_fixture import store_passages
from tests.tools.trained_fixture import Trainer, given_trainer

__all__ = ["given_trainer"]
pytestmark = pytest.mark.processes

COMMAND_RECIPE = RECIPE[: RECIPE.index("[model]")]


def lives(process_id: int) -> bool:
    """Whether a process is there and has not ended; nobody may have asked for its status."""
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def by_command(trainer: Trainer, program: str, *more: str) -> Path:
    """A recipe whose command is a Python program."""
    script = trainer.folder / "program.py"
    script.write_text(program)
    words = msgspec.json.encode([sys.executable, "program.py", "{data}", "{out}", "{seed}"]).decode()
    return trainer.recipe(text=f"{COMMAND_RECIPE}[command]\nrun = {words}\n" + "\n".join(more))


def test_model_that_is_better_becomes_a_release_and_noise_does_not(trainer: Trainer) -> None:
    """The first release, which is better than none, and what is not released after it: the same again."""
    trainer.make_repository()
    data, recipe = trainer.data(600), trainer.recipe()
    first = trainer.run(recipe, data, "--publish")
    assert (first.serving, first.release, first.is_better) == ("", 1, True)
    again = trainer.train(recipe, data, "--publish")
    assert "It is not surely better than release 1" in again
    assert "not published: it is not surely better" in again
    folder = trainer.runs / "hotspot" / first.id
    model = load_model(ModelSpec("hotspot", folder / "release" / "hotspot.onnx"))
    assert (model.digest, len(model.manifest.golden)) == (first.model, 1)
    assert (folder / RECIPE_FILE).read_text() == RECIPE
    repository = ReleaseRepository(trainer.repository).load()
    released = description_of(repository, "models/hotspot", 1)
    assert (released.licence, len(released.files)) == ("CC0-1.0", 5)
    assert released.changelog.startswith("balanced_accuracy 0.")
    listed = trainer("runs", "list", "--runs", trainer.runs).splitlines()
    assert [", release 1" in line for line in listed] == [True, False]
    assert "| accuracy |" in trainer("runs", "show", "--runs", trainer.runs, first.id)
    assert "begin with 'x'" in trainer("runs", "show", "--runs", trainer.runs, "x", status=2)


def test_same_data_and_seed_give_the_same_bits(trainer: Trainer) -> None:
    """Metrics and the file of the model."""
    data = trainer.data(600)
    one, two = (trainer.run(trainer.recipe(), data, "--alone") for _ in range(2))
    assert one.id != two.id
    changing = ("id", "began_utc_s", "took_s", "processor_s")
    assert [msgspec.structs.replace(run, **dict.fromkeys(changing, 0)) for run in (one, two)] == [
        msgspec.structs.replace(one, **dict.fromkeys(changing, 0))
    ] * 2
    assert one.data is not None
    assert one.model_sha256 == two.model_sha256


def test_command_makes_the_model_and_never_sees_what_is_held_out(trainer: Trainer) -> None:
    """Any program may: here one that hands on a model from elsewhere."""
    data, recipe = trainer.data(600), read_recipe(trainer.recipe())
    assert recipe.model is not None
    training, test = split(read_rows(data, recipe), recipe)
    content = as_onnx(fitted(recipe, recipe.model, training)[0], recipe)
    (trainer.folder / "mine.onnx").write_bytes(content)
    run = trainer.run(
        by_command(
            trainer,
            "import json, os, shutil, sys, pyarrow.parquet as pq\n"
            "data, out, seed = sys.argv[1:]\n"
            "assert (data, out, seed) == tuple(os.environ['MESHNODE_' + n] for n in ('DATA', 'OUT', 'SEED'))\n"
            "table = pq.read_table(data)\n"
            "shutil.copy('mine.onnx', out + '/model.onnx')\n"
            "told = {'rows': table.num_rows, 'columns': len(table.column_names)}\n"
            "json.dump(told, open(out + '/metrics.json', 'w'))\n"
            "print('x' * 3_000_000)\n",
        ),
        data, "--alone",
    )  # fmt: skip
    assert run.told == {"rows": len(training), "columns": 6.0}
    assert run.metrics["rows"] == len(test)
    assert run.is_better
    output = trainer.runs / "hotspot" / run.id / "output.txt"
    assert output.stat().st_size == 1024 * 1024


def test_command_that_hangs_is_ended_with_all_that_it_started(trainer: Trainer) -> None:
    """At the end of its time, its children too."""
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('child.part', 'w').write(str(child.pid))\n"
        "import os; os.rename('child.part', 'child')\n"
        "time.sleep(600)\n"
    )
    recipe = by_command(trainer, program, "[limits]", "timeout_s = 5")
    run = trainer.run(recipe, trainer.data(200), "--alone", status=1)
    assert "longer than the 5 s of limits.timeout_s" in run.error
    child = trainer.folder / "child"
    if child.exists():  # on a busy machine the libraries alone may take so long
        eventually(lambda: not lives(int(child.read_text())), lambda: "all have ended", 60)


def test_training_that_is_told_to_end_takes_all_with_it(trainer: Trainer) -> None:
    """By SIGTERM, as when the relay stops: also what a command has started, and the rows that were written for it."""
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('child.part', 'w').write(str(child.pid))\n"
        "import os; os.rename('child.part', 'child')\n"
        "time.sleep(600)\n"
    )
    words = ("train", by_command(trainer, program), "--data", trainer.data(200), "--runs", trainer.runs, "--alone")
    process = subprocess.Popen([sys.executable, "-P", "-m", "cloud_relay", *map(str, words)], env=dict(os.environ))
    child = trainer.folder / "child"
    try:
        eventually(child.exists, lambda: f"it runs: {process.poll()}", 120)
        process.terminate()
        assert process.wait(60) == 143
    finally:
        process.kill()
    eventually(lambda: not lives(int(child.read_text())), lambda: "all have ended", 60)
    assert list(trainer.runs.glob("hotspot/*/training.parquet")) == []
    assert list(runs_in(trainer.runs)) == []


def test_run_beyond_its_memory_says_so(trainer: Trainer) -> None:
    """64 MiB don't hold a network of 36 million weights."""
    recipe = trainer.recipe(
        ("random_forest_classifier", "mlp_classifier"),
        ("n_estimators = 20, max_depth = 8", "hidden_layer_sizes = [6_000, 6_000]"),
        ("[model]", "[limits]\nmemory_mib = 64\n[model]"),
    )
    run = trainer.run(recipe, trainer.data(200), "--alone", status=1)
    assert "limits.memory_mib" in run.error


def test_two_trainings_do_not_run_into_one_folder(trainer: Trainer) -> None:
    """The relay's triggers, and somebody at a terminal."""
    data = trainer.data(200)
    with alone(trainer.runs):
        assert "another training is under way" in trainer.train(trainer.recipe(), data, "--alone", status=2)
    assert list(runs_in(trainer.runs)) == []


def test_wrong_words_are_named_before_anything_is_read(trainer: Trainer) -> None:
    """Status 2, and no run."""
    recipe, data = trainer.recipe(), trainer.data(50)
    assert "leave --alone out" in trainer.train(recipe, data, "--alone", "--publish", status=2)
    assert "is no file" in trainer.train(recipe, trainer.folder / "none.parquet", status=2)
    assert "there is no" in trainer.train(recipe, data, "--publish", status=2)
    assert "there are no data" in trainer("train", recipe, "--runs", trainer.runs, status=2)
    named = trainer.recipe(("[data]", "[data]\ndataset = 'passages@3'"))
    assert "the dataset 'passages@3' can't be had" in trainer("train", named, "--runs", trainer.runs, status=2)
    assert list(trainer.runs.glob(".hotspot*")) == []


@pytest.mark.skipif("dataset" not in main.commands, reason="this relay has no datasets")
def test_version_of_a_dataset_is_what_is_learned_from(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, and without a trace of the file that it was written into."""
    store_passages(trainer.folder / "state" / "relay.sqlite", 300)
    (trainer.folder / "relay.toml").write_text('[relay]\nid = "relay-1"\n')
    monkeypatch.chdir(trainer.folder)
    trainer("dataset", "create", "passages", "--rule", "passage")
    recipe = trainer.recipe(("[data]", '[data]\ndataset = "passages"'), ('by = "origin"', 'by = "time"'))
    out = trainer("train", recipe, "--json")
    run = msgspec.json.decode(out[out.index("{\n") :], type=TrainingRun)
    assert run.data is not None
    assert (run.data.name, run.data.rows) == ("passages@1", 300)
    assert list((trainer.folder / "state" / "training").glob(".hotspot*")) == []


def test_run_without_a_library_says_what_to_install(trainer: Trainer) -> None:
    """A relay without the extra starts, and tells who trains."""
    hidden = trainer.folder / "hidden"
    (hidden / "sklearn").mkdir(parents=True)
    (hidden / "sklearn" / "__init__.py").write_text("raise ImportError('No module named sklearn')\n")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(hidden), before)))
    try:
        run = trainer.run(trainer.recipe(), trainer.data(200), "--alone", status=1)
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    assert "pip install 'meshnode[learning]'" in run.error
