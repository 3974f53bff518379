"""The bundle: all metadata of releases in one chunk.

It is a MessagePack map of file name to bytes, in the order of the names: ``1.root.json`` and every later root,
``timestamp.json``, and the snapshot, the targets and the delegated targets that go with it. For one set of files there
is one bundle, so its digest names the set.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from protocols.base.errors import BoundExceeded, MetadataInvalid
from protocols.base.limits import MAX_CHUNK_BYTES

MAX_BUNDLE_FILES: Final = 1_024
"""Files in a bundle: a root for each change of keys, and one for each publisher. The bytes of a chunk could otherwise
claim a file each."""
MAX_DELEGATED_ROLES: Final = 32
"""Publishers, and the role that signs orders."""
_NAME: Final = re.compile(r"(?:[1-9][0-9]{0,9}\.)?[a-z][a-z0-9-]{0,62}\.json")
_ROOT: Final = re.compile(r"([1-9][0-9]{0,9})\.root\.json")
_decoder: Final = msgspec.msgpack.Decoder(dict[str, bytes])
_encoder: Final = msgspec.msgpack.Encoder(order="sorted")


def pack_bundle(files: Mapping[str, bytes]) -> bytes:
    """The bundle of metadata files, by name.

    :raises BoundExceeded: it would be larger than a chunk, so no node would take it.
    """
    bundle = _encoder.encode(dict(files))
    if len(bundle) > MAX_CHUNK_BYTES or len(files) > MAX_BUNDLE_FILES:
        raise BoundExceeded(
            f"the metadata takes {len(bundle)} bytes in {len(files)} files, and {MAX_CHUNK_BYTES} bytes in "
            f"{MAX_BUNDLE_FILES} files can travel: take old releases out with 'cloud-relay release revoke'"
        )
    return bundle


def unpack_untrusted_bundle(bundle: bytes) -> dict[str, bytes]:
    """The metadata files in a bundle, by name. Nothing in them was checked.

    :raises MetadataInvalid: it is too large, is no bundle, or is not written as :func:`pack_bundle` would.
    """
    if len(bundle) > MAX_CHUNK_BYTES:
        raise MetadataInvalid("endless data", f"a bundle of {len(bundle)} bytes is larger than {MAX_CHUNK_BYTES}")
    try:
        files = _decoder.decode(bundle)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MetadataInvalid("malformed", f"a bundle is no map of names to bytes: {str(error)[:200]}") from error
    if len(files) > MAX_BUNDLE_FILES:
        raise MetadataInvalid("endless data", f"a bundle of {len(files)} files has more than {MAX_BUNDLE_FILES}")
    for name in files:
        if not _NAME.fullmatch(name):
            raise MetadataInvalid("extraneous data", f"a bundle holds {name[:80]!r}, which is no metadata file")
    if _encoder.encode(files) != bundle:
        raise MetadataInvalid("malformed", "a bundle is not written in the one way that it can be: files out of order")
    return files


def roots_in(files: Mapping[str, bytes]) -> dict[int, bytes]:
    """The roots among metadata files by version, the oldest first."""
    found = {int(match[1]): data for name, data in files.items() if (match := _ROOT.fullmatch(name))}
    return dict(sorted(found.items()))
