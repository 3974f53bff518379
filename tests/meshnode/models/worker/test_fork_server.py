"""One process starts all workers by forking: cheaply, safely, and without the workers noticing one another."""

import contextlib
import os
import signal
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from meshnode.models import ModelSpec
from meshnode.models.worker import WorkerModel, Workers
from protocols.base.errors import InferenceError
from tests.tools.eventually import eventually
from tests.tools.tiny_onnx import write_model
from tests.tools.worker_fixture import given_troubled, given_workers, open_files, running, within

__all__ = ["given_troubled", "given_workers"]
pytestmark = pytest.mark.processes
X = {"x": np.ones(4, "f4")}


def loaded(workers: Workers, tmp_path: Path, name: str) -> WorkerModel:
    return workers.load(ModelSpec(name, write_model(tmp_path / f"{name}.onnx", (4,), "Add")))


def process_of(model: WorkerModel) -> psutil.Process:
    assert model.process_id is not None
    return psutil.Process(model.process_id)


def test_workers_are_forked_from_one_process_that_has_one_thread_and_nothing_of_the_node(
    workers: Workers, tmp_path: Path
) -> None:
    """A fork of a process with threads may deadlock, and what the parent holds each child would hold."""
    first, second = (process_of(loaded(workers, tmp_path, name)) for name in ("a", "b"))
    server = first.parent()
    assert server is not None
    assert server == second.parent() != psutil.Process()
    assert server.parent() == psutil.Process()
    assert server.num_threads() == 1
    assert sum(path.startswith("socket:") for path in open_files(server.pid)) == 1
    assert len(open_files(first.pid)) == len(open_files(second.pid)), "the second has what the server had of the first"


def test_worker_shares_with_others_what_all_have_loaded(workers: Workers, tmp_path: Path) -> None:
    """Twenty models took half a gigabyte, and each loss a quarter of a second of processor time."""
    model = loaded(workers, tmp_path, "m")
    model.run(X)
    process = process_of(model)
    assert process.memory_full_info().uss < 16 << 20
    times = process.cpu_times()
    assert times.user + times.system < 0.1


def test_loss_of_the_fork_server_costs_no_run(workers: Workers, tmp_path: Path) -> None:
    """The kernel may end it for the memory of another. Its workers end with it, and the next ones need a new one."""
    models = [loaded(workers, tmp_path, name) for name in ("a", "b")]
    before = [process_of(model) for model in models]
    server = before[0].parent()
    assert server is not None
    server.kill()
    eventually(lambda: not any(running(process.pid) for process in before), "its workers have ended")
    for model in models:
        assert model.run(X, cancel=within(60))[0][1].tolist() == [2] * 4
    assert process_of(models[0]).parent() == process_of(models[1]).parent() != server
    assert workers.counters()["model_workers_crashed"] == 2


def test_worker_is_started_even_if_a_library_has_threads(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another build of NumPy or ONNX Runtime may start threads when it is imported: then each worker begins afresh."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time; threading.Thread(target=time.sleep, args=(1_000,), daemon=True).start()"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), os.pathsep)
    model = loaded(workers, tmp_path, "m")
    assert model.run(X)[0][1].tolist() == [2] * 4
    process = process_of(model)
    assert "alone" in process.cmdline()
    server = process.parent()
    assert server is not None
    assert server.num_threads() == 2
    process.send_signal(signal.SIGKILL)
    assert model.run(X, cancel=within(60))[0][1].tolist() == [2] * 4
    workers.close()
    eventually(lambda: not running(server.pid), "it ends with the node")


def test_models_that_are_loaded_at_once_all_get_a_worker(workers: Workers, tmp_path: Path) -> None:
    """A node loads its models one by one, but restarts come when they come."""
    models: dict[str, WorkerModel] = {}

    def load(name: str) -> None:
        models[name] = loaded(workers, tmp_path, name)

    threads = [threading.Thread(target=load, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({model.process_id for model in models.values()}) == 8
    assert all(model.run(X)[0][1].tolist() == [2] * 4 for model in models.values())
    assert len({process_of(model).ppid() for model in models.values()}) == 1


def test_worker_that_can_not_be_started_is_refused_in_words(tmp_path: Path) -> None:
    """A node that has no process left to start must say so, and go on."""
    with contextlib.closing(Workers()) as workers:
        workers._starter.close()
        with pytest.raises(InferenceError, match="no worker process can be started"):
            loaded(workers, tmp_path, "m")
