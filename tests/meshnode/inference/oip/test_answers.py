"""Answers of the Open Inference Protocol: the same numbers in JSON as in bytes, and no more JSON than memory bears."""

import gzip
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from meshnode.http.guard import BadRequest
from meshnode.inference.oip.answers import MAX_JSON_ELEMENTS, encode_answer
from meshnode.inference.oip.requests import HttpInferenceCall
from meshnode.inference.oip.service import Computed


def answered(binary: bool, accept: str = "", **outputs: Any) -> tuple[bytes, dict[str, str]]:
    """An answer with all outputs in one way."""
    call = HttpInferenceCall("", {}, (), None, frozenset(), binary)
    return encode_answer(call, Computed("m", "1", outputs, {"ran_on": "rsu-1"}), accept)


@pytest.mark.parametrize("dtype", ["b1", "i1", "i8", "u1", "u8", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (40_000,)])
def test_output_in_json_is_the_output_in_bytes(dtype: str, shape: tuple[int, ...]) -> None:
    """A client that changes from one to the other must not get other numbers."""
    rng = np.random.default_rng(5)
    if dtype[0] == "f":
        values = rng.standard_normal(shape).astype(dtype)
    else:
        values = rng.integers(0, 2**7 if dtype != "b1" else 2, shape).astype(dtype)
    values = np.asarray(values)
    if values.size and dtype in ("i8", "u8"):
        values.reshape(-1)[0] = np.iinfo(dtype).max
    body, headers = answered(True, y=values)
    split = int(headers["inference-header-content-length"])
    (output,) = json.loads(answered(False, y=values)[0])["outputs"]
    assert output["shape"] == json.loads(body[:split])["outputs"][0]["shape"] == list(shape)
    assert np.array(output["data"], dtype).tobytes() == body[split:] == values.tobytes()


def test_output_that_is_not_finite_is_strict_json_and_counted() -> None:
    """Also when it is long, and encoded in pieces."""
    values = np.zeros(40_000, "f4")
    values[[0, 20_000, 39_999]] = np.nan, np.inf, -np.inf
    (output,) = msgspec.json.decode(answered(False, y=values)[0])["outputs"]
    assert output["parameters"] == {"not_finite": 3}
    assert [at for at, value in enumerate(output["data"]) if value is None] == [0, 20_000, 39_999]


def test_answer_with_too_many_elements_for_json_says_to_ask_for_bytes() -> None:
    """A model that gives back 64 MiB of input would become 300 MiB of text."""
    values = np.zeros(MAX_JSON_ELEMENTS + 1, "u1")
    with pytest.raises(BadRequest, match="binary_data_output") as caught:
        answered(False, y=values)
    assert caught.value.status == 400
    assert len(answered(True, y=values)[0]) > values.nbytes


def test_short_answer_is_not_packed_and_a_long_one_is() -> None:
    """Packing a few bytes makes them more."""
    assert "content-encoding" not in answered(False, "gzip", y=np.zeros(4, "f4"))[1]
    body, headers = answered(False, "gzip, deflate", y=np.zeros(4_000, "f4"))
    assert headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(body))["outputs"][0]["data"] == [0] * 4_000
