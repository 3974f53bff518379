"""The steps of a release: what is fetched of it, and when a delta is enough."""

import hashlib

import pytest

from protocols.access import AccessTable
from protocols.base.limits import PIECE_BYTES
from protocols.releases.catalogue import Content, Delta, Description, Listed, ReleaseCatalogue, ReleasedFile
from protocols.releases.events import Decisions, ReadIndex, ReleaseState
from protocols.releases.fetching import Fetching
from protocols.releases.swarm.shelf import Shelf

PATH = "models/plate"


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class Files:
    """Two releases of one model, with a delta between them, and what a node holds of them."""

    def __init__(self, store_bytes: int = 0) -> None:
        self.decisions, self.shelf = Decisions(), Shelf(AccessTable())
        self.fetching = Fetching(self.shelf, self.decisions, store_bytes)
        self.old, self.new, self.delta = self.content("old", 3), self.content("new", 3), self.content("delta", 1)
        delta = Delta(name="plate.onnx", base=self.old.sha256, method="tensors", content=self.delta)
        self.describe({1: (self.old, ()), 2: (self.new, (delta,))})

    def content(self, name: str, chunks: int) -> Content:
        index = b"".join(digest(f"{name} {number}") for number in range(chunks))
        return Content(
            sha256=digest(name).hex(), size_bytes=chunks * PIECE_BYTES, chunk_bytes=PIECE_BYTES,
            index=hashlib.sha256(index).hexdigest(),
        )  # fmt: skip

    def describe(self, releases: dict[int, tuple[Content, tuple[Delta, ...]]]) -> None:
        listed = tuple(Listed(PATH, counter, digest(f"description {counter}"), 100) for counter in releases)
        self.fetching.trust(digest("bundle"), ReleaseCatalogue(1, 1, bytes(32), False, listed, ()))
        for each, (content, deltas) in zip(listed, releases.values(), strict=True):
            files = (ReleasedFile(name="plate.onnx", content=content),)
            self.fetching.described(
                each.digest,
                Description(path=PATH, counter=each.counter, model="plate.onnx", files=files, deltas=deltas),
            )

    def hold(self, name: str, content: Content, is_read: bool = True) -> None:
        """Have all of a content on the disk. ``is_read``: its index was read."""
        chunks = {digest(f"{name} {number}"): PIECE_BYTES for number in range(content.chunks)}
        index = bytes.fromhex(content.index)
        self.shelf.add({index: 32 * content.chunks, **chunks})
        if is_read:
            self.read(name, content)

    def read(self, name: str, content: Content, held: bytes = b"\xff") -> None:
        digests = b"".join(digest(f"{name} {number}") for number in range(content.chunks))
        loaded = self.shelf.load(bytes.fromhex(content.index), digests, held)
        self.fetching.indexed(bytes.fromhex(content.index), loaded is not None)

    def wanted(self) -> list[Content]:
        """The contents that are fetched."""
        _, contents = self.fetching.needs()
        known = {bytes.fromhex(each.index): each for each in (self.old, self.new, self.delta)}
        return [known[each] for each in contents]

    def said(self) -> list[str]:
        """What was said of releases that are not fetched for want of room."""
        refused = [why for _, why in self.fetching.new_unfit]
        return refused + [event.detail for event in self.decisions.events
                          if isinstance(event, ReleaseState) and event.detail]  # fmt: skip

    def reads(self) -> list[bytes]:
        effects, self.decisions.effects = self.decisions.effects, []
        return [effect.content for effect in effects if isinstance(effect, ReadIndex)]


@pytest.fixture
def files() -> Files:
    files = Files()
    files.fetching.want([(PATH, 2)])
    return files


def test_file_whose_base_is_held_comes_as_a_delta(files: Files) -> None:
    """5 % of the weights have changed, and so many of the bytes travel."""
    files.hold("old", files.old)
    assert files.wanted() == [files.delta]


def test_file_without_a_base_comes_whole(files: Files) -> None:
    """A delta alone is worth nothing."""
    assert files.wanted() == [files.new]
    assert files.reads() == []


def test_base_of_a_release_that_is_not_wanted_any_more_counts(files: Files) -> None:
    """The old bundle was dropped when the new one came, and with it the knowledge that the old release was complete:
    the whole file was fetched."""
    files.fetching.want([(PATH, 1)])
    files.hold("old", files.old)
    assert files.wanted() == []
    files.fetching.want([(PATH, 2)])
    files.fetching.lost()
    assert files.wanted() == [files.delta]


def test_base_that_is_kept_is_looked_at_after_a_restart(files: Files) -> None:
    """Otherwise only the indices of what is fetched are read, and no release would be known as a base."""
    files.hold("old", files.old, is_read=False)
    files.fetching.keep([(PATH, 1)])
    files.wanted()
    assert files.reads() == [bytes.fromhex(files.old.index)]
    files.wanted()
    assert files.reads() == [], "it is read once"
    files.read("old", files.old)
    assert files.wanted() == [files.delta]


@pytest.mark.parametrize("held", [b"\x00", b"\x05"])
def test_base_that_turns_out_not_to_be_whole_is_none(files: Files, held: bytes) -> None:
    """Chunks of it were dropped to make room."""
    files.shelf.add({bytes.fromhex(files.old.index): 96})
    files.read("old", files.old, held)
    assert files.wanted() == [files.new]


def test_delta_that_did_not_work_is_not_tried_again(files: Files) -> None:
    """The file itself is fetched, once."""
    files.hold("old", files.old)
    files.hold("delta", files.delta)
    assert files.wanted() == []
    assert files.fetching.new_fetched == [(PATH, 2)]
    files.fetching.take_whole((PATH, 2))
    assert files.wanted() == [files.new]


def test_file_that_was_made_from_a_delta_is_complete(files: Files) -> None:
    """Nothing else of the release is fetched then."""
    files.hold("old", files.old)
    files.hold("new", files.new)
    assert files.wanted() == []
    assert files.fetching.new_fetched == [(PATH, 2)]


def test_other_description_under_the_same_counter_is_read(files: Files) -> None:
    """What the publisher has listed anew was known by name, and nodes went on with the files of before."""
    files.hold("new", files.new)
    assert files.wanted() == []
    assert files.fetching.new_fetched == [(PATH, 2)]
    files.fetching.new_fetched.clear()
    other = Listed(PATH, 2, digest("another description"), 100)
    files.fetching.trust(digest("newer bundle"), ReleaseCatalogue(1, 2, bytes(32), False, (other,), ()))
    lone, contents = files.fetching.needs()
    assert (list(lone), contents) == ([other.digest], {})
    described = ReleasedFile(name="plate.onnx", content=files.old)
    files.fetching.described(other.digest, Description(path=PATH, counter=2, model="plate.onnx", files=(described,)))
    assert files.wanted() == [files.old]
    assert files.fetching.new_fetched == []


def test_description_that_is_listed_as_before_is_kept(files: Files) -> None:
    """Each new signature would have all of them read again."""
    listed = Listed(PATH, 2, digest("description 2"), 100)
    files.fetching.trust(digest("newer bundle"), ReleaseCatalogue(1, 2, bytes(32), False, (listed,), ()))
    assert files.wanted() == [files.new]


# --- room ------------------------------------------------------------------------------------------------------------
FILE_BYTES = 3 * (PIECE_BYTES + 32)
"""What a file of three chunks takes with its index."""


def test_release_that_does_not_fit_beside_the_one_that_serves_is_refused_unfetched() -> None:
    """It was fetched until the disk took no more, every ten minutes, and each time everything else had to wait."""
    files = Files(store_bytes=2 * FILE_BYTES - 1)
    files.hold("old", files.old)
    files.fetching.want([(PATH, 2)])
    files.fetching.keep([(PATH, 1), (PATH, 2)])
    assert files.wanted() == []
    (why,) = files.said()
    assert why.startswith(f"no_room: its files take {FILE_BYTES} bytes, and {FILE_BYTES} of the {2 * FILE_BYTES - 1}")
    assert "needed for models/plate 1. Raise [releases] store_mib" in why
    files.fetching.is_changed = True
    files.wanted()
    assert len(files.said()) == 1, "it is said once"


def test_release_that_fits_beside_the_one_that_serves_is_fetched() -> None:
    """Of a byte too many counted somewhere nobody would ever hear."""
    files = Files(store_bytes=2 * FILE_BYTES)
    files.shelf.add({bytes.fromhex(files.old.index): 96})
    files.fetching.want([(PATH, 2)])
    files.fetching.keep([(PATH, 1), (PATH, 2)])
    assert files.wanted() == [files.new]
    assert files.said() == []


def test_delta_that_does_not_fit_is_left_out() -> None:
    """The file that it makes has room, and a delta has to lie beside it."""
    files = Files(store_bytes=2 * FILE_BYTES)
    files.hold("old", files.old)
    files.fetching.want([(PATH, 2)])
    files.fetching.keep([(PATH, 1), (PATH, 2)])
    assert files.wanted() == [files.new]


def test_release_that_does_not_fit_beside_one_that_is_fetched_waits_for_it() -> None:
    """Both fit alone. If both were refused, neither would come; if both were fetched, neither would be complete. A
    canary that only has to wait must not call a release failed."""
    files = Files(store_bytes=2 * FILE_BYTES - 1)
    files.fetching.want([(PATH, 2)])
    files.fetching.keep([(PATH, 2)])
    assert files.wanted() == [files.new]
    files.fetching.want([(PATH, 1), (PATH, 2)])
    files.fetching.keep([(PATH, 1), (PATH, 2)])
    assert files.wanted() == [files.new], "the first goes on"
    assert files.fetching.new_unfit == []
    (why,) = files.said()
    assert "needed for models/plate 2. It waits until those are fetched. Raise [releases] store_mib" in why
    files.fetching.want([(PATH, 1)])
    files.fetching.keep([(PATH, 1)])
    assert files.wanted() == [files.old], "the other is not wanted any more"


def test_release_that_waited_for_one_that_is_needed_now_is_refused() -> None:
    """It would wait for ever."""
    files = Files(store_bytes=2 * FILE_BYTES - 1)
    files.fetching.want([(PATH, 1), (PATH, 2)])
    files.fetching.keep([(PATH, 1), (PATH, 2)])
    assert files.wanted() == [files.old]
    files.hold("old", files.old)
    files.fetching.want([(PATH, 2)])
    assert files.wanted() == []
    assert [release for release, _ in files.fetching.new_unfit] == [(PATH, 2)]


def test_release_that_serves_and_is_listed_no_longer_takes_room_all_the_same() -> None:
    """Its publisher has withdrawn it, and the store keeps what it needs."""
    files = Files(store_bytes=2 * FILE_BYTES - 1)
    files.fetching.keep([(PATH, 1), (PATH, 2)])
    files.hold("old", files.old)
    files.wanted()
    listed = Listed(PATH, 2, digest("description 2"), 100)
    files.fetching.trust(digest("newer bundle"), ReleaseCatalogue(1, 2, bytes(32), False, (listed,), ()))
    files.fetching.want([(PATH, 2)])
    assert files.wanted() == []
    assert [release for release, _ in files.fetching.new_unfit] == [(PATH, 2)]
