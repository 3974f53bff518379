"""The check of everything that a node holds of releases, while it runs or not. Nothing is changed."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from meshnode.models import ModelSpec
from meshnode.models.model import read_model
from meshnode.releases.audit import AUDIT_FILE, check_audit
from meshnode.releases.install.installer import JOURNAL
from meshnode.releases.install.journal import FACTORY, InstalledRelease, InstallJournal
from meshnode.releases.install.kind import name_of
from meshnode.releases.store.chunks import ChunkStore
from meshnode.releases.store.disk import ReadOnlyDisk
from protocols.base.errors import ModelInvalid

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, slots=True)
class CheckedHolding:
    """One thing that was checked."""

    is_fine: bool
    what: str


def verified(folder: Path, bar: Bar) -> Iterator[CheckedHolding]:
    """Check the folder of releases of a node. ``bar``: makes a bar for so many bytes.

    :raises StorageError: it can't be read.
    """
    yield from _chunks(folder, bar)
    yield from _installed(folder)
    count, faults = check_audit(folder / AUDIT_FILE)
    for fault in faults:
        yield CheckedHolding(False, f"audit log, line {fault.line} {fault.why}")
    yield CheckedHolding(not faults, f"audit log: {count} lines, {len(faults)} of which break the chain")


def _chunks(folder: Path, bar: Bar) -> Iterator[CheckedHolding]:
    store = ChunkStore(folder, 0, ReadOnlyDisk())
    store.open()
    held, damaged = store.held(), 0
    with bar("verify", sum(held.values())) as done:
        for digest, size_bytes in held.items():
            damaged += store.get(digest) is None
            done(size_bytes)
    yield CheckedHolding(not damaged, f"store: {len(held)} chunks, {damaged} damaged")


def _installed(folder: Path) -> Iterator[CheckedHolding]:
    journal = InstallJournal(folder / JOURNAL, ReadOnlyDisk())
    journal.open()
    if journal.why_lost:
        yield CheckedHolding(False, journal.why_lost)
    for path, state in sorted(journal.paths.items()):
        for release in state.installed:
            place = folder / path / str(release.counter) / release.model
            what = f"release {release.counter} of {path}" + (", which serves" * (release.counter == state.current))
            fault = _fault(path, place, release)
            yield CheckedHolding(not fault, f"{what}: {fault}" if fault else what)


def serving_file(folder: Path, path: str) -> tuple[int, Path | None]:
    """The release of a path that serves, by the journal in the folder of releases, and its main file; ``FACTORY`` and
    None: what the configuration names does. :raises StorageError: the journal can't be read."""
    journal = InstallJournal(folder / JOURNAL, ReadOnlyDisk())
    if not journal.path.exists():
        return FACTORY, None
    journal.open()
    state = journal.of(path)
    release = state.release(state.current)
    return (FACTORY, None) if release is None else (state.current, folder / path / str(state.current) / release.model)


def _fault(path: str, place: Path, release: InstalledRelease) -> str:
    """What is wrong with an installed release; empty: nothing."""
    try:
        if path.startswith("models/"):
            read_model(ModelSpec(name_of(path), place, digest=release.digest))
        elif hashlib.sha256(place.read_bytes()).hexdigest() != release.digest:
            return f"{place} has changed since it was installed: the node fetches it again"
    except (ModelInvalid, OSError) as error:
        return str(error)
    return ""
