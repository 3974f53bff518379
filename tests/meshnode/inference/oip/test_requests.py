"""Requests of the Open Inference Protocol, parsed: what each spelling means, and what each mistake is told."""

import json
import time
from typing import Any

import numpy as np
import pytest

from meshnode.http.guard import BadRequest
from meshnode.inference.oip.forms import index_form
from meshnode.inference.oip.requests import HttpInferenceCall, parse_untrusted_request
from protocols.base.errors import InputInvalid, MeshError


def parsed(data: str, datatype: str = "FP32", shape: str = "[4]", **more: str) -> HttpInferenceCall:
    """A request with one input ``x``; all arguments are JSON or what passes for it."""
    fields = "".join(f', "{name}": {value}' for name, value in more.items())
    body = f'{{"inputs": [{{"name": "x", "datatype": "{datatype}", "shape": {shape}, "data": {data}}}]{fields}}}'
    return parse_untrusted_request(body.encode(), None)


def refused(data: str, datatype: str = "FP32", shape: str = "[4]", **more: str) -> str:
    """What such a request is told."""
    with pytest.raises((BadRequest, InputInvalid)) as caught:
        parsed(data, datatype, shape, **more)
    return str(caught.value)


# --- null ------------------------------------------------------------------------------------------------------------
def test_optional_field_that_is_null_is_as_if_absent() -> None:
    """Clients with optional fields send all of them: MLServer's types do."""
    null: dict[str, Any] = {
        "id": None, "outputs": None, "parameters": None,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2], "parameters": None}],
    }  # fmt: skip
    call = parse_untrusted_request(json.dumps(null).encode(), None)
    assert (call.id, call.outputs, call.deadline_ms, call.binary_by_default) == ("", (), None, False)
    null["parameters"] = {"binary_data_output": None, "timeout": None, "priority": None}
    null["outputs"] = [{"name": "y", "parameters": {"binary_data": None, "classification": None}}]
    null["inputs"][0]["parameters"] = {"binary_data_size": None, "shared_memory_region": None}
    call = parse_untrusted_request(json.dumps(null).encode(), None)
    assert (call.outputs, call.wants_binary("y"), call.deadline_ms) == (("y",), False, None)
    null["inputs"][0] |= {"data": None, "parameters": {"binary_data_size": 8}}
    head = json.dumps(null).encode()
    call = parse_untrusted_request(head + np.array([1, 2], "f4").tobytes(), str(len(head)))
    assert call.inputs["x"].tolist() == [1, 2]
    assert index_form(b'{"ready": null}').ready is index_form(b" ").ready is None


# --- what is not a number --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@pytest.mark.parametrize("data", [
    "[NaN, Infinity, -Infinity, 1]", '["NaN", "Infinity", "-Infinity", 1]', "[[[NaN],[Infinity]],[[-Infinity],[1]]]",
])  # fmt: skip
def test_not_finite_literals_are_read_as_their_writers_mean_them(data: str, datatype: str) -> None:
    """They are not JSON, and Triton's client writes them all the same."""
    call = parsed(data, datatype, "[2, 2, 1]")
    assert np.array_equal(call.inputs["x"].ravel(), [np.nan, np.inf, -np.inf, 1], equal_nan=True)


def test_null_in_a_tensor_of_floats_is_not_a_number() -> None:
    """JSON libraries that know no NaN write null: KServe's client and MLServer's types do, and so do our answers."""
    assert np.isnan(parsed("[null, 1, 2, 3]").inputs["x"]).tolist() == [True, False, False, False]


def test_literals_in_texts_stay_what_they_are() -> None:
    """A name may contain anything, a quoted quote too."""
    name = r"NaN, \"NaN\\ Infinity"
    call = parsed("[NaN, 1, 2, 3]", id=f'"{name}"')
    assert call.id == json.loads(f'"{name}"')


def test_text_that_does_not_end_costs_no_more_than_its_length() -> None:
    """Beginning again behind each of its quotes took hours for 8 MB of them."""
    began = time.thread_time()
    assert "truncated" in refused("[NaN, 1, 2, 3]", id='"' + 200_000 * '\\"')
    assert time.thread_time() - began < 2.0  # of processor time: 0.01 s, and 12 s the other way


@pytest.mark.parametrize(
    ("data", "datatype", "said"),
    [
        ("[NaN, 1, 2, 3]", "INT32", 'is "NaN": INT32 takes whole numbers from -2147483648 to 2147483647'),
        ("[null, 1, 2, 3]", "BOOL", "element 0 of input 'x' is null: BOOL takes true and false"),
        ("[1, 2, 3, nan]", "FP32", "malformed"),
        ("[1, 2, 3, +Infinity]", "FP32", "malformed"),
        ('[1, 2, 3, "inf"]', "FP32", "element 3 of input 'x' is \"inf\""),
    ],
)
def test_not_finite_number_where_none_can_be_is_refused(data: str, datatype: str, said: str) -> None:
    """A whole number can't be NaN; what becomes of it must not be left to a cast."""
    assert said in refused(data, datatype)


# --- ranges ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "datatype", "said"),
    [
        ("[65504, -65504, 65519, 1]", "FP16", None),
        ("[70000, 1, 2, 3]", "FP16", "element 0 of input 'x' is 70000: FP16 holds numbers up to 65504"),
        ("[1, 2, -1e5, 3]", "FP16", "element 2 of input 'x' is -100000: FP16 holds numbers up to 65504"),
        ("[1e39, 1, 2, 3]", "FP32", "element 0 of input 'x' is 1e+39: FP32 holds numbers up to 3.40282e+38"),
        ("[1e999, 1, 2, 3]", "FP64", "element 0 of input 'x' is 1e999"),
        ("[1, 2, 300, 3]", "INT8", "element 2 of input 'x' is 300: INT8 takes whole numbers from -128 to 127"),
        ("[1, 2, -1, 3]", "UINT16", "element 2 of input 'x' is -1: UINT16 takes whole numbers from 0 to 65535"),
        ("[1, 2.5, 3, 4]", "INT32", "element 1 of input 'x' is 2.5"),
        ("[1, 2, 3, 18446744073709551616]", "UINT64", "has a larger element: UINT64 takes whole numbers from 0 to"),
        ("[true, 2, 0, 1]", "BOOL", "element 1 of input 'x' is 2"),
        ("[true, 1, 2, 3]", "FP32", "element 0 of input 'x' is true"),
    ],
)
def test_number_that_its_type_can_not_hold_is_refused(data: str, datatype: str, said: str | None) -> None:
    """A cast would make infinity, or another number, of it."""
    if said is None:
        assert np.isfinite(parsed(data, datatype).inputs["x"]).all()
    else:
        assert said in refused(data, datatype)


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        ([1, 2**64 - 1, 0, 2**63], "UINT64"),
        ([-(2**63), 2**63 - 1, 2**53 + 1, -1], "INT64"),
        ([0.1, 1e-45, 3.4028234663852886e38, -0.0], "FP32"),
        ([5e-324, 1.7976931348623157e308, 2**53 + 1, 1], "FP64"),
    ],
)
def test_number_at_the_edge_of_its_type_arrives_exactly(values: list[float], datatype: str) -> None:
    """JSON and binary have to give the same numbers; NumPy makes floats of large whole numbers beside small ones."""
    tensor = parsed(json.dumps(values), datatype).inputs["x"]
    assert tensor.tobytes() == np.array(values, tensor.dtype).tobytes()


@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (3, 40_000), (2, 3, 1, 2), (1, 1), (50_000, 2), (0,), (2, 0), (0, 3)]
)
@pytest.mark.parametrize("datatype", ["FP32", "INT64", "UINT8", "BOOL"])
def test_nested_and_flat_lists_give_the_same_tensor(shape: tuple[int, ...], datatype: str) -> None:
    """Some clients send one list, others lists inside one another; long ones are read in pieces."""
    dtype = {"FP32": "f4", "INT64": "i8", "UINT8": "u1", "BOOL": "b1"}[datatype]
    values = np.random.default_rng(1).integers(0, 2 if datatype == "BOOL" else 256, shape).astype(dtype)
    for data in (values.tolist(), values.ravel().tolist()):
        for text in (json.dumps(data), json.dumps(data, separators=(",", ":")), json.dumps(data, indent=1)):
            tensor = parsed(text, datatype, str(list(shape))).inputs["x"]
            assert (tensor.dtype, tensor.shape, tensor.tobytes()) == (values.dtype, shape, values.tobytes())


# --- mistakes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "shape", "said"),
    [
        ("[1, 2, 3]", "[4]", "has 4 elements, its data has 3"),
        ("[[1, 2], [3, 4]]", "[4]", "do not have the shape [4]"),
        ("[[1, 2, 3], [4]]", "[2, 2]", "do not have the shape [2, 2]"),
        ("[[1, 2], 3, 4]", "[2, 2]", "do not have the shape [2, 2]"),
        ("[[[[[[[[[[1]]]]]]]]]]", "[1]", "do not have the shape [1]"),
        ("null", "[4]", "neither 'data' nor 'binary_data_size'"),
        ('{"a": 1}', "[1]", 'is {"a": 1}'),
        ('{"a": [1, 2]}', "[2]", "do not have the shape [2]"),
        ('[{"a": [5]}]', "[1, 1]", "element 0 of input 'x' is {"),
        ('["[", "]"]', "[1, 2]", "element 0 of input 'x' is"),
        ('["1,2"]', "[2]", "element 0 of input 'x' is \"1,2\""),
        ("5", "[0]", "has 0 elements, its data has 1"),
        ("[]", "[0, 1099511627776, 1099511627776]", "has the shape"),
        ("[1, 2, 3, 4]", "[4, -1]", "inputs[0].shape[1] is -1: Expected `int` >= 0"),
        ("[1, 2, 3, 4]", '"4"', 'inputs[0].shape is "4": Expected `array`'),
        ("[1, 2, 3, 4]", "[1,1,1,1,1,1,1,1,4]", "inputs[0].shape is [1,1,1,1,1,1,1,1,4]: Expected `array` of length"),
    ],
)
def test_tensor_that_contradicts_itself_is_told_how(data: str, shape: str, said: str) -> None:
    """The field, its value and the way out."""
    assert said in refused(data, "FP32", shape)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"id": "7"}, "id is 7: Expected `str | null`"),
        ({"outputs": '[{"name": 7}]'}, "outputs[0].name is 7"),
        ({"outputs": '[{"name": "y"}, {"name": "y"}]'}, "output 'y' is asked for twice"),
        ({"outputs": '[{"name": "y", "parameters": {"classification": 3}}]'}, "'classification' ('3')"),
        ({"outputs": '[{"name": "y", "parameters": {"binary_data": 1}}]'}, "'binary_data' of output 'y' is '1'"),
        ({"parameters": '{"binary_data_output": "yes"}'}, "'binary_data_output' of the request is 'yes'"),
        ({"parameters": '{"timeout": 1.5}'}, "'timeout' is '1.5'"),
        ({"parameters": '{"a": "' + "b" * 20_000 + '"}'}, "the parameters of the request have 20009 bytes"),
        ({"parameters": "[]"}, "parameters of the request are []: give an object"),
    ],
)
def test_field_that_is_wrong_is_named_with_its_value(more: dict[str, str], said: str) -> None:
    """Somebody has to find it in a program that somebody else wrote."""
    assert said in refused("[1, 2, 3, 4]", **more)


@pytest.mark.parametrize("datatype", ["BYTES", "BF16", "FP8", ""])
def test_datatype_that_does_not_travel_is_told_what_does(datatype: str) -> None:
    """Texts and images are what people try first."""
    said = refused('["a"]', datatype, "[1]")
    assert "UINT8" in said if datatype != "BF16" else "FP32" in said


def test_data_in_both_places_is_refused() -> None:
    """Which one was meant can't be guessed."""
    with pytest.raises(InputInvalid, match="both 'data' and 'binary_data_size'"):
        parse_untrusted_request(
            b'{"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [1], '
            b'"parameters": {"binary_data_size": 0}}]}', None,
        )  # fmt: skip


def test_long_data_with_a_small_shape_is_refused_before_it_becomes_objects() -> None:
    """Millions of numbers take 16 times their text, so they are counted first."""
    import tracemalloc

    data = "[" + "1," * 2_000_000 + "1]"
    tracemalloc.start()
    try:
        assert "has 4 elements, its data has 2000001" in refused(data)
        assert tracemalloc.get_traced_memory()[1] < 6 * len(data)
    finally:
        tracemalloc.stop()


def test_long_data_with_one_wrong_number_says_where() -> None:
    """Data are read in pieces, and the place is that in the whole."""
    data = "[" + "1," * 200_000 + "true]"
    assert "element 200000 of input 'x' is true: FP32 takes numbers" in refused(data, shape="[200001]")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"inputs": NaN}', b"\xff", b'{"inputs": [' + b"[" * 9_000])
def test_body_that_is_no_request_is_refused(body: bytes) -> None:
    """Whatever is sent, the node says 400."""
    with pytest.raises(MeshError):
        parse_untrusted_request(body, None)


# --- batches ---------------------------------------------------------------------------------------------------------
def pictures(**parameters: int) -> HttpInferenceCall:
    inputs = [{"name": "x", "datatype": "UINT8", "shape": [size], "data": [7] * size} for size in (2, 3)]
    return parse_untrusted_request(json.dumps({"inputs": inputs, "parameters": parameters}).encode(), None)


def test_pictures_of_a_batch_are_given_one_by_one_under_one_name() -> None:
    """They have different sizes, so they can't be one tensor; a request that is no batch has one of each name."""
    call = pictures(shard=0)
    assert call.shard == 0
    assert [bytes(part) for part in call.inputs["x"]] == [b"\7\7", b"\7\7\7"]
    with pytest.raises(InputInvalid, match="'x' is given twice"):
        pictures()
    assert parsed("[1, 2, 3, 4]", parameters='{"shard": 3}').shard == 3
    assert parsed("[1, 2, 3, 4]").shard is None


@pytest.mark.parametrize(("rows", "shown"), [("-1", "-1"), ("1.5", "1.5"), ('"all"', "all"), ("true", "True")])
def test_shard_that_is_no_number_of_rows_is_refused(rows: str, shown: str) -> None:
    """The message shows the value."""
    told = refused("[1, 2, 3, 4]", parameters=f'{{"shard": {rows}}}')
    assert told == f"parameter 'shard' is '{shown}': use a number of rows, or 0 to have it chosen"
