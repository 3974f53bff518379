"""Large memory pages for large simulations.

The state of a thousand nodes is some hundred megabytes, all of it in use all the time, while a processor remembers
where a few thousand pages lie. With pages of 4 KiB nearly every access is a walk through the page tables. Linux puts
memory into pages of 2 MiB by itself where it is told to (``always`` in ``/sys/kernel/mm/transparent_hugepage/enabled``;
most systems say ``madvise``), and since 6.1 it does so at once on request (``MADV_COLLAPSE``, madvise(2)). On other
systems nothing happens.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

PAGE_BYTES: Final = 2 << 20
LEAST_BYTES: Final = 128 << 20
"""Programs smaller than this fit the caches well enough."""
_GROWTH: Final = 1.25
_COLLAPSE: Final = 25
_MAPS: Final = Path("/proc/self/maps")
_RESIDENT: Final = Path("/proc/self/statm")


def plain_regions(maps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Start and size of the whole large pages in the private memory that lines of ``/proc/self/maps`` describe."""
    for line in maps:
        addresses, permissions, _, _, _, *name = line.split(maxsplit=5)
        if permissions != "rw-p" or (name and name[0].strip() != "[heap]"):
            continue
        first, behind = (int(address, 16) for address in addresses.split("-"))
        first, behind = -(-first // PAGE_BYTES) * PAGE_BYTES, behind // PAGE_BYTES * PAGE_BYTES
        if behind > first:
            yield first, behind - first


class LargePages:
    """Keeps the memory of this process in large pages, as it grows."""

    def __init__(self) -> None:
        self._next_bytes = LEAST_BYTES

    def gather(self) -> bool:
        """Move memory from small pages into large ones, if there is much of it. Returns whether that was tried. It
        takes some 3 ms for each MiB."""
        try:
            resident_bytes = int(_RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            if resident_bytes < self._next_bytes:
                return False
            self._next_bytes = int(resident_bytes * _GROWTH)
            madvise = ctypes.CDLL(None, use_errno=True).madvise
            madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
            for start, size_bytes in plain_regions(_MAPS.read_text().splitlines()):
                madvise(start, size_bytes, _COLLAPSE)  # a part that can't be moved stays where it is
        except (OSError, AttributeError, ValueError, IndexError):  # this is not Linux
            self._next_bytes = 1 << 62
            return False
        return True
