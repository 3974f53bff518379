"""Every call of ``kserve.InferenceRESTClient``: ``python -m tests.clients.kserve 127.0.0.1:8470``."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from tests.clients.rows import Rows, missing, same

try:
    import numpy as np
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
    from kserve.protocol.infer_type import RequestedOutput
except (ImportError, RuntimeError) as error:
    sys.exit(missing("kserve", error))


class _Blocking:
    """The client, one call at a time."""

    def __init__(self, address: str, loop: asyncio.AbstractEventLoop, protocol: str = "v2") -> None:
        self._base, self._loop = f"http://{address}", loop
        self._client = InferenceRESTClient(RESTConfig(protocol=protocol))

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """One method, awaited."""
        method: Callable[..., Awaitable[Any]] = getattr(self._client, name)
        return self._loop.run_until_complete(_awaited(method(self._base, *arguments, **options)))

    def infer(self, model: str, values: Any, kind: str, binary: tuple[bool, bool]) -> Any:
        """One request; ``binary`` says how the input goes and the output comes."""
        given = InferInput("x", list(values.shape), kind)
        given.set_data_from_numpy(values, binary_data=binary[0])
        wanted = RequestedOutput("y", {"binary_data": binary[1]})
        request = InferRequest(model, [given], request_id="r-1", request_outputs=[wanted])
        return self.call("infer", request, model_name=model)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _calls(rows: Rows, client: _Blocking) -> None:
    rows.works("is_server_live", lambda: client.call("is_server_live"))
    rows.works("is_server_ready", lambda: client.call("is_server_ready"))
    rows.works("is_model_ready", lambda: client.call("is_model_ready", "double"))
    rows.works("is_model_ready, unknown model", lambda: not client.call("is_model_ready", "nobody-has-this"))
    values = np.random.default_rng(7).standard_normal((512, 4), dtype=np.float32)
    for binary, name in (
        ((True, True), "binary both ways"), ((False, False), "JSON both ways"), ((True, False), "binary in, JSON out"),
        ((False, True), "JSON in, binary out"),
    ):  # fmt: skip
        rows.works(f"infer, {name}", lambda binary=binary: same(
            client.infer("double", values, "FP32", binary).outputs[0].as_numpy(), values + values))  # fmt: skip
    odd = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    rows.works("infer, NaN and infinities, binary", lambda: same(
        client.infer("double", odd, "FP32", (True, True)).outputs[0].as_numpy(), odd + odd))  # fmt: skip
    only_nan = np.array([[np.nan, 1, 2, 3]], np.float32)
    rows.works("infer, NaN as JSON (the client sends null)", lambda: same(
        client.infer("double", only_nan, "FP32", (False, False)).outputs[0].as_numpy(), only_nan * 2))  # fmt: skip
    half = np.array([[1.5, -65504, 2e-8]], np.float16)
    rows.works("infer, FP16, binary", lambda: same(
        client.infer("half", half, "FP16", (True, True)).outputs[0].as_numpy(), half))  # fmt: skip
    rows.works("infer, a dict", lambda: client.call(
        "infer", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [[1, 2, 3, 4]]}]},
        model_name="double").outputs[0].data == [2, 4, 6, 8])  # fmt: skip
    rows.works("infer, placement in the answer", lambda: "ran_on" in client.infer(
        "double", values, "FP32", (True, True)).parameters)  # fmt: skip
    rows.refused("infer, unknown model", lambda: client.infer("nobody-has-this", values, "FP32", (True, True)),
                 "nobody-has-this")  # fmt: skip
    rows.refused("infer, wrong shape", lambda: client.infer("double", values[:, :3], "FP32", (True, True)),
                 "expected f4[?, 4]")  # fmt: skip
    texts = np.array([b"a"], np.object_)
    rows.refused("infer, BYTES", lambda: client.infer("bytes", texts, "BYTES", (True, True)), "no texts")


def main(address: str) -> int:
    """Make every call and print a row for each."""
    loop = asyncio.new_event_loop()
    rows = Rows("kserve", version("kserve"))
    _calls(rows, _Blocking(address, loop))
    older = _Blocking(address, loop, "v1")
    instances = {"instances": [[1, 2, 3, 4]]}
    for call, asked, path in (
        ("infer", lambda: older.call("infer", instances, model_name="double"), "/v1/models/double:predict"),
        ("explain", lambda: older.call("explain", "double", instances), "/v1/models/double:explain"),
    ):
        rows.refused(f"{call}, protocol v1", asked, f"there is no '{path}'")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
