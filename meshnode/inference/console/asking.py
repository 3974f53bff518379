"""Requests to a node by the Open Inference Protocol with binary tensors, as any other client would make them."""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from meshnode.console.node_api import TIMEOUT_S, NodeApi
from protocols.base.errors import RemoteProtocolError
from protocols.base.limits import MAX_BUDGET_MS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """The outputs of one request, and the parameters of the answer: who computed, and for how long."""

    outputs: "dict[str, NDArray[Any]]"
    parameters: dict[str, Any]


def model_path(model: str) -> str:
    """The path of a model in the API of a node."""
    return f"/v2/models/{quote(model, safe='')}"


def ask(
    api: NodeApi, model: str, arrays: "Mapping[str, NDArray[Any] | list[NDArray[Any]]]", outputs: tuple[str, ...],
    deadline_ms: int | None, shard: int | None = None,
) -> NodeAnswer:  # fmt: skip
    """Have ``model`` computed once, and wait for it. ``shard``: it is a batch, with so many rows in a shard; 0: the
    node chooses. A list has encoded pictures of a batch. :raises MeshError: as ``NodeApi.exchange``."""
    import numpy as np

    from meshnode.models import element_of_short

    forms, parts = [], []
    single = (
        (name, each) for name, value in arrays.items() for each in (value if isinstance(value, list) else [value])
    )
    for name, array in single:
        parts.append(np.ascontiguousarray(array).tobytes())
        forms.append({
            "name": name, "shape": list(array.shape), "parameters": {"binary_data_size": len(parts[-1])},
            "datatype": element_of_short(array.dtype.str[1:]).open_inference,
        })  # fmt: skip
    parameters: dict[str, Any] = {"binary_data_output": True}
    if deadline_ms is not None:
        parameters["timeout"] = deadline_ms * 1_000
    if shard is not None:
        parameters["shard"] = shard
    head = json.dumps({
        "parameters": parameters, "inputs": forms, "outputs": [{"name": name} for name in outputs]
    }).encode()  # fmt: skip
    content, headers = api.exchange(
        "POST", f"{model_path(model)}/infer", b"".join((head, *parts)),
        {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))},
        (deadline_ms if deadline_ms is not None else MAX_BUDGET_MS) / 1e3 + TIMEOUT_S,
    )  # fmt: skip
    return _parsed(content, headers)


def _parsed(content: bytes, headers: Mapping[str, str]) -> NodeAnswer:
    import numpy as np

    from meshnode.models import element_of_open_inference

    try:
        split = int(headers.get("inference-header-content-length", len(content)))
        answer = json.loads(content[:split])
        results: dict[str, NDArray[Any]] = {}
        for form in answer["outputs"]:
            short = element_of_open_inference(form["datatype"]).short
            size_bytes = form["parameters"]["binary_data_size"]
            results[form["name"]] = np.frombuffer(content[split : split + size_bytes], short).reshape(form["shape"])
            split += size_bytes
        return NodeAnswer(results, dict(answer["parameters"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RemoteProtocolError(f"the node's answer is malformed ({error!r}): update the older of both") from error


def in_flight(work: Callable[[_T], _R], items: Iterable[_T], places: int) -> Iterator[tuple[_T, "Future[_R]"]]:
    """Do ``work`` for each item on a thread of its own, and give the items with their ended futures, in order.

    At most ``places`` items are being worked on, or done and not taken yet. The threads don't outlive the process: when
    a command is interrupted, its connections close, and the node cancels what it computes for them.
    """
    under_way: deque[tuple[_T, Future[_R]]] = deque()
    for item in items:
        if len(under_way) == places:
            yield _ended(under_way)
        future: Future[_R] = Future()
        under_way.append((item, future))
        threading.Thread(target=_fulfil, args=(future, work, item), daemon=True).start()
    while under_way:
        yield _ended(under_way)


def _ended(under_way: "deque[tuple[_T, Future[_R]]]") -> tuple[_T, "Future[_R]"]:
    item, future = under_way.popleft()
    future.exception()  # waits for its end
    return item, future


def _fulfil(future: "Future[_R]", work: Callable[[_T], _R], item: _T) -> None:
    try:
        future.set_result(work(item))
    except BaseException as error:  # noqa: BLE001 - whoever takes the future gets it
        future.set_exception(error)
