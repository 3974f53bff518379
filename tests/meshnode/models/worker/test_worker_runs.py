"""A model in a worker process computes what it would compute here, ends when it is told to, and keeps to itself."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.misbehaving import Kind, harmless, trigger
from meshnode.models import Cancellation, Failed, Job, ModelSpec, RunDone, Runner, load_model
from meshnode.models.worker import Patience, WorkerModel, Workers
from meshnode.models.worker.segment import KEPT_BYTES
from protocols.base.errors import BudgetExhausted, InferenceError, InputInvalid, ModelInvalid
from protocols.wire.tensors import tensor_of
from tests.tools.eventually import eventually
from tests.tools.outcomes import Outcomes
from tests.tools.tiny_onnx import write_model
from tests.tools.worker_fixture import Troubled, given_bad, given_troubled, open_files, running, within

__all__ = ["given_bad", "given_troubled"]
pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[4]
PAUSE_S = 1.0


@pytest.fixture(name="workers")
def given_workers(troubled: Troubled) -> Iterator[Workers]:
    """No worker is lost here because a busy machine lets it wait before it hears that it is to end its run."""
    with contextlib.closing(Workers(troubled, Patience(grace_s=60.0))) as made:
        yield made


def test_model_in_a_worker_gives_the_same_bits_and_says_the_same_of_itself(workers: Workers, tmp_path: Path) -> None:
    """The rest of the node must not notice where a model is computed."""
    spec = ModelSpec("m", write_model(tmp_path / "m.onnx", ("batch", 4), "Mul", repeat=3))
    here, there = load_model(spec), workers.load(spec)
    assert (there.digest, there.inputs, there.outputs, there.left_out) == (
        here.digest, here.inputs, here.outputs, here.left_out
    )  # fmt: skip
    for rows in (1, 0, 70_000, 2, 700_000, 3):  # segments grow, and are given back
        x = np.random.default_rng(rows).standard_normal((rows, 4), dtype="f4")
        (_, mine), (_, theirs) = *here.run({"x": x}), *there.run({"x": tensor_of(x)})
        assert theirs.dtype == mine.dtype
        assert np.array_equal(theirs, mine)


@pytest.mark.parametrize("dtype", ["b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"])
def test_every_element_type_travels_to_a_worker_and_back(workers: Workers, tmp_path: Path, dtype: str) -> None:
    """Shared memory knows bytes only; a type that is read as another would be a silently wrong answer."""
    model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", (), "Identity", dtype=dtype)))
    for x in (np.array(1, dtype), np.ones((3, 1, 2), dtype), np.asfortranarray(np.eye(3, dtype=dtype))[:, ::2]):
        ((_, y),) = model.run({"x": x})
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        assert np.array_equal(y, x)


def test_models_are_computed_without_a_word_to_the_makers_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime keeps a database of what it loads and runs, and sends it over the network, unless it is told not
    to. A vehicle must not report its models to anybody."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    path = write_model(tmp_path / "m.onnx", (4,), "Mul")
    program = (
        f"from pathlib import Path; from meshnode.models import ModelSpec, load_model; spec = ModelSpec('m', "
        f"Path({str(path)!r})); load_model(spec)"
    )
    with contextlib.closing(Workers()) as workers:
        model = workers.load(ModelSpec("m", path))
        model.run({"x": np.ones(4, "f4")})
        assert model.process_id is not None
        assert not [name for name in open_files(model.process_id) if name.startswith(str(home))]
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
    assert not list(home.rglob("*"))


def test_outputs_stay_as_they_are_when_the_next_run_uses_the_memory(workers: Workers, tmp_path: Path) -> None:
    """An answer that changes under its reader is worse than none."""
    model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", ("n",), "Add")))
    outputs = [model.run({"x": np.full(50_000, number, "f4")})[0][1] for number in range(20)]
    assert all((output == 2 * number).all() for number, output in enumerate(outputs))


def test_outputs_larger_than_the_inputs_get_room(workers: Workers, tmp_path: Path) -> None:
    """How much a model gives is known only when it has computed."""
    model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", None, "Tile", dtype="i8")))
    for size in (3, 200_000, 6_000_000, 5):
        ((_, y),) = model.run({"x": np.array([size])})
        assert y.shape == (size,)
        assert (y == size).all()


def test_runs_that_follow_one_another_give_what_each_would_give_alone(workers: Workers, tmp_path: Path) -> None:
    """They are one exchange with the process, of inputs of any sizes, and their outputs may need more room."""
    adds = workers.load(ModelSpec("adds", write_model(tmp_path / "adds.onnx", ("n",), "Add")))
    sizes = (3, 500_000, 0, 70_000)
    given = adds.run_each([{"x": np.full(size, size, "f4")} for size in sizes], ("y",), Cancellation())
    assert [[(name, len(y), set(y.tolist())) for name, y in each] for each in given] == [
        [("y", size, {2 * size} if size else set())] for size in sizes
    ]
    tiles = workers.load(ModelSpec("tiles", write_model(tmp_path / "tiles.onnx", None, "Tile", dtype="i8")))
    given = tiles.run_each([{"x": np.array([size])} for size in (200_000, 1, 300_000)], (), Cancellation())
    assert [len(y) for ((_, y),) in given] == [200_000, 1, 300_000]
    with pytest.raises(InputInvalid, match="expected f4"):
        adds.run_each([{"x": np.ones(3, "f4")}, {"x": np.ones(3)}], (), Cancellation())


def test_runs_that_are_told_to_cede_end_after_the_one_under_way(workers: Workers, tmp_path: Path) -> None:
    """Whoever has a turn between the pictures of a neighbour waits for one of them, and not for eight."""
    long = workers.load(ModelSpec("long", write_model(tmp_path / "long.onnx", (300_000,), "Sin", repeat=100)))
    runs, cancel = [{"x": np.full(300_000, number, "f4")} for number in range(50)], Cancellation()
    given: list[list[tuple[str, object]]] = []
    thread = threading.Thread(target=lambda: given.extend(long.run_each(runs, (), cancel)))  # type: ignore[arg-type]
    thread.start()
    eventually(lambda: cancel._options is not None)
    cancel.cede()
    thread.join(60)
    assert 1 <= len(given) < 50
    assert np.array_equal(given[0][0][1], long.run(runs[0])[0][1])  # type: ignore[arg-type]


def test_runs_on_several_threads_are_computed_at_the_same_time(workers: Workers, tmp_path: Path) -> None:
    """`workers = 4` means four runs at once, of one model too."""
    model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", ("n",), "Add")))
    right: list[bool] = []

    def compute(number: int) -> None:
        x = {"x": np.full(1_000 * (1 + number), number, "f4")}
        right.extend((model.run(x)[0][1] == 2 * number).all() for _ in range(50))

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 200


def test_inputs_and_outputs_that_do_not_fit_are_refused_as_before(workers: Workers, tmp_path: Path) -> None:
    """The words are those of a model in this process, and the worker goes on."""
    model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", ("n", "n"), "MatMul")))
    with pytest.raises(InputInvalid, match="expected f4"):
        model.run({"x": np.ones((2, 2))})
    with pytest.raises(InputInvalid, match="no output 'z'"):
        model.run({"x": np.ones((2, 2), "f4")}, ("z",))
    with pytest.raises(InferenceError):
        model.run({"x": np.ones((2, 3), "f4")})
    assert model.run({"x": np.ones((2, 2), "f4")})[0][1].tolist() == [[2, 2], [2, 2]]
    assert workers.counters()["model_workers_started"] == 1


def test_model_that_can_not_be_loaded_says_why_and_leaves_no_process(workers: Workers, tmp_path: Path) -> None:
    """The reasons are those of a model in this process."""
    with pytest.raises(ModelInvalid, match="there is no file"):
        workers.load(ModelSpec("m", tmp_path / "absent.onnx"))
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(ModelInvalid, match=r"cut\.onnx"):
        workers.load(ModelSpec("m", tmp_path / "cut.onnx"))
    big = write_model(tmp_path / "m.onnx", ("n",), "Add")
    with pytest.raises(ModelInvalid, match="has the digest"):
        workers.load(ModelSpec("m", big, digest="0" * 64))


def test_providers_that_are_absent_or_unknown_are_named_and_passed_over(workers: Workers, tmp_path: Path) -> None:
    """A configuration for several kinds of computers must not keep a model from being served by the processor."""
    spec = ModelSpec("m", write_model(tmp_path / "m.onnx", ("n",), "Add"), providers=("npu", "cuda"))
    model = workers.load(spec)
    assert ["'npu' is unknown" in note or "'cuda' is not in the installed onnxruntime" in note for note in model.notes]
    assert len(model.notes) == 2
    assert model.run({"x": np.ones(1, "f4")})[0][1] == 2


# --- cancelled -------------------------------------------------------------------------------------------------------
@pytest.fixture(name="long")
def given_long(workers: Workers, tmp_path: Path) -> WorkerModel:
    """Computes for many seconds in thousands of operators, between which it can be ended."""
    return workers.load(ModelSpec("long", write_model(tmp_path / "m.onnx", (1_000_000,), "Sin", repeat=8_000)))


def test_run_that_is_cancelled_ends_in_the_worker_which_goes_on(workers: Workers, long: WorkerModel) -> None:
    """The loser of a hedge must stop to compute, or the next run of the model would wait for it."""
    runner, outcomes = Runner(), Outcomes()
    with contextlib.closing(runner):
        process_id = long.process_id
        cancel = runner.submit(Job(long, {"x": np.ones(1_000_000, "f4")}), outcomes)
        assert process_id is not None
        eventually(lambda: _processor_s(process_id) > 0.5, "it computes")
        cancel.cancel()
        (outcome,) = outcomes.wait_for(1)
        assert isinstance(outcome, Failed)
        assert outcome.cancelled
        before_s = _processor_s(process_id)
        time.sleep(0.3)
        assert _processor_s(process_id) - before_s < 0.2, "it still computes"
    assert long.process_id == process_id
    assert workers.counters()["model_workers_hung"] == 0


def test_run_that_is_cancelled_beforehand_does_not_compute(long: WorkerModel) -> None:
    """The message to end it may come before the run does."""
    cancel = Cancellation()
    cancel.cancel()
    with pytest.raises(InferenceError, match="cancelled"):
        long.run({"x": np.ones(1_000_000, "f4")}, cancel=cancel)


def test_run_that_reaches_its_deadline_is_ended_and_counts_as_a_cost(long: WorkerModel) -> None:
    """Nobody waits for it any more; and what takes too long here must look expensive, or it is asked for again."""
    runner, outcomes = Runner(), Outcomes()
    with contextlib.closing(runner):
        deadline_ns = time.monotonic_ns() + 2_000_000_000
        runner.submit(Job(long, {"x": np.ones(1_000_000, "f4")}, deadline_ns=deadline_ns), outcomes)
        (outcome,) = outcomes.wait_for(1)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, BudgetExhausted)
        assert "deadline" in str(outcome.error)
        cost_us = runner.median_us(long)
        assert cost_us is not None
        assert cost_us > 400_000
        assert runner.p95_us(long) == cost_us


def _processor_s(process_id: int) -> float:
    """Processor time of a process, in seconds."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- a process of its own --------------------------------------------------------------------------------------------
def test_worker_holds_nothing_of_the_node_and_leaves_nothing_behind(workers: Workers, tmp_path: Path) -> None:
    """A listening port in a worker would outlive the node, and a segment in /dev/shm would outlive everybody."""
    with socket.create_server(("127.0.0.1", 0)) as listener, (tmp_path / "key").open("w") as key:
        for shared in (listener, key):
            os.set_inheritable(shared.fileno(), True)
        model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", ("n",), "Add")))
        model.run({"x": np.ones(10, "f4")})
        assert model.process_id is not None
        held = open_files(model.process_id)
        mine = {str(Path(f"/proc/self/fd/{shared.fileno()}").readlink()) for shared in (listener, key)}
        shared_memory = [line for line in Path("/proc/self/maps").read_text().splitlines() if "meshnode-" in line]
    assert not mine & set(held)
    assert shared_memory
    assert all("/memfd:meshnode-tensors (deleted)" in line for line in shared_memory), "it has no name to leave behind"
    assert sum(path.startswith("socket:") for path in held) == 2, f"its control socket and one slot: {held}"
    workers.close()
    assert not running(model.process_id)


def test_worker_imports_the_room_of_models_only(workers: Workers, tmp_path: Path) -> None:
    """It starts in a fraction of a second, and what it does not have it can't break."""
    code = (
        "import sys, meshnode.models.worker.inside;"
        "print(*sorted({'.'.join(name.split('.')[:2]) for name in sys.modules if name.startswith(('meshnode.',"
        " 'cloud_relay', 'sims'))} | ({'pynng', 'zeroconf', 'asyncio', 'cryptography'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["meshnode.config", "meshnode.links", "meshnode.models"], "and what reads a manifest"


def test_worker_is_deaf_to_the_signals_of_a_terminal(workers: Workers, tmp_path: Path) -> None:
    """Ctrl-C and systemd reach all processes of a node; its last answers are computed before it closes."""
    model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", ("n",), "Add")))
    process_id = model.process_id
    assert process_id is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process_id, number)
    assert model.run({"x": np.ones(1, "f4")})[0][1] == 2
    assert model.process_id == process_id


_PARENT = """
import sys, threading
from pathlib import Path
from benchmarks.misbehaving import trigger, write_misbehaving
from meshnode.models import ModelSpec
from meshnode.models.worker import Workers

workers = Workers()
models = [workers.load(ModelSpec(str(n), write_misbehaving(Path(sys.argv[1]) / f"{n}.onnx", "hang"))) for n in range(2)]
threading.Thread(target=models[0].run, args=(trigger("hang"),), daemon=True).start()
print(*(model.process_id for model in models), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_worker_ends_with_its_node_however_that_ends(tmp_path: Path, how: signal.Signals | None) -> None:
    """An orphan that hangs would keep a core for ever. None: the node's process ends without closing anything."""
    command = [sys.executable, "-c", _PARENT, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        process_ids = [int(text) for text in parent.stdout.readline().split()]
        assert len(process_ids) == 2
        eventually(lambda: _processor_s(process_ids[0]) > 0.5, "one of them computes")
        if how is None:
            parent.stdin.close()
        else:
            parent.send_signal(how)
        parent.wait()
    eventually(lambda: not any(map(running, process_ids)), "both have ended")


def test_closed_workers_end_at_once_and_runs_fail(bad: Callable[[Kind], WorkerModel], workers: Workers) -> None:
    """A node that closes must not wait for a model that hangs."""
    model, outcomes = bad("hang"), Outcomes()
    process_id = model.process_id
    assert process_id is not None
    runner = Runner()
    for inputs in (trigger("hang"), harmless()):
        runner.submit(Job(model, inputs), outcomes)
    eventually(lambda: _processor_s(process_id) > 0.5, "it hangs")
    workers.close()
    assert all(isinstance(outcome, Failed) for outcome in outcomes.wait_for(2))
    assert runner.close()
    assert not running(process_id)
    with pytest.raises(InferenceError, match="shutting down"):
        model.run(harmless(), cancel=within(30))


def test_workers_without_a_model_start_no_process() -> None:
    """A node that only reads sensors pays nothing for inference."""
    workers = Workers()
    assert workers.counters()["model_workers_started"] == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("model-worker-starter")]
    workers.close()


def test_job_of_a_model_in_a_worker_is_an_ordinary_job(workers: Workers, tmp_path: Path) -> None:
    """Queue, budget, median cost and warm-up are those of any model."""
    model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", (4,), "Add")))
    runner, outcomes = Runner(), Outcomes()
    with contextlib.closing(runner):
        assert runner.warm_up(model) is not None
        runner.submit(Job(model, {"x": np.ones(4, "f4")}), outcomes)
        (outcome,) = outcomes.wait_for(1)
    assert isinstance(outcome, RunDone)
    assert outcome.outputs[0][1].tolist() == [2, 2, 2, 2]
    assert outcome.compute_ns > 0


def test_run_that_waits_for_a_processor_has_not_computed_meanwhile(workers: Workers, tmp_path: Path) -> None:
    """A node that emulates a device fifty times as slow makes fifty times as much of what its model computed. On a busy
    machine it made that of the time in which the model waited, too."""
    model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", ("batch", 4), "Sin", repeat=60)))
    rows, cancel = np.ones((500_000, 4), "f4"), within(60)
    assert model.process_id is not None
    process = psutil.Process(model.process_id)
    run = threading.Thread(target=model.run, args=({"x": rows}, (), cancel))
    before_s = process.cpu_times().user
    run.start()
    eventually(lambda: process.cpu_times().user > before_s + 0.05, "the run has begun")
    process.suspend()
    assert run.is_alive()
    time.sleep(PAUSE_S)
    begun_s = time.monotonic()
    process.resume()
    run.join()
    assert cancel.compute_ns is not None
    ran_s = time.monotonic() - begun_s
    assert 0 < cancel.compute_ns / 1e9 < ran_s + PAUSE_S


def test_model_with_a_manifest_takes_pictures_and_the_memory_that_it_declares(workers: Workers, tmp_path: Path) -> None:
    """What a manifest says holds wherever the model is computed, and the picture is decoded in the worker."""
    path = write_model(tmp_path / "m.onnx", (1, 3, 4, 4), "Identity")
    manifest = path.with_suffix(".toml")
    manifest.write_text("memory_mib = 300\n[preprocessing.x]\nwidth = 4\nheight = 4\n")
    here, there = load_model(ModelSpec("m", path)), workers.load(ModelSpec("m", path))
    assert (there.digest, there.inputs, there.manifest) == (here.digest, here.inputs, here.manifest)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 200, 30)).save(picture, "PNG")
    x = {"x": np.frombuffer(picture.getvalue(), np.uint8)}
    assert np.array_equal(there.run(x)[0][1], here.run(x)[0][1])
    assert there.process_id is not None
    (limit,) = [line for line in Path(f"/proc/{there.process_id}/limits").read_text().splitlines() if "data" in line]
    assert 300 << 20 < int(limit.split()[3]) < 700 << 20


def test_memory_of_a_large_run_is_given_back_by_the_worker_too(workers: Workers, tmp_path: Path) -> None:
    """The node let go of it and the worker kept its mapping: a gigabyte for each slot, outside its limit."""
    model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", None, "Tile", dtype="i8")))

    def shared_bytes() -> int:
        maps = Path(f"/proc/{model.process_id}/maps").read_text().splitlines()
        spans = [line.split()[0].split("-") for line in maps if "memfd:" in line]
        return sum(int(end, 16) - int(begin, 16) for begin, end in spans)

    ((_, y),) = model.run({"x": np.array([2 * KEPT_BYTES // 8])})
    assert y.nbytes == 2 * KEPT_BYTES
    eventually(lambda: shared_bytes() <= KEPT_BYTES, "the mapping is gone")
    assert model.run({"x": np.array([3])})[0][1].tolist() == [3, 3, 3]


def test_models_that_are_closed_are_forgotten(workers: Workers, tmp_path: Path) -> None:
    """A model whose warm-up fails is loaded again for ever, and each time something was kept of it."""
    path = write_model(tmp_path / "m.onnx", ("n",), "Add")
    for _ in range(4):
        workers.load(ModelSpec("m", path)).close()
    assert len(workers._keepers) == 1


def test_picture_whose_decoding_outlasts_the_deadline_costs_no_worker(tmp_path: Path, troubled: Troubled) -> None:
    """Nothing ends the decoding of a picture. A neighbour that gave three large ones and no time took the model out of
    service for everybody."""
    path = write_model(tmp_path / "m.onnx", (1, 3, 4, 4), "Identity")
    path.with_suffix(".toml").write_text("[preprocessing.x]\nwidth = 4\nheight = 4\nmax_pixels = 20_000_000\n")
    noise = np.random.default_rng(1).integers(0, 255, (4_000, 4_000, 3), np.uint8)
    picture = io.BytesIO()
    Image.fromarray(noise).save(picture, "JPEG", quality=60)
    with contextlib.closing(Workers(troubled, Patience(grace_s=0.01))) as workers:
        model = workers.load(ModelSpec("m", path))
        process_id = model.process_id
        for _ in range(3):
            with pytest.raises(InferenceError):
                model.run({"x": np.frombuffer(picture.getvalue(), np.uint8)}, cancel=within(0.001))
        assert model.process_id == process_id
        assert workers.counters()["model_workers_hung"] == 0
    assert troubled.told == []
