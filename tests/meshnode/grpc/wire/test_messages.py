"""The messages: made of the file that people read, and with the numbers that clients have."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet

from meshnode.grpc.absent import ABSENT
from meshnode.grpc.wire.messages import POOL, SERVICE, ModelInferRequest, message_class
from tests.tools.node_fixture import ROOT, environment

FOLDER = ROOT / "meshnode" / "grpc" / "wire"
STOCK = "from tritonclient.grpc import model_config_pb2, service_pb2\n"


def compiled(folder: Path) -> FileDescriptorSet:
    """What protoc makes of the file that people read."""
    protoc = pytest.importorskip("grpc_tools.protoc")
    out = folder / "made.binpb"
    assert protoc.main(["protoc", f"-I{FOLDER}", f"--descriptor_set_out={out}", "open_inference.proto"]) == 0
    return FileDescriptorSet.FromString(out.read_bytes())


def test_descriptors_are_what_protoc_makes_of_the_proto_file(tmp_path: Path) -> None:
    """Whoever edits one of both and forgets the other would serve what nobody can read."""
    there = FileDescriptorSet.FromString((FOLDER / "open_inference.binpb").read_bytes())
    assert there == compiled(tmp_path), "run: make messages"


def stock() -> dict[str, FileDescriptorProto]:
    """The descriptors of Triton's client, read by a process of its own: they would fill the pool of this one."""
    code = (
        f"{STOCK}import sys\nfor module in (model_config_pb2, service_pb2):\n"
        "    sys.stdout.write(module.DESCRIPTOR.serialized_pb.hex() + '\\n')"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    if ran.returncode:
        pytest.skip(f"tritonclient.grpc can't be imported here: {ran.stderr[-200:]}")
    files = [FileDescriptorProto.FromString(bytes.fromhex(line)) for line in ran.stdout.split()]
    return {file.name: file for file in files}


def messages_of(scope: Any, prefix: str = "") -> Iterator[tuple[str, DescriptorProto]]:
    """Every message in a file or a message, by its whole name."""
    for message in getattr(scope, "message_type", ()) or getattr(scope, "nested_type", ()):
        yield f"{prefix}{message.name}", message
        yield from messages_of(message, f"{prefix}{message.name}.")


def enums_of(scope: Any, prefix: str = "") -> Iterator[tuple[str, EnumDescriptorProto]]:
    """Every enumeration, by its whole name."""
    for enum in scope.enum_type:
        yield f"{prefix}{enum.name}", enum
    for message in getattr(scope, "message_type", ()) or getattr(scope, "nested_type", ()):
        yield from enums_of(message, f"{prefix}{message.name}.")


@pytest.mark.processes
def test_every_field_has_the_number_and_type_that_tritons_client_has() -> None:
    """A wrong number is not an error but another field, and an answer without the value."""
    (ours,) = FileDescriptorSet.FromString((FOLDER / "open_inference.binpb").read_bytes()).file
    files = stock().values()
    theirs = {name: message for file in files for name, message in messages_of(file)}
    compared = 0
    for name, message in messages_of(ours):
        fields = {field.name: field for field in theirs[name].field}
        for field in message.field:
            other = fields[field.name]
            assert (field.number, field.type, field.label, field.type_name, field.json_name) == (
                other.number, other.type, other.label, other.type_name, other.json_name or field.json_name,
            ), f"{name}.{field.name}"  # fmt: skip
            compared += 1
        assert [each.name for each in message.oneof_decl] == [each.name for each in theirs[name].oneof_decl][
            : len(message.oneof_decl)
        ]
        assert message.options.map_entry == theirs[name].options.map_entry
    assert compared > 100
    their_enums = {name: enum for file in files for name, enum in enums_of(file)}
    for name, enum in enums_of(ours):
        assert {(value.name, value.number) for value in enum.value} == {
            (value.name, value.number) for value in their_enums[name].value
        }


@pytest.mark.processes
def test_every_method_that_tritons_client_calls_is_there_or_says_what_to_do() -> None:
    """Of a method that nobody knows a client is only told that it is not found."""
    (ours,) = FileDescriptorSet.FromString((FOLDER / "open_inference.binpb").read_bytes()).file[0].service
    (theirs,) = (service for file in stock().values() for service in file.service)
    assert ours.name == theirs.name == SERVICE.rpartition(".")[2]
    methods = {method.name: method for method in theirs.method}
    assert {method.name for method in ours.method} | set(ABSENT) == set(methods)
    for method in ours.method:
        other = methods[method.name]
        assert (method.client_streaming, method.server_streaming) == (other.client_streaming, other.server_streaming)
        assert (method.input_type, method.output_type) == (other.input_type, other.output_type)


@pytest.mark.processes
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_node_and_client_are_in_one_process_in_either_order(first: str) -> None:
    """Protobuf refuses a second file that declares the same names in the pool that all share."""
    stock()
    lines = ["import meshnode.grpc.wire.messages as ours\n", STOCK]
    code = "".join(lines if first == "ours" else reversed(lines))
    code += (
        "request = service_pb2.ModelInferRequest(model_name='m', raw_input_contents=[b'ab'])\n"
        "print(ours.ModelInferRequest.FromString(request.SerializeToString()).model_name)"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert ran.stdout == "m\n", ran.stderr


def test_messages_of_all_methods_are_classes() -> None:
    """They are made when they are asked for; a name that is not there would show only then."""
    service = POOL.FindServiceByName(SERVICE)
    for method in service.methods:
        for kind in (method.input_type, method.output_type):
            assert message_class(kind.name)().SerializeToString() == b""
    assert ModelInferRequest.DESCRIPTOR.full_name == "inference.ModelInferRequest"
