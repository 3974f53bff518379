"""The steps of a release: what is fetched of it, and when a delta is enough."""

import hashlib

import pytest

from protocols.access import AccessTable
from protocols.base.limits import PIECE_BYTES
from protocols.releases.catalogue import Content, Delta, Description, Listed, ReleaseCatalogue, ReleasedFile
from protocols.releases.events import Decisions, ReadIndex
from protocols.releases.fetching import Fetching
from protocols.releases.swarm.shelf import Shelf

PATH = "models/plate"


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class Files:
    """Two releases of one model, with a delta between them, and what a node holds of them."""

    def __init__(self) -> None:
        self.decisions, self.shelf = Decisions(), Shelf(AccessTable())
        self.fetching = Fetching(self.shelf, self.decisions)
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
