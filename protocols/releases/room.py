"""Which of the releases that are wanted fit on the disk, beside those that are needed.

The store of a node never removes what a release needs that is served, or to which the node goes back. So a release that
does not fit beside those is refused before anything of it is fetched. One that only does not fit beside others that are
being fetched waits for them: they were first, and may be dropped again.

A content that several releases share counts once. What small chunks take (metadata, descriptions, orders) counts too.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from protocols.releases.catalogue import Content
from protocols.releases.swarm.shelf import DIGEST_BYTES

Release = tuple[str, int]
"""A path and a counter."""
Sizes = Mapping[str, int]
"""The bytes that contents take, by the digest of their index."""
_NAMES_SHOWN: Final = 4


class NoRoom(NamedTuple):
    """Why a release is not fetched."""

    why: str
    """It begins with ``no_room:``."""
    waits: bool
    """Whether it may fit once others have been fetched. Otherwise it does not fit beside those that are needed."""


def sizes_of(contents: Iterable[Content]) -> Sizes:
    """What contents and their indices take."""
    return {content.index: content.size_bytes + DIGEST_BYTES * content.chunks for content in contents}


class Room:
    """The room of one node for releases."""

    def __init__(self, store_bytes: int) -> None:
        """``store_bytes``: what all of them may take; 0: there is no limit."""
        self.store_bytes = store_bytes
        self._settled: dict[Release, Sizes] = {}  # those that are here
        self._admitted: dict[Release, Sizes] = {}  # those that are fetched, in the order in which they had room
        self._taken: dict[str, int] = {}
        self._small_bytes = 0

    def settle(
        self, wanted: Iterable[Release], kept: Iterable[Release], known: Mapping[Release, Sizes], small_bytes: int
    ) -> list[Release]:
        """Begin a look: count what releases take that are kept and not fetched. Returns those that are wanted in the
        order in which they are to be admitted: first those that had room before.

        ``known``: what releases take whose descriptions are known. What was known of a kept one is remembered.
        """
        before = {**self._settled, **self._admitted}
        fetched = dict.fromkeys(wanted)
        self._settled = {
            release: known.get(release) or before.get(release, {}) for release in kept if release not in fetched
        }
        self._admitted, self._small_bytes = {}, small_bytes
        self._taken = {index: size for sizes in self._settled.values() for index, size in sizes.items()}
        place = {release: number for number, release in enumerate(before)}
        return sorted(fetched, key=lambda release: place.get(release, len(place)))

    def admit(self, release: Release, sizes: Sizes) -> NoRoom | None:
        """Count what a wanted release takes, if it fits. None: it does."""
        if self._small_bytes + sum({**self._taken, **sizes}.values()) <= self.store_bytes:
            self._admitted[release] = sizes
            self._taken |= sizes
            return None
        settled = {index: size for each in self._settled.values() for index, size in each.items()}
        waits = self._small_bytes + sum({**settled, **sizes}.values()) <= self.store_bytes
        return NoRoom(self._why(sizes, self._taken if waits else settled, waits), waits)

    def _why(self, sizes: Sizes, beside: Sizes, waits: bool) -> str:
        own_bytes = sum(sizes.values())
        needed_bytes = self._small_bytes + sum(size for index, size in beside.items() if index not in sizes)
        if own_bytes > self.store_bytes:
            return (
                f"no_room: its files take {own_bytes} bytes, and releases may take {self.store_bytes} here. "
                "Raise [releases] store_mib, or follow other models"
            )
        others = [*self._settled, *self._admitted] if waits else list(self._settled)
        names = ", ".join(f"{path} {counter}" for path, counter in others[:_NAMES_SHOWN])
        names += f" and {len(others) - _NAMES_SHOWN} more" if len(others) > _NAMES_SHOWN else ""
        return (
            f"no_room: its files take {own_bytes} bytes, and {needed_bytes} of the {self.store_bytes} bytes that "
            f"releases may take here are needed for {names or 'metadata'}. "
            + ("It waits until those are fetched. " if waits else "")
            + "Raise [releases] store_mib, or follow fewer models"
        )
