"""Signatures that the relay renews while it runs: timestamp and snapshot, and the targets that are about to end.

It needs the keys below the repository and the extra ``meshnode[releases]``. Where the keys are kept elsewhere, an
operator signs with ``cloud-relay release refresh``.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cloud_relay.releases.shown import BUNDLE_FILE
from protocols.base.errors import MeshError

RENEW_S: Final = 3_600.0
_TARGETS_LEFT: Final = timedelta(days=30)

_log = logging.getLogger(__name__)


def renew_if_due(folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> bool:
    """Sign anew once half of the life of timestamp and snapshot is over. Returns whether it did. It tells the log what
    keeps it from it, and never raises."""
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
            targets = [repository.targets, *(repository.delegated(role) for role in repository.roles())]
            are_ending = any(each.expires - clock() < _TARGETS_LEFT for each in targets)
            if ends - clock() > half and not are_ending:
                return False
            repository.refresh(targets_too=are_ending)
            repository.commit()
    except MeshError as error:
        _log.warning("releases are not signed anew: %s", error)
        return False
    _log.info("timestamp and snapshot of releases were signed anew")
    return True
