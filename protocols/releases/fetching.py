"""The steps of every release that this node takes: description, indices, chunks; and the orders.

The metadata names descriptions and orders by digest, a description the indices of its files, an index the chunks. Each
step is fetched when the one before is there and was read. Of a file for which the description lists a delta from a file
that this node has whole, only the delta is fetched; when it turns out not to work, the file is.
"""

from collections.abc import Container, Iterable

from msgspec.structs import replace

from protocols.base.limits import MAX_CHUNK_BYTES
from protocols.base.time import NEVER
from protocols.releases.catalogue import (
    MAX_ORDERS,
    MAX_RELEASES,
    Content,
    Description,
    Listed,
    ListedOrder,
    Order,
    ReleaseCatalogue,
)
from protocols.releases.events import Decisions, ReadDescription, ReadIndex, ReadOrder, ReleaseState
from protocols.releases.room import NoRoom, Room, sizes_of
from protocols.releases.swarm.shelf import ANY_RELEASE, DIGEST_BYTES, Shelf

Wanted = tuple[str, int]
"""The path and the counter of a release."""
_ORDER, _DESCRIPTION, _INDEX, _CONTENT = 1, 2, 3, 4


class Fetching:
    """The releases of one node."""

    def __init__(self, shelf: Shelf, decisions: Decisions, store_bytes: int = 0) -> None:
        self._shelf, self._decisions, self._room = shelf, decisions, Room(store_bytes)
        self.catalogue: ReleaseCatalogue | None = None
        self._listed: dict[Wanted, Listed] = {}
        self._digests: frozenset[bytes] = frozenset()  # of the descriptions of these
        self._false: set[Wanted] = set()  # releases whose description is that of another one
        self._listed_orders: dict[bytes, ListedOrder] = {}
        self._bundle = b""
        self.descriptions: dict[Wanted, Description] = {}
        """What was read, of releases that the metadata lists."""
        self.orders: dict[bytes, Order] = {}
        """What was read, by digest, of orders that the metadata lists."""
        self._wanted: dict[Wanted, None] = {}
        self._kept: dict[Wanted, None] = {}
        self._whole: set[Wanted] = set()  # releases whose deltas did not work
        self._bad: set[bytes] = set()  # descriptions and orders that are malformed, and indices
        self._reading: set[bytes] = set()
        self._no_room: dict[bytes, int] = {}  # contents that the disk does not take, and when they are tried again
        self._fetched: dict[Wanted, None] = {}
        self._begun: set[Wanted] = set()
        self._held_up: dict[Wanted, bool] = {}  # those without room, and whether they wait for some
        self.has_new_orders = False
        """Whether orders were read since the machine looked."""
        self.new_fetched: list[Wanted] = []
        """Releases that became complete since the machine took them."""
        self.new_unfit: list[tuple[Wanted, str]] = []
        """Releases that can't be fetched, and why, since the machine took them."""
        self.is_changed = False
        """Whether :meth:`needs` may have changed."""

    # --- what the metadata says ------------------------------------------------------------------------------------
    def trust(self, bundle: bytes, catalogue: ReleaseCatalogue) -> None:
        """Take newer metadata."""
        self.catalogue, self._bundle = catalogue, bundle
        before = {(name, listed.digest) for name, listed in self._listed.items()}
        self._listed = {(listed.path, listed.counter): listed for listed in catalogue.releases[:MAX_RELEASES]}
        self._digests = frozenset(listed.digest for listed in self._listed.values())
        newest = sorted(catalogue.orders, key=lambda order: -order.serial)[:MAX_ORDERS]
        self._listed_orders = {order.digest: order for order in newest}
        names = {name for name, listed in self._listed.items() if (name, listed.digest) in before}
        self.descriptions = {name: known for name, known in self.descriptions.items() if name in names}
        self.orders = {digest: order for digest, order in self.orders.items() if digest in self._listed_orders}
        self._fetched = {name: None for name in self._fetched if name in names}
        self._begun &= names
        self._whole &= names
        self._bad.clear()  # what was bad may have been so because of what is listed no longer
        self._false.clear()
        self._name()
        self._read_held()
        self.is_changed = True

    def _name(self) -> None:
        """Tell the shelf what belongs to which release."""
        lone = [(self._bundle, ANY_RELEASE)]
        lone += [(digest, ANY_RELEASE) for digest in self._listed_orders]
        lone += [(listed.digest, listed.path) for listed in self._listed.values()]
        contents = [(content, known.path) for known in self.descriptions.values() for content in known.contents]
        self._shelf.keep_only(lone, contents)

    def _read_held(self) -> None:
        """Have descriptions and orders read that are held and were not read."""
        for release, listed in self._listed.items():
            if release not in self.descriptions and release not in self._false and self._may_read(listed.digest):
                self._decisions.effects.append(ReadDescription(listed.digest))
        for digest in self._listed_orders:
            if digest not in self.orders and self._may_read(digest):
                self._decisions.effects.append(ReadOrder(digest))

    def _may_read(self, digest: bytes) -> bool:
        if digest not in self._shelf.held or digest in self._bad or digest in self._reading:
            return False
        self._reading.add(digest)
        return True

    @property
    def serials(self) -> list[int]:
        """The serials of the orders that the metadata lists."""
        return [order.serial for order in self._listed_orders.values()]

    # --- what was read ---------------------------------------------------------------------------------------------
    def described(self, digest: bytes, description: Description | None) -> None:
        """The description of a release was parsed. None: it is malformed, or can't be read."""
        self._reading.discard(digest)
        for release in [release for release, listed in self._listed.items() if listed.digest == digest]:
            if description is None:
                self._bad.add(digest)
                self._say(*release, "refused", "its description is malformed")
            elif (description.path, description.counter) != release:  # another one may list it rightly
                self._false.add(release)
                self._say(*release, "refused", f"its description is that of {description.path} {description.counter}")
            elif not all(self._shelf.agrees(content) for content in description.contents):
                self._false.add(release)
                self._say(*release, "refused", "it names a file of another release, and says that it has another size")
            else:
                self.descriptions[release] = description
                for content in description.contents:
                    self._shelf.describe(content, description.path)
        self.is_changed = True

    def ordered(self, digest: bytes, order: Order | None) -> None:
        """An order was parsed. None: it is malformed, or can't be read."""
        self._reading.discard(digest)
        listed = self._listed_orders.get(digest)
        if listed is None:
            return
        if order is None or order.serial != listed.serial:
            self._bad.add(digest)
            return
        self.orders[digest] = order
        self.has_new_orders = True
        self.is_changed = True

    def indexed(self, digest: bytes, is_loaded: bool) -> None:
        """An index was read. ``is_loaded``: it fits its content."""
        self._reading.discard(digest)
        if not is_loaded and digest in self._shelf.known:
            self._bad.add(digest)
        self.is_changed = True

    def kept(self, *digests: bytes) -> None:
        """Chunks are held now."""
        if any(digest in self._digests or digest in self._listed_orders for digest in digests):
            self._read_held()
        self.is_changed = True

    # --- what is wanted --------------------------------------------------------------------------------------------
    def want(self, releases: Iterable[Wanted]) -> None:
        """Take these releases."""
        wanted = dict.fromkeys(sorted(releases))  # a set of texts has another order in each process
        if wanted != self._wanted:
            self.new_fetched += [release for release in wanted if release in self._fetched.keys() - self._wanted.keys()]
            self._wanted = wanted
            self._held_up = {release: waits for release, waits in self._held_up.items() if release in wanted}
            self.is_changed = True

    def keep(self, releases: Iterable[Wanted]) -> None:
        """Load the files of these releases: newer ones may come as deltas from them."""
        kept = dict.fromkeys(sorted(releases))
        if kept != self._kept:
            self._kept = kept
            self.is_changed = True

    def take_whole(self, release: Wanted) -> None:
        """Fetch the files of a release itself, because a delta did not work."""
        self._whole.add(release)
        self._fetched.pop(release, None)
        self.is_changed = True

    def expired(self, is_expired: bool) -> None:
        """Whether the metadata has expired."""
        if self.catalogue is not None:
            self.catalogue = replace(self.catalogue, is_expired=is_expired)
            self.is_changed = True

    def postpone(self, chunk: bytes, until_ns: int) -> None:
        """A chunk can't be written. The contents that it is part of are not fetched for a while, so that others are."""
        for known, _ in self._shelf.places(chunk):
            self._no_room[known.digest] = until_ns
        self.is_changed = True

    def handle_timer(self, now: int) -> None:
        """Try again what could not be written."""
        if now >= self.next_timer_at():
            self._no_room = {content: until_ns for content, until_ns in self._no_room.items() if until_ns > now}
            self.is_changed = True

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return min(self._no_room.values(), default=NEVER)

    def lost(self) -> None:
        """Chunks are not held any more, so releases may not be complete."""
        self._fetched.clear()
        self.is_changed = True

    def needs(self) -> tuple[dict[bytes, tuple[int, int]], dict[bytes, int]]:
        """The lone chunks to fetch, with size and priority, and the contents, with priority."""
        self.is_changed = False
        lone: dict[bytes, tuple[int, int]] = {}
        contents: dict[bytes, int] = {}
        catalogue = self.catalogue
        if catalogue is None:
            return lone, contents
        self._load_kept()
        held, bases = self._shelf.held, self._bases()
        without_room = self._without_room(bases) if self._room.store_bytes else {}
        for digest, order in self._listed_orders.items():
            if digest not in held and order.size_bytes <= MAX_CHUNK_BYTES:
                lone[digest] = order.size_bytes, _ORDER
        for release, listed in self._listed.items():
            digest = listed.digest
            if release not in self._wanted or catalogue.is_expired or release in self._false:
                continue
            if release not in self._begun:
                self._begun.add(release)
                self._say(*release, "fetching")
            description = self.descriptions.get(release)
            if description is None:
                if digest not in held and 0 < listed.size_bytes <= MAX_CHUNK_BYTES:
                    lone[digest] = listed.size_bytes, _DESCRIPTION
            elif release in without_room:
                self._hold_up(release, without_room[release])
            elif not self._needs_of(description, bases, lone, contents) and release not in self._fetched:
                self._fetched[release] = None
                self.new_fetched.append(release)
                self._say(*release, "fetched")
        return lone, contents

    def _without_room(self, bases: Container[str]) -> dict[Wanted, NoRoom]:
        """The wanted releases that the disk has no room for, beside what is needed."""
        names = [self._bundle, *self._listed_orders, *self._digests]
        small_bytes = sum(self._shelf.held.get(name, 0) for name in names)
        kept = {
            name: sizes_of(self._takes(self.descriptions[name])) for name in self._kept if name in self.descriptions
        }
        found = {}
        for release in self._room.settle(self._wanted, self._kept, kept, small_bytes):
            description = self.descriptions.get(release)
            if description is None:
                continue
            files = [file.content for file in description.files]
            chosen = self._chosen(description, bases)
            no_room = self._room.admit(release, sizes_of([*files, *chosen]))
            if no_room is not None and chosen != files:
                no_room = self._room.admit(release, sizes_of(files))
                if no_room is None:
                    self._whole.add(release)  # it is the delta that does not fit
            if no_room is None:
                self._held_up.pop(release, None)
            else:
                found[release] = no_room
        return found

    def _takes(self, description: Description) -> list[Content]:
        """What a release takes on the disk: its files, and deltas that were fetched."""
        deltas = [delta.content for delta in description.deltas]
        known = self._shelf.known
        return [file.content for file in description.files] + [
            content for content in deltas
            if (delta := known.get(bytes.fromhex(content.index))) is not None and delta.have
        ]  # fmt: skip

    def _hold_up(self, release: Wanted, no_room: NoRoom) -> None:
        """Say once why a wanted release is not fetched."""
        if self._held_up.get(release) is not no_room.waits:
            self._held_up[release] = no_room.waits
            if no_room.waits:
                self._say(*release, "fetching", no_room.why)
            else:
                self.new_unfit.append((release, no_room.why))

    def _needs_of(
        self, description: Description, bases: Container[str], lone: dict[bytes, tuple[int, int]],
        contents: dict[bytes, int],
    ) -> bool:  # fmt: skip
        """Add what is missing of a release. Returns whether anything is."""
        is_missing = False
        for content in self._chosen(description, bases):
            digest = bytes.fromhex(content.index)
            known = self._shelf.known.get(digest)
            if known is None or known.is_whole:
                continue
            is_missing = True
            if digest in self._bad or digest in self._no_room:
                continue
            if digest not in self._shelf.held:
                lone[digest] = content.chunks * DIGEST_BYTES, _INDEX
            else:
                self._load(content)
            contents[digest] = _CONTENT + len(contents)
        return is_missing

    def _load(self, content: Content) -> None:
        digest = bytes.fromhex(content.index)
        known = self._shelf.known.get(digest)
        if known is not None and known.chunks and not known.digests and digest not in self._reading | self._bad:
            self._reading.add(digest)
            self._decisions.effects.append(ReadIndex(digest, content.size_bytes, content.chunk_bytes))

    def _load_kept(self) -> None:
        for release in self._kept:
            description = self.descriptions.get(release)
            for file in description.files if description is not None else ():
                if bytes.fromhex(file.content.index) in self._shelf.held:
                    self._load(file.content)

    def _chosen(self, description: Description, bases: Container[str]) -> list[Content]:
        """The contents to fetch for a release: of each file a delta, or the file."""
        chosen = []
        if (description.path, description.counter) in self._whole:
            bases = ()
        for file in description.files:
            deltas = [delta.content for delta in description.deltas
                      if delta.name == file.name and delta.base in bases]  # fmt: skip
            deltas.sort(key=lambda content: content.size_bytes)
            known = self._shelf.known.get(bytes.fromhex(file.content.index))
            is_here = known is not None and known.is_whole
            chosen.append(deltas[0] if deltas and not is_here else file.content)
        return chosen

    def _bases(self) -> Container[str]:
        """The files that are held whole and that a wanted release has deltas from, by their SHA-256."""
        wanted = [self.descriptions[name] for name in self._wanted if name in self.descriptions]
        asked = {delta.base for description in wanted for delta in description.deltas}
        known = self._shelf.known
        return {
            file.content.sha256
            for description in self.descriptions.values() for file in description.files
            if file.content.sha256 in asked
            and (content := known.get(bytes.fromhex(file.content.index))) is not None and content.is_whole
        }  # fmt: skip

    def _say(self, path: str, counter: int, state: str, detail: str = "") -> None:
        self._decisions.events.append(ReleaseState(path, counter, state, detail))
