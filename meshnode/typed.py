"""Types that msgspec is given on several threads.

msgspec learns what a structure is when it first decodes one. Two threads that do so at the same moment end the process
(msgspec 0.22: one of them reads what the other has not written yet). A decoder that is made when a module is loaded is
safe. Types that are known later only pass here first.
"""

import threading
from typing import Any, Final, TypeVar

import msgspec

_T = TypeVar("_T")
_lock: Final = threading.Lock()
_known: Final[set[Any]] = set()


def prepared(kind: type[_T]) -> type[_T]:
    """A type, once msgspec knows it."""
    if kind not in _known:
        with _lock:
            msgspec.json.Decoder(kind)
            _known.add(kind)
    return kind
