"""Signatures that the relay renews while it runs: timestamp and snapshot, and the targets that are about to end.

It needs the keys below the repository and the extra ``meshnode[releases]``. Where the keys are kept elsewhere, an
operator signs with ``cloud-relay release refresh``. Targets whose key is elsewhere don't keep it from the rest.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloud_relay.releases.shown import BUNDLE_FILE
from protocols.base.errors import MeshError, ReleaseInvalid

if TYPE_CHECKING:
    from cloud_relay.releases.repository import ReleaseRepository

RENEW_S: Final = 3_600.0
_TARGETS_LEFT: Final = timedelta(days=30)
"""Targets are signed anew when so much of their life is left, or half of it if that is less."""

_log = logging.getLogger(__name__)


def renew_if_due(folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> bool:
    """Sign anew once half of the life of timestamp and snapshot is over, or targets are about to end. Returns whether
    it did. It tells the log what keeps it from it, and never raises."""
    if not (folder / BUNDLE_FILE).exists():
        return False
    try:
        from cloud_relay.releases.repository import opened
    except ImportError as error:
        _log.warning("releases in %s are not signed anew (%s): install meshnode[releases]", folder, error)
        return False
    try:
        with opened(folder, clock) as repository:
            repository.load()
            half = timedelta(days=repository.state.lifetimes.online) / 2
            ends = min(repository.timestamp.expires, repository.snapshot.expires)
            renewable = _renewable(repository, clock())
            if ends - clock() > half and not renewable:
                return False
            repository.refresh(renewable)
            repository.commit()
    except MeshError as error:
        _log.warning("releases are not signed anew: %s", error)
        return False
    _log.info("timestamp and snapshot of releases were signed anew")
    return True


def _renewable(repository: "ReleaseRepository", now: datetime) -> list[str]:
    """The roles whose targets are about to end, and whose key is here. Of others that end, it tells the log."""
    left = min(_TARGETS_LEFT, timedelta(days=repository.state.lifetimes.targets) / 2)
    found = []
    for role, targets in repository.lists().items():
        if targets.expires - now < left:
            try:
                repository.signers_of(role)
            except ReleaseInvalid as error:
                _log.warning(
                    "the targets of %s end on %s and are not signed anew: %s. Sign them with 'cloud-relay release "
                    "refresh --targets --keys FOLDER'",
                    role, targets.expires.date(), error,
                )  # fmt: skip
            else:
                found.append(role)
    return found
