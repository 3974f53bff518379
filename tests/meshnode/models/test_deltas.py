"""Deltas: the very bytes of the new file out of the old one, and bounds that hold for any delta."""

import hashlib
import struct
from collections.abc import Callable
from random import Random

import msgspec
import numpy as np
import pytest
import zstandard
from onnx import TensorProto, helper, numpy_helper

from meshnode.models.deltas import apply_delta, make_delta
from meshnode.models.deltas.form import BLOCK_BYTES, DeltaSegment, TensorDelta
from meshnode.models.deltas.tensors import stored_tensors
from protocols.base.errors import ModelInvalid


def model(weights: dict[str, np.ndarray], tag: str = "", constants: bool = False) -> bytes:
    """An ONNX file with these weights, as initialisers or as nodes of constants."""
    names = list(weights)
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    nodes = [helper.make_node("Identity", [names[0]], ["y"])]
    if constants:
        nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors] + nodes
    graph = helper.make_graph(
        nodes, "g" + tag, [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [] if constants else tensors,
    )  # fmt: skip
    return helper.make_model(graph).SerializeToString()


def changed(array: np.ndarray, share: float, seed: int = 1) -> np.ndarray:
    random, out = np.random.default_rng(seed), array.copy()
    where = random.random(array.shape) < share
    if array.dtype.kind == "f":
        out[where] *= (1 + 0.01 * random.standard_normal(int(where.sum()))).astype(array.dtype)
    else:
        out[where] ^= 1
    return out


def weights(count: int = 4, size: int = 200_000, dtype: str = "f4") -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {f"w{at}": (random.standard_normal(size) * 50).astype(dtype) for at in range(count)}


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize(("dtype", "most"), [("f4", 0.05), ("f2", 0.09), ("i1", 0.08), ("f8", 0.06)])
def test_delta_of_a_few_changed_weights_is_small_and_exact(dtype: str, most: float, constants: bool) -> None:
    """5 % of the weights were trained on: nodes get them for about that share of the bytes."""
    before = weights(dtype=dtype)
    after = {name: changed(array, 0.05, at) for at, (name, array) in enumerate(before.items())}
    base, new = model(before, constants=constants), model(after, "-new", constants)
    method, delta = make_delta(base, new)
    assert method == "tensors"
    assert len(delta) <= most * len(new)
    assert apply_delta(method, base, delta, len(new)) == new


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w | {"w9": w["w0"]},
        lambda w: {name: w[name] for name in reversed(w)},
        lambda w: {name: w[name] for name in list(w)[:2]},
        lambda w: w | {"w1": w["w1"][:-5]},
        lambda w: w | {"w1": w["w1"].astype("f8")},
        lambda w: {f"other-{name}": array for name, array in w.items()},
        lambda w: {"w0": np.zeros(0, "f4")},
    ],
)
def test_delta_of_other_tensors_is_exact(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """Layers that were added, moved, dropped, cut or renamed."""
    before = weights(size=5_000)
    base, new = model(before), model(change(before))
    method, delta = make_delta(base, new)
    assert apply_delta(method, base, delta, len(new)) == new
    assert len(delta) < len(new) + 64


@pytest.mark.parametrize("seed", range(6))
def test_delta_of_any_two_files_is_exact(seed: int) -> None:
    """Manifests, weights in files of their own, and files that are no models."""
    random = Random(seed)
    base = random.randbytes(random.choice([1, 10, 5_000, 300_000]))
    new = bytearray(base if seed % 2 else random.randbytes(200_000))
    for _ in range(20):
        new[random.randrange(len(new))] = random.randrange(256)
    method, delta = make_delta(base, bytes(new))
    assert apply_delta(method, base, delta, len(new)) == new


def test_delta_larger_than_a_block_is_exact() -> None:
    """Blocks end within tensors."""
    before = {"w0": np.random.default_rng(1).standard_normal(BLOCK_BYTES // 4 + 1_001).astype("f4")}
    base, new = model(before), model({"w0": changed(before["w0"], 0.05)})
    method, delta = make_delta(base, new)
    assert (method, apply_delta(method, base, delta, len(new)) == new) == ("tensors", True)


@pytest.mark.parametrize("dtype", ["f4", "i1"])
def test_delta_applied_to_another_base_is_refused(dtype: str) -> None:
    """A node whose file is another one must not get a file of nonsense."""
    before = weights(size=3_000, dtype=dtype)
    base = model(before)
    for share in (0.05, 1.0):
        new = model({name: changed(array, share) for name, array in before.items()})
        method, delta = make_delta(base, new)
        with pytest.raises(ModelInvalid, match="is for the file"):
            apply_delta(method, base[:-1] + bytes((base[-1] ^ 1,)), delta, len(new))


def test_delta_that_makes_more_than_is_wanted_is_refused_before_memory_is_taken() -> None:
    """The size in the description is the bound, whatever the delta says."""
    base = bytes(1_000)
    bomb = hashlib.sha256(base).digest() + zstandard.ZstdCompressor().compress(bytes(64 * 1024 * 1024))
    with pytest.raises(ModelInvalid, match="at most 1000 are wanted"):
        apply_delta("zstd", base, bomb, 1_000)
    head = msgspec.msgpack.encode(TensorDelta(hashlib.sha256(base).digest(), 2**31, ()))
    with pytest.raises(ModelInvalid, match="at most 1000 are wanted"):
        apply_delta("tensors", base, framed(head, b""), 1_000)


def framed(head: bytes, body: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(struct.pack("<I", len(head)) + head + body)


def hostile(size: int, *segments: DeltaSegment, body: bytes = bytes(4_096), base: bytes = bytes(1_000)) -> bytes:
    return framed(msgspec.msgpack.encode(TensorDelta(hashlib.sha256(base).digest(), size, segments)), body)


@pytest.mark.parametrize(
    "delta",
    [
        b"",
        b"\x28\xb5\x2f\xfd",
        framed(b"\xc0", b""),
        zstandard.ZstdCompressor().compress(struct.pack("<I", 2**31)),
        hostile(100, DeltaSegment(0, 0, 200, 1)),
        hostile(100, DeltaSegment(0, 950, 100, 1)),
        hostile(100, DeltaSegment(0, 0, 50, 1), DeltaSegment(40, 0, 50, 1)),
        hostile(100, DeltaSegment(0, 0, 50, 3)),
        hostile(100, DeltaSegment(0, 0, 50, 4)),
        hostile(100, DeltaSegment(0, 0, 50, 0)),
        hostile(100, DeltaSegment(0, 0, 100, 1), body=b"\x07" + bytes(100)),
        hostile(100, DeltaSegment(0, 0, 100, 1), body=b"\x01" + struct.pack("<II", 2**32 - 1, 3)),
        hostile(100, DeltaSegment(0, 0, 100, 1), body=b"\x01" + struct.pack("<II", 1, 2**32 - 1)),
        hostile(100, DeltaSegment(0, 0, 100, 1), body=b"\x01" + struct.pack("<II", 1, 1) + b"\xc8x"),
        hostile(100, DeltaSegment(0, 0, 100, 1), body=b"\x01" + struct.pack("<II", 2, 1) + b"\x00\x00xy"),
        hostile(100, DeltaSegment(0, 0, 100, 1), body=bytes(50)),
        hostile(100, DeltaSegment(0, 0, 100, 1), body=bytes(200)),
        hostile(100, body=bytes(99)),
    ],
)
def test_delta_that_is_hostile_is_refused(delta: bytes) -> None:
    """Signed by a publisher whose key was stolen: no crash, no memory, one error."""
    for method in ("tensors", "zstd"):
        with pytest.raises(ModelInvalid):
            apply_delta(method, bytes(1_000), delta, 100)


def test_delta_with_a_huge_window_is_refused() -> None:
    """Zstandard would take the memory of the window first."""
    params = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=params).compressobj()
    with pytest.raises(ModelInvalid):
        apply_delta("tensors", b"base", stream.compress(bytes(1_000)) + stream.flush(), 1_000)


def test_delta_of_an_unknown_method_is_refused() -> None:
    """A newer relay, an older node."""
    with pytest.raises(ModelInvalid, match="update this node"):
        apply_delta("bsdiff", b"x", b"y", 10)


@pytest.mark.parametrize("seed", range(3))
def test_delta_with_random_damage_raises_one_error_or_gives_what_was_meant(seed: int) -> None:
    """Chunks are checked by digest; this is for the rest."""
    random, before = Random(seed), weights(2, 2_000)
    base, new = model(before), model({name: changed(array, 0.05) for name, array in before.items()})
    method, delta = make_delta(base, new)
    for _ in range(100):
        damaged = bytearray(delta)
        damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
        try:
            assert len(apply_delta(method, base, bytes(damaged), len(new))) <= len(new)
        except ModelInvalid:
            continue


@pytest.mark.parametrize("seed", range(3))
def test_tensors_of_damaged_files_are_passed_over(seed: int) -> None:
    """The reader of protobuf meets anything, and gives places within the file or none."""
    random, content = Random(seed), model(weights(3, 300), constants=bool(seed % 2))
    assert len(stored_tensors(content)) == 3
    for _ in range(300):
        damaged = bytearray(content)
        damaged[random.randrange(len(damaged))] = random.randrange(256)
        for tensor in stored_tensors(bytes(damaged[: random.randrange(len(damaged))])):
            assert 0 < tensor.at <= tensor.at + tensor.size_bytes <= len(damaged)
