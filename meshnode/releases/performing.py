"""Performs what the machine of releases decides: on the disk, in the models of the node, and at the relay.

Three threads do the work: one for chunks and metadata, whose steps take milliseconds; one that gets releases ready,
whose steps take seconds or hang, and which is relieved then; and one for swaps, since a model that is slow to stage
must not hold up the way back of another. Each result is told to the machine by the method that its effect names.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from meshnode.identity.private_files import write_private
from meshnode.inference.compute import ComputeService
from meshnode.releases.audit import AuditLog
from meshnode.releases.install.installer import Installer
from meshnode.releases.install.journal import FACTORY
from meshnode.releases.install.kind import name_of
from meshnode.releases.install.models import rehearsed_beside
from meshnode.releases.install.observing import Shadow, Watched
from meshnode.releases.install.patching import DeltaFailed, is_held, patch_files
from meshnode.releases.install.refusals import InstallRefused, ReleaseIncomplete, refusal_of
from meshnode.releases.install.rules import WatchedRules
from meshnode.releases.relief import RelievedThread
from meshnode.releases.store.chunks import ChunkStore
from meshnode.releases.store.incoming import take_in
from meshnode.releases.store.stick import BUNDLE
from meshnode.releases.trust import Trust
from meshnode.troubles import Troubles
from protocols.base import limits
from protocols.base.errors import MeshError, MetadataInvalid, StorageError
from protocols.inference.signature import breaks
from protocols.releases.catalogue import DESCRIPTIONS, ORDERS, Content, Description, ReleaseCatalogue, parsed
from protocols.releases.events import (
    DropRelease,
    KeepChunk,
    ReadDescription,
    ReadIndex,
    ReadOrder,
    ReadPiece,
    ServeRelease,
    ShadowRelease,
    StageRelease,
    VerifyBundle,
)
from protocols.releases.machine import Releases

_log = logging.getLogger(__name__)
TROUBLE: Final = "releases"
_STORE, _METADATA = "store", "metadata"
MAX_REFETCHES: Final = 3

Tell = Callable[[Callable[[Releases, int], None]], None]
"""Calls a function with the machine and the time, under the engine's lock, and performs what was decided."""


class ReleasePerformer:
    """See the module. What it offers may be used on any thread."""

    def __init__(
        self, folder: Path, store: ChunkStore, installer: Installer, compute: ComputeService, trust: Trust,
        kept: Callable[[], Collection[tuple[str, int]]], tell: Tell, save_plan: Callable[[], None], audit: AuditLog,
        troubles: Troubles,
    ) -> None:  # fmt: skip
        """``kept`` lists the releases that are fetched, or whose chunks must stay. ``save_plan`` keeps what the plan
        must know after a restart. It is called before a release is tried, because that may end the node."""
        self._folder, self._store, self._installer, self._compute = folder, store, installer, compute
        self._trust = trust
        self._kept, self._tell, self._save_plan = kept, tell, save_plan
        store.needed = self._needed
        self._audit, self._troubles = audit, troubles
        self._descriptions: dict[tuple[str, int], Description] = {}
        """Those that were read, each listed by that name. Never changed, but replaced."""
        self._catalogue: ReleaseCatalogue | None = None
        self._bundle = self._refused = b""
        self._watched: dict[str, Watched | WatchedRules] = {}
        self._is_closing = False
        self._import_waits = False  # until the clock is set
        self._refetched: Counter[tuple[str, int]] = Counter()
        """How often a release was fetched again, because of damage here."""
        self._disk = ThreadPoolExecutor(1, "release-chunks")
        self.staging = RelievedThread("release-install")
        self._swaps = ThreadPoolExecutor(1, "release-swap")

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """The functions that perform the effects of the machine, but for those at the relay."""
        disk, swaps = self._disk, self._swaps
        return {
            VerifyBundle: self._later(disk, self._verify), KeepChunk: self._later(disk, self._keep),
            ReadPiece: self._later(disk, self._read_piece), ReadDescription: self._later(disk, self._describe),
            ReadOrder: self._later(disk, self._read_order), ReadIndex: self._later(disk, self._read_index),
            StageRelease: self._in_turn(self._stage), ShadowRelease: self._in_turn(self._shadow),
            DropRelease: self._in_turn(self._drop), ServeRelease: self._later(swaps, self._serve),
        }  # fmt: skip

    def _later(self, thread: ThreadPoolExecutor, do: Callable[[Any], None]) -> Callable[[Any], object]:
        def submit(effect: Any) -> None:
            try:
                thread.submit(self._safely, do, effect)
            except RuntimeError:
                _log.debug("the node closes: %s is not done any more", type(effect).__name__)

        return submit

    def _in_turn(self, do: Callable[[Any], None]) -> Callable[[Any], object]:
        """Have something done about a release by the thread that gets releases ready."""

        def submit(effect: Any) -> None:
            try:
                self.staging.submit((effect.path, effect.counter), lambda: self._safely(do, effect))
            except RuntimeError:
                _log.debug("the node closes: %s is not done any more", type(effect).__name__)

        return submit

    def _safely(self, do: Callable[[Any], None], effect: Any) -> None:
        try:
            do(effect)
        except Exception:  # noqa: BLE001 - one bad effect must not end those behind it
            _log.exception("%s failed: this is a bug", type(effect).__name__)
        self._tell_lost()

    def _tell_lost(self) -> None:
        lost = self._store.take_lost()
        if lost:
            self._tell(lambda machine, now: machine.dropped(lost, now))

    def stop(self) -> None:
        """The node closes: what fails from now on fails because of that, and is no fault of a release."""
        self._is_closing = True

    def close(self) -> None:
        """End the threads, after what they do now."""
        for thread in (self._disk, self._swaps):
            thread.shutdown(cancel_futures=True)
        self.staging.close()
        self._installer.journal.catch_up()
        for watched in self._watched.values():
            watched.end_shadow()

    # --- at the start ----------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Serve what is installed, and tell the machine what is there. Blocks for seconds."""
        for path, why in self._installer.serve_installed().items():
            self._audit.note("fell back", path=path, serves=self._installer.journal.of(path).current, why=why)
            self._troubles.begin(TROUBLE, path, f"{path}: {why}")
        if lost := self._installer.journal.why_lost:
            self._audit.note("journal lost", why=lost)
        self._tell_held()
        bundle = self._trust.bundle
        if bundle is not None and (catalogue := self._trust.current()) is not None:
            digest = hashlib.sha256(bundle).digest()
            try:
                self._store.put(digest, bundle)
            except StorageError as error:
                self._troubles.begin(TROUBLE, _STORE, str(error))
            self._trusted(digest, bundle, catalogue)
        self.imported()  # behind the descriptions of what is installed, since all that nobody needs may make room

    def watch_path(self, path: str) -> None:
        """Measure what serves on a path from now on, and tell the machine which release that is and which are there."""
        state, name, rules = self._installer.journal.of(path), name_of(path), self._installer.rules
        counter, installed = state.current, [release.counter for release in state.installed]
        if rules is not None and path == rules.path:
            self._watched[path] = WatchedRules(counter, rules)
        else:
            watched = self._watched[path] = Watched(counter, lambda: self._compute.models.get(name))
            self._compute.watch_runs(name, watched.ended)
        self._tell(lambda machine, now: machine.serving(path, counter, "", now))
        self._tell(lambda machine, now: machine.installed(path, installed, now))

    def _tell_held(self) -> None:
        held = self._store.held()
        self._tell(lambda machine, now: machine.holding(held, now))

    def measure(self) -> None:
        """Tell the machine what was measured, every few seconds, and see that no release holds up others for ever."""
        if (hangs := self.staging.relieve()) is not None:
            path, counter = hangs
            self._audit.note("hangs", path=path, counter=counter)
            _log.error("release %d of %s hangs while it is staged: others are staged meanwhile", counter, path)
        for path, watched in list(self._watched.items()):
            for counter in watched.counters() - {FACTORY}:
                if (measures := watched.measures(counter)) is not None:
                    self._tell(lambda machine, now, p=path, c=counter, m=measures: machine.measured(p, c, m, now))  # type: ignore[misc]

    def check_expiry(self) -> None:
        """Tell the machine once the metadata has expired, or a clock that was set makes it good again; on the thread of
        chunks, behind metadata that is being taken."""
        self.later(lambda _: self._check_expiry(), None)

    def _check_expiry(self) -> None:
        known, now = self._catalogue, self._trust.current()
        if known is None or now is None or known.timestamp_version != now.timestamp_version:
            return
        if now.is_expired != known.is_expired:
            self._catalogue = now
            word = "metadata expired" if now.is_expired else "metadata is good again"
            self._audit.note(word, timestamp_version=now.timestamp_version)
            is_expired = now.is_expired
            self._tell(lambda machine, at: machine.expired(is_expired, at))

    def keep_journal(self) -> None:
        """Write what could not be written of releases that serve, on the thread of swaps."""
        self._later(self._swaps, lambda _: self._installer.journal.catch_up())(None)

    def take_in(self) -> None:
        """Take in what was put on the disk for this node. It blocks."""
        try:
            count = take_in(self._folder, self._store, self._verify_bundle)
        except MeshError as error:
            self._troubles.begin(TROUBLE, _STORE, str(error))
            return
        self._import_waits = count is None
        if count:
            self._audit.note("imported", chunks=count)
        if count is not None:
            self._tell_held()  # orders and descriptions too, where nothing of their releases was there

    def import_again(self) -> None:
        """Take in what had to wait until its metadata can be checked, on the thread of chunks."""
        if self._import_waits:
            self.imported()

    def imported(self) -> None:
        """The same on the thread of chunks."""
        self.later(lambda _: self.take_in(), None)

    def later(self, do: Callable[[Any], None], argument: Any) -> None:
        """Do something on the thread of chunks."""
        self._later(self._disk, do)(argument)

    def description(self, path: str, counter: int) -> Description | None:
        """A release whose description was read."""
        return self._descriptions.get((path, counter))

    def measures(self, path: str) -> dict[str, Any] | None:
        """What was measured of the release that serves; None: nothing is watched there."""
        watched = self._watched.get(path)
        measures = None if watched is None else watched.measures(watched.counter)
        return None if measures is None else msgspec.structs.asdict(measures)

    def progress(self) -> list[dict[str, Any]]:
        """Releases that are not installed and are wanted or kept, with the bytes that are here and those that there
        are."""
        kept, found = self._kept(), []
        for (path, counter), description in self._descriptions.items():
            if (path, counter) in kept and self._installer.journal.of(path).release(counter) is None:
                held = sum(self._store.held_bytes(bytes.fromhex(file.content.index)) for file in description.files)
                found.append({
                    "path": path, "counter": counter, "held_bytes": held, "bytes": description.size_bytes
                })  # fmt: skip
        return found

    # --- chunks ----------------------------------------------------------------------------------------------------
    def store_chunk(self, digest: bytes, data: bytes) -> None:
        """Keep a chunk that has come from the relay. ``data``: empty when it does not give it."""
        self._disk.submit(self._safely, self._keep, KeepChunk(digest, data))

    def _keep(self, effect: KeepChunk) -> None:
        try:
            ok = bool(effect.data) and self._store.put(effect.digest, effect.data)
        except StorageError as error:
            self._troubles.begin(TROUBLE, _STORE, str(error))
            self._tell(lambda machine, now: machine.chunk_unwritten(effect.digest, now))
            return
        if ok:
            self._troubles.end(TROUBLE, _STORE)
        self._tell(lambda machine, now: machine.chunk_stored(effect.digest, ok, now))

    def _read_piece(self, effect: ReadPiece) -> None:
        data = (self._store.get(effect.digest) or b"")[effect.offset : effect.offset + limits.PIECE_BYTES]
        self._tell(lambda machine, now: machine.piece_read(effect.node, effect.digest, effect.offset, data, now))

    def _read_index(self, effect: ReadIndex) -> None:
        content = self._store.open_content(effect.content, effect.size_bytes, effect.chunk_bytes)
        digests, held = b"", 0
        if content is not None:
            digests = b"".join(content.digests)
            held = sum(1 << number for number, is_held in enumerate(content.held) if is_held)
        bits = held.to_bytes(-(-len(digests) // 256), "little")
        self._tell(lambda machine, now: machine.indexed(effect.content, digests, bits, now))

    # --- metadata --------------------------------------------------------------------------------------------------
    def _verify(self, effect: VerifyBundle) -> None:
        bundle = self._store.get(effect.digest)
        if bundle is None:  # nothing needs metadata that was not verified, so it may have made room for something
            self._tell(lambda machine, now: machine.bundle_unchecked(effect.digest, now))
        else:
            self._verify_bundle(bundle)

    def _verify_bundle(self, bundle: bytes) -> bytes | None:
        """Returns the bundle that is trusted then, empty if none is. None: this one can't be checked now."""
        digest = hashlib.sha256(bundle).digest()
        try:
            catalogue = self._trust.verify(bundle)
        except MetadataInvalid as error:
            why = str(error)
            if error.attack != "clock" and digest != self._refused:  # what has ended is looked at each minute
                self._audit.note("metadata refused", bundle=digest.hex(), attack=error.attack, why=why)
                self._refused = digest
            if error.attack in ("clock", "freeze"):  # nobody is to blame: the clock may be wrong, and set any time
                self._troubles.begin(TROUBLE, _METADATA, why)
                self._tell(lambda machine, now: machine.bundle_unchecked(digest, now))
                if error.attack == "clock":
                    return None
            else:
                self._tell(lambda machine, now: machine.bundle_refused(digest, why, now))
        except StorageError as error:
            self._troubles.begin(TROUBLE, _METADATA, str(error))
            self._tell(lambda machine, now: machine.bundle_unchecked(digest, now))
        else:
            self._troubles.end(TROUBLE, _METADATA)
            self._audit.note(
                "metadata taken", bundle=digest.hex(), root_version=catalogue.root_version,
                timestamp_version=catalogue.timestamp_version, releases=len(catalogue.releases),
            )  # fmt: skip
            self._trusted(digest, bundle, catalogue)
        return b"" if self._trust.current() is None else self._trust.bundle or b""

    def _trusted(self, digest: bytes, bundle: bytes, catalogue: ReleaseCatalogue) -> None:
        before, self._bundle, self._catalogue = self._bundle, digest, catalogue
        self._store.forget([before])
        with suppress(OSError):  # it is for whoever exports releases
            write_private(self._folder / BUNDLE, bundle)
        held = len(bundle)
        self._tell(lambda machine, now: machine.holding({digest: held}, now))
        self._tell(lambda machine, now: machine.bundle_verified(digest, catalogue, now))

    def _describe(self, effect: ReadDescription) -> None:
        description = parsed(self._store.get(effect.digest), DESCRIPTIONS)
        if description is not None and self._is_listed(effect.digest, description):
            self._descriptions = {**self._descriptions, (description.path, description.counter): description}
        self._tell(lambda machine, now: machine.described(effect.digest, description, now))

    def _is_listed(self, digest: bytes, description: Description) -> bool:
        """Whether the metadata lists it as the release that it says it is. The one who signed it may be allowed to sign
        other models only."""
        name, catalogue = (description.path, description.counter), self._catalogue
        releases = () if catalogue is None else catalogue.releases
        return any(each.digest == digest and (each.path, each.counter) == name for each in releases)

    def _read_order(self, effect: ReadOrder) -> None:
        order = parsed(self._store.get(effect.digest), ORDERS)
        self._tell(lambda machine, now: machine.ordered(effect.digest, order, now))

    def _needed(self) -> set[bytes]:
        """What must stay on the disk: the metadata, and the contents of releases that are fetched or kept."""
        catalogue = self._catalogue
        needed = {self._bundle}
        if catalogue is not None:
            needed |= {each.digest for each in catalogue.releases} | {each.digest for each in catalogue.orders}
        releases = set(self._kept())
        for path, state in self._installer.journal.paths.items():
            releases |= {(path, release.counter) for release in state.installed}
        for name in releases:
            if (description := self._descriptions.get(name)) is not None:
                needed |= {bytes.fromhex(content.index) for content in contents_of(description)}
        return needed

    # --- releases --------------------------------------------------------------------------------------------------
    def _stage(self, effect: StageRelease) -> None:
        path, counter = effect.path, effect.counter
        failure = ""
        if path not in self._watched:
            self.watch_path(path)
        self._tell(lambda machine, now: machine.staging(path, counter, now))
        try:
            self._save_plan()
            self._stage_described(path, counter)
        except DeltaFailed as error:
            self._audit.note("delta failed", path=path, counter=counter, why=str(error))
            self._tell(lambda machine, now: machine.delta_failed(path, counter, now))
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the machine waits for an answer
            refusal = _refusal(error)
            if self._is_closing:
                return
            if isinstance(refusal, ReleaseIncomplete) and self._fetch_again(path, counter, refusal):
                return
            if refusal.code == "no_room":
                self._troubles.begin(TROUBLE, _STORE, str(refusal))
            failure = refusal.told
        self._audit.note("staged" if not failure else "refused", path=path, counter=counter, why=failure)
        self._tell_lost()
        self._tell(lambda machine, now: machine.staged(path, counter, failure, now))

    def _fetch_again(self, path: str, counter: int, why: ReleaseIncomplete) -> bool:
        """Have chunks fetched again that are not there, though the machine was told so. False: that was done too often,
        and the disk of this node is not to be trusted."""
        self._refetched[path, counter] += 1
        description = self._descriptions.get((path, counter))
        if description is None or self._refetched[path, counter] > MAX_REFETCHES:
            return False
        missing = [
            digest for content in contents_of(description)
            if (opened := self._store.content(bytes.fromhex(content.index))) is not None
            for number, digest in enumerate(opened.digests) if not opened.held[number]
        ]  # fmt: skip
        self._audit.note("damaged", path=path, counter=counter, chunks=len(missing), why=str(why))
        self._tell(lambda machine, now: machine.rollouts.incomplete(path, counter, now))
        self._tell(lambda machine, now: machine.dropped(missing, now))
        return True

    def _stage_described(self, path: str, counter: int) -> None:
        """:raises DeltaFailed: the files have to be fetched. :raises InstallRefused: it can't be staged."""
        if self.staging.is_stuck((path, counter)):
            raise InstallRefused("hung", "it still hangs from the last time that it was staged: see the disk")
        description = self._descriptions.get((path, counter))
        if description is None:
            raise InstallRefused("other", f"the description of release {counter} of {path} is not here")
        try:
            if patch_files(description, self._store, self._find):
                self._tell_held()
        except StorageError as error:
            raise refusal_of(error) from error
        self._installer.stage(description)

    def _find(self, sha256: str) -> Content | None:
        """A content that is held, by its digest."""
        for description in self._descriptions.values():
            for file in description.files:
                if file.content.sha256 == sha256 and is_held(self._store, file.content):
                    return file.content
        return None

    def _serve(self, effect: ServeRelease) -> None:
        path, counter, failure = effect.path, effect.counter, ""
        try:
            self._save_plan()
            if counter != FACTORY and self._installer.journal.of(path).release(counter) is None:
                self._stage_described(path, counter)  # it was damaged, and is whole again
            self._installer.serve(path, counter)
        except Exception as error:  # noqa: BLE001 - whatever it is, the machine waits for an answer
            if self._is_closing:
                return
            failure = _refusal(error).told
        else:
            watched = self._watched.get(path)
            if watched is not None:
                watched.serves(counter)
            self._troubles.end(TROUBLE, path)
        self._audit.note("served" if not failure else "not served", path=path, counter=counter, why=failure)
        self._tell_lost()
        self._tell(lambda machine, now: machine.serving(path, counter, failure, now))

    def _shadow(self, effect: ShadowRelease) -> None:
        if effect.path not in self._watched:
            self.watch_path(effect.path)
        watched = self._watched[effect.path]
        if isinstance(watched, WatchedRules):
            watched.begin_shadow(effect.counter)
            return
        try:
            self._save_plan()
            model = rehearsed_beside(self._compute, self._installer.spec_of(effect.path, effect.counter))
        except Exception as error:  # noqa: BLE001 - as above
            failure = _refusal(error).told
            if not self._is_closing:
                self._tell(lambda machine, now: machine.not_shadowed(effect.path, effect.counter, failure, now))
            return
        serving = self._compute.models.get(name_of(effect.path))
        is_alike = serving is None or not any(breaks(serving.signature, model.signature))
        watched.begin_shadow(Shadow(effect.counter, model, takes_live_inputs=is_alike))
        self._audit.note("shadowed", path=effect.path, counter=effect.counter)

    def _drop(self, effect: DropRelease) -> None:
        if (watched := self._watched.get(effect.path)) is not None:
            watched.end_shadow(effect.counter)
        if self.staging.is_stuck((effect.path, effect.counter)):
            return  # it is asked for again when that has ended
        try:
            self._installer.drop(effect.path, effect.counter)
        except StorageError as error:
            self._troubles.begin(TROUBLE, _STORE, str(error))
            return
        description = self._descriptions.get((effect.path, effect.counter))
        if description is not None:
            self._store.forget([bytes.fromhex(content.index) for content in contents_of(description)])
        self._audit.note("dropped", path=effect.path, counter=effect.counter)


def _refusal(error: Exception) -> InstallRefused:
    if not isinstance(error, MeshError | OSError):
        _log.exception("a release was not installed for a reason that nobody foresaw: this is a bug")
    return refusal_of(error)


def contents_of(description: Description) -> list[Content]:
    """The contents of a release: its files, and deltas to them."""
    return [content for content in description.contents if content.size_bytes]
