"""The hash tree against RFC 6962 written down as it stands there, and the vectors of Certificate Transparency."""

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.limits import MAX_BATCH_RECORDS
from protocols.records.receipts.tree import HASH_BYTES, MAX_PATH, leaf_hash, path_of, root_of, untrusted_root

CONTENTS = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
"""The roots over the first 1, 2, … of CONTENTS, as the implementation of Certificate Transparency has them."""
SIZES = st.integers(1, 70) | st.sampled_from((127, 128, 129, MAX_BATCH_RECORDS - 1, MAX_BATCH_RECORDS))


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def plain_root(contents: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1."""
    if len(contents) == 1:
        return sha256(b"\0" + contents[0])
    split = 1
    while split * 2 < len(contents):
        split *= 2
    return sha256(b"\1" + plain_root(contents[:split]) + plain_root(contents[split:]))


def plain_path(index: int, contents: Sequence[bytes]) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1."""
    if len(contents) == 1:
        return []
    split = 1
    while split * 2 < len(contents):
        split *= 2
    if index < split:
        return [*plain_path(index, contents[:split]), plain_root(contents[split:])]
    return [*plain_path(index - split, contents[split:]), plain_root(contents[:split])]


def contents_of(count: int) -> list[bytes]:
    return [b"record %d" % number for number in range(count)]


def leaves_of(contents: Sequence[bytes]) -> list[bytes]:
    return [leaf_hash(content, sha256) for content in contents]


@pytest.mark.parametrize("count", range(1, len(ROOTS) + 1))
def test_root_is_that_of_the_published_vectors(count: int) -> None:
    """Somebody else's verifier must come to the same roots."""
    contents = [bytes.fromhex(content) for content in CONTENTS[:count]]
    assert root_of(leaves_of(contents), sha256).hex() == ROOTS[count - 1]


@given(SIZES, st.data())
def test_root_and_path_are_those_of_the_recursive_definition(count: int, data: st.DataObject) -> None:
    """Level by level must be the same tree as halves of halves, for each size."""
    index = data.draw(st.integers(0, count - 1))
    contents = contents_of(count)
    leaves = leaves_of(contents)
    path = path_of(leaves, index, sha256)
    assert root_of(leaves, sha256) == plain_root(contents)
    assert list(path) == plain_path(index, contents)
    assert len(path) <= MAX_PATH
    assert untrusted_root(leaves[index], index, count, path, sha256) == plain_root(contents)


@given(SIZES, st.data())
def test_path_that_was_altered_leads_elsewhere(count: int, data: st.DataObject) -> None:
    """A path proves one leaf at one place and nothing else."""
    index = data.draw(st.integers(0, count - 1))
    leaves = leaves_of(contents_of(count))
    root, path = root_of(leaves, sha256), list(path_of(leaves, index, sha256))
    assert untrusted_root(sha256(b"another"), index, count, path, sha256) != root
    assert untrusted_root(leaves[index], index, count, [*path, bytes(HASH_BYTES)], sha256) is None
    assert untrusted_root(leaves[index], count, count, path, sha256) is None
    assert untrusted_root(leaves[index], -1, count, path, sha256) is None
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        assert untrusted_root(leaves[index], index, count, path[:-1], sha256) is None
        wrong = [*path[:at], sha256(path[at]), *path[at + 1 :]]
        assert untrusted_root(leaves[index], index, count, wrong, sha256) != root
        elsewhere = data.draw(st.integers(0, count - 1).filter(lambda other: other != index))
        assert untrusted_root(leaves[index], elsewhere, count, path, sha256) != root


@given(st.integers(-3, 600), st.integers(-3, 600), st.lists(st.binary(max_size=33), max_size=12))
def test_path_of_a_stranger_never_raises(index: int, count: int, path: list[bytes]) -> None:
    """A proof comes in a file that anybody may have written."""
    untrusted_root(bytes(HASH_BYTES), index, count, path, sha256)


def test_node_is_not_a_leaf() -> None:
    """Without the prefixes, the two hashes below a node would be the content of a record with the same root."""
    leaves = leaves_of(contents_of(2))
    assert leaf_hash(leaves[0] + leaves[1], sha256) != root_of(leaves, sha256)
