"""One node of :mod:`benchmarks.neighbourhood`: a real one whose model takes a given time, and that asks at random.

    python -m benchmarks.neighbourhood_node CONFIG

It loads everything, says ``holding``, and then takes two lines of JSON: :class:`Opening`, after which it says ``met``
once all others offer the model, and :class:`Schedule`, after which it says what became of its requests
(:class:`Account`). It ends with its standard input.
"""

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from random import Random
from typing import Final

import msgspec
from msgspec import Struct

from benchmarks.policies import DEADLINE_MS, INPUT_BYTES, MODEL, OUTPUT_BYTES, set_policy
from meshnode.console.process import log_to_stderr
from meshnode.loading import load
from meshnode.node import Node
from meshnode.trial.control import Lines
from meshnode.trial.node import ECHOED_BYTES, INPUT, OUTPUT, TrialModel, TrialNode, echoed
from protocols.base.errors import MeshError
from protocols.wire.tensors import tensor_of

MEET_S: Final = 60.0
_LOOK_S: Final = 0.05


class Opening(Struct):
    """Open the node."""

    policy: str
    seed: int
    compute_ms: float
    others: int
    """How many other nodes there are."""


class Schedule(Struct):
    """Ask, on average every ``mean_ns``, between two instants of the monotonic clock."""

    mean_ns: int
    """0: ask for nothing."""
    begins_ns: int
    counts_ns: int
    """Requests before it warm up and don't count."""
    ends_ns: int


class Account(Struct):
    """What became of the requests of one node."""

    asked: int = 0
    in_time: int = 0
    wrong: int = 0
    """Answers that belong to another request."""
    away: int = 0
    """Of those in time, how many a neighbour has computed."""
    took_us: list[int] = msgspec.field(default_factory=list)
    """Of those in time."""
    asked_late_us: list[int] = msgspec.field(default_factory=list)
    """How long after their instants requests were made."""
    counters: dict[str, int] = msgspec.field(default_factory=dict)
    cpu_s: float = 0.0


class _Asker:
    """Makes the requests of one node and keeps its account."""

    def __init__(self, node: Node, opening: Opening, schedule: Schedule) -> None:
        self._node, self._schedule = node, schedule
        self._hedge = opening.policy == "ours"
        self._random = Random(f"{opening.seed}/{node.id}/asks")
        self._number = 0
        self.account = Account()

    async def run(self) -> None:
        """Ask for everything, and wait for the last answers."""
        schedule, due_ns = self._schedule, float(self._schedule.begins_ns)
        asking = set()
        while schedule.mean_ns:
            due_ns += self._random.expovariate(1 / schedule.mean_ns)
            if due_ns >= schedule.ends_ns:
                break
            await asyncio.sleep(max(due_ns - time.monotonic_ns(), 0) / 1e9)
            task = asyncio.create_task(self._ask(int(due_ns)))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.sleep(max(schedule.ends_ns - time.monotonic_ns(), 0) / 1e9)
        await asyncio.gather(*asking)

    async def _ask(self, due_ns: int) -> None:
        self._number += 1
        stamp = f"{self._node.id} {self._number} ".encode()[-ECHOED_BYTES:].rjust(ECHOED_BYTES)
        data = stamp + bytes(INPUT_BYTES - ECHOED_BYTES)
        counts, account = due_ns >= self._schedule.counts_ns, self.account
        asked_ns = time.monotonic_ns()
        account.asked += counts
        try:
            result = await self._node.infer(MODEL, {INPUT: tensor_of(data)}, deadline_ms=DEADLINE_MS, hedge=self._hedge)
        except MeshError:
            return
        took_ns = time.monotonic_ns() - asked_ns
        answer = result.outputs[OUTPUT].tobytes()
        account.wrong += answer != echoed(data, OUTPUT_BYTES)
        if counts and took_ns <= DEADLINE_MS * 1_000_000:
            account.in_time += 1
            account.away += result.ran_on != self._node.id
            account.took_us.append(took_ns // 1_000)
            account.asked_late_us.append((asked_ns - due_ns) // 1_000)


def _say(content: bytes) -> None:
    sys.stdout.buffer.write(content + b"\n")
    sys.stdout.buffer.flush()


async def _run(configured: TrialNode, opening: Opening, lines: Lines) -> None:
    async with configured as node:
        lot = Random(f"{opening.seed}/{node.id}/lot")
        node.driver.look(lambda engine, _: set_policy(engine.inference._asking, opening.policy, lot))
        ends_at = time.monotonic() + MEET_S
        while sum(bool(peer.offers) for peer in node.peers()) < opening.others:
            if time.monotonic() > ends_at:
                raise TimeoutError(f"{node.id} did not get offers of {opening.others} others in {MEET_S:g} s")
            await asyncio.sleep(_LOOK_S)
        _say(b"met")
        line = await asyncio.to_thread(lines.next)
        if line is None:
            return
        asker = _Asker(node, opening, msgspec.json.decode(line, type=Schedule))
        before, before_s = node.statistics(), time.process_time()
        await asker.run()
        account = asker.account
        account.cpu_s = time.process_time() - before_s
        account.counters = {
            name: count - before[name] for name, count in node.statistics().items() if name.startswith("inference_")
        }
        _say(msgspec.json.encode(account))
        await asyncio.to_thread(lines.next)


def _main() -> None:
    path = Path(sys.argv[1])
    config = load(path)
    log_to_stderr(config.log.level, False)
    import numpy as np  # the first run would take 100 ms longer

    del np
    _say(b"holding")
    lines = Lines(sys.stdin.fileno())
    line = lines.next()
    if line is not None:
        opening = msgspec.json.decode(line, type=Opening)
        model = TrialModel(name=MODEL, compute_ms=opening.compute_ms, output_bytes=OUTPUT_BYTES)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_run(TrialNode(config, path.parent, (model,)), opening, lines))


if __name__ == "__main__":
    _main()
