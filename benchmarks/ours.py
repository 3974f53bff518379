"""The contender that is this mesh, used through its public API: two nodes with seed addresses and without mDNS.

A node drops readings that its neighbour does not take in time, rather than hold up their publisher. So the throughput
runs look at how many wait before they put more, as a program does that must not lose any.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import meshnode
from benchmarks import model
from benchmarks.contender import BenchmarkFailed, Ports, Setting
from benchmarks.readings import HOW, WHERE
from meshnode.config.sections import (
    DiscoverySection,
    IdentitySection,
    ListenSection,
    LogSection,
    NodeConfig,
    NodeSection,
)
from meshnode.http.section import HttpSection
from meshnode.inference.section import ModelSection, ModelsSection
from meshnode.links.transport import Address
from protocols.base.errors import InferenceError, ModelUnknown
from protocols.base.ids import node_id

_T = TypeVar("_T")

OPEN_TIMEOUT_S = 10.0
OFFER_TIMEOUT_S = 10.0
"""How long to wait until the far end's offer to compute has arrived."""
BUDGET_MS = 5_000
MAX_WAITING = 1_024
"""The number of readings that may wait for the far end: half of what a queue holds."""
MAX_WAITING_TENSORS = 8
LOOK_EVERY = 256
"""The number of puts between two looks at how many wait."""


class Ours:
    """One end of this mesh: a node."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="asyncio", daemon=True).start()
        self._open = contextlib.AsyncExitStack()
        self._node: meshnode.Node | None = None

    def listen(self, ports: Ports) -> Ports:
        """Open the node; the near end has the far end as its seed."""
        self._node = self._in_loop(self._open.enter_async_context(meshnode.open(self._config(ports))), OPEN_TIMEOUT_S)
        return (self._opened.port,)

    def connect(self, ports: Ports) -> None:
        """Wait until the nodes have met: a seed is enough for both directions."""
        self._in_loop(self._opened.wait_for_peers(1, timeout_s=OPEN_TIMEOUT_S), OPEN_TIMEOUT_S + 1)

    def subscribe(self, key: str, callback: Callable[[Any], object]) -> None:
        """Subscribe with the callback on the receiving thread."""
        self._opened.subscribe(key, callback=callback)

    def publisher(self, key: str, *, batched: bool) -> Callable[[Any], object]:
        """Puts never wait; with ``batched`` the publisher pauses while too much waits for the far end."""
        put: Callable[[Any], object] = self._opened.publisher(key, unit=HOW.unit, sensor=HOW.sensor, where=WHERE).put
        return self._paced(put) if batched else put

    def gatherer(self, key: str) -> Callable[[list[Any]], object]:
        """See :class:`benchmarks.contender.Contender`: one ``put_many``."""
        put_many = self._opened.publisher(key, unit=HOW.unit, sensor=HOW.sensor, where=WHERE).put_many
        node = self._opened
        since_look = 0

        def paced(values: list[Any]) -> None:
            nonlocal since_look
            since_look += len(values)
            if since_look >= LOOK_EVERY:
                since_look = 0
                while any(peer.waiting_readings > MAX_WAITING for peer in node.peers()):
                    time.sleep(0.0001)
            put_many(values)

        return paced

    def infer(self, array: Any, seconds: float) -> list[int]:
        """Make one request after the other, on the event loop, as an application does."""
        return self._in_loop(self._infer(array, seconds), seconds + OFFER_TIMEOUT_S + BUDGET_MS / 1_000)

    def versions(self) -> dict[str, str]:
        """The version of this distribution, when it is installed."""
        try:
            return {"meshnode": version("meshnode")}
        except PackageNotFoundError:
            return {"meshnode": "not installed"}

    def close(self) -> None:
        """Close the node, which says goodbye."""
        self._in_loop(self._open.aclose(), OPEN_TIMEOUT_S)

    @property
    def _opened(self) -> meshnode.Node:
        assert self._node is not None, "listen first"
        return self._node

    async def _infer(self, array: Any, seconds: float) -> list[int]:
        give_up_s = time.monotonic() + OFFER_TIMEOUT_S
        while True:
            try:
                await self._opened.infer(model.NAME, {model.INPUT: array}, deadline_ms=BUDGET_MS)
                break
            except ModelUnknown as error:
                if time.monotonic() > give_up_s:
                    raise BenchmarkFailed(
                        f"the far end offers no {model.NAME} after {OFFER_TIMEOUT_S:.0f} s"
                    ) from error
                await asyncio.sleep(0.02)
        overheads_ns: list[int] = []
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            begin_ns = time.perf_counter_ns()
            try:
                result = await self._opened.infer(model.NAME, {model.INPUT: array}, deadline_ms=BUDGET_MS)
            except InferenceError as error:
                raise BenchmarkFailed(f"an inference failed: {error}") from error
            output = result.outputs[model.OUTPUT]
            overheads_ns.append(time.perf_counter_ns() - begin_ns - int(result.compute_ms * 1e6))
            if output.shape != array.shape or output[-1] != array[-1] + 1:
                raise BenchmarkFailed(f"an answer is wrong: shape {output.shape}")
        return overheads_ns

    def _paced(self, put: Callable[[Any], object]) -> Callable[[Any], object]:
        node = self._opened
        puts = 0

        def paced(value: Any) -> None:
            nonlocal puts
            puts += 1
            tensor = not isinstance(value, float)
            if tensor or not puts % LOOK_EVERY:
                bound = MAX_WAITING_TENSORS if tensor else MAX_WAITING
                while any(peer.waiting_readings > bound for peer in node.peers()):
                    time.sleep(0.0001)
            put(value)

        return paced

    def _config(self, seeds: Ports) -> NodeConfig:
        setting = self._setting
        far = setting.end == "far"
        return NodeConfig(
            node=NodeSection(id=node_id(setting.node), state_dir=setting.state, position=WHERE),
            identity=IdentitySection(certificate=setting.certificate, key=setting.key, authority=setting.authority),
            listen=ListenSection(host="127.0.0.1", port=0, advertise=("127.0.0.1",)),
            discovery=DiscoverySection(mdns=False, seeds=tuple(Address("127.0.0.1", port) for port in seeds)),
            log=LogSection(level="warning"),
            sections=(
                HttpSection(enabled=False),
                ModelsSection(models={model.NAME: ModelSection(path=setting.model)} if far else {}),
            ),
        )

    def _in_loop(self, task: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        try:
            return asyncio.run_coroutine_threadsafe(task, self._loop).result(timeout_s)
        except TimeoutError as error:
            raise BenchmarkFailed(
                f"the node at the {self._setting.end} end did not answer in {timeout_s:.0f} s"
            ) from error
