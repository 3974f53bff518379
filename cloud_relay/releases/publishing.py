"""Publishing: from the files of a model, or a file of rules, to a release that the metadata lists.

The chunks are on the shelf before the description is signed, so whoever learns of a release can fetch all of it.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace
from tuf.api.metadata import TargetFile

from cloud_relay.releases.chunking import chunk_data, chunk_file
from cloud_relay.releases.linting import check_signature, lint, previous_model, source_of
from cloud_relay.releases.repository import ReleaseRepository
from cloud_relay.releases.rule_linting import lint_rules
from meshnode.models.deltas import make_delta
from protocols.base.errors import ReleaseInvalid
from protocols.base.limits import MAX_TEXT_CHARS
from protocols.releases.catalogue import (
    DESCRIPTIONS,
    KINDS,
    MAX_DESCRIPTION_BYTES,
    MAX_FILES,
    MAX_RELEASES,
    MAX_RUNTIME_CHARS,
    Delta,
    Description,
    ReleasedFile,
)

WORTH_IT: Final = 0.8
"""A delta that takes a larger share of the file is not kept, because more nodes hold the chunks of the file."""
MAX_DELTA_BYTES: Final = 512 * 1024 * 1024
"""No deltas are made of larger files: it would take several times their size in memory."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TARGET: Final = re.compile(rf"((?:{'|'.join(KINDS)})/[^/]+)/([1-9][0-9]*)\.json")
_MAX_COUNTER: Final = 2**31 - 1
Progress = Callable[[str, int], None]
"""Told what is done, and bytes that were done of it."""


def path_of(name: str) -> str:
    """The path of what somebody calls by a name: ``plate`` is ``models/plate``, and ``rules/traffic`` is itself."""
    return name if "/" in name else f"models/{name}"


def target_of(path: str, counter: int) -> str:
    """The target that describes a release."""
    return f"{path}/{counter}.json"


def listed_releases(repository: ReleaseRepository) -> list[tuple[str, int]]:
    """Path and counter of all releases, in order."""
    found = (_TARGET.fullmatch(path) for path in repository.paths())
    return sorted((match[1], int(match[2])) for match in found if match is not None)


def description_of(repository: ReleaseRepository, path: str, counter: int) -> Description:
    """A release that is listed. :raises ReleaseInvalid: it is not, or its description is damaged."""
    target = _listed(repository, path, counter)
    content = repository.shelf.find(bytes.fromhex(target.hashes["sha256"]))
    try:
        return DESCRIPTIONS.decode(content or b"")
    except msgspec.DecodeError as error:
        raise ReleaseInvalid(
            f"the description of {path} {counter} is damaged: restore a copy of {repository.folder / 'chunks'}, or "
            "revoke it and publish its model again"
        ) from error


def publish(
    repository: ReleaseRepository,
    given: Path,
    *,
    name: str | None = None,
    counter: int | None = None,
    breaks_signature: bool = False,
    deltas: int = 1,
    changelog: str = "",
    runtime: str = "",
    progress: Progress = lambda what, done: None,
) -> Description:
    """Check a model, put it on the shelf and list it; the caller commits. ``given``: an ONNX file or the folder with
    it. ``name``: None: that of the file. ``counter``: None: one more than ever. ``deltas``: from how many releases
    before it shorter ways are offered.

    :raises ReleaseInvalid: it is not fit to be released; nothing is listed.
    """
    source = source_of(given)
    name = name if name is not None else source.model.stem
    path, counter, before = _next(repository, "models", name, counter)
    if len(runtime) > MAX_RUNTIME_CHARS:
        raise ReleaseInvalid(
            f"the version of ONNX Runtime {runtime!r} has {len(runtime)} characters, and {MAX_RUNTIME_CHARS} can "
            "travel: name it as in 1.17"
        )
    progress(f"checking {source.model.name}", 0)
    model = lint(source, name)
    signature_since = counter if breaks_signature else 0
    if before and not breaks_signature:
        last = description_of(repository, path, before[-1])
        check_signature(previous_model(repository.shelf, last, name), model.signature, f"release {last.counter}")
        signature_since = last.signature_since
    description = Description(
        path=path,
        counter=counter,
        model=source.model.name,
        files=tuple(_released(repository, file, progress) for file in source.files),
        licence=source.manifest.licence[:MAX_TEXT_CHARS],
        changelog=changelog[:4_000],
        runtime=runtime,
        signature_since=signature_since,
    )
    for earlier in before[-deltas:] if deltas > 0 else ():
        description = with_deltas(repository, description, earlier, progress)
    list_release(repository, description)
    return description


def publish_rules(
    repository: ReleaseRepository,
    file: Path,
    cases: Sequence[Path] = (),
    *,
    name: str | None = None,
    counter: int | None = None,
    changelog: str = "",
    progress: Progress = lambda what, done: None,
) -> Description:
    """Check a file of rules as a node does, try it on files of cases, put it on the shelf and list it; the caller
    commits. ``name``: None: that of the file. No deltas are offered: a file of rules takes a few kilobytes.

    :raises ReleaseInvalid: it is not fit to be released; nothing is listed.
    """
    path, counter, _ = _next(repository, "rules", name if name is not None else file.stem, counter)
    progress(f"checking {file.name}", 0)
    lint_rules(file, cases)
    released = _released(repository, file, progress)
    description = Description(
        path=path, counter=counter, model=file.name, files=(released,), changelog=changelog[:4_000]
    )
    list_release(repository, description)
    return description


def _next(
    repository: ReleaseRepository, kind: str, name: str, counter: int | None
) -> tuple[str, int, list[int]]:  # fmt: skip
    """The path and the counter of a new release, and the counters of those of its path that are listed.

    :raises ReleaseInvalid: the name or the counter can't be used, or nobody may list it.
    """
    if not _NAME.fullmatch(name):
        raise ReleaseInvalid(f"{name!r} can't be the name of released {kind}: use letters, digits, '.', '_' and '-'")
    path = f"{kind}/{name}"
    before = [other for each, other in listed_releases(repository) if each == path]
    highest = max([*before, repository.state.counters.get(path, 0)])
    counter = highest + 1 if counter is None else counter
    if not highest < counter <= _MAX_COUNTER:
        raise ReleaseInvalid(
            f"release {counter} of {path} is not above {highest}, which was used: leave --counter out, or raise it"
        )
    repository.role_of(target_of(path, counter))
    return path, counter, before


def with_deltas(
    repository: ReleaseRepository, description: Description, earlier: int, progress: Progress = lambda what, done: None
) -> Description:
    """A description with shorter ways from the files of an earlier release, for those files for which there are any.

    :raises ReleaseInvalid: there is no such release. :raises StorageError: chunks of it are missing.
    """
    base = description_of(repository, description.path, earlier)
    old = {file.name: file.content for file in base.files}
    old.setdefault(description.model, next(file.content for file in base.files if file.name == base.model))
    offered = {(delta.name, delta.base) for delta in description.deltas}
    deltas = list(description.deltas)
    for file in description.files:
        content, now = old.get(file.name), file.content
        if content is None or content.sha256 == now.sha256 or (file.name, content.sha256) in offered:
            continue
        if max(content.size_bytes, now.size_bytes) > MAX_DELTA_BYTES or len(deltas) == MAX_FILES:
            continue
        progress(f"delta of {file.name} from release {earlier}", 0)
        method, data = make_delta(repository.shelf.read(content), repository.shelf.read(now))
        if len(data) <= WORTH_IT * now.size_bytes:
            made = chunk_data(data, repository.shelf.keep)
            deltas.append(Delta(name=file.name, base=content.sha256, method=method, content=made))
    return replace(description, deltas=tuple(deltas))


def list_release(repository: ReleaseRepository, description: Description) -> None:
    """List a release whose chunks are on the shelf. :raises ReleaseInvalid: no node would take its
    description, or it is too large."""
    content = msgspec.json.encode(description)
    if len(content) > MAX_DESCRIPTION_BYTES:
        raise ReleaseInvalid(
            f"the description takes {len(content)} bytes, and {MAX_DESCRIPTION_BYTES} can travel: use fewer files"
        )
    try:
        DESCRIPTIONS.decode(content)  # what a node will do with it
    except msgspec.ValidationError as error:
        raise ReleaseInvalid(f"no node would take this release: {error}") from error
    target = target_of(description.path, description.counter)
    if repository.target(target) is None and len(listed_releases(repository)) >= MAX_RELEASES:
        raise ReleaseInvalid(f"{MAX_RELEASES} releases are listed, and nodes look at no more: revoke old ones")
    repository.put(target, content)
    counters = repository.state.counters
    counters[description.path] = max(description.counter, counters.get(description.path, 0))


def revoke(repository: ReleaseRepository, path: str, counter: int) -> None:
    """List a release no more: no node installs it from now on. :raises ReleaseInvalid: it is not listed."""
    repository.remove(_listed(repository, path, counter).path)


def _listed(repository: ReleaseRepository, path: str, counter: int) -> TargetFile:
    target = repository.target(target_of(path, counter))
    if target is None:
        known = ", ".join(str(other) for each, other in listed_releases(repository) if each == path) or "none"
        raise ReleaseInvalid(f"there is no release {counter} of {path}: the metadata lists {known}")
    return target


def _released(repository: ReleaseRepository, file: Path, progress: Progress) -> ReleasedFile:
    if not _NAME.fullmatch(file.name):
        raise ReleaseInvalid(f"{file.name!r} can't be the name of a file: use letters, digits, '.', '_' and '-'")

    def keep(data: bytes) -> None:
        repository.shelf.keep(data)
        progress(file.name, len(data))

    return ReleasedFile(name=file.name, content=chunk_file(file, keep))
