"""Every call of ``kserve.InferenceGRPCClient``: ``python -m tests.clients.kservegrpc 127.0.0.1:8471``."""

import asyncio
import sys
from importlib.metadata import version
from typing import Any

from tests.clients.rows import Rows, missing, same

try:
    import numpy as np
    from kserve import InferenceGRPCClient, InferInput, InferRequest
except (ImportError, RuntimeError) as error:
    sys.exit(missing("kserve", error))


class _Blocking:
    """The client, one call at a time."""

    def __init__(self, address: str) -> None:
        self._address = address

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """One method, awaited."""

        async def asked() -> Any:
            client = InferenceGRPCClient(self._address, timeout=60)
            try:
                return await getattr(client, name)(*arguments, **options)
            finally:
                await client.close()

        return asyncio.run(asked())

    def infer(self, model: str, values: Any, kind: str, raw: bool, **options: Any) -> Any:
        """One request, with raw or with typed contents."""
        given = InferInput("x", list(values.shape), kind)
        if raw:
            given.set_data_from_numpy(values, binary_data=True)
        else:
            given.data = values.ravel().tolist()
        return self.call("infer", InferRequest(model, [given], request_id="r-1", **options))


def main(address: str) -> int:
    """Make every call and print a row for each."""
    rows, client = Rows("kserve.InferenceGRPCClient", version("kserve")), _Blocking(address)
    rows.works("is_server_live", lambda: client.call("is_server_live"))
    rows.works("is_server_ready", lambda: client.call("is_server_ready"))
    rows.works("is_model_ready", lambda: client.call("is_model_ready", "double"))
    rows.works("is_model_ready, unknown model", lambda: not client.call("is_model_ready", "nobody-has-this"))
    values = np.random.default_rng(7).standard_normal((512, 4), dtype=np.float32)
    odd = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    photo = np.frombuffer(bytes(range(256)), np.uint8)[None]
    flags = np.array([[True, False, True]])
    for raw, name in ((True, "raw"), (False, "typed contents")):
        rows.works(f"infer, {name}", lambda raw=raw: same(
            client.infer("double", values, "FP32", raw).outputs[0].as_numpy(), values + values))  # fmt: skip
        rows.works(f"infer, NaN and infinities, {name}", lambda raw=raw: same(
            client.infer("double", odd, "FP32", raw).outputs[0].as_numpy(), odd + odd))  # fmt: skip
        rows.works(f"infer, UINT8, {name}", lambda raw=raw: same(
            client.infer("bytes", photo, "UINT8", raw).outputs[0].as_numpy(), photo))  # fmt: skip
        rows.works(f"infer, BOOL, {name}", lambda raw=raw: same(
            client.infer("flags", flags, "BOOL", raw).outputs[0].as_numpy(), ~flags))  # fmt: skip
    half = np.array([[1.5, -65504, 2e-8]], np.float16)
    rows.works("infer, FP16, raw", lambda: same(
        client.infer("half", half, "FP16", True).outputs[0].as_numpy(), half))  # fmt: skip
    rows.works("infer, placement in the answer", lambda: "ran_on" in client.infer(
        "double", values, "FP32", True).parameters)  # fmt: skip
    rows.refused("infer, unknown model", lambda: client.infer("nobody-has-this", values, "FP32", True),
                 "nobody-has-this")  # fmt: skip
    rows.refused("infer, wrong shape", lambda: client.infer("double", values[:, :3], "FP32", True), "expected f4[?, 4]")
    texts = np.array([b"a"], np.object_)
    rows.refused("infer, BYTES", lambda: client.infer("bytes", texts, "BYTES", True), "no texts")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
