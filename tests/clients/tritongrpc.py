"""Every call of ``tritonclient.grpc``: ``python -m tests.clients.tritongrpc 127.0.0.1:8471``."""

import asyncio
import queue
import sys
from importlib.metadata import version
from typing import Any

from tests.clients.rows import Rows, missing, same

try:
    import numpy as np
    import tritonclient.grpc as triton
    from tritonclient.grpc import aio
except (ImportError, RuntimeError) as error:
    sys.exit(missing("tritonclient[grpc]", error))


def _given(values: Any, kind: str = "FP32") -> Any:
    given = triton.InferInput("x", list(values.shape), kind)
    given.set_data_from_numpy(values)
    return given


def _infer(server: Any, model: str, values: Any, kind: str = "FP32", **options: Any) -> Any:
    return server.infer(model, [_given(values, kind)], outputs=[triton.InferRequestedOutput("y")], **options)


def _health(rows: Rows, server: Any) -> None:
    rows.works("is_server_live", server.is_server_live)
    rows.works("is_server_ready", server.is_server_ready)
    rows.works("is_model_ready", lambda: server.is_model_ready("double"))
    rows.works("is_model_ready, version 1", lambda: server.is_model_ready("double", "1"))
    rows.works("is_model_ready, unknown model", lambda: not server.is_model_ready("nobody-has-this"))
    rows.works("get_server_metadata", lambda: server.get_server_metadata().name == "meshnode")
    rows.works("get_model_metadata", lambda: server.get_model_metadata("double", "1").inputs[0].shape == [-1, 4])
    rows.refused("get_model_metadata, version 2", lambda: server.get_model_metadata("double", "2"), "version '2'")
    rows.works("get_model_config", lambda: server.get_model_config("double", "1").config.input[0].dims == [-1, 4])
    rows.works("get_model_config, as JSON", lambda: (
        server.get_model_config("double", as_json=True)["config"]["input"][0]["data_type"] == "TYPE_FP32"))  # fmt: skip
    rows.works("get_model_repository_index", lambda: (
        ("double", "READY") in [(each.name, each.state) for each in server.get_model_repository_index().models]
    ))  # fmt: skip


def _numbers(rows: Rows, server: Any) -> None:
    values = np.random.default_rng(7).standard_normal((512, 4), dtype=np.float32)
    rows.works("infer", lambda: same(_infer(server, "double", values).as_numpy("y"), values + values))
    rows.works("infer, no outputs named", lambda: same(
        server.infer("double", [_given(values)]).as_numpy("y"), values + values))  # fmt: skip
    for coding in ("gzip", "deflate"):
        rows.works(f"infer, {coding}", lambda coding=coding: same(
            _infer(server, "double", values, compression_algorithm=coding).as_numpy("y"), values + values))  # fmt: skip
    odd = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    rows.works("infer, NaN and infinities", lambda: same(_infer(server, "double", odd).as_numpy("y"), odd + odd))
    half = np.array([[1.5, -65504, 2e-8]], np.float16)
    rows.works("infer, FP16", lambda: same(_infer(server, "half", half, "FP16").as_numpy("y"), half))
    photo = np.frombuffer(bytes(range(256)), np.uint8)[None]
    rows.works("infer, an encoded file as UINT8", lambda: same(
        _infer(server, "bytes", photo, "UINT8").as_numpy("y"), photo))  # fmt: skip
    flags = np.array([[True, False, True]])
    rows.works("infer, BOOL", lambda: same(_infer(server, "flags", flags, "BOOL").as_numpy("y"), ~flags))
    large = np.zeros((1 << 19, 4), np.float32)
    rows.works("infer, 8 MiB both ways", lambda: same(_infer(server, "double", large).as_numpy("y"), large))


def _options(rows: Rows, server: Any) -> None:
    ones = np.ones((1, 4), np.float32)

    def placed() -> bool:
        answer = _infer(server, "double", ones, request_id="r-1", timeout=10_000_000, client_timeout=60).get_response()
        named = {"ran_on", "where", "model", "digest", "took_ms", "compute_ms", "queued_ms", "attempts"}
        told = answer.parameters
        return answer.id == "r-1" and named <= set(told) and len(told["digest"].string_param) == 64

    rows.works("infer, request_id, timeout, client_timeout, placement in the answer", placed)
    ignored = {"priority": 1, "sequence_id": 3, "sequence_start": True, "parameters": {"trace": "t-1"}}
    rows.works("infer, priority, sequence, parameters (ignored)", lambda: (
        _infer(server, "double", ones, **ignored).as_numpy("y") is not None))  # fmt: skip
    rows.refused("infer, a timeout that is too long", lambda: _infer(
        server, "double", ones, timeout=10**12), "timeout")  # fmt: skip

    def async_infer() -> bool:
        answers: queue.Queue[Any] = queue.Queue()
        server.async_infer("double", [_given(ones)], lambda result, error: answers.put((result, error)))
        result, error = answers.get(timeout=60)
        return error is None and same(result.as_numpy("y"), ones + ones)

    rows.works("async_infer", async_infer)

    def stream() -> bool:
        answers: queue.Queue[Any] = queue.Queue()
        server.start_stream(lambda result, error: answers.put((result, error)))
        for at in range(3):
            server.async_stream_infer("double", [_given(ones * at)], request_id=str(at))
        server.async_stream_infer("nobody-has-this", [_given(ones)])
        server.stop_stream()
        got = [answers.get(timeout=60) for _ in range(4)]
        numbers = [result.as_numpy("y")[0, 0] for result, error in got if error is None]
        return numbers == [0, 2, 4] and "nobody-has-this" in str(got[3][1])

    rows.works("async_stream_infer, an error in the middle", stream)
    rows.works("get_inference_statistics", lambda: (
        server.get_inference_statistics("double").model_stats[0].inference_stats.compute_infer.ns > 0))  # fmt: skip
    rows.works("get_inference_statistics, all models", lambda: (
        "double" in [each.name for each in server.get_inference_statistics().model_stats]))  # fmt: skip


def _refused(rows: Rows, server: Any) -> None:
    texts = np.array([b"a"], np.object_)
    rows.refused("infer, BYTES", lambda: _infer(server, "bytes", texts, "BYTES"), "no texts")
    ones = np.ones((1, 4), np.float32)
    rows.refused("infer, unknown model", lambda: _infer(server, "nobody-has-this", ones), "nobody-has-this")
    rows.refused("infer, wrong shape", lambda: _infer(server, "double", ones[:, :3]), "expected f4[?, 4]")
    wanted = [triton.InferRequestedOutput("y", class_count=1)]
    rows.refused("infer, classification", lambda: server.infer(
        "double", [_given(ones)], outputs=wanted), "classification")  # fmt: skip
    shared = triton.InferInput("x", [1, 4], "FP32")
    shared.set_shared_memory("region", 16)
    rows.refused("infer, input in shared memory", lambda: server.infer("double", [shared]), "shared memory")
    no = "a node has no"
    rows.refused("load_model", lambda: server.load_model("double"), f"{no} loading")
    rows.refused("unload_model", lambda: server.unload_model("double"), f"{no} loading")
    for kind, register in (
        ("system", lambda: server.register_system_shared_memory("r", "/r", 16)),
        ("cuda", lambda: server.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 16)),
    ):
        rows.refused(f"register_{kind}_shared_memory", register, f"{no} shared memory")
        for call in (f"get_{kind}_shared_memory_status", f"unregister_{kind}_shared_memory"):
            rows.refused(call, getattr(server, call), f"{no} shared memory")
    rows.refused("get_trace_settings", server.get_trace_settings, f"{no} trace")
    rows.refused("update_trace_settings", lambda: server.update_trace_settings(settings={"a": "b"}), f"{no} trace")
    rows.refused("get_log_settings", server.get_log_settings, f"{no} log")
    rows.refused("update_log_settings", lambda: server.update_log_settings({"log_info": True}), f"{no} log")


async def _aio(address: str) -> bool:
    ones = np.ones((1, 4), np.float32)
    async with aio.InferenceServerClient(address) as server:
        result = await server.infer("double", [_given(ones)])
        return same(result.as_numpy("y"), ones + ones)


def main(address: str) -> int:
    """Make every call and print a row for each."""
    rows = Rows("tritonclient.grpc", version("tritonclient"))
    rows.works("aio.infer", lambda: asyncio.run(_aio(address)))
    with triton.InferenceServerClient(address) as server:
        _health(rows, server)
        _numbers(rows, server)
        _options(rows, server)
        _refused(rows, server)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
