"""What became of a node's own requests, by model, in the layout of Triton's statistics extension.

A node counts what it asked for: a request that a neighbour computed counts here, and one that it computed for a
neighbour does not. Times are those that the computing node told. Called on the event loop of the node only.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from meshnode.inference.result import InferenceResult

MAX_MODELS: Final = 256
"""Models that are remembered. Neighbours name models; the one that was asked for longest ago gives way."""


@dataclass(slots=True)
class _Times:
    """How often something happened, and how long it took together."""

    count: int = 0
    ns: int = 0

    def add(self, took_ns: float) -> None:
        self.count += 1
        self.ns += int(took_ns)

    def form(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class _Account:
    """The requests for one model."""

    last_ms: int = 0
    """When the last one began; UTC, in milliseconds since 1970."""
    executions: int = 0
    success: _Times = field(default_factory=_Times)
    fail: _Times = field(default_factory=_Times)
    queue: _Times = field(default_factory=_Times)
    compute: _Times = field(default_factory=_Times)

    def succeeded(self, result: InferenceResult) -> None:
        self.success.add(result.took_ms * 1e6)
        self.queue.add(result.queued_ms * 1e6)
        self.compute.add(result.compute_ms * 1e6)


class RequestStatistics:
    """Accounts by model."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    @contextmanager
    def request(self, model: str) -> Iterator[Callable[[InferenceResult], None]]:
        """Count what happens inside as one request for that model: the result that is handed to the function, or a
        failure when something is raised."""
        account = self._accounts.pop(model, None) or _Account()
        self._accounts[model] = account
        if len(self._accounts) > MAX_MODELS:
            del self._accounts[next(iter(self._accounts))]
        account.last_ms = time.time_ns() // 1_000_000
        began_ns = time.monotonic_ns()
        try:
            yield account.succeeded
        except BaseException:
            account.fail.add(time.monotonic_ns() - began_ns)
            raise

    def executed(self, model: str, runs: int) -> None:
        """So many runs were started for the request that goes on now, whether it succeeds or fails."""
        if (account := self._accounts.get(model)) is not None:
            account.executions += runs

    def form(self, model: str, version: str) -> dict[str, Any]:
        """One entry of ``model_stats``."""
        account = self._accounts.get(model) or _Account()
        nothing, no_time = _Times().form(), _Times(account.compute.count).form()
        compute = {"compute_input": no_time, "compute_infer": account.compute.form(), "compute_output": no_time}
        return {
            "name": model,
            "version": version,
            "last_inference": account.last_ms,
            "inference_count": account.success.count,
            "execution_count": account.executions,
            "inference_stats": {
                "success": account.success.form(),
                "fail": account.fail.form(),
                "queue": account.queue.form(),
                **compute,
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": [{"batch_size": 1, **compute}] if account.compute.count else [],
            "memory_usage": [],
        }
