"""What MLServer offers a client, its types, its codecs and ``mlserver infer``:
``python -m tests.clients.mlserver 127.0.0.1:8470``."""

import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.clients.rows import Rows, missing, same

try:
    import numpy as np
    from mlserver.codecs import NumpyCodec, NumpyRequestCodec, StringCodec
    from mlserver.types import (
        InferenceRequest,
        InferenceResponse,
        MetadataModelResponse,
        MetadataServerResponse,
        Parameters,
        RepositoryIndexRequest,
        RepositoryIndexResponse,
        RequestInput,
        RequestOutput,
    )
except (ImportError, RuntimeError) as error:
    sys.exit(missing("mlserver", error))


def _http(address: str, path: str, body: str | None = None) -> str:
    """A request as the examples of MLServer make it: what its types say, as JSON."""
    request = urllib.request.Request(
        f"http://{address}{path}", body.encode() if body is not None else None, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.loads(error.read())["error"]) from error


def _infer(address: str, model: str, request: Any, **options: Any) -> Any:
    body = request.model_dump_json(**options)
    return InferenceResponse.model_validate_json(_http(address, f"/v2/models/{model}/infer", body))


def _types(rows: Rows, address: str) -> None:
    rows.works("types.MetadataServerResponse", lambda: MetadataServerResponse.model_validate_json(
        _http(address, "/v2")).name == "meshnode")  # fmt: skip
    rows.works("types.MetadataModelResponse", lambda: MetadataModelResponse.model_validate_json(
        _http(address, "/v2/models/double")).inputs[0].shape == [-1, 4])  # fmt: skip
    rows.works("types.RepositoryIndexResponse", lambda: "double" in [each.name for each in (
        RepositoryIndexResponse.model_validate_json(_http(
            address, "/v2/repository/index", RepositoryIndexRequest(ready=True).model_dump_json())).root)])  # fmt: skip
    values = np.random.default_rng(7).standard_normal((3, 4), dtype=np.float32)
    plain = InferenceRequest(inputs=[RequestInput(name="x", datatype="FP32", shape=[3, 4], data=values.tolist())])
    rows.works("types.InferenceRequest, every absent field as null", lambda: same(
        NumpyCodec.decode_output(_infer(address, "double", plain).outputs[0]), values + values))  # fmt: skip
    rows.works("types.InferenceRequest, exclude_none", lambda: same(NumpyCodec.decode_output(
        _infer(address, "double", plain, exclude_none=True).outputs[0]), values + values))  # fmt: skip
    whole = InferenceRequest(
        id="r-1", parameters=Parameters(content_type="np"), outputs=[RequestOutput(name="y")], inputs=plain.inputs
    )
    rows.works("types.Parameters, RequestOutput, id", lambda: _infer(address, "double", whole).id == "r-1")
    rows.works("placement in the answer", lambda: _infer(address, "double", plain).parameters.ran_on != "")
    odd = np.array([[np.nan, 1, 2, 3]], np.float32)
    not_a_number = InferenceRequest(inputs=[NumpyCodec.encode_input("x", odd)])
    rows.works("NaN (the types send null)", lambda: np.isnan(
        _infer(address, "double", not_a_number).outputs[0].data.root[0] or np.nan))  # fmt: skip


def _codecs(rows: Rows, address: str) -> None:
    for kind, model, values in (
        ("FP32", "double", np.random.default_rng(7).standard_normal((3, 4), dtype=np.float32)),
        ("FP16", "half", np.array([[1.5, -65504, 2e-8]], np.float16)),
        ("UINT8", "bytes", np.arange(256, dtype=np.uint8)[None]),
        ("BOOL", "flags", np.array([[True, False, True]])),
    ):
        expected = {"double": values + values, "flags": ~values if kind == "BOOL" else values}.get(model, values)
        request = InferenceRequest(inputs=[NumpyCodec.encode_input("x", values)])
        rows.works(f"codecs.NumpyCodec, {kind}", lambda model=model, request=request, expected=expected: same(
            NumpyCodec.decode_output(_infer(address, model, request).outputs[0]), expected))  # fmt: skip
    both = NumpyRequestCodec.encode_request(np.ones((1, 4), np.float32))
    both.inputs[0].name = "x"
    twos = np.full((1, 4), 2, np.float32)
    rows.works("codecs.NumpyRequestCodec", lambda: same(
        NumpyRequestCodec.decode_response(_infer(address, "double", both)), twos))  # fmt: skip
    vector = InferenceRequest(inputs=[NumpyCodec.encode_input("x", np.ones(3, np.float32))])
    rows.refused("codecs.NumpyCodec, a vector (it makes [n, 1] of it)", lambda: _infer(address, "vector", vector),
                 "expected f4[?], given f4[3, 1]")  # fmt: skip
    vector.inputs[0].shape = [3]
    rows.works("the same with its shape corrected", lambda: _infer(address, "vector", vector).outputs[0].shape == [3])
    texts = InferenceRequest(inputs=[StringCodec.encode_input("x", ["a"])])
    rows.refused("codecs.StringCodec (BYTES)", lambda: _infer(address, "bytes", texts), "no texts")
    wrong = InferenceRequest(inputs=[NumpyCodec.encode_input("x", np.ones((1, 3), np.float32))])
    rows.refused("a wrong shape", lambda: _infer(address, "double", wrong), "expected f4[?, 4]")


def _command(rows: Rows, address: str) -> None:
    """``mlserver infer`` makes one request of a batch, so a model must take any number of rows."""
    lines = [
        InferenceRequest(inputs=[NumpyCodec.encode_input("x", np.full((1, 4), value, np.float32))]).model_dump_json()
        for value in range(3)
    ]
    program = Path(sys.executable).with_name("mlserver")
    if not program.exists():
        rows.not_there("mlserver infer", f"there is no {program.name} beside the interpreter")
        return
    for options, name in (((), "JSON"), (("-b",), "binary"), (("-s", "3"), "JSON, batches of 3")):
        with tempfile.TemporaryDirectory() as folder:
            requests, answers = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
            requests.write_text("\n".join(lines) + "\n")
            command = [program, "infer", "-u", address, "-m", "double", "-i", requests, "-o", answers, *options]

            def infer(command: list[Any] = command, answers: Path = answers) -> bool:
                ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
                if ran.returncode:
                    raise RuntimeError(ran.stderr[-200:])
                given = [InferenceResponse.model_validate_json(line) for line in answers.read_text().splitlines()]
                found = sorted(float(NumpyCodec.decode_output(each.outputs[0])[0, 0]) for each in given)
                return found == [0.0, 2.0, 4.0]

            rows.works(f"mlserver infer, {name}", infer)


def main(address: str) -> int:
    """Make every call and print a row for each."""
    rows = Rows("mlserver", version("mlserver"))
    _types(rows, address)
    _codecs(rows, address)
    _command(rows, address)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
