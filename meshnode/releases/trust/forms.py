"""The one form that roots and timestamp may have.

The signed part of a file can't be changed, but what is around it can: signatures that count for nothing, fields that
nobody reads, letters of another case. All other files are named by their digest. Without these checks a liar could make
bundles that are good and unlike the relay's. Whoever had taken one of them would then refuse the relay's own.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Timestamp
from tuf.api.serialization.json import JSONSerializer

from protocols.base.errors import MetadataInvalid

_compact: Final = JSONSerializer(compact=True)
_HEX: Final = re.compile(r"[0-9a-f]{64,256}")


def check_root_forms(roots: Mapping[int, bytes]) -> None:
    """Check that each root is signed by enough keys of the one before and of its own, and by nobody else. ``roots``:
    from the first one on.

    :raises MetadataInvalid: names the root and what is wrong.
    """
    before: Metadata[Root] | None = None
    for version, data in roots.items():
        name = f"{version}.root.json"
        root = _parsed(name, data)
        if not isinstance(root.signed, Root) or root.signed.version != version:
            raise MetadataInvalid("mix-and-match", f"{name} holds {root.signed.type} {root.signed.version}")
        signers = [each.signed for each in (before, root) if each is not None]
        try:
            for signer in signers:
                signer.verify_delegate(Root.type, root.signed_bytes, root.signatures)
        except RepositoryError as error:
            raise MetadataInvalid("wrong keys", f"{name} does not follow from the root before: {error}") from error
        _check_form(name, data, root, [signer.keys[each] for signer in signers for each in signer.roles["root"].keyids])
        before = root


def check_timestamp_form(data: bytes, root: Root, trusted: bytes) -> None:
    """Check that a timestamp is the trusted one, and signed by keys of its role and by nobody else.

    :raises MetadataInvalid: it is another one of the same version, or has another form.
    """
    timestamp = _parsed("timestamp.json", data)
    if timestamp.signed_bytes != Metadata[Timestamp].from_bytes(trusted).signed_bytes:
        raise MetadataInvalid(
            "mix-and-match", "the bundle has another timestamp.json than the trusted one of its version"
        )
    _check_form("timestamp.json", data, timestamp, [root.keys[each] for each in root.roles["timestamp"].keyids])


def same_content(one: bytes, other: bytes) -> bool:
    """Whether two roots have the same signed part, whoever has signed them. :raises MetadataInvalid: one is none."""
    return one == other or _parsed("root.json", one).signed_bytes == _parsed("root.json", other).signed_bytes


def _parsed(name: str, data: bytes) -> Metadata[Any]:
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
        assert metadata.signed_bytes is not None
    except Exception as error:  # whatever the parser meets before a signature was checked
        raise MetadataInvalid("malformed", f"{name} can't be read as metadata: {str(error)[:200]}") from error
    return metadata


def _check_form(name: str, data: bytes, metadata: Metadata[Any], keys: Iterable[Key]) -> None:
    """Whether there is nothing in a file but its signed part and signatures by ``keys``, in the form in which the relay
    writes them."""
    known = {key.keyid: key for key in keys}
    for keyid, signature in metadata.signatures.items():
        if keyid not in known or signature.unrecognized_fields or not _HEX.fullmatch(signature.signature):
            raise MetadataInvalid("extraneous data", f"{name} has a signature by {keyid[:12]} that counts for nothing")
        try:
            known[keyid].verify_signature(signature, metadata.signed_bytes)
        except UnverifiedSignatureError as error:
            raise MetadataInvalid("extraneous data", f"{name} has a signature by {keyid[:12]} that is wrong") from error
    if metadata.unrecognized_fields or metadata.to_bytes(_compact) != data:
        raise MetadataInvalid("extraneous data", f"{name} holds more than what was signed, or is written differently")
