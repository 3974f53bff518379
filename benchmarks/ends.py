"""The processes of a contender: a child for each end, and the parent's handles to both.

Invariants: every order of the parent has a deadline, and a child that misses it is killed with its pair. A child ends
by itself when its parent is gone, in whatever way. Processes are spawned, never forked: NNG does not survive a fork.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks.contender import ENDS, BenchmarkFailed, Contender, End, Ports, Setting
from benchmarks.measures import LATENCY_BYTES, RUNS, FarEnd, NearEnd

OPEN_TIMEOUT_S = 60.0
"""The time to open, including imports and loading, on a machine that is busy with starting the others."""
ORDER_TIMEOUT_S = 20.0
"""The time for an order, in addition to the seconds for which it asks to run."""
CLOSE_TIMEOUT_S = 3.0

_CLASSES = {
    "ours": ("benchmarks.ours", "Ours"),
    "pynng": ("benchmarks.peer_pynng", "PynngPeer"),
    "zenoh": ("benchmarks.peer_zenoh", "ZenohPeer"),
    "ssl": ("benchmarks.peer_ssl", "SslPeer"),
}


# --- in the child ----------------------------------------------------------------------------------------------------
def meet(contender: Contender, end: End, timeout_s: float) -> None:
    """Say hello until the other end says that it hears us, so that both directions are known to carry readings.

    :raises BenchmarkFailed: when that does not happen in time.
    """
    other = "far" if end == "near" else "near"
    heard, understood = threading.Event(), threading.Event()

    def on_hello(reading: Any) -> None:
        heard.set()
        if reading.value == 1.0:
            understood.set()

    contender.subscribe(f"veh/bench-{other}/hello", on_hello)
    say = contender.publisher(f"veh/bench-{end}/hello", batched=False)
    deadline_s = time.monotonic() + timeout_s
    while not understood.wait(0.02):
        say(1.0 if heard.is_set() else 0.0)
        if time.monotonic() > deadline_s:
            what = "heard the other end but was not heard" if heard.is_set() else "heard nothing from the other end"
            raise BenchmarkFailed(f"{end} {what} for {timeout_s:.0f} s")
    say(1.0)


def _run_end(name: str, setting: Setting, orders: Connection) -> None:
    """The main function of a child. It carries out orders until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles an interrupt, and ends this process
    threading.Thread(target=_end_with_parent, name="orphan", daemon=True).start()
    module, class_name = _CLASSES[name]
    contender: Contender = getattr(importlib.import_module(module), class_name)(setting)
    known: dict[str, Callable[..., Any]]

    def connect(ports: Ports, timeout_s: float) -> None:
        contender.connect(ports)
        if setting.end == "near":
            near = NearEnd(contender)
            known.update(latency=near.latency, flood=near.flood, inference=near.inference)
        else:
            known.update(result=FarEnd(contender).result)
        meet(contender, setting.end, timeout_s)

    known = {
        "listen": contender.listen,
        "connect": connect,
        "versions": contender.versions,
        "close": contender.close,
    }
    orders.send((None, None))
    with contextlib.suppress(EOFError, OSError):
        while True:
            order, arguments = orders.recv()
            try:
                orders.send((None, known[order](*arguments)))
            except BenchmarkFailed as error:
                orders.send((str(error), None))
            except Exception:  # noqa: BLE001 - whatever a library raises has to reach the parent, who tells it
                orders.send((traceback.format_exc(limit=-4), None))
            if order == "close":
                break
    os._exit(0)  # threads of a library that hang in a close must not keep the process


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child only"
    wait([parent.sentinel])
    os._exit(1)


# --- in the parent ---------------------------------------------------------------------------------------------------
class _Child:
    """One end, as the parent sees it."""

    def __init__(self, name: str, setting: Setting) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._label = f"{name}/{setting.end}"
        self._orders, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_run_end, args=(name, setting, theirs), name=self._label, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def process_id(self) -> int:
        assert self._process.pid is not None, "started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    def order(self, order: str, *arguments: Any) -> None:
        try:
            self._orders.send((order, arguments))
        except OSError as error:
            raise BenchmarkFailed(f"{self._label} is gone: its output says why") from error

    def answer(self, timeout_s: float) -> Any:
        try:
            if not self._orders.poll(timeout_s):
                raise BenchmarkFailed(f"{self._label} did not answer within {timeout_s:.0f} s")
            problem, result = self._orders.recv()
        except (EOFError, OSError) as error:
            raise BenchmarkFailed(f"{self._label} is gone: its output says why") from error
        if problem is not None:
            raise BenchmarkFailed(f"{self._label}: {problem}")
        return result

    def end(self, deadline_s: float) -> None:
        self._process.join(max(0.0, deadline_s - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join(1.0)
        self._orders.close()


class Pair:
    """Both ends of one contender. Starting has two steps, so that all contenders can load at the same time."""

    def __init__(self, name: str, settings: dict[End, Setting]) -> None:
        self.name = name
        self._children = {end: _Child(name, settings[end]) for end in ENDS}

    @property
    def process_ids(self) -> dict[End, int]:
        """The process ids of both children."""
        return {end: child.process_id for end, child in self._children.items()}

    def open(self) -> dict[str, str]:
        """Connect the ends. Returns the versions in use. :raises BenchmarkFailed: when they don't meet."""
        near, far = self._children["near"], self._children["far"]
        for child in (far, near):
            child.answer(OPEN_TIMEOUT_S)
        far_ports: Ports = self._ask(far, "listen", ())
        near_ports: Ports = self._ask(near, "listen", far_ports)
        near.order("connect", far_ports, ORDER_TIMEOUT_S / 2)
        far.order("connect", near_ports, ORDER_TIMEOUT_S / 2)
        near.answer(ORDER_TIMEOUT_S)
        far.answer(ORDER_TIMEOUT_S)
        versions: dict[str, str] = self._ask(near, "versions")
        return versions

    def run(self, run: str, seconds: float) -> dict[str, float]:
        """Carry out one of ``measures.RUNS``. Returns values by measure. :raises BenchmarkFailed: when there is no
        result."""
        assert run in RUNS, run
        near, far = self._children["near"], self._children["far"]
        if run in LATENCY_BYTES:
            near.order("latency", run, seconds)
            result = near.answer(seconds + ORDER_TIMEOUT_S)
            return {f"{run}_p50": result["p50"], f"{run}_p99": result["p99"]}
        if run == "remote_inference_overhead":
            near.order("inference", seconds)
            return {run: near.answer(seconds + ORDER_TIMEOUT_S)}
        near.order("flood", run, seconds)
        put = near.answer(seconds + ORDER_TIMEOUT_S)
        count, took_s = self._ask(far, "result", run)
        if count != put:
            raise BenchmarkFailed(f"{self.name} delivered {count} of {put} values: a rate with losses is no result")
        scale = 1e6 if run == "tensor_1MB_bytes_per_s" else 1.0
        return {run: count * scale / took_s}

    def dead(self) -> str:
        """The ends that have ended, with their exit codes; empty when both run."""
        codes = {end: child.exit_code for end, child in self._children.items()}
        return ", ".join(f"{end} has ended with exit code {code}" for end, code in codes.items() if code is not None)

    def close(self) -> None:
        """End both processes, by force after ``CLOSE_TIMEOUT_S``."""
        for child in self._children.values():
            with contextlib.suppress(BenchmarkFailed):
                child.order("close")
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        for child in self._children.values():
            child.end(deadline_s)

    def kill(self) -> None:
        """End both processes now."""
        for child in self._children.values():
            child.end(0.0)

    @staticmethod
    def _ask(child: _Child, order: str, *arguments: Any) -> Any:
        child.order(order, *arguments)
        return child.answer(ORDER_TIMEOUT_S)
