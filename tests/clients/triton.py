"""Every call of ``tritonclient.http``: ``python -m tests.clients.triton 127.0.0.1:8470``."""

import asyncio
import sys
from importlib.metadata import version
from typing import Any

from tests.clients.rows import Rows, missing, same

try:
    import numpy as np
    import tritonclient.http as triton
    from tritonclient.http import aio
except (ImportError, RuntimeError) as error:
    sys.exit(missing("tritonclient[http]", error))


def _infer(server: Any, model: str, values: Any, kind: str, **options: Any) -> Any:
    """One request; ``binary`` says how the input goes and the output comes."""
    binary = options.pop("binary", (True, True))
    given = triton.InferInput("x", list(values.shape), kind)
    given.set_data_from_numpy(values, binary_data=binary[0])
    wanted = None if binary[1] is None else [triton.InferRequestedOutput("y", binary_data=binary[1])]
    return server.infer(model, [given], outputs=wanted, **options)


def _health(rows: Rows, server: Any) -> None:
    rows.works("is_server_live", server.is_server_live)
    rows.works("is_server_ready", server.is_server_ready)
    rows.works("is_model_ready", lambda: server.is_model_ready("double"))
    rows.works("is_model_ready, version 1", lambda: server.is_model_ready("double", "1"))
    rows.works("is_model_ready, unknown model", lambda: not server.is_model_ready("nobody-has-this"))
    rows.works("get_server_metadata", lambda: server.get_server_metadata()["name"] == "meshnode")
    rows.works("get_model_metadata", lambda: server.get_model_metadata("double", "1")["inputs"][0]["shape"] == [-1, 4])
    rows.refused("get_model_metadata, version 2", lambda: server.get_model_metadata("double", "2"), "version '2'")
    rows.works("get_model_config", lambda: server.get_model_config("double", "1")["input"][0]["dims"] == [-1, 4])
    rows.works(
        "get_model_repository_index",
        lambda: ("double", "READY") in [(each["name"], each["state"]) for each in server.get_model_repository_index()],
    )


def _numbers(rows: Rows, server: Any) -> None:
    values = np.random.default_rng(7).standard_normal((2, 4), dtype=np.float32)
    expected = values + values
    for binary, name in (
        ((True, True), "binary both ways"), ((False, False), "JSON both ways"), ((True, False), "binary in, JSON out"),
        ((False, True), "JSON in, binary out"), ((True, None), "no outputs named"),
    ):  # fmt: skip
        rows.works(
            f"infer, {name}",
            lambda binary=binary: same(_infer(server, "double", values, "FP32", binary=binary).as_numpy("y"), expected),
        )
    for coding in ("gzip", "deflate"):
        long = np.random.default_rng(7).standard_normal((512, 4), dtype=np.float32)
        codings = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
        for binary in (True, False):
            rows.works(
                f"infer, {coding} both ways, {'binary' if binary else 'JSON'}",
                lambda codings=codings, long=long, binary=binary: same(
                    _infer(server, "double", long, "FP32", binary=(binary, binary), **codings).as_numpy("y"),
                    long + long,
                ),
            )
    odd = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    rows.works("infer, NaN and infinities, binary", lambda: same(
        _infer(server, "double", odd, "FP32").as_numpy("y"), odd + odd))  # fmt: skip
    rows.works("infer, NaN and infinities, JSON in", lambda: same(
        _infer(server, "double", odd, "FP32", binary=(False, True)).as_numpy("y"), odd + odd))  # fmt: skip
    rows.works("infer, infinities as JSON out are NaN, and counted", lambda: _not_finite_in_json(server, odd))
    half = np.array([[1.5, -65504, 2e-8]], np.float16)
    for binary in (True, False):
        rows.works(f"infer, FP16, {'binary' if binary else 'JSON'}", lambda binary=binary: same(
            _infer(server, "half", half, "FP16", binary=(binary, binary)).as_numpy("y"), half))  # fmt: skip
    photo = np.frombuffer(bytes(range(256)), np.uint8)[None]
    rows.works("infer, an encoded file as UINT8", lambda: same(
        _infer(server, "bytes", photo, "UINT8").as_numpy("y"), photo))  # fmt: skip
    flags = np.array([[True, False, True]])
    rows.works("infer, BOOL, JSON", lambda: same(
        _infer(server, "flags", flags, "BOOL", binary=(False, False)).as_numpy("y"), ~flags))  # fmt: skip


def _not_finite_in_json(server: Any, odd: Any) -> bool:
    result = _infer(server, "double", odd, "FP32", binary=(True, False))
    counted = result.get_output("y")["parameters"]["not_finite"]
    return bool(np.isnan(result.as_numpy("y")[0, :3]).all() and result.as_numpy("y")[0, 3] == 2 and counted == 3)


def _options(rows: Rows, server: Any) -> None:
    ones = np.ones((1, 4), np.float32)

    def placed() -> bool:
        answer = _infer(server, "double", ones, "FP32", request_id="r-1", timeout=10_000_000).get_response()
        told = answer["parameters"]
        named = {"ran_on", "where", "digest", "took_ms", "compute_ms", "queued_ms", "attempts", "attempt_count"}
        return answer["id"] == "r-1" and named <= set(told) and len(told["digest"]) == 64

    rows.works("infer, request_id, timeout, placement in the answer", placed)
    ignored = {"priority": 1, "sequence_id": 3, "sequence_start": True}
    rows.works("infer, priority and sequence (ignored)", lambda: _infer(
        server, "double", ones, "FP32", **ignored).as_numpy("y") is not None)  # fmt: skip
    rows.works("infer, parameters of one's own", lambda: _infer(
        server, "double", ones, "FP32", parameters={"trace": "t-1"}).as_numpy("y") is not None)  # fmt: skip

    def async_infer() -> bool:
        given = triton.InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(ones)
        return same(server.async_infer("double", [given]).get_result().as_numpy("y"), ones + ones)

    rows.works("async_infer", async_infer)
    body, size = triton.InferenceServerClient.generate_request_body([_given(ones)])
    rows.works("generate_request_body", lambda: size is not None and len(body) > size)
    stats = server.get_inference_statistics("double")["model_stats"][0]
    rows.works("get_inference_statistics", lambda: (
        stats["inference_count"] == stats["inference_stats"]["success"]["count"] > 0
        and stats["inference_stats"]["compute_infer"]["ns"] > 0
    ))  # fmt: skip
    rows.works("get_inference_statistics, all models", lambda: (
        "double" in [each["name"] for each in server.get_inference_statistics()["model_stats"]]))  # fmt: skip


def _given(values: Any) -> Any:
    given = triton.InferInput("x", list(values.shape), "FP32")
    given.set_data_from_numpy(values)
    return given


def _refused(rows: Rows, server: Any) -> None:
    texts = np.array([b"a"], np.object_)
    rows.refused("infer, BYTES, binary", lambda: _infer(server, "bytes", texts, "BYTES"), "no texts")
    rows.refused("infer, BYTES, JSON", lambda: _infer(
        server, "bytes", texts, "BYTES", binary=(False, False)), "no texts")  # fmt: skip
    ones = np.ones((1, 4), np.float32)
    rows.refused("infer, unknown model", lambda: _infer(server, "nobody-has-this", ones, "FP32"), "nobody-has-this")
    rows.refused("infer, wrong shape", lambda: _infer(server, "double", ones[:, :3], "FP32"), "expected f4[?, 4]")
    wanted = [triton.InferRequestedOutput("y", class_count=1)]
    rows.refused("infer, classification", lambda: server.infer(
        "double", [_given(ones)], outputs=wanted), "classification")  # fmt: skip
    shared = triton.InferInput("x", [1, 4], "FP32").set_shared_memory("region", 16)
    rows.refused("infer, input in shared memory", lambda: server.infer("double", [shared]), "shared memory")
    no = "a node has no"
    rows.refused("load_model", lambda: server.load_model("double"), f"{no} loading")
    rows.refused("unload_model", lambda: server.unload_model("double"), f"{no} loading")
    for kind, register in (
        ("system", lambda: server.register_system_shared_memory("r", "/r", 16)),
        ("cuda", lambda: server.register_cuda_shared_memory("r", b"handle", 0, 16)),
    ):
        rows.refused(f"register_{kind}_shared_memory", register, f"{no} shared memory")
        for call in (f"get_{kind}_shared_memory_status", f"unregister_{kind}_shared_memory"):
            rows.refused(call, getattr(server, call), f"{no} shared memory")
    rows.refused("get_trace_settings", server.get_trace_settings, f"{no} trace")
    rows.refused("get_trace_settings of a model", lambda: server.get_trace_settings("double"), f"{no} trace")
    rows.refused("update_trace_settings", lambda: server.update_trace_settings(settings={"a": "b"}), f"{no} trace")
    rows.refused("get_log_settings", server.get_log_settings, f"{no} log")
    rows.refused("update_log_settings", lambda: server.update_log_settings({"log_info": True}), f"{no} log")


async def _aio(address: str) -> bool:
    ones = np.ones((1, 4), np.float32)
    async with aio.InferenceServerClient(address) as server:
        good = []
        for binary in (True, False):
            given = aio.InferInput("x", [1, 4], "FP32")
            given.set_data_from_numpy(ones, binary_data=binary)
            result = await server.infer("double", [given], outputs=[aio.InferRequestedOutput("y", binary_data=binary)])
            good.append(same(result.as_numpy("y"), ones + ones))
        return all(good)


def main(address: str) -> int:
    """Make every call and print a row for each."""
    rows = Rows("tritonclient.http", version("tritonclient"))
    rows.works("aio.infer", lambda: asyncio.run(_aio(address)))
    with triton.InferenceServerClient(address) as server:
        _health(rows, server)
        _numbers(rows, server)
        _options(rows, server)
        _refused(rows, server)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
