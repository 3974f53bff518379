"""What the performer does with what is on the disk of a node: signed, lying, cut off."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import msgspec
import pytest

from cloud_relay.releases.chunking import chunk_data
from cloud_relay.releases.publishing import target_of
from cloud_relay.releases.repository import Lifetimes
from meshnode.releases.audit import AuditLog
from meshnode.releases.performing import ReleasePerformer
from meshnode.releases.store.disk import Disk
from meshnode.releases.store.incoming import FOLDER, put_in
from meshnode.releases.store.stick import BUNDLE
from meshnode.releases.trust import Trust
from protocols.access import AccessTable
from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.releases.catalogue import Description, ReleaseCatalogue, ReleasedFile
from protocols.releases.events import MetadataRefused, ServeRelease, ShadowRelease, StageRelease
from protocols.releases.machine import Releases
from protocols.releases.rollout.rollouts import Rollouts
from protocols.releases.settings import ReleaseSettings
from protocols.wire.releases import ReleaseNews
from tests.tools.eventually import LIMIT_S, eventually
from tests.tools.release_fixture import Publisher, clock_at, given_publisher, list_file, sha256
from tests.tools.released_fixture import PATH, Site, publish, release
from tests.tools.tiny_onnx import model_bytes

__all__ = ["given_publisher"]
NODE = NodeId("vehicle-1")


class Bench:
    """A performer with its machine, store and trust, without a mesh."""

    def __init__(self, folder: Path, publisher: Publisher, disk: Disk | None = None) -> None:
        self.folder, self.site = folder, Site(folder, disk=disk)
        rollouts = Rollouts(NODE, Role.VEHICLE, (), ("models/*",), sha256)
        self.machine = Releases(NODE, AccessTable(), ReleaseSettings(), Random(1), rollouts)
        self._lock = threading.RLock()
        self.performer = ReleasePerformer(
            folder, self.site.store, self.site.installer, self.site.compute, Trust(folder / "tuf", publisher.root_path),
            set, self.tell, lambda: None, AuditLog(folder / "audit.jsonl"), self.site.troubles,
        )  # fmt: skip
        self.site.store.open()
        self.now = 0

    def tell(self, do: Callable[[Releases, int], None]) -> None:
        performers = self.performer.performers()
        with self._lock:
            do(self.machine, self.now)
            for effect in self.machine.outgoing():
                performers[type(effect)](effect)

    def close(self) -> None:
        self.performer.close()
        self.site.close()


@pytest.fixture(name="bench")
def given_bench(tmp_path: Path, publisher: Publisher) -> Iterator[Bench]:
    made = Bench(tmp_path / "releases", publisher)
    yield made
    made.close()


def test_description_under_the_target_of_another_release_is_not_what_is_staged(
    bench: Bench, publisher: Publisher
) -> None:
    """Whoever may sign releases of one model must not decide what is installed as another one."""
    publisher.release(7, "adder", b"good")
    with publisher.changing() as repository:
        evil = ReleasedFile(name="evil.onnx", content=chunk_data(b"evil", repository.shelf.keep))
        lie = msgspec.json.encode(Description(path=PATH, counter=7, model=evil.name, files=(evil,)))
        repository.shelf.keep(lie)
        repository.put(target_of("models/z", 5), lie)
        list_file(repository, 1, "zz", b"own")
    put_in(publisher.folder, bench.folder)
    bench.performer.begin()
    eventually(lambda: bench.performer.description("models/zz", 1), "the last one was read")
    described = bench.performer.description(PATH, 7)
    assert described is not None
    assert described.model == "adder.onnx"


def test_cut_off_bundle_of_an_import_does_not_keep_the_node_from_starting(bench: Bench, publisher: Publisher) -> None:
    """The power fails while somebody imports: nobody should have to delete a file before the node serves again."""
    publisher.release(1, "adder")
    incoming = bench.folder / FOLDER
    incoming.mkdir()
    (incoming / BUNDLE).write_bytes(publisher.bundle[:-5])
    bench.performer.begin()
    eventually(lambda: not list(incoming.iterdir()), "what can't be read is removed")


def test_order_on_a_stick_without_the_files_of_its_release_is_read(bench: Bench, publisher: Publisher) -> None:
    """Somebody may carry no more than the news, such as that a release is aborted."""
    publisher.roll_out(1, 1, "adder", b"a model" * 100)
    put_in(publisher.folder, bench.folder)
    small = {"current.bundle", *(each.digest.hex() for each in trusted(bench, publisher).orders)}
    for chunk in (bench.folder / FOLDER).iterdir():
        if chunk.name not in small:
            chunk.unlink()
    bench.performer.begin()
    eventually(lambda: bench.machine.fetching.orders, "the order was read")


def test_import_before_the_clock_is_set_is_taken_in_afterwards(
    bench: Bench, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many vehicles begin each day in 1970, until a satellite or a server tells them the time."""
    publisher.release(1, "adder")
    put_in(publisher.folder, bench.folder)
    with monkeypatch.context() as patch:
        clock_at(patch, -20_000)
        bench.performer.begin()
        eventually(bench.site.troubles.current, "the clock is named")
    assert bench.performer.description(PATH, 1) is None

    def is_described() -> bool:
        bench.performer.import_again()
        return bench.performer.description(PATH, 1) is not None

    eventually(is_described)
    assert not bench.site.troubles.current()


@pytest.mark.processes
def test_releases_that_are_installed_are_told_with_the_one_that_serves(bench: Bench) -> None:
    """Otherwise nobody would let go of one whose drop was lost when the node ended."""
    for counter in (1, 2):
        published = release(counter)
        published.put_into(bench.site.store)
        bench.site.installer.stage(published.description)
    bench.site.installer.serve(PATH, 2)
    bench.performer.watch_path(PATH)
    assert bench.machine.rollouts.kept() == {(PATH, 1), (PATH, 2)}


@pytest.mark.processes
@pytest.mark.parametrize(("inputs", "expected"), [([1, 2], True), ([1, 3], False)])
def test_shadow_takes_live_inputs_unless_its_release_breaks_the_signature(
    bench: Bench, inputs: list[int], expected: bool
) -> None:
    """A publisher may declare a break, and its canaries must come to an end all the same."""
    bench.site.install(release(1))
    published = publish(2, {"adder.onnx": model_bytes(inputs)}, signature_since=2)
    published.put_into(bench.site.store)
    bench.site.installer.stage(published.description)
    bench.performer.performers()[ShadowRelease](ShadowRelease(PATH, 2))
    shadow = eventually(lambda: PATH in bench.performer._watched and bench.performer._watched[PATH].shadow)
    assert shadow.takes_live_inputs is expected


def trusted(bench: Bench, publisher: Publisher) -> ReleaseCatalogue:
    """What the metadata lists."""
    return Trust(bench.folder / "another", publisher.root_path).verify(publisher.bundle)


class HeldDisk(Disk):
    """A disk on which no release of one model can be put together until it is let go."""

    def __init__(self) -> None:
        self.is_held, self.let_go = threading.Event(), threading.Event()

    def make_folder(self, path: Path) -> None:
        if path.parent.name == "plate":
            self.is_held.set()
            self.let_go.wait()
        super().make_folder(path)


@pytest.mark.processes
def test_model_that_hangs_while_it_is_staged_holds_up_no_way_back_of_another(
    tmp_path: Path, publisher: Publisher
) -> None:
    """A load that hangs takes ten minutes, for which a bad release of another model went on to serve."""
    disk = HeldDisk()
    publisher.release(1, "plate")
    with closing(Bench(tmp_path / "releases", publisher, disk)) as bench:
        for counter in (1, 2):
            bench.site.install(release(counter))
        put_in(publisher.folder, bench.folder)
        bench.performer.begin()
        eventually(lambda: bench.performer.description("models/plate", 1))
        performers, journal = bench.performer.performers(), bench.site.installer.journal
        try:
            performers[StageRelease](StageRelease("models/plate", 1))
            assert disk.is_held.wait(LIMIT_S)
            performers[ServeRelease](ServeRelease(PATH, 1))
            eventually(lambda: journal.of(PATH).current == 1, "it went back")
        finally:
            disk.let_go.set()


@pytest.mark.processes
def test_model_that_hangs_while_it_is_staged_holds_up_another_one_for_a_while_only(
    tmp_path: Path, publisher: Publisher
) -> None:
    """A disk that does not answer hangs for ever, and no model was staged any more until the node was restarted."""
    disk = HeldDisk()
    publisher.release(1, "plate")
    with closing(Bench(tmp_path / "releases", publisher, disk)) as bench:
        put_in(publisher.folder, bench.folder)
        bench.performer.begin()
        eventually(lambda: bench.performer.description("models/plate", 1))
        good, stage = release(1), bench.performer.performers()[StageRelease]
        good.put_into(bench.site.store)
        bench.performer._descriptions[PATH, 1] = good.description
        audit = bench.folder / "audit.jsonl"
        try:
            stage(StageRelease("models/plate", 1))
            assert disk.is_held.wait(LIMIT_S)
            stage(StageRelease(PATH, 1))
            bench.performer.measure()
            assert not bench.performer.staging.is_stuck(("models/plate", 1)), "it may take its time"
            bench.performer.staging.patience_s = 0
            bench.performer.measure()
            assert bench.performer.staging.is_stuck(("models/plate", 1))
            eventually(lambda: f'"staged", "path": "{PATH}"' in audit.read_text(), "the other one was staged")
        finally:
            disk.let_go.set()
        eventually(lambda: not bench.performer.staging.is_stuck(("models/plate", 1)))


def test_bundle_that_made_room_before_it_was_verified_is_verified_once_it_is_here_again(
    bench: Bench, publisher: Publisher
) -> None:
    """Nothing needs metadata that was not verified, so it goes when a chunk wants room. The node never looked at that
    metadata again, and blamed the relay for it."""
    bundle = publisher.release(1, "adder")
    digest, store = sha256(bundle), bench.site.store

    def here(machine: Releases, now: int) -> None:
        machine.holding({digest: len(bundle)}, now)

    assert store.put(digest, bundle)
    bench.tell(here)
    store.forget([digest])
    bench.tell(lambda machine, now: machine.relay_told(ReleaseNews(1, 1, bytes(32), digest, len(bundle)), now))
    eventually(lambda: not bench.machine.news.may_check(digest, bench.now), "it could not be checked")
    assert not [event for event in bench.machine.events() if isinstance(event, MetadataRefused)]
    assert store.put(digest, bundle)
    bench.now += 60 * SECOND
    bench.tell(lambda machine, now: machine.handle_timer(now))
    bench.tell(here)
    eventually(lambda: bench.machine.news.verified, "it was verified")


def test_metadata_that_seems_to_have_ended_is_tried_again_and_blames_nobody(tmp_path: Path) -> None:
    """The clock may be weeks ahead. Once it was set, the node did not ask for that metadata any more, and did not
    listen to its neighbours for an hour."""
    publisher = Publisher(tmp_path / "repository", Lifetimes(online=2))
    publisher.ahead(-3)
    bundle = publisher.refresh()
    digest = sha256(bundle)
    with closing(Bench(tmp_path / "releases", publisher)) as bench:
        machine, news = bench.machine, ReleaseNews(1, 2, bytes(32), digest, len(bundle))
        assert bench.site.store.put(digest, bundle)
        bench.tell(lambda machine, now: machine.holding({digest: len(bundle)}, now))
        for _ in range(2):
            bench.tell(lambda machine, now: machine.relay_told(news, now))
            eventually(lambda: not machine.news.may_check(digest, bench.now), "it is to be tried again")
            assert "set it if it is wrong" in bench.site.troubles.current()[0].why
            bench.now += 60 * SECOND
            bench.tell(lambda machine, now: machine.handle_timer(now))
        assert not [event for event in machine.events() if isinstance(event, MetadataRefused)]
        assert digest in machine.news.newer(bench.now)


def test_expiry_is_looked_at_behind_the_metadata_that_is_being_taken(bench: Bench, publisher: Publisher) -> None:
    """Otherwise what was found of the metadata before could be told after newer metadata was taken."""
    publisher.release(1, "adder")
    put_in(publisher.folder, bench.folder)
    bench.performer.begin()
    eventually(lambda: bench.performer.description(PATH, 1))
    before, goes_on = bench.performer._catalogue, threading.Event()
    assert before is not None

    def take(_: None) -> None:
        goes_on.wait()

    bench.performer.later(take, None)
    bench.performer._catalogue = expired = msgspec.structs.replace(before, is_expired=True)
    bench.performer.check_expiry()
    told = bench.performer._catalogue
    goes_on.set()
    assert told is expired
    eventually(lambda: bench.performer._catalogue == before, "it is good again")
