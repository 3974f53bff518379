"""Clients of a gRPC endpoint: one with the library, and one that writes the frames of HTTP/2 itself and misbehaves."""

import socket
import struct
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np

from meshnode.grpc.wire.messages import POOL, SERVICE, message_class

UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


class GrpcClient:
    """Calls by the messages that a node has."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED)

    def method(self, name: str, /) -> Any:
        """One method, to be called with its message."""
        method = POOL.FindServiceByName(SERVICE).methods_by_name[name]
        kind = self.channel.stream_stream if method.client_streaming else self.channel.unary_unary
        return kind(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=message_class(method.output_type.name).FromString,
        )

    def ask(self, name: str, /, **fields: Any) -> Any:
        """The answer of a method to a message with these fields."""
        method = POOL.FindServiceByName(SERVICE).methods_by_name[name]
        return self.method(name)(message_class(method.input_type.name)(**fields), timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()


def infer_message(model: str, values: Any, datatype: str = "FP32", **fields: Any) -> Any:
    """A request with one raw input ``x``."""
    message = message_class("ModelInferRequest")(model_name=model, **fields)
    message.inputs.add(name="x", datatype=datatype, shape=values.shape)
    message.raw_input_contents.append(np.ascontiguousarray(values).tobytes())
    return message


def output_of(answer: Any, dtype: str = "f4") -> Any:
    """The one output of an answer."""
    (output,), (raw,) = answer.outputs, answer.raw_output_contents
    return np.frombuffer(raw, dtype).reshape(tuple(output.shape))


# --- by hand ---------------------------------------------------------------------------------------------------------
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """A header that is neither indexed nor compressed."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def begun_call(port: int, path: bytes, window_bytes: int = 65_535) -> socket.socket:
    """A connection on which a call has begun: its head is sent, and no message. ``window_bytes``: how much of the
    answer is taken."""
    link = socket.create_connection(("127.0.0.1", port), 30)
    head = b"".join((
        header(b":method", b"POST"), header(b":scheme", b"http"), header(b":path", path),
        header(b":authority", b"localhost"), header(b"content-type", b"application/grpc"), header(b"te", b"trailers"),
    ))  # fmt: skip
    initial_window = struct.pack(">HI", 4, window_bytes)
    link.sendall(PREFACE + frame(SETTINGS, 0, 0, initial_window) + frame(HEADERS, END_HEADERS, 1, head))
    return link


def method_path(name: str) -> bytes:
    """The path of a method."""
    return f"/{SERVICE}/{name}".encode()


def message_frame(message: bytes, size_bytes: int | None = None, last: bool = True) -> bytes:
    """A message in a frame; ``size_bytes`` says that it is longer than what is sent."""
    prefix = b"\0" + struct.pack(">I", len(message) if size_bytes is None else size_bytes)
    return frame(DATA, END_STREAM if last else 0, 1, prefix + message)


def hung_up(link: socket.socket, within_s: float = 30.0) -> bool:
    """Whether the other side ends the call or the connection in time, whatever it says until then."""
    link.settimeout(within_s)
    got = b""
    try:
        while data := link.recv(65_536):
            got += data
            if b"grpc-status" in got:
                return True
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True
