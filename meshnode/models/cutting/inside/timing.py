"""How long the nodes of a model take: ONNX Runtime's own profile of a few runs, and the time of the whole.

The least of several times is taken: what else goes on in a computer only adds to it, and descriptions are kept.

Times of nodes are measured at ``ORT_ENABLE_BASIC``, where a node of the profile is a node of the graph. They are used
as shares of their sum, so what profiling itself costs matters little.
"""

import json
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.models.model import LoadedModel, ModelSpec, session_options
from protocols.base.errors import StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]
else:
    Arrays = dict

MARK: Final = "meshnode_node_"
"""Nodes are named so for the profile, with their position behind it."""
_KERNEL: Final = re.compile(rf"{MARK}(\d+)_kernel_time")
_MOST_RUNS: Final = 21
_ENOUGH_S: Final = 1.0
"""No further run begins after this time, except that there are at least three."""


def run_us(model: LoadedModel, arrays: Arrays) -> int:
    """The least time of a run, in microseconds and at least 1. The first run is left out: it takes memory."""
    model.run(arrays)
    times: list[int] = []
    while _wants_more(times):
        started_ns = time.perf_counter_ns()
        model.run(arrays)
        times.append(time.perf_counter_ns() - started_ns)
    return max(1, min(times) // 1_000)


def _wants_more(times_ns: list[int]) -> bool:
    return len(times_ns) < 3 or (len(times_ns) < _MOST_RUNS and sum(times_ns) < _ENOUGH_S * 1e9)


def node_times(spec: ModelSpec, content: bytes, arrays: Arrays, folder: Path) -> dict[int, float]:
    """The least time of each node in microseconds, by its position: what disturbs a run only adds.

    ``content``: a graph whose nodes are named by ``MARK`` and position. ``folder``: for the profile, which is removed.
    """
    import onnxruntime

    options = session_options(spec, {})
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    times: list[int] = []
    while _wants_more(times):
        started_ns = time.perf_counter_ns()
        session.run(None, arrays)
        times.append(time.perf_counter_ns() - started_ns)
    profile = Path(session.end_profiling())
    try:
        events = json.loads(profile.read_bytes())
    except ValueError as error:
        raise StorageError(f"the profile of model {spec.name!r} was cut off: make room in {folder}") from error
    profile.unlink()
    found: defaultdict[int, list[int]] = defaultdict(list)
    for event in events:
        if isinstance(event, dict) and (match := _KERNEL.fullmatch(str(event.get("name")))):
            found[int(match[1])].append(int(event["dur"]))
    return {at: min(durations) for at, durations in found.items()}
