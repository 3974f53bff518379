"""Puts a renewed certificate into use while the node runs.

``meshnode mesh issue`` replaces a node's files; this notices within ``CHECK_S`` and hands them to the links. New
handshakes use the new certificate, and open links stay open. Files that don't fit together (while they are being
copied, for example) change nothing and are checked again.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from meshnode.identity import NodeIdentity, load_identity
from meshnode.links.transport import CredentialFiles
from protocols.base.errors import IdentityError, MeshError

_log = logging.getLogger(__name__)
CHECK_S = 5.0
"""The time between two checks of the files, each of which takes three system calls."""


class Renewal:
    """Watches the credentials of one node."""

    def __init__(self, current: NodeIdentity, renewed: Callable[[CredentialFiles, NodeIdentity], None]) -> None:
        """``renewed`` puts the new files into use; what it raises is logged."""
        self._peer, self._credentials = current.peer, current.credentials
        self._renewed = renewed
        self._seen = self._look()

    def _look(self) -> tuple[tuple[int, int], ...]:
        files = self._credentials.certificate, self._credentials.key, self._credentials.authority
        return tuple(_stamp(file) for file in files)

    async def run(self) -> None:
        """Look at the files until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            now = self._look()
            if now != self._seen:
                await asyncio.to_thread(self._take_up, now)

    def _take_up(self, now: tuple[tuple[int, int], ...]) -> None:
        files = self._credentials
        try:
            identity = load_identity(files.certificate, files.key, files.authority)
            if identity.peer != self._peer:
                raise IdentityError(
                    f"{files.certificate} now belongs to {identity.peer.role.value} {identity.peer.node}, this node is "
                    f"{self._peer.role.value} {self._peer.node}: copy the right file, or restart"
                )
            self._renewed(files, identity)
        except MeshError as error:
            _log.warning("the new certificate is not in use: %s", error)
        else:
            _log.info("a new certificate is in use, valid until %s", identity.not_after)
        self._seen = now


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
