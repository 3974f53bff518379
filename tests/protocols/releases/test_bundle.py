"""The bundle of metadata files: one form for one set of files, and bounds."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.errors import BoundExceeded, MetadataInvalid
from protocols.base.limits import MAX_CHUNK_BYTES
from protocols.releases.bundle import MAX_BUNDLE_FILES, pack_bundle, roots_in, unpack_untrusted_bundle

NAMES = st.builds(
    "{}{}.json".format, st.sampled_from(["", "1.", "2.", "30."]), st.sampled_from(["root", "timestamp", "a-9"])
)


@given(st.dictionaries(NAMES, st.binary(max_size=200), max_size=20))
def test_bundle_gives_the_files_back_whatever_their_order(files: dict[str, bytes]) -> None:
    """Its digest names the set of files, so there must be one bundle for it."""
    bundle = pack_bundle(files)
    assert unpack_untrusted_bundle(bundle) == files
    assert pack_bundle(dict(reversed(files.items()))) == bundle


@given(st.binary(max_size=300))
def test_bundle_of_any_bytes_raises_one_error(data: bytes) -> None:
    """It comes from a neighbour."""
    try:
        files = unpack_untrusted_bundle(data)
    except MetadataInvalid:
        return
    assert pack_bundle(files) == data


def test_bundle_beyond_its_bounds_is_neither_made_nor_read() -> None:
    """The relay says what to do, and a node refuses before it looks inside."""
    with pytest.raises(BoundExceeded, match="release revoke"):
        pack_bundle({"timestamp.json": bytes(MAX_CHUNK_BYTES)})
    with pytest.raises(BoundExceeded):
        pack_bundle({f"{number}.root.json": b"" for number in range(1, MAX_BUNDLE_FILES + 2)})
    with pytest.raises(MetadataInvalid) as refused:
        unpack_untrusted_bundle(msgspec.msgpack.encode({"timestamp.json": bytes(MAX_CHUNK_BYTES)}))
    assert refused.value.attack == "endless data"


@pytest.mark.parametrize(
    "name", ["timestamp", "a.txt", "../a.json", "0.root.json", "01.root.json", "A.json", "1.2.root.json", "", ".json"]
)
def test_bundle_with_a_name_that_is_no_metadata_is_refused(name: str) -> None:
    """Names become names of files."""
    with pytest.raises(MetadataInvalid) as refused:
        unpack_untrusted_bundle(msgspec.msgpack.encode({name: b""}))
    assert refused.value.attack == "extraneous data"


def test_bundle_that_names_a_file_twice_is_refused() -> None:
    """One reader would see the first, another one the second."""
    pair = msgspec.msgpack.encode("timestamp.json") + msgspec.msgpack.encode(b"x")
    with pytest.raises(MetadataInvalid):
        unpack_untrusted_bundle(b"\x82" + pair + pair)


def test_roots_are_found_in_the_order_of_their_versions() -> None:
    """10 comes after 9."""
    assert list(roots_in({"10.root.json": b"", "9.root.json": b"", "root.json": b"", "1.targets.json": b""})) == [9, 10]
