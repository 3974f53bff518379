"""The files that hold weights of an ONNX model beside the model itself.

A model of more than two gigabytes keeps its weights in files of their own, and many exporters do so for smaller ones.
The model names them, relative to its own folder. They are part of the model: its digest covers them, and they are read
once, so that what was hashed is what is loaded.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from protocols.base.errors import ModelInvalid
from protocols.base.ids import ModelDigest

_ENTRY: Final = b"\x0a\x08location\x12"
"""How protobuf writes the entry of ``TensorProto.external_data`` that names a file, up to the length of the name. In an
ONNX model nothing else has a field 1 of eight bytes with this text and a field 2 behind it, at any depth."""
_MAX_NAME_BYTES: Final = 255
"""No file has a longer name."""
MAX_FILES: Final = 4_096
"""Some exporters write a file for each tensor."""


def weight_files(content: bytes) -> list[str]:
    """The names of the files with weights that a model names, sorted. ``content``: the model.

    :raises ModelInvalid: a name is too long or leads out of the model's folder, or there are more than ``MAX_FILES``.
    """
    names = set()
    at = content.find(_ENTRY)
    while at >= 0:
        at += len(_ENTRY)
        size, begins = _varint(content, at)
        if size > _MAX_NAME_BYTES:  # ONNX Runtime would look for it in the working directory
            raise ModelInvalid(f"a name of a file with weights has {size} bytes: use at most {_MAX_NAME_BYTES}")
        if size:
            names.add(content[begins : begins + size].decode("utf-8", "replace"))
        at = content.find(_ENTRY, at)
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ModelInvalid(
                f"its weights are in {name!r}, outside of its folder: put them beside it and export it again"
            )
    if len(names) > MAX_FILES:
        raise ModelInvalid(f"its weights are in {len(names)} files: export it with all weights in one")
    return sorted(names)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number of protobuf that begins at ``at``, and where it ends; 0 where the content ends before."""
    value = shift = 0
    for byte in content[at : at + 5]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, at


def size_with_weights(path: Path) -> int:
    """The bytes of a model and of its files with weights, which are not read.

    :raises ModelInvalid: as :func:`weight_files`. :raises OSError: a file is missing or can't be read.
    """
    files = (path, *(path.parent / name for name in weight_files(path.read_bytes())))
    return sum(file.stat().st_size for file in files)


def read_weights(path: Path, content: bytes) -> dict[str, bytes]:
    """The contents of the files with weights of the model ``content``, which was read from ``path``, by name.

    :raises ModelInvalid: as :func:`weight_files`, or a file is missing or can't be read.
    """
    weights = {}
    for name in weight_files(content):
        try:
            weights[name] = (path.parent / name).read_bytes()
        except FileNotFoundError as error:
            raise ModelInvalid(
                f"its weights are in {name!r}, which is not beside {path}: copy it there, or export all in one file"
            ) from error
        except OSError as error:
            raise ModelInvalid(f"its weights in {path.parent / name} can't be read ({error.strerror})") from error
    return weights


def digest_of(content: bytes, weights: Mapping[str, bytes], results: bytes = b"") -> ModelDigest:
    """The digest of a model: the SHA-256 of its file. With weights in other files it is the SHA-256 of the digests of
    the model and of each of these files, in the order of their names, as 32 bytes each.

    ``results``: what its manifest declares that changes results (``Manifest.results``). If there is any, the digest is
    the SHA-256 of the 32 bytes of the digest so far, followed by it."""
    digest = hashlib.sha256(content)
    if weights:
        digest = hashlib.sha256(digest.digest())
        for name in sorted(weights):
            digest.update(hashlib.sha256(weights[name]).digest())
    return with_results(digest.digest(), results)


def with_results(digest: bytes, results: bytes) -> ModelDigest:
    """The digest of a model whose files have that one, 32 bytes. ``results``: as for :func:`digest_of`."""
    return ModelDigest((hashlib.sha256(digest + results).digest() if results else digest).hex())
