"""What the value of a reading may be, how it travels, and what it holds in memory.

A tensor inside a value is MessagePack extension 1 whose payload is the array ``[dtype, shape, data]``. What one side
encodes the other can decode, and a decoded value can be encoded again to be passed on. Lists and dicts are at most
``MAX_VALUE_DEPTH`` deep, and keys are text.
"""

from itertools import chain
from typing import Any, Final

import msgspec

from protocols.base.errors import RemoteProtocolError, ValueUnsupported
from protocols.wire.tensors import Tensor, check_untrusted_tensor

TENSOR_EXTENSION: Final = 1
MAX_VALUE_DEPTH: Final = 32
"""How deep lists and dicts may be nested in a value. Code that passes it on, stores it or shows it recurses as deep."""
COMPOSITE: Final = frozenset((list, tuple, dict, Tensor))
"""Types of values that need a closer look."""

OBJECT_BYTES: Final = 16
"""What the garbage collector and the allocator add to an object."""
TENSOR_BYTES: Final = 640
"""What a tensor holds in memory beside its elements."""
_FEW: Final = 64
_KEYS: Final = frozenset((str,))
_CONTAINERS: Final = frozenset((list, dict))
_AS_IT_IS: Final = frozenset((type(None), bool, int, float, str, bytes, list, dict))
_NUMBERS: Final = frozenset("biuf")
"""NumPy's letters for the kinds of elements that are plain numbers."""
_tensor_encoder = msgspec.msgpack.Encoder()
_tensor_decoder = msgspec.msgpack.Decoder(Tensor)


def kept_alive(tensor: Tensor) -> bytes | bytearray | memoryview:
    """The buffer that a tensor keeps in memory: the frame that it came in, or its own data."""
    frame = tensor.data.obj
    return frame if isinstance(frame, bytes | bytearray) else tensor.data


def object_bytes(item: object) -> int:
    """How much memory one object holds, without those that it refers to."""
    return item.__sizeof__() + OBJECT_BYTES


def weight_bytes(value: object) -> int:
    """How much memory a list or dict holds, with everything in it. A tensor counts with the frame that it keeps."""
    total_bytes = object_bytes(value)
    lists: list[Any] = [value] if type(value) is list else []
    dicts: list[Any] = [value] if type(value) is dict else []
    while lists or dicts:  # level by level, because a loop over single elements would take 30 ms for 65,536 of them
        if len(dicts) > _FEW:  # most of many may be empty
            dicts = list(filter(None, dicts))
        items = [*chain.from_iterable(lists), *chain.from_iterable(dicts)]
        items.extend(chain.from_iterable(map(dict.values, dicts)))
        total_bytes += sum([item.__sizeof__() for item in items]) + OBJECT_BYTES * len(items)
        kinds = set(map(type, items))
        if Tensor in kinds:
            total_bytes += sum(len(kept_alive(item)) + TENSOR_BYTES for item in items if type(item) is Tensor)
        lists = _those(list, items, kinds)
        dicts = _those(dict, items, kinds)
    return total_bytes


def _those(kind: type, items: list[Any], kinds: set[type]) -> list[Any]:
    """The ``items`` of one kind. ``kinds``: those that there are."""
    if kind not in kinds:
        return []
    return items if len(kinds) == 1 else [item for item in items if type(item) is kind]


def element_count(value: object) -> int:
    """The number of elements of a list or dict at all depths, itself and tensors counted as one each."""
    count = 1
    lists: list[Any] = [value] if type(value) is list else []
    dicts: list[Any] = [value] if type(value) is dict else []
    while lists or dicts:  # level by level, as in weight_bytes
        inner = sum(map(len, lists)) + sum(map(len, dicts))
        if not inner:
            break
        count += inner
        items = [*chain.from_iterable(lists), *chain.from_iterable(map(dict.values, dicts))]
        kinds = set(map(type, items))
        lists = _those(list, items, kinds)
        dicts = _those(dict, items, kinds)
    return count


def plain(value: Any) -> Any:
    """Return a NumPy scalar as a plain number, because it would travel as an array of no dimension. Anything else is
    returned unchanged."""
    if getattr(value, "ndim", None) != 0 or hasattr(value, "__setitem__"):  # an array has that
        return value
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return value.item() if kind in _NUMBERS else value


def listed(values: Any) -> Any:
    """Return several values as a list, each :func:`plain`. An array of one dimension gives its elements."""
    return values.tolist() if getattr(values, "ndim", None) == 1 else [plain(value) for value in values]


def travelling_value(value: Any, depth: int = MAX_VALUE_DEPTH) -> Any:
    """Return a composite value as the encoder needs it: tensors at any depth are extensions, unlike lists."""
    if type(value) is Tensor:
        return msgspec.msgpack.Ext(TENSOR_EXTENSION, _tensor_encoder.encode(value))
    if depth == MAX_VALUE_DEPTH and type(value) in _CONTAINERS and _travels_as_it_is(value):
        return value
    if depth == 0:
        raise ValueUnsupported(f"the value is nested deeper than {MAX_VALUE_DEPTH}: flatten it")
    if type(value) is dict:
        for key in value:
            if not isinstance(key, str):
                raise ValueUnsupported(f"the dict key {str(key)[:80]!r} is not text: keys of values must be")
        return {
            key: travelling_value(item, depth - 1) if type(item) in COMPOSITE else item for key, item in value.items()
        }
    return [travelling_value(item, depth - 1) if type(item) in COMPOSITE else item for item in value]


def _travels_as_it_is(value: Any) -> bool:
    """Whether a list or dict holds nothing but what the encoder knows, at any depth. It goes level by level, because a
    loop over single elements would take 20 ms for 65,536 of them."""
    level = [value]
    for _ in range(MAX_VALUE_DEPTH):
        dicts = [item for item in level if type(item) is dict]
        if not _KEYS.issuperset(map(type, chain.from_iterable(dicts))):
            return False
        lists = (item for item in level if type(item) is list)
        items = [*chain.from_iterable(lists), *chain.from_iterable(map(dict.values, dicts))]
        kinds = set(map(type, items))
        if not kinds <= _AS_IT_IS:
            return False
        if kinds.isdisjoint(_CONTAINERS):
            return True
        level = [item for item in items if type(item) in _CONTAINERS]
    return False


def decode_untrusted_extension(code: int, data: memoryview) -> Any:
    """A hook for decoders: return the tensor in an extension. :raises ValueError: when there is none."""
    if code != TENSOR_EXTENSION:
        raise ValueError(f"unknown MessagePack extension {code}")
    tensor = _tensor_decoder.decode(data)
    check_untrusted_tensor(tensor)
    return tensor


def check_untrusted_value(value: Any) -> None:
    """:raises RemoteProtocolError: when it is too deep or has a key that is not text. Tensors were checked when
    they were decoded, so only lists and dicts can still be out of bounds."""
    level = [value] if type(value) in (list, dict) else []
    for _ in range(MAX_VALUE_DEPTH):
        if not level:
            return
        below: list[Any] = []
        for container in level:  # written out: a frame may have 100,000 containers, and generators took 50 ms for them
            if not container:
                continue
            items = container
            if type(container) is dict:
                for key in container:
                    if type(key) is not str:
                        raise RemoteProtocolError("a value has a dict whose keys are not all text")
                items = container.values()
            for item in items:
                if type(item) is list or type(item) is dict:
                    below.append(item)  # noqa: PERF401 - a generator for each container is what was slow
        level = below
    if level:
        raise RemoteProtocolError(f"a value is nested deeper than {MAX_VALUE_DEPTH}")
