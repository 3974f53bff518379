"""Signatures that a running relay renews, so that a mesh with its relay never comes to the end of its metadata."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloud_relay.releases.renewing import renew_if_due
from cloud_relay.releases.repository import Lifetimes, ReleaseRepository, opened
from cloud_relay.releases.signing import make_key
from protocols.base.errors import StorageError
from tests.tools.release_fixture import ONLINE, Publisher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with its keys beside it."""
    folder = tmp_path / "repository"
    with opened(folder) as repository:
        keys = {role: make_key(folder / "keys" / f"{role}.pem") for role in ONLINE}
        roots = [make_key(tmp_path / f"{number}.pem") for number in (1, 2)]
        repository.create(roots, 2, keys)
        repository.commit()
    return folder


@pytest.mark.parametrize(
    ("days", "renewed", "targets"), [(1, False, 1), (14, False, 1), (16, True, 1), (40, True, 1), (340, True, 2)]
)
def test_renewal_comes_at_half_of_the_life(folder: Path, days: int, renewed: bool, targets: int) -> None:
    """Early enough that a relay may be away for two weeks, and the targets a month before they end."""
    now = datetime.now(UTC) + timedelta(days=days)
    assert renew_if_due(folder, lambda: now) is renewed
    after = ReleaseRepository(folder).load()
    assert after.timestamp.version == 1 + renewed
    assert (after.timestamp.expires - now).days >= 14
    assert after.targets.version == targets
    assert renew_if_due(folder, lambda: now) is False


def test_renewal_without_keys_or_repository_leaves_everything(tmp_path: Path, folder: Path) -> None:
    """The relay runs on, and tells its log."""
    assert renew_if_due(tmp_path / "nothing") is False
    publisher = Publisher(tmp_path / "elsewhere")  # its keys are not on this disk
    publisher.ahead(-20)
    before = publisher.refresh()
    assert renew_if_due(publisher.folder) is False
    assert publisher.bundle == before


def test_renewal_of_short_targets_comes_at_half_of_their_life(folder: Path) -> None:
    """With targets of thirty days or less, the relay signed everything anew each hour."""
    with opened(folder) as repository:
        repository.load().state.lifetimes = Lifetimes(targets=20)
        repository.refresh(repository.lists())
        repository.commit()
    for days, renewed in ((1, False), (9, False), (11, True)):
        now = datetime.now(UTC) + timedelta(days=days)
        assert renew_if_due(folder, lambda now=now: now) is renewed  # type: ignore[misc]
    assert renew_if_due(folder, lambda: now) is False
    assert ReleaseRepository(folder).load().targets.version == 3


def test_renewal_without_the_key_of_one_publisher_signs_all_the_rest(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another team keeps its key at home, as the reference says. Timestamp and snapshot ended because of that."""
    (folder / "keys" / "models.pem").rename(tmp_path / "models.pem")
    now = datetime.now(UTC) + timedelta(days=340)
    assert renew_if_due(folder, lambda: now) is True
    after = ReleaseRepository(folder).load()
    assert (after.timestamp.version, after.snapshot.version, after.targets.version) == (2, 2, 2)
    assert (after.delegated("rollouts").version, after.delegated("models").version) == (2, 1)
    (told,) = caplog.messages
    assert "the targets of models end on" in told
    assert "refresh --targets --keys FOLDER" in told
    assert renew_if_due(folder, lambda: now) is False
    assert ReleaseRepository(folder).load().timestamp.version == 2


def test_renewal_while_an_operator_publishes_waits_for_the_next_hour(folder: Path) -> None:
    """Two writers at once would lose what one of them signed."""
    with opened(folder):
        assert renew_if_due(folder) is False
        with pytest.raises(StorageError, match="another command"), opened(folder):
            pass
