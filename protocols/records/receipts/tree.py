"""The hash tree over the records of a batch: its root, and the path that proves one leaf alone.

It is the Merkle tree of RFC 6962, section 2.1. A leaf is hashed behind 0x00 and a node behind 0x01, so that nobody can
pass a node off as a record. A tree of n leaves has the largest power of two below n on its left. That is the
same as joining neighbours level by level, where one that is left over goes up as it is.

Invariant: no two different lists of leaves are known to have one root, as long as ``hash_bytes`` is SHA-256.
"""

from collections.abc import Callable, Sequence
from typing import Final

from protocols.base.limits import MAX_BATCH_RECORDS

Hash = Callable[[bytes], bytes]
"""SHA-256, which a pure module may not compute itself."""

HASH_BYTES: Final = 32
MAX_PATH: Final = (MAX_BATCH_RECORDS - 1).bit_length()
"""The longest path in the tree of a batch, in hashes."""
_LEAF: Final = b"\0"
_NODE: Final = b"\1"


def leaf_hash(content: bytes, hash_bytes: Hash) -> bytes:
    """The hash of a leaf with this content."""
    return hash_bytes(_LEAF + content)


def root_of(leaves: Sequence[bytes], hash_bytes: Hash) -> bytes:
    """The root of the tree over the hashes of one or more leaves."""
    assert leaves, "a batch without records has no tree"
    level = list(leaves)
    while len(level) > 1:
        level = _above(level, hash_bytes)
    return level[0]


def path_of(leaves: Sequence[bytes], index: int, hash_bytes: Hash) -> tuple[bytes, ...]:
    """The hashes that lead from the leaf at ``index`` to the root, the lowest first."""
    assert 0 <= index < len(leaves), "it is a leaf of this tree"
    path: list[bytes] = []
    level = list(leaves)
    while len(level) > 1:
        beside = index ^ 1
        if beside < len(level):
            path.append(level[beside])
        level, index = _above(level, hash_bytes), index // 2
    return tuple(path)


def untrusted_root(leaf: bytes, index: int, count: int, path: Sequence[bytes], hash_bytes: Hash) -> bytes | None:
    """The root to which a path leads from the leaf at ``index`` of ``count``. None: there is no such leaf, or its path
    has another length."""
    if not 0 <= index < count:
        return None
    at, last, reached = index, count - 1, leaf
    for beside in path:
        if last == 0:
            return None
        while at == last and not at & 1 and last:  # it was left over on this level
            at, last = at >> 1, last >> 1
        joined = beside + reached if at & 1 else reached + beside
        reached = hash_bytes(_NODE + joined)
        at, last = at >> 1, last >> 1
    return reached if last == 0 else None


def _above(level: list[bytes], hash_bytes: Hash) -> list[bytes]:
    """The next level."""
    joined = [hash_bytes(_NODE + level[at] + level[at + 1]) for at in range(0, len(level) - 1, 2)]
    return joined if len(level) % 2 == 0 else [*joined, level[-1]]
