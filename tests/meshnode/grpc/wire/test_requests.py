"""Requests as messages: what each way to give a tensor means, and what each mistake is told."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from meshnode.grpc.wire.answers import encoded_answer, streamed_answer, streamed_error
from meshnode.grpc.wire.messages import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from meshnode.grpc.wire.parts import MAX_FIELDS, MAX_TYPED_BYTES, untrusted_parts
from meshnode.grpc.wire.requests import GrpcInferenceCall, parse_untrusted_message
from meshnode.http.guard import BadRequest
from meshnode.inference.oip.requests import parse_untrusted_request
from meshnode.inference.oip.service import Computed
from protocols.base.errors import InputInvalid, MeshError

KINDS = {
    "BOOL": ("b1", "bool_contents"), "INT8": ("i1", "int_contents"), "INT16": ("i2", "int_contents"),
    "INT32": ("i4", "int_contents"), "INT64": ("i8", "int64_contents"), "UINT8": ("u1", "uint_contents"),
    "UINT16": ("u2", "uint_contents"), "UINT32": ("u4", "uint_contents"), "UINT64": ("u8", "uint64_contents"),
    "FP32": ("f4", "fp32_contents"), "FP64": ("f8", "fp64_contents"),
}  # fmt: skip


def request(datatype: str = "FP32", shape: tuple[int, ...] = (4,), raw: bytes | None = None, **contents: Any) -> Any:
    """A request for ``m`` with one input ``x``."""
    message = ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    for name, values in contents.items():
        getattr(message.inputs[0].contents, name).extend(values)
    if raw is not None:
        message.raw_input_contents.append(raw)
    return message


def parsed(message: Any) -> GrpcInferenceCall:
    """The same, parsed."""
    return parse_untrusted_message(message.SerializeToString())


def refused(message: Any) -> str:
    """What such a request is told."""
    with pytest.raises((BadRequest, InputInvalid)) as caught:
        parsed(message)
    return str(caught.value)


# --- tensors ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("datatype", KINDS)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)])
def test_typed_and_raw_contents_of_every_type_are_the_same_tensor(datatype: str, shape: tuple[int, ...]) -> None:
    """Clients choose one of both by their language, and must not get other numbers for it."""
    short, field = KINDS[datatype]
    kind, rng = np.dtype(short), np.random.default_rng(3)
    if kind.kind == "f":
        values = rng.standard_normal(shape).astype(kind)
    else:
        least, most = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
        values = rng.integers(least, most, shape, dtype="u8" if short == "u8" else "i8", endpoint=True).astype(kind)
    values = np.asarray(values)
    typed = parsed(request(datatype, shape, **{field: values.ravel().tolist()})).inputs["x"]
    raw = parsed(request(datatype, shape, values.tobytes())).inputs["x"]
    for tensor in (typed, raw):
        assert (tensor.dtype, tensor.shape, tensor.tobytes()) == (values.dtype, values.shape, values.tobytes())


def test_numbers_that_are_not_finite_stay_what_they_are() -> None:
    """Unlike JSON, messages have them."""
    values = np.array([np.nan, np.inf, -np.inf, -0.0], "f4")
    assert parsed(request(fp32_contents=values.tolist())).inputs["x"].tobytes() == values.tobytes()


def test_half_precision_travels_raw_and_says_so() -> None:
    """The protocol has no typed contents for it."""
    values = np.array([1.5, -65504], np.float16)
    assert parsed(request("FP16", (2,), values.tobytes())).inputs["x"].tobytes() == values.tobytes()
    assert "FP16, which has no typed contents: send raw_input_contents" in refused(
        request("FP16", (2,), fp32_contents=[1, 2])
    )


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (request("BF16", (1,), b"ab"), "input 'x' is of BF16: it does not travel. Convert the tensor to FP32"),
        (request("BYTES", (1,), b"\1\0\0\0a"), "tensors of the mesh hold numbers and no texts"),
        (request("BYTES", (1,), bytes_contents=[b"a"]), "tensors of the mesh hold numbers and no texts"),
        (request("FP31", raw=b""), "datatype 'FP31' is not supported: use one of BOOL"),
        (request(raw=bytes(15)), "input 'x' of FP32 [4] has 16 bytes, 15 are given"),
        (request(raw=bytes(16), fp32_contents=[1]), "both 'contents' and raw_input_contents: give one of them"),
        (request(), "of shape [4] has 4 elements, its fp32_contents has 0: correct one of them"),
        (request(fp32_contents=[1, 2, 3]), "has 4 elements, its fp32_contents has 3"),
        (request(fp64_contents=[1, 2, 3, 4]), "FP32 has fp64_contents: its elements belong into fp32_contents"),
        (request("INT8", (1,), int_contents=[300]), "element 0 of input 'x' is 300: INT8 takes whole numbers"),
        (request("UINT16", (2,), uint_contents=[1, 70_000]), "element 1 of input 'x' is 70000: UINT16 takes"),
        (request("FP32", (2, -2), bytes(16)), "has the shape [2, -2]: give sizes of 0 or more"),
        (request("FP32", (1,) * 9, bytes(4)), "has 9 dimensions: give at most 8"),
        (request("FP32", (0, 1 << 40, 1 << 40), b""), "has the shape [0, 1099511627776, 1099511627776]"),
        (request("FP32", (1 << 62,), bytes(4)), "bytes, 4 are given"),
    ],
)  # fmt: skip
def test_tensor_that_contradicts_itself_is_told_how(message: Any, said: str) -> None:
    """The client has to mend it, so it needs the input, the value and the way out."""
    assert said in refused(message)


def test_raw_contents_are_one_for_each_input() -> None:
    """Which tensor is which follows from the order alone."""
    message = request(raw=bytes(16))
    message.inputs.add(name="z", datatype="INT8", shape=[2])
    assert "raw_input_contents has 1 entries for 2 inputs" in refused(message)
    message.raw_input_contents.append(b"\1\2")
    call = parsed(message)
    assert (list(call.inputs), call.inputs["z"].tolist()) == (["x", "z"], [1, 2])


# --- what stands around them -----------------------------------------------------------------------------------------
def test_request_names_its_model_its_outputs_and_its_deadline() -> None:
    """Everything that HTTP has in the path and in JSON."""
    message = request(raw=bytes(16))
    message.model_version, message.id = "1", "seven"
    message.outputs.add(name="y")
    message.parameters["timeout"].int64_param = 1_500_001
    message.parameters["priority"].uint64_param = 3
    message.parameters["empty"].SetInParent()
    call = parsed(message)
    assert (call.model, call.version, call.id, call.outputs, call.deadline_ms) == ("m", "1", "seven", ("y",), 1501)
    assert parsed(request(raw=bytes(16))).version == "1", "no version means the only one"


def test_mistakes_around_tensors_are_told_as_over_http() -> None:
    """One text for one mistake: what is written about it is found by both."""
    twice = request(raw=bytes(16))
    twice.inputs.add(name="x", datatype="FP32", shape=[4])
    shared, late, wanted, classes = (request(raw=bytes(16)) for _ in range(4))
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    late.parameters["timeout"].int64_param = -1
    wanted.outputs.add(name="y")
    wanted.outputs.add(name="y")
    classes.outputs.add(name="y").parameters["classification"].int64_param = 3
    form = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [4], "data": [1, 2, 3, 4]%s}%s]%s}'
    for message, places in (
        (twice, ("", ', {"name": "x", "datatype": "FP32", "shape": [4], "data": [1, 2, 3, 4]}', "")),
        (shared, (', "parameters": {"shared_memory_region": "r"}', "", "")),
        (late, ("", "", ', "parameters": {"timeout": -1}')),
        (wanted, ("", "", ', "outputs": [{"name": "y"}, {"name": "y"}]')),
        (classes, ("", "", ', "outputs": [{"name": "y", "parameters": {"classification": 3}}]')),
    ):
        with pytest.raises(MeshError) as caught:
            parse_untrusted_request((form % places).encode(), None)
        assert refused(message) == str(caught.value)


def test_request_with_too_many_or_too_long_parts_is_refused() -> None:
    """What a client sends is compared with a bound before it is used."""
    many, named, output, identified = request(), request(), request(raw=bytes(16)), request(raw=bytes(16))
    for _ in range(40):
        many.inputs.add(name="z")
    named.inputs[0].name = "x" * 201
    output.outputs.add(name="y" * 201)
    identified.id = "i" * 1_001
    assert "the request has 41 inputs: give at most 32" in refused(many)
    assert "has 201 characters: give at most 200" in refused(named)
    assert "has 201 characters: give at most 200" in refused(output)
    assert "id has 1001 characters: give at most 1000" in refused(identified)


# --- what a message would become -------------------------------------------------------------------------------------
def field(number: int, content: bytes) -> bytes:
    """A field of bytes as it travels."""
    size, out = len(content), bytearray([number << 3 | 2])
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((*out, size)) + content


@pytest.mark.parametrize(
    "message",
    [
        field(5, b"") * (MAX_FIELDS + 1), field(6, b"") * (MAX_FIELDS + 1), field(4, b"") * (MAX_FIELDS + 1),
        field(5, field(4, b"") * (MAX_FIELDS + 1)), field(5, field(5, field(8, b"") * (MAX_FIELDS + 1))),
        field(7, b"") * (MAX_FIELDS + 1), field(6, field(2, field(2, b"\x08\x01" * (MAX_FIELDS + 1)))),
        field(5, field(5, b"\x08\x01" * (MAX_FIELDS + 1))),
    ],
)  # fmt: skip
def test_message_of_very_many_parts_is_refused_before_it_is_parsed(message: bytes) -> None:
    """Two bytes become an object of a hundred: 64 MiB of empty inputs would take gigabytes."""
    with pytest.raises(BadRequest, match=f"more than {MAX_FIELDS} fields"):
        parse_untrusted_message(message)


@pytest.mark.parametrize("place", [3, 5])
def test_packed_numbers_beyond_the_bound_are_refused_before_they_are_parsed(place: int) -> None:
    """One byte becomes eight, as a size in a shape or as an element."""
    packed = bytes(MAX_TYPED_BYTES + 1)
    message = field(5, field(place, packed if place == 3 else field(3, packed)))
    with pytest.raises(BadRequest, match="send raw_input_contents") as caught:
        parse_untrusted_message(message)
    assert caught.value.status == 413
    assert untrusted_parts(field(7, packed)).typed_bytes == 0, "raw bytes stay what they are"


_parameter = st.fixed_dictionaries(
    {},
    optional={"bool_param": st.booleans(), "int64_param": st.integers(-(2**63), 2**63 - 1), "string_param": st.text()},
).map(lambda choices: dict(list(choices.items())[:1]))
_parameters = st.dictionaries(st.text(max_size=4), _parameter, max_size=3)
_inputs = st.fixed_dictionaries({
    "name": st.text(max_size=4), "datatype": st.sampled_from([*KINDS, "FP16", "BF16", "BYTES", ""]),
    "shape": st.lists(st.integers(-1, 2**40), max_size=4), "parameters": _parameters,
    "contents": st.fixed_dictionaries({}, optional={
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6),
        "uint64_contents": st.lists(st.integers(0, 2**64 - 1), max_size=6),
        "fp32_contents": st.lists(st.floats(width=32), max_size=6),
        "fp64_contents": st.lists(st.floats(), max_size=6),
        "bytes_contents": st.lists(st.binary(max_size=4), max_size=3),
        "bool_contents": st.lists(st.booleans(), max_size=6),
    }),
})  # fmt: skip
_messages = st.fixed_dictionaries({
    "model_name": st.text(max_size=8), "id": st.text(max_size=8), "parameters": _parameters,
    "inputs": st.lists(_inputs, max_size=3), "raw_input_contents": st.lists(st.binary(max_size=20), max_size=3),
    "outputs": st.lists(st.fixed_dictionaries({"name": st.text(max_size=4), "parameters": _parameters}), max_size=3),
}).map(lambda form: ModelInferRequest(**form).SerializeToString())  # fmt: skip


@given(_messages)
def test_parts_of_a_message_are_what_protobuf_reads_in_the_whole(message: bytes) -> None:
    """They look at the same bytes as the parser, and must not see something else in them."""
    whole, parts = ModelInferRequest.FromString(message), untrusted_parts(message)
    assert list(whole.raw_input_contents) == parts.raw
    whole.ClearField("raw_input_contents")
    assert whole == ModelInferRequest.FromString(parts.head)
    assert (parts.typed_bytes > 0) >= any(len(each.contents.fp64_contents) > 0 for each in whole.inputs)


@given(st.binary(max_size=200) | st.tuples(_messages, st.integers(0, 200), st.binary(max_size=3)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]
))  # fmt: skip
def test_message_of_any_content_is_parsed_or_refused(message: bytes) -> None:
    """Whatever a program sends, the node says what is wrong and goes on."""
    with suppress(BadRequest, InputInvalid):
        parse_untrusted_message(message)


def test_field_of_another_wire_type_is_unknown_and_skipped() -> None:
    """As protobuf does: 5 is the inputs, and here a number whose bytes are no message."""
    message = request(raw=bytes(16)).SerializeToString() + b"\x28\x8b\x0c" + b"\x25abcd"
    assert list(parse_untrusted_message(message).inputs) == ["x"]


@given(st.binary(max_size=60))
def test_bytes_that_protobuf_reads_are_refused_only_for_what_no_message_has(message: bytes) -> None:
    """A stricter check than the parser's would refuse what newer clients add."""
    try:
        ModelInferRequest.FromString(message)
    except DecodeError:
        return
    if all(byte & 7 not in (3, 4) for byte in message):  # groups, which protobuf skips
        untrusted_parts(message)


# --- answers ---------------------------------------------------------------------------------------------------------
def test_answer_carries_every_type_raw_and_parameters_by_their_kind() -> None:
    """A client reads them by the datatype alone."""
    outputs = {f"y{at}": np.asarray([[1, 0]], short) for at, (short, _) in enumerate(KINDS.values())}
    outputs["none"] = np.zeros((0, 3), "f4")
    outputs["half"], outputs["turned"] = np.array([[1.5], [2]], "f2"), np.arange(6, dtype="f4").reshape(2, 3).T
    told = {"ran_on": "rsu-1", "took_ms": 1.0, "attempt_count": 2, "flag": True}
    computed = Computed("m", "1", outputs, told)
    answer = ModelInferResponse.FromString(encoded_answer("seven", computed))
    streamed = ModelStreamInferResponse.FromString(streamed_answer("seven", computed))
    assert (streamed.infer_response, streamed.error_message) == (answer, "")
    assert (answer.id, answer.model_name, answer.model_version) == ("seven", "m", "1")
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        assert (raw, tuple(output.shape)) == (outputs[output.name].tobytes(), outputs[output.name].shape)
    assert [output.datatype for output in answer.outputs] == [*KINDS, "FP32", "FP16", "FP32"]
    chosen = {name: each.WhichOneof("parameter_choice") for name, each in answer.parameters.items()}
    assert chosen == {
        "ran_on": "string_param", "took_ms": "double_param", "attempt_count": "int64_param", "flag": "bool_param",
    }  # fmt: skip


def test_error_in_a_stream_says_which_request_it_is_about() -> None:
    """The client compares it with what it has asked."""
    told = ModelStreamInferResponse.FromString(streamed_error("no", "seven"))
    assert (told.error_message, told.infer_response.id) == ("no", "seven")
    assert not ModelStreamInferResponse.FromString(streamed_error("no")).HasField("infer_response")
