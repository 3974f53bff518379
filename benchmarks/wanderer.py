"""A real node in a process of its own on a :class:`~benchmarks.lan.Lan`, and the handle of whoever started it.

``python -m benchmarks.wanderer node.toml`` is the process. It prints one line of JSON for each answer, obeys lines of
JSON on its standard input (see ``_Life.obey``), and ends by SIGTERM or with its input. Its clock is that of
:mod:`meshnode.trial.clock`, so that it can be stepped.
"""

import asyncio
import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.lan import Computer

if TYPE_CHECKING:
    import meshnode
    from meshnode.trial.clock import WallClock

ROOT = Path(__file__).resolve().parents[1]
ANSWER_S = 30.0
_READY_S = 90.0
_LEAVE_S = 20.0
_READING_S = 0.1
"""The time between two readings, and between two records."""
_LOOKS = 3


class WandererFailed(Exception):
    """A node did not answer, or ended; says which, and its last words."""


class Wanderer:
    """The process, as its parent sees it."""

    def __init__(self, computer: Computer, config: Path, hosts: Path | None = None) -> None:
        self.name, self.computer, self.config = config.parent.name, computer, config
        self.log = config.with_suffix(".log")
        self._numbers = itertools.count(1)
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        with self.log.open("a") as log:
            self.process = computer.start(
                [sys.executable, "-P", "-m", "benchmarks.wanderer", str(config)], hosts,
                env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        threading.Thread(target=self._read, name=self.name, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put({})

    def ready(self) -> Self:
        """Wait until the node is open. :raises WandererFailed: it is not in time."""
        self._answer(0, _READY_S)
        return self

    def ask(self, verb: str, *arguments: Any, within_s: float = ANSWER_S) -> Any:
        """Give an order and wait for its answer. :raises WandererFailed: there is none in time."""
        number = next(self._numbers)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([number, verb, *arguments]) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WandererFailed(f"{self.name} has ended: {self.last_words()}") from error
        return self._answer(number, within_s)

    def _answer(self, number: int, within_s: float) -> Any:
        ends_s = time.monotonic() + within_s
        while True:
            try:
                answer = self._answers.get(timeout=max(0.0, ends_s - time.monotonic()))
            except queue.Empty as error:
                raise WandererFailed(
                    f"{self.name} gave no answer within {within_s:g} s: {self.last_words()}"
                ) from error
            if not answer:
                raise WandererFailed(f"{self.name} has ended: {self.last_words()}")
            if answer["number"] == number:
                return answer["value"]

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-1_500:].strip()

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def met(self) -> set[str]:
        """The neighbours that are alive and linked in both directions."""
        return set(self.ask("met"))

    def end(self) -> int:
        """Have the node leave, and wait. Returns the exit status; that of a node that hung is -9."""
        if not self.ended:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


# --- the process -----------------------------------------------------------------------------------------------------
class _Life:
    """The running node, and what it publishes."""

    def __init__(self, node: "meshnode.Node", clock: "WallClock") -> None:
        self._node, self._clock = node, clock
        self._number = self._records = 0
        self._received: dict[str, int] = {}
        self._failed = ""
        node.subscribe("veh/*/number", callback=self._receive, history=False)

    def _receive(self, reading: "meshnode.Reading") -> None:
        self._received[reading.origin] = self._received.get(reading.origin, 0) + 1

    async def publish(self) -> None:
        """Publish numbered readings and records until cancelled."""
        where = self._node.position
        while True:
            try:
                self._number += 1
                self._node.publish(f"veh/{self._node.id}/number", self._number, where=where)
                self._node.publish(f"veh/{self._node.id}/record", self._records + 1, where=where)
                self._records += 1
            except Exception as error:  # noqa: BLE001 -- whatever it is, the campaign reports it
                self._failed = repr(error)
            await asyncio.sleep(_READING_S)

    def obey(self, verb: str, *arguments: Any) -> Any:
        """Carry out one order and return the answer."""
        from meshnode.discovery.running import RunningDiscovery

        match (verb, *arguments):
            case ("met",):
                return [peer.node for peer in self._node.peers() if peer.met and peer.state == "alive"]
            case ("peers",):
                return [
                    {"node": peer.node, "state": peer.state, "met": peer.met, "lanes": peer.lanes,
                     "inbound_pipes": peer.inbound_pipes}
                    for peer in self._node.peers()
                ]  # fmt: skip
            case ("discovery",):
                return self._node.part(RunningDiscovery).node_view()["discovery"]
            case ("troubles",):
                return [[trouble.part, trouble.name, trouble.why] for trouble in self._node.troubles.current()]
            case ("statistics",):
                return self._node.statistics()
            case ("drops",):
                return [[*which, count] for which, count in self._node.drops()]
            case ("failures",):
                return [[failed.peer, failed.kind, failed.why, failed.count] for failed in self._node.link_failures()]
            case ("published",):
                return {"readings": self._number, "records": self._records, "failed": self._failed}
            case ("received",):
                return self._received
            case ("clock", int(offset_ns)):
                self._clock.set(offset_ns, 0, 0)
            case ("held",):
                return _held()
            case _:
                raise AssertionError(f"an order of this program: {verb} {arguments}")
        return None


def _held() -> dict[str, int]:
    looks = []
    for _ in range(_LOOKS):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        descriptors, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))  # noqa: PTH208
        looks.append((pages * os.sysconf("SC_PAGE_SIZE"), descriptors, threads))
        time.sleep(0.02)
    return dict(zip(("resident_bytes", "descriptors", "threads"), map(min, zip(*looks, strict=True)), strict=True))


def _say(number: int, value: Any) -> None:
    sys.stdout.write(json.dumps({"number": number, "value": value}, default=str) + "\n")
    sys.stdout.flush()


async def _run(config: Path, clock: "WallClock") -> None:
    import meshnode

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async with meshnode.open(config) as node:
        life = _Life(node, clock)
        publishing: list[asyncio.Task[None]] = []

        def obey(number: int, verb: str, *arguments: Any) -> None:
            if verb == "publish":
                publishing.append(loop.create_task(life.publish()))
            elif verb == "hush":
                publishing.pop().cancel()
            _say(number, None if verb in ("publish", "hush") else life.obey(verb, *arguments))

        def listen() -> None:
            for line in sys.stdin:
                loop.call_soon_threadsafe(obey, *json.loads(line))
            loop.call_soon_threadsafe(stop.set)

        threading.Thread(target=listen, daemon=True).start()
        _say(0, node.port)
        await stop.wait()
        for task in publishing:
            task.cancel()


def main() -> None:
    """Run the node of the configuration file that the command line names."""
    from meshnode.trial.clock import WallClock

    clock = WallClock()
    clock.install()  # before anything of the node is imported
    asyncio.run(_run(Path(sys.argv[1]), clock))
    sys.stdout.flush()
    os._exit(0)  # a thread that still reads its input would hold up the end


if __name__ == "__main__":
    main()
