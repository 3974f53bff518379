"""Mutates the values inside MessagePack, where a change of bytes would mostly make something that is no MessagePack."""

from random import Random
from typing import Any

import msgpack

from tests.fuzz.targets import Form

_ODD: tuple[Any, ...] = (
    0, 1, -1, 7, 8, 127, 128, 255, 256, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0,
    1e308, float("inf"), float("nan"), True, False, None, "", "a", "é", "a/b", "**", "*/**", "\0", "a" * 300, b"",
    b"\xff" * 8,
    [], [[]], {}, {"a": 1}, [0] * 70, ["a"] * 70, msgpack.Timestamp(1, 1), msgpack.ExtType(1, b""),
    msgpack.ExtType(1, b"\x93\xa2u1\x91\x01\xc4\x01\x00"), msgpack.ExtType(127, b"x"),
)  # fmt: skip


def mutated(data: bytes, form: Form, random: Random) -> bytes | None:
    """``data`` with a value in it changed, left out, doubled or moved; None when there is no value to change."""
    if form is Form.MESSAGEPACK:
        return _changed(data, random)
    if form is Form.FRAMED:
        frames = _frames(data)
        if not frames:
            return None
        at = random.randrange(len(frames))
        action = random.randrange(4)
        if action == 0:
            frames.insert(random.randrange(len(frames) + 1), b"")
        elif action == 1:
            frames.insert(random.randrange(len(frames) + 1), frames[at])
        elif action == 2 and len(frames) > 1:
            del frames[at]
        else:
            frames[at] = _changed(frames[at], random) or b""
        return b"".join([len(frame).to_bytes(2) + frame for frame in frames])
    return None


def _frames(data: bytes) -> list[bytes]:
    frames, at = [], 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2])
        frames.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return frames


def _changed(data: bytes, random: Random) -> bytes | None:
    try:
        value = msgpack.unpackb(data, strict_map_key=False)
        places = list(_places(value))
        if not places:
            return None
        container, at = random.choice(places)
        action = random.randrange(6)
        if action == 0 and isinstance(container, list):
            container.insert(random.randrange(len(container) + 1), container[at])
        elif action == 1:
            del container[at]
        elif action == 2:
            other, there = random.choice(places)
            container[at] = other[there]
        elif action == 3 and isinstance(container[at], int):
            container[at] += random.choice((-1, 1, 2 ** random.randrange(64)))
        else:
            container[at] = random.choice(_ODD)
        changed: bytes = msgpack.packb(value)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        return None  # it is no MessagePack, or can't be written any more
    return changed


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each container in a value, with each index or key in it."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(places) < 1_000:
        container = waiting.pop()
        if isinstance(container, list):
            places += [(container, index) for index in range(len(container))]
            waiting += container
        elif isinstance(container, dict):
            places += [(container, key) for key in container]
            waiting += container.values()
    return places
