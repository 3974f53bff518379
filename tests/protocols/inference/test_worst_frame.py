"""The most expensive frame of inference that a neighbour can send, searched for, and what it costs under the lock.

The search starts at frames as honest nodes send them and changes fields: to other types, to sizes up to that of the
largest frame, to many small elements, to names of models and numbers of requests that exist. It keeps what costs most.
The cost is processor time of the thread that holds the engine's lock, so a busy machine does not disturb it.
"""

import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Final

import msgspec
import pytest

from protocols.base import limits
from protocols.inference.placement import LocalModel
from protocols.inference.signature import ModelSignature, TensorSignature
from protocols.wire.codec import encode_frame
from protocols.wire.frame import Frame, number_of
from protocols.wire.inference import (
    InferAnswer,
    InferCancel,
    InferRequest,
    Offer,
    Offers,
    Signature,
    StageAsked,
    StageChunk,
    StageState,
    StageWanted,
)
from protocols.wire.membership import Goodbye
from protocols.wire.tensors import NamedTensor, tensor_of
from tests.tools.lone_node_fixture import Alone
from tests.tools.quiet import bound_ms
from tests.tools.strategies import NOW_UTC_NS, identity

MAX_COST_NS: Final = bound_ms(20) * limits.MS
DIGEST: Final = "1" * 64
NEIGHBOURS: Final = 60
IMAGE: Final = (NamedTensor("x", tensor_of(bytes(1_000))),)
ANY: Final = TensorSignature("x", "u1", (None,), ("n",))
ROUNDS: Final = 60

_encode: Final = msgspec.msgpack.Encoder().encode


class Victim:
    """A node with 60 neighbours that offer all they may, whose tables are full, and one neighbour that attacks it."""

    def __init__(
        self, inputs: tuple[NamedTensor, ...] = IMAGE, asked: tuple[str, ...] = ("model-0", "model-1", "model-2")
    ) -> None:
        """``inputs`` and ``asked``: of the requests that the node has under way."""
        self.alone = Alone()
        engine = self.alone.engine
        offers = tuple(Offer(f"model-{number}", DIGEST, 10**6) for number in range(limits.MAX_OFFERS))
        for number in range(NEIGHBOURS):
            self.alone.receive(self.link(f"n{number}", 7_000 + number), Offers(1, offers))
        self.pipe = self.link("attacker", 8_000)
        self.alone.receive(self.pipe, Offers(1, (Offer("model-1", DIGEST, 1),)))
        model = LocalModel("model-0", DIGEST, limits.MS, 0, True, signature=ModelSignature((ANY,), (ANY,)))
        engine.inference.set_models((model,), self.alone.now)
        for number in range(limits.MAX_PENDING_REQUESTS):
            name = asked[number % len(asked)]
            engine.inference.ask(name, inputs, (), limits.SECOND, False, self.alone.now)
        for number in range(16):
            self.alone.receive(self.pipe, InferRequest(number, "model-0", DIGEST, 10**6, IMAGE))
        self.settle()

    def link(self, node: str, port: int) -> int:
        """Meet a neighbour. Returns its pipe."""
        pipe = self.alone.hello(node, port=port)
        (dial,) = self.alone.dials()
        self.alone.engine.lane_opened(dial.dial, identity(node), self.alone.now)
        return pipe

    def settle(self) -> None:
        """Do what a driver does after a frame."""
        engine = self.alone.engine
        engine.flushes()
        engine.outgoing()
        engine.events()
        engine.next_timer_at()

    def cost_ns(self, data: bytes) -> int:
        """The processor time that the lock is held for one frame."""
        if self.pipe not in self.alone.engine._neighbour_of:  # the frame before was malformed
            self.alone.now += 60 * limits.SECOND  # by then it may come back
            self.pipe = self.alone.hello("attacker", port=8_000)
        self.alone.now += 50 * limits.MS
        began_ns = time.thread_time_ns()
        self.alone.engine.receive(data, self.pipe, self.alone.now, NOW_UTC_NS)
        self.settle()
        return time.thread_time_ns() - began_ns


# --- frames ----------------------------------------------------------------------------------------------------------
Field = tuple[str, int]
"""A kind of field, and its size."""


def _many(element: bytes) -> Callable[[int], bytes]:
    return lambda size: b"\xdd" + (size // len(element)).to_bytes(4, "big") + element * (size // len(element))


KINDS: Final[dict[str, Callable[[int], bytes]]] = {
    "number": _encode,
    "known": lambda size: _encode(size % 600),
    "huge number": lambda size: _encode(2**64 - 1 - size),
    "model": lambda size: _encode(f"model-{size % 70}"),
    "digest": lambda _: _encode(DIGEST),
    "done": lambda _: _encode("done"),
    "busy": lambda _: _encode("busy"),
    "ready": lambda _: _encode("ready"),
    "invalid": lambda _: _encode("invalid"),
    "letters": lambda size: _encode("a" * size),
    "accents": lambda size: _encode("é" * (size // 2)),
    "bytes": lambda size: _encode(bytes(size)),
    "nothings": _many(b"\xc0"),
    "maps": _many(b"\x80"),
    "texts": _many(b"\xa3\xe2\x82\xac"),
    "extensions": _many(b"\xc7\x01\x01\x00"),
    "nested": lambda size: b"\x91" * min(size, 900) + b"\xc0",
    "keys": lambda size: _encode({str(number): None for number in range(min(size // 6, 70_000))}),
    "offers": lambda size: _encode([[f"{size}-{n}" * 20, f"{n:064x}", n, n] for n in range(min(size // 200, 66))]),
    "tensors": lambda size: _encode([
        [f"x{n}", ["f4", [2**60, 2**60, 2**60, 0, 1, 1, 1, 1], b""]] for n in range(min(size // 100, 33))
    ]),
    "kinds": lambda size: _encode([
        [f"{n}" * 100, "f4", [-1] * 8, ["s" * 200] * 8] for n in range(min(size // 100, 33))
    ]),
    "tensor": lambda size: _encode([["x", ["u1", [size], bytes(size)]]]),
    "types": lambda size: _encode([["x", ["é" * (size // 2), [1], b""]]]),
    "shapes": lambda size: _encode([["x", ["u1", [1] * (size // 2), b""]]]),
    "names": lambda size: _encode([["é" * (size // 2), ["u1", [1], b"x"]]]),
}  # fmt: skip
SEEDS: Final[dict[type[Frame], tuple[Field, ...]]] = {
    Offers: (("number", 10**6), ("offers", 10**5)),
    InferRequest: (
        ("number", 1), ("model", 0), ("digest", 0), ("number", 10**6), ("tensor", 10), ("nothings", 0),
    ),
    InferAnswer: (("known", 1), ("done", 0), ("tensor", 10), ("number", 1), ("number", 1), ("letters", 10)),
    InferCancel: (("known", 1),),
    Signature: (("digest", 0), ("kinds", 10**5), ("kinds", 10**5)),
    StageAsked: (("digest", 0), ("model", 0), ("digest", 0), ("number", 10**6)),
    StageWanted: (("digest", 0), ("number", 0)),
    StageChunk: (("digest", 0), ("number", 0), ("bytes", 1_000)),
    StageState: (("digest", 0), ("ready", 0), ("letters", 10), ("number", 1)),
}  # fmt: skip


def encoded(number: int, fields: list[Field]) -> bytes:
    """The frame, its fields made shorter until it is not larger than any frame may be. Its head has any of the forms
    that MessagePack allows, chosen by the sizes."""
    while True:
        parts = [KINDS[kind](size) for kind, size in fields]
        if sum(map(len, parts)) < limits.MAX_FRAME_BYTES - 64:
            count, form = 1 + len(parts), sum(size for _, size in fields) % 9
            heads = bytes((0x90 + count,)), b"\xdc" + count.to_bytes(2, "big"), b"\xdd" + count.to_bytes(4, "big")
            numbers = bytes((number,)), b"\xcc" + bytes((number,)), b"\xcd\0" + bytes((number,))
            return heads[form // 3] + numbers[form % 3] + b"".join(parts)
        fields = [(kind, size // 2) if size > 1_000 else (kind, size) for kind, size in fields]


def each_change(fields: list[Field]) -> Iterator[list[Field]]:
    """The frame as it is, and with each field in turn of every kind, in a small frame and in the largest."""
    yield fields
    for at in range(len(fields) + 1):
        for kind in KINDS:
            for size in (
                limits.LARGE_FRAME_BYTES - 5_000,
                *range(limits.MAX_FRAME_BYTES - 9, limits.MAX_FRAME_BYTES, 3),
            ):
                yield [*fields[:at], (kind, size), *fields[at + 1 :]]


def changed(fields: list[Field], random: Random) -> list[Field]:
    """The same frame with one field that differs, or one more behind the last."""
    fields = list(fields)
    field = random.choice(list(KINDS)), int(10 ** random.uniform(0, 7.2))
    at = random.randrange(len(fields) + (len(fields) < 10))
    if at < len(fields):
        fields[at] = field if random.random() < 0.7 else (fields[at][0], field[1])
    else:
        fields.append(field)
    return fields


@pytest.mark.parametrize("frame", SEEDS)
def test_worst_frame_of_a_neighbour_holds_the_lock_for_less_than_20_ms(frame: type[Frame]) -> None:
    """One field of 16 MB took 250 ms, in which no heartbeat was sent and no hazard passed on."""
    number, random = number_of(frame), Random(number_of(frame))
    victim = Victim()
    kept: list[tuple[int, list[Field]]] = []
    for tried in range(len(swept := list(each_change(list(SEEDS[frame])))) + ROUNDS):
        fields = swept[tried] if tried < len(swept) else changed(random.choice(kept)[1], random)
        kept.append((victim.cost_ns(encoded(number, fields)), fields))
        kept.sort(key=lambda entry: -entry[0])
        del kept[6:]
    for _, fields in kept[:2]:  # again, because a collection of garbage may have fallen into one
        data = encoded(number, fields)
        cost_ns = min(Victim().cost_ns(data) for _ in range(2))
        print(f"{frame.__name__}: {cost_ns / 1e6:.2f} ms, {len(data)} bytes, {fields}")
        assert cost_ns < MAX_COST_NS, f"{cost_ns / 1e6:.1f} ms for {len(data)} bytes: {fields}"


@pytest.mark.parametrize("size_bytes", [1_000, 1_000_000])
def test_neighbour_that_leaves_with_all_requests_of_a_node_holds_the_lock_for_less_than_20_ms(size_bytes: int) -> None:
    """It claims to be fast, takes 256 requests and says goodbye: all of them went elsewhere at once, in 180 ms."""
    costs_ns = costs_of_leaving(size_bytes)
    if max(costs_ns) >= MAX_COST_NS:  # the same again: the machine may have stood still in one of them
        costs_ns = [min(pair) for pair in zip(costs_ns, costs_of_leaving(size_bytes), strict=True)]
    assert max(costs_ns) < MAX_COST_NS, [cost_ns / 1e6 for cost_ns in costs_ns]


def costs_of_leaving(size_bytes: int) -> list[int]:
    """Processor time of each slice of work after the goodbye."""
    inputs = (NamedTensor("x", tensor_of(bytes(size_bytes))),)
    victim = Victim(inputs, ("model-1",))
    costs_ns = [victim.cost_ns(encode_frame(Goodbye(5)))]
    alone, engine = victim.alone, victim.alone.engine
    end = alone.now + 300 * limits.MS
    while (due_ns := engine.next_timer_at()) < end:
        alone.now = max(due_ns, alone.now)
        began_ns = time.thread_time_ns()
        engine.handle_timer(alone.now)
        victim.settle()
        costs_ns.append(time.thread_time_ns() - began_ns)
        assert engine.next_timer_at() > alone.now, "a slice that is due at once keeps the lock for itself"
    assert engine.statistics()["inference_replayed"] == limits.MAX_PENDING_REQUESTS
    return costs_ns
