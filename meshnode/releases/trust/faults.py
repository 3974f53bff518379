"""What a failed check of metadata means, by the name that TUF has for the attack.

A lying neighbour can cause each of these, and so can a mistake at the repository. The message says what to do where a
person can do something.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tuf.api import exceptions

from protocols.base.errors import MetadataInvalid

_LONG_EXPIRED_DAYS: Final = 365
"""Metadata that ended so long ago says that the clock is wrong, or that the mesh was given up."""


def fault_of(error: Exception, file: str, files: Mapping[str, bytes], folder: Path) -> MetadataInvalid:
    """The fault behind an error of python-tuf. ``file``: the one of the bundle that was checked. ``folder``: where the
    files are that were found good before."""
    role = file.removesuffix(".json").rpartition(".")[2] or "root"
    match error:
        case exceptions.ExpiredMetadataError():
            return _expired(error, files, folder)
        case exceptions.DownloadLengthMismatchError():
            return MetadataInvalid("endless data", f"{file} is longer than the metadata says: {error}")
        case exceptions.DownloadHTTPError():
            return MetadataInvalid("withheld", str(error))
        case exceptions.LengthOrHashMismatchError():
            return MetadataInvalid("mix-and-match", f"{file} is not the file that its timestamp or snapshot names")
        case exceptions.UnsignedMetadataError():
            return _unsigned(error, file, role, files, folder)
        case exceptions.BadVersionNumberError():
            attack = "mix-and-match" if role not in ("root", "timestamp", "snapshot") else "rollback"
            return MetadataInvalid(attack, f"{file}: {error}")
        case exceptions.RepositoryError() if "missing info" in str(error):
            return MetadataInvalid("rollback", f"{file} leaves out targets that are trusted already: {error}")
        case exceptions.RepositoryError() if str(error).startswith("Expected '"):
            return MetadataInvalid("mix-and-match", f"{file} is metadata of another kind: {error}")
        case _:
            return MetadataInvalid("malformed", f"{file} can't be read as metadata: {str(error)[:200]}")


def _expired(error: Exception, files: Mapping[str, bytes], folder: Path) -> MetadataInvalid:
    now = datetime.now(UTC)
    found = re.search(r"([a-z0-9-]+)(?:\.json)? is expired", str(error))
    role = found[1] if found is not None else "timestamp"
    named = {name.removesuffix(".json").rpartition(".")[2]: data for name, data in files.items()}
    data = (folder / "root.json").read_bytes() if role == "root" else named.get(role, b"")
    ended = _end_of(data) or now
    return MetadataInvalid(
        "clock" if (now - ended).days > _LONG_EXPIRED_DAYS else "freeze",
        f"{role}.json ended on {ended:%Y-%m-%d %H:%M} UTC, and no newer one was given; the clock of this node shows "
        f"{now:%Y-%m-%d}: set it if it is wrong, otherwise have the relay sign anew with 'cloud-relay release refresh'",
    )


def _unsigned(error: Exception, file: str, role: str, files: Mapping[str, bytes], folder: Path) -> MetadataInvalid:
    """Whether somebody else signed it, or it was changed after it was signed."""
    given, allowed = _key_ids(files.get(file, b"")), _allowed_keys(role, folder)
    if given & allowed:
        return MetadataInvalid(
            "tampered", f"{file} was changed after it was signed, or too few have signed it: {error}"
        )
    return MetadataInvalid(
        "wrong keys", f"{file} is signed by {', '.join(sorted(key[:12] for key in given)[:4]) or 'nobody'}, and not "
        f"by keys that {role} has now: {error}"
    )  # fmt: skip


def _allowed_keys(role: str, folder: Path) -> set[str]:
    """The ids of the keys of a role, by the metadata that was found good."""
    for name in ("root.json", "targets.json"):
        try:
            signed: Any = json.loads((folder / name).read_bytes())["signed"]
            roles = signed["roles"] if name == "root.json" else {
                each["name"]: each for each in signed["delegations"]["roles"]
            }  # fmt: skip
            if role in roles:
                return set(roles[role]["keyids"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return set()


def _key_ids(data: bytes) -> set[str]:
    try:
        return {str(signature["keyid"]) for signature in json.loads(data)["signatures"] if signature["sig"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()


def _end_of(data: bytes) -> datetime | None:
    try:
        text = json.loads(data)["signed"]["expires"]
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
