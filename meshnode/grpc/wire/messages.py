"""The messages of the protocol, as classes that protobuf makes of ``open_inference.binpb``.

The descriptors are in a pool of their own. In the one that all programs share, a client of the protocol in the same
process (``tritonclient.grpc``, KServe's) declares the same names in another file, and protobuf refuses whichever comes
second. The file is what ``protoc`` makes of ``open_inference.proto``; see docs/adr/0031 for why there is no generated
code.
"""

from importlib.resources import files
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

SERVICE: Final = "inference.GRPCInferenceService"
_PACKAGE: Final = "inference"
_FILE: Final = "open_inference.binpb"


def _loaded() -> Any:
    pool = descriptor_pool.DescriptorPool()
    for file in FileDescriptorSet.FromString(files(__package__).joinpath(_FILE).read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL: Final = _loaded()


def message_class(name: str) -> Any:
    """The class of a message, such as ``ModelInferRequest``. :raises KeyError: there is none of that name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ModelInferRequest: Final = message_class("ModelInferRequest")
ModelInferResponse: Final = message_class("ModelInferResponse")
ModelStreamInferResponse: Final = message_class("ModelStreamInferResponse")
