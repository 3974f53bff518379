"""Trust in releases: what a node takes, what it keeps, and that a crash leaves one or the other."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from meshnode.releases.trust import Trust
from protocols.base.errors import ConfigError, MetadataInvalid, StorageError
from protocols.releases.bundle import MAX_BUNDLE_FILES
from tests.tools.release_fixture import Publisher, clock_at, given_publisher, packed, sha256

__all__ = ["given_publisher"]


@pytest.fixture
def trust(tmp_path: Path, publisher: Publisher) -> Trust:
    return Trust(tmp_path / "trust", publisher.root_path)


def reopened(trust: Trust, publisher: Publisher) -> Trust:
    return Trust(trust._folder, publisher.root_path)


def test_trust_bundle_of_the_relay_is_taken_and_listed(trust: Trust, publisher: Publisher) -> None:
    """The whole way once: two releases of one model and one of another, as the relay signed them."""
    for counter, name in ((1, "plate"), (2, "plate"), (7, "signs")):
        publisher.release(counter, name)
    catalogue = trust.verify(publisher.bundle)
    assert [(each.path, each.counter) for each in catalogue.releases] == [
        ("models/plate", 1), ("models/plate", 2), ("models/signs", 7)
    ]  # fmt: skip
    assert (catalogue.root_version, catalogue.timestamp_version, catalogue.is_expired) == (1, 4, False)
    assert catalogue.timestamp == sha256(publisher.files["timestamp.json"])
    assert trust.current() == catalogue
    assert trust.bundle == publisher.bundle


def test_trust_newer_bundle_takes_the_place_of_the_older_one(trust: Trust, publisher: Publisher) -> None:
    """Revoked releases are gone, new ones are there."""
    trust.verify(publisher.release(1))
    with publisher.changing() as repository:
        repository.remove("models/plate/1.json")
    publisher.release(2)
    assert [each.counter for each in trust.verify(publisher.bundle).releases] == [2]


def test_trust_same_bundle_again_costs_no_check(trust: Trust, publisher: Publisher) -> None:
    """Every neighbour offers it."""
    bundle = publisher.release(1)
    catalogue = trust.verify(bundle)
    shutil.rmtree(publisher.folder)
    assert trust.verify(bundle) == catalogue


def test_trust_survives_a_restart_without_checking_again(trust: Trust, publisher: Publisher) -> None:
    """A vehicle that was parked starts with what it knew."""
    catalogue = trust.verify(publisher.release(1))
    again = reopened(trust, publisher)
    assert again.current() == catalogue
    assert again.bundle == publisher.bundle


def test_trust_of_expired_metadata_tells_it_and_goes_on(
    trust: Trust, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that serves goes on, and nothing new is installed."""
    catalogue = trust.verify(publisher.release(1))
    assert not catalogue.is_expired
    clock_at(monkeypatch, 31)
    assert trust.current() == replace(catalogue, is_expired=True)
    assert trust.verify(publisher.bundle).is_expired
    publisher.ahead(31)
    assert not trust.verify(publisher.refresh()).is_expired


@pytest.mark.parametrize("roots", [2, 100])
def test_trust_after_a_year_away_follows_every_root(trust: Trust, publisher: Publisher, roots: int) -> None:
    """All roots since come at once, and each is signed by the one before."""
    trust.verify(publisher.release(1))
    with publisher.changing() as repository:
        for _ in range(roots):
            repository.sign_root(publisher.root_signers[:2])
    catalogue = trust.verify(publisher.release(2))
    assert catalogue.root_version == roots + 1
    assert reopened(trust, publisher).current() == catalogue


def test_trust_given_a_later_root_takes_bundles_that_begin_before_it(tmp_path: Path, publisher: Publisher) -> None:
    """A new node is given the root of today."""
    publisher.rotate("timestamp")
    publisher.rotate("snapshot")
    trust = Trust(tmp_path / "trust", publisher.folder / "metadata" / "2.root.json")
    assert trust.verify(publisher.release(1)).root_version == 3


def test_trust_given_a_later_root_refuses_a_forged_earlier_one(tmp_path: Path, publisher: Publisher) -> None:
    """It could not use it, but would hand it on to nodes that blame it."""
    publisher.rotate("timestamp")
    trust = Trust(tmp_path / "trust", publisher.folder / "metadata" / "2.root.json")
    other = Publisher(tmp_path / "other")
    with pytest.raises(MetadataInvalid):
        trust.verify(packed(publisher.files | {"1.root.json": other.files["1.root.json"]}))


def test_trust_whose_root_has_expired_follows_the_chain_to_a_good_one(tmp_path: Path) -> None:
    """A vehicle that was parked for three years still starts from what it was given."""
    publisher = Publisher(tmp_path / "repository")
    trust = Trust(tmp_path / "trust", publisher.root_path)
    for days in (-1_100, 400, 400):
        publisher.ahead(days)
        with publisher.changing() as repository:
            repository.sign_root(publisher.root_signers[:2])
            repository.refresh(repository.lists())
    publisher.ahead(300)
    assert trust.verify(publisher.refresh()).root_version == 4


def test_trust_publisher_whose_metadata_ended_does_not_keep_others(tmp_path: Path) -> None:
    """One publisher that is gone must not stop all updates of a mesh."""
    publisher = Publisher(tmp_path / "repository")
    trust = Trust(tmp_path / "trust", publisher.root_path)
    publisher.ahead(-366)
    publisher.release(1)
    publisher.ahead(366)
    with publisher.changing() as repository:
        repository._changed |= {"targets", "rollouts"}
        repository.put("rollouts/1.json", b"{}")
    catalogue = trust.verify(publisher.bundle)
    assert (catalogue.releases, [order.serial for order in catalogue.orders]) == ((), [1])
    assert not catalogue.is_expired


def test_trust_target_outside_of_its_delegation_is_not_listed(trust: Trust, publisher: Publisher) -> None:
    """A publisher of models can't give orders."""
    with publisher.changing() as repository:
        targets = repository.delegated("models").targets
        repository.put("models/plate/1.json", b"{}")
        targets["rollouts/9.json"] = targets["models/plate/1.json"]
        targets["models/../2.json"] = targets["models/plate/1.json"]
    catalogue = trust.verify(publisher.bundle)
    assert catalogue.orders == ()
    assert [each.counter for each in catalogue.releases] == [1]


def test_trust_publisher_of_some_models_is_believed_for_these_only(trust: Trust, publisher: Publisher) -> None:
    """Delegations end: what the publisher of a model does not list, nobody lists."""
    publisher.release(1, "plate")
    with publisher.changing() as repository:
        repository.delegate("acme", ["models/plate/*.json"], publisher.signers["models"].public_key, "models")
    publisher.release(1, "signs")
    assert [each.path for each in trust.verify(publisher.bundle).releases] == ["models/signs"]
    publisher.release(2, "plate")
    assert [each.path for each in trust.verify(publisher.bundle).releases] == ["models/plate", "models/signs"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_trust_disk_that_fails_leaves_what_was_trusted(
    trust: Trust, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A full disk at any step: the old metadata stays, whole."""
    catalogue = trust.verify(publisher.release(1))
    newer = publisher.release(2)

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        match moment:
            case "write":
                patch.setattr(Path, "write_bytes", fail)
            case "fsync":
                patch.setattr(os, "fsync", fail)
            case _:
                patch.setattr(Path, "replace", fail)
        with pytest.raises(StorageError):
            trust.verify(newer)
    assert trust.current() == catalogue
    assert reopened(trust, publisher).current() == catalogue
    assert trust.verify(newer).timestamp_version == 3


def test_trust_refused_bundle_leaves_no_trace(trust: Trust, publisher: Publisher) -> None:
    """A liar must not fill the disk."""
    trust.verify(publisher.release(1))
    files = {path: path.read_bytes() for path in trust._folder.rglob("*")}
    for _ in range(3):
        with pytest.raises(MetadataInvalid):
            trust.verify(packed(publisher.files | {"timestamp.json": b"{}"}))
    assert {path: path.read_bytes() for path in trust._folder.rglob("*")} == files


def test_trust_folder_left_by_a_killed_check_is_removed(trust: Trust, publisher: Publisher) -> None:
    """SIGKILL in the middle of a check."""
    left = trust._folder / "checking-abc"
    left.mkdir()
    (left / "timestamp.json").write_bytes(b"{}")
    reopened(trust, publisher)
    assert not left.exists()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-3], lambda data: data[:40] + b"x" + data[41:], lambda data: b""]
)
def test_trust_file_that_was_damaged_counts_as_none(trust: Trust, publisher: Publisher, damage: Any) -> None:
    """A bad memory card: the neighbours give the metadata again."""
    trust.verify(publisher.release(1))
    path = trust._folder / "trusted"
    path.write_bytes(damage(path.read_bytes()))
    again = reopened(trust, publisher)
    assert again.current() is None
    assert again.verify(publisher.bundle).timestamp_version == 2


def test_trust_root_of_another_mesh_drops_what_was_trusted(tmp_path: Path, trust: Trust, publisher: Publisher) -> None:
    """The operator has made a new repository and put its root on the node."""
    trust.verify(publisher.release(1))
    other = Publisher(tmp_path / "other")
    moved = Trust(trust._folder, other.root_path)
    assert moved.current() is None
    with pytest.raises(MetadataInvalid, match="wrong keys"):
        moved.verify(publisher.bundle)
    assert [each.path for each in moved.verify(other.release(1, "signs")).releases] == ["models/signs"]
    assert reopened(moved, other).bundle == other.bundle


def test_trust_given_a_later_root_of_its_mesh_takes_nothing_older(tmp_path: Path, publisher: Publisher) -> None:
    """An operator who copies the root of today must not open the node to what it has left behind."""
    publisher.rotate("timestamp")
    older, newer = publisher.release(1), publisher.release(2)
    Trust(tmp_path / "trust", publisher.root_path).verify(newer)
    moved = Trust(tmp_path / "trust", publisher.folder / "metadata" / "2.root.json")
    with pytest.raises(MetadataInvalid, match="rollback"):
        moved.verify(older)
    assert len(moved.verify(newer).releases) == 2


def test_trust_without_a_root_says_what_to_copy(tmp_path: Path, publisher: Publisher) -> None:
    """The most frequent mistake of an operator."""
    with pytest.raises(ConfigError, match=r"1\.root\.json"):
        Trust(tmp_path / "trust", tmp_path / "missing.json")
    with pytest.raises(ConfigError, match="no root"):
        Trust(tmp_path / "trust", publisher.folder / "metadata" / "timestamp.json")


def test_trust_check_of_a_full_bundle_is_bounded(trust: Trust, publisher: Publisher) -> None:
    """The largest metadata that can travel: a node must be through with it in a moment."""
    with publisher.changing() as repository:
        for counter in range(1, 1_001):
            repository.put(f"models/plate/{counter}.json", b"{}")
    begin_s = time.process_time()
    assert len(trust.verify(publisher.bundle).releases) == 1_000
    assert time.process_time() - begin_s < 10
    assert MAX_BUNDLE_FILES == 1_024


def test_trust_without_the_library_says_what_to_install(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the node starts, and not when the first bundle comes."""
    monkeypatch.setitem(sys.modules, "tuf", None)
    with pytest.raises(ConfigError, match=r"meshnode\[releases\]"):
        Trust(tmp_path / "trust", publisher.root_path)
