"""The installer: what it refuses, and what serves after each change and each restart.

``test_campaigns`` has an install fail at each of its steps.
"""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from meshnode.inference.section import ModelSection, ModelsSection
from meshnode.releases.install import models
from meshnode.releases.install.installer import Installer
from meshnode.releases.install.refusals import InstallRefused
from meshnode.releases.install.stand import NodeModels
from meshnode.releases.store.disk import Disk
from protocols.base.ids import NodeId
from tests.tools.eventually import eventually
from tests.tools.onnx_graphs import write_text
from tests.tools.released_fixture import (
    NAME,
    PATH,
    Published,
    Site,
    added,
    adder,
    given_factory,
    publish,
    release,
    site,
)
from tests.tools.tiny_onnx import model_bytes
from tests.tools.worker_fixture import running

__all__ = ["given_factory"]
pytestmark = pytest.mark.processes


def process_of(model: Any) -> int:
    process_id = model.process_id
    assert process_id is not None
    return int(process_id)


# --- serving ---------------------------------------------------------------------------------------------------------
def test_release_serves_in_place_of_the_file_and_after_a_restart(tmp_path: Path, factory: Path) -> None:
    """That is what a release is for."""
    with site(tmp_path / "releases", factory) as here:
        assert here.answer() == 0.5
        here.install(release(3))
        assert here.answer() == 3
        (told,) = here.told
        assert (told.name, told.digest) == (NAME, here.compute.models[NAME].digest)
        assert len(told.former) == 1
    with site(tmp_path / "releases", factory) as here:
        assert here.answer() == 3
        here.installer.serve(PATH, 0)
        assert here.answer() == 0.5
    with site(tmp_path / "releases", factory) as here:
        assert here.answer() == 0.5


def test_release_is_tried_with_any_time_where_no_processor_is_ever_idle(
    tmp_path: Path, factory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a computer that is always busy a release waited for five minutes for a moment that nobody else wanted."""
    monkeypatch.setattr(models, "IDLE_LOAD_S", 0.0)
    with site(tmp_path / "releases", factory) as here:
        here.install(release(1))
        assert here.answer() == 1
        assert here.compute.counters()["model_workers_hung"] == 1


def test_release_of_a_model_without_a_file_serves_and_can_be_taken_back(tmp_path: Path) -> None:
    """A model may come to a node by its first release."""
    with site(tmp_path / "releases") as here:
        here.install(release(1))
        assert here.answer() == 1
        here.installer.serve(PATH, 0)
        assert here.compute.models == {}
        here.installer.serve(PATH, 1)
        assert here.answer() == 1


def test_run_under_way_and_neighbours_that_placed_before_get_the_version_they_meant(
    tmp_path: Path, factory: Path
) -> None:
    """Requests are placed by digest. The one who asked before the change must neither fail nor get another model's
    answer."""
    with site(tmp_path / "releases", factory) as here:
        before = here.compute.models[NAME].digest
        here.install(release(1))
        now = here.compute.models[NAME].digest
        here.ask(1)
        here.ask(2, now, NodeId("rsu-1"))
        here.ask(3, before, NodeId("rsu-1"))
        here.ask(4, before)
        assert [added(here, number) for number in (1, 2, 3, 4)] == [1, 1, 0.5, 0.5]
        here.install(release(2))  # the file of the configuration is not kept warm any longer
        here.ask(5, before, NodeId("rsu-1"))
        assert added(here, 5) == 0.5, "neighbours may not have heard of either change"
        eventually(lambda: len(here.told[0].former) == 1, "after a while it ends")
        here.ask(7, before, NodeId("rsu-1"))
        assert eventually(lambda: here.answers.get(7)).status == "unknown"
        here.ask(6, before)  # an own request names the model
        assert added(here, 6) == 2


def test_version_before_stays_warm_and_the_one_before_that_ends(tmp_path: Path, factory: Path) -> None:
    """To go back must not take a load, and versions must not fill the memory."""
    with site(tmp_path / "releases", factory) as here:
        first = process_of(here.compute.models[NAME])
        here.install(release(1))
        second = process_of(here.compute.models[NAME])
        assert running(first)
        here.install(release(2))
        eventually(lambda: not running(first), "it ends")
        here.installer.serve(PATH, 1)
        assert process_of(here.compute.models[NAME]) == second
        here.installer.drop(PATH, 2)
        assert [each.counter for each in here.installer.journal.of(PATH).installed] == [1]
        assert not (tmp_path / "releases" / PATH / "2").exists()
        here.installer.drop(PATH, 1)
        assert here.answer() == 1, "what serves is never dropped"


def test_release_with_other_files_under_its_counter_is_put_together_anew(tmp_path: Path, factory: Path) -> None:
    """Its publisher has listed it again. What was staged before was taken for it, and served."""
    with site(tmp_path / "releases", factory) as here:
        here.install(release(1))
        here.install(release(2))
        (before, _) = here.installer.journal.of(PATH).installed
        again = publish(1, {"adder.onnx": adder(5)})
        here.install(again)
        assert here.answer() == 5
        now = here.installer.journal.of(PATH).release(1)
        assert now is not None
        assert now.is_of(again.description)
        assert not before.is_of(again.description)


def test_release_to_which_deltas_are_added_is_not_put_together_again(tmp_path: Path, factory: Path) -> None:
    """Its description has another digest then, and its files are the same."""
    with site(tmp_path / "releases", factory) as here:
        first = release(1)
        here.install(first)
        here.install(release(2))
        place = tmp_path / "releases" / PATH / "1"
        before = place.stat().st_ino
        here.installer.stage(msgspec.structs.replace(first.description, changelog="now with deltas"))
        assert place.stat().st_ino == before


def test_folders_that_the_journal_does_not_know_are_removed_at_the_start(tmp_path: Path, factory: Path) -> None:
    """Power was cut while a release was put together, or before it was listed. Nobody else would ever remove it."""
    models = tmp_path / "releases" / PATH
    with site(tmp_path / "releases", factory) as here:
        here.install(release(1))
        for name in ("2", "3.new"):
            shutil.copytree(models / "1", models / name)
    with site(tmp_path / "releases", factory) as here:
        assert [path.name for path in models.iterdir()] == ["1"]
        assert here.answer() == 1


# --- refusals --------------------------------------------------------------------------------------------------------
def golden(expected: float) -> dict[str, bytes]:
    """A release that adds 1 and says that it gives ``expected`` for zero."""
    import io

    files = {"adder.onnx": adder(1)}
    for name, value in (("x.npy", 0.0), ("y.npy", expected)):
        file = io.BytesIO()
        np.save(file, np.full((1, 2), value, "f4"))
        files[name] = file.getvalue()
    files["adder.toml"] = b'[[golden]]\ninputs = { x = "x.npy" }\noutputs = { y = "y.npy" }\n'
    return files


@pytest.mark.parametrize(
    ("published", "code", "why"),
    [
        (publish(1, golden(2.0)), "golden", r"golden\[0\]: output 'y' is 1.0"),
        (publish(1, {"adder.onnx": b"no model"}), "load", "is not an ONNX file"),
        (release(1, runtime="99.0"), "runtime", r"needs ONNX Runtime 99\.0, and \d"),
        (publish(1, {"adder.onnx": model_bytes([1, 3])}), "signature", "its publisher has to declare the break"),
        (publish(1, {"adder.onnx": adder(float("nan"))}), "not_finite", "'y'"),
        (publish(1, {"adder.onnx": adder(1)}, path="rules/speed"), "other", "does not take rules/speed: add release ="),
        (publish(1, {"adder.onnx": adder(1)}, path="pictures/speed"), "other", "of the kind 'pictures'"),
    ],
)  # fmt: skip
def test_release_that_is_not_good_is_refused_in_a_word_and_nothing_changes(
    tmp_path: Path, factory: Path, published: Published, code: str, why: str
) -> None:
    """The word goes to the whole mesh, the rest to whoever looks at this node."""
    with site(tmp_path / "releases", factory) as here:
        published.put_into(here.store)
        with pytest.raises(InstallRefused, match=why) as refused:
            here.installer.stage(published.description)
        assert refused.value.told.startswith(f"{code}: ")
        assert here.answer() == 0.5
        assert here.installer.journal.paths == {}
        assert not list((tmp_path / "releases").glob("models/*/*"))


def test_declared_break_and_right_golden_vectors_are_taken(tmp_path: Path, factory: Path) -> None:
    """A publisher that means it must be able to change a model."""
    with site(tmp_path / "releases", factory) as here:
        here.install(publish(1, golden(1.0)))
        assert here.answer() == 1
        here.install(publish(2, {"adder.onnx": model_bytes([1, 3])}, signature_since=2))
        assert here.compute.models[NAME].inputs[0].shape == (1, 3)


def test_node_that_missed_a_declared_break_takes_what_came_after_it_and_goes_back(
    tmp_path: Path, factory: Path
) -> None:
    """A vehicle was parked while the model changed. The release after that declares no break, and was refused there."""
    with site(tmp_path / "releases", factory) as here:
        here.install(publish(1, golden(1.0)))
        here.install(publish(3, {"adder.onnx": model_bytes([1, 3])}, signature_since=2))
        assert here.compute.models[NAME].inputs[0].shape == (1, 3)
        here.installer.drop(PATH, 1)
        here.install(publish(1, golden(1.0)))
        assert here.answer() == 1


def test_wider_input_is_taken_without_a_declared_break_and_a_wider_output_is_not(tmp_path: Path, factory: Path) -> None:
    """The relay publishes what whoever used the release before can go on to use. Nodes refused it."""
    with site(tmp_path / "releases", factory) as here:
        published = publish(1, {"adder.onnx": model_bytes(["n", 2])})
        published.put_into(here.store)
        with pytest.raises(InstallRefused, match=r"output 'y' is f4\[\?, 2\] and was f4\[1, 2\]"):
            here.installer.stage(published.description)
        mean = "means (float[n, 2] x) => (float[1, 2] y) <int64[1] axes = {0}> { y = ReduceMean (x, axes) }"
        here.install(publish(2, {"adder.onnx": write_text(tmp_path / "mean.onnx", mean).read_bytes()}))
        assert here.compute.models[NAME].inputs[0].shape == (None, 2)


def test_release_that_crashes_while_it_is_tried_takes_nobody_along(tmp_path: Path, factory: Path) -> None:
    """A model is a program that somebody else wrote."""
    big = model_bytes([4], "Identity", repeat=100_000)
    with site(tmp_path / "releases", factory) as here:
        published = publish(1, {"adder.onnx": big, "adder.toml": b"memory_mib = 16\n"}, signature_since=1)
        published.put_into(here.store)
        with pytest.raises(InstallRefused) as refused:
            here.installer.stage(published.description)
        assert refused.value.code == "memory", str(refused.value)
        assert here.answer() == 0.5


# --- damage ----------------------------------------------------------------------------------------------------------
def damage(folder: Path, counter: int) -> None:
    path = folder / PATH / str(counter) / "adder.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_damaged_release_gives_way_to_the_one_before_and_then_to_the_file(tmp_path: Path, factory: Path) -> None:
    """A memory card that forgets must not leave a vehicle without a model."""
    folder = tmp_path / "releases"
    with site(folder, factory) as here:
        here.install(release(1))
        here.install(release(2))
    damage(folder, 2)
    here = Site(folder, factory)
    try:
        fell_back = here.start()
        assert here.answer() == 1
        assert "release 2 can't be served" in fell_back[PATH]
        assert here.installer.journal.of(PATH).current == 1
    finally:
        here.close()
    damage(folder, 1)
    with site(folder, factory) as here:
        assert here.answer() == 0.5
        assert here.installer.journal.of(PATH).current == 0


def test_damaged_chunk_is_found_when_a_release_is_staged_and_fetched_again(tmp_path: Path, factory: Path) -> None:
    """The digest of the whole file decides, not what was right when it came."""
    published = release(1, padding_bytes=50_000)
    with site(tmp_path / "releases", factory) as here:
        published.put_into(here.store)
        index = bytes.fromhex(published.description.files[0].content.index)
        content = here.store.content(index)
        assert content is not None
        data = bytearray(content.path.read_bytes())
        data[20_000] ^= 1
        content.path.write_bytes(data)
        with pytest.raises(InstallRefused, match="1 chunks have to be fetched again"):
            here.installer.stage(published.description)
        assert here.store.take_lost() == [content.digests[1]]
        here.install(published)
        assert here.answer() == 1


def test_damaged_journal_is_moved_aside_and_the_file_serves(tmp_path: Path, factory: Path) -> None:
    """Whatever is wrong, the node starts."""
    with site(tmp_path / "releases", factory) as here:
        here.install(release(1))
    (tmp_path / "releases" / "journal.json").write_bytes(b"{")
    with site(tmp_path / "releases", factory) as here:
        assert here.answer() == 0.5
        assert "journal.json.unusable" in here.installer.journal.why_lost
        here.install(release(1))
        assert here.answer() == 1


def test_node_whose_model_is_split_from_now_on_starts_without_its_releases(tmp_path: Path, factory: Path) -> None:
    """The operator has changed the configuration, and nothing that was installed before may keep the node down."""
    with site(tmp_path / "releases", factory) as here:
        here.install(release(1))
        split = ModelsSection(models={NAME: ModelSection(path=factory, split="latency")})
        again = Installer(tmp_path / "releases", here.store, NodeModels(here.compute, split, here.how), 1)
        assert "is split between nodes" in again.serve_installed()[PATH]
        assert again.journal.of(PATH).current == 0


class FullDisk(Disk):
    """A disk on which nothing can be written while it is full."""

    is_full = False

    def write(self, path: Path, data: bytes) -> None:
        """See :class:`Disk`."""
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        super().write(path, data)


def test_release_that_served_before_takes_over_on_a_full_disk_and_is_written_later(tmp_path: Path) -> None:
    """A bad release must not go on serving because somebody has filled the disk. A new one may wait for room."""
    disk = FullDisk()
    with site(tmp_path / "releases", disk=disk) as here:
        here.install(release(1))
        here.install(release(2))
        third = release(3)
        third.put_into(here.store)
        here.installer.stage(third.description)
        disk.is_full = True
        with pytest.raises(InstallRefused, match="make room"):
            here.installer.serve(PATH, 3)
        assert here.answer() == here.installer.journal.of(PATH).current == 2
        here.installer.serve(PATH, 1)
        assert here.answer() == here.installer.journal.of(PATH).current == 1
        here.installer.journal.catch_up()
        disk.is_full = False
        here.installer.journal.catch_up()
    with site(tmp_path / "releases") as here:
        assert here.answer() == 1
