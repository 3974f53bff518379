"""Large pages: which memory is moved, that nothing in it changes, and that small programs are left alone."""

import random
from pathlib import Path

from sims.virtual.pages import LEAST_BYTES, PAGE_BYTES, LargePages, plain_regions

_MAPS = """\
55d0c0000000-55d0c0800000 r-xp 00000000 08:01 131 /usr/bin/python3.11
55d0c1000000-55d0c1a00000 rw-p 00000000 00:00 0 [heap]
7f0000100000-7f0000500000 rw-p 00000000 00:00 0
7f0001000000-7f0001100000 rw-p 00000000 00:00 0
7f0002000000-7f0002800000 rw-p 00000000 08:01 132 /usr/lib/libc.so.6
7f0003000000-7f0003800000 rw-s 00000000 00:05 77 /dev/zero (deleted)
7f0004000000-7f0004800000 r--p 00000000 00:00 0
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0 [stack]
"""


def test_only_whole_large_pages_of_private_memory_are_chosen() -> None:
    """Files, shared memory and the stack are not ours to move, and a part of a page can't be."""
    assert list(plain_regions(_MAPS.splitlines())) == [
        (0x55D0C1000000, 5 * PAGE_BYTES),
        (0x7F0000200000, PAGE_BYTES),
    ]


def test_gathering_changes_nothing_that_is_stored() -> None:
    """The kernel moves memory under a running simulation."""
    seeded = random.Random(1)
    blocks = [seeded.randbytes(PAGE_BYTES + number) for number in range(LEAST_BYTES // PAGE_BYTES + 1)]
    pages = LargePages()
    tried = pages.gather()
    assert tried == Path("/proc/self/maps").exists(), "a program of more than 128 MiB"
    assert not pages.gather(), "it has not grown since"
    seeded.seed(1)
    assert all(block == seeded.randbytes(PAGE_BYTES + number) for number, block in enumerate(blocks))
