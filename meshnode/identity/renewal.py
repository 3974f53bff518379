"""Puts a renewed certificate into use while the node runs.

``meshnode mesh issue`` replaces a node's files; this notices within ``CHECK_S`` and hands them to the links and to the
parts. New handshakes use the new certificate, and open links stay open. Files that can't be used (they are being
copied, or are not valid yet) are a trouble of the node and change nothing. They are tried until they work or are
replaced: at most ``LONGEST_PAUSE_S`` apart, and at the moment at which the certificate becomes valid. A part that could
not use them is tried again alone.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from meshnode.backoff import Backoff
from meshnode.identity import NodeIdentity, inspect, load_identity
from meshnode.links.transport import CredentialFiles
from meshnode.troubles import Troubles
from protocols.base.errors import IdentityError, MeshError

_log = logging.getLogger(__name__)
CHECK_S = 5.0
"""The time between two checks of the files, each of which takes three system calls."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0

_Stamp = tuple[tuple[int, ...], ...]
Use = Callable[[CredentialFiles, NodeIdentity], None]
"""Puts new files into use. :raises MeshError: it can't."""


class Renewal:
    """Watches the credentials of one node."""

    def __init__(self, current: NodeIdentity, links: Use, parts: Sequence[Use], troubles: Troubles) -> None:
        """``links`` is called first; ``parts`` follow once it has succeeded, each by itself."""
        self._peer, self._credentials = current.peer, current.credentials
        self._links, self._parts, self._troubles = links, tuple(parts), troubles
        self._used = self._tried = self._look()
        self._left: list[Use] = []
        """Who has yet to use the files of ``_tried``."""
        self._backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._due_s = 0.0

    def _look(self) -> _Stamp:
        files = self._credentials.certificate, self._credentials.key, self._credentials.authority
        return tuple(_stamp(file) for file in files)

    async def run(self) -> None:
        """Look at the files until cancelled."""
        while True:
            waiting_s = self._due_s - time.monotonic() if self._tried != self._used else CHECK_S
            await asyncio.sleep(max(0.0, min(CHECK_S, waiting_s)))
            now = self._look()
            if now == self._used:
                self._tried = now
                self._troubles.end("certificate")
            elif now != self._tried:
                self._tried, self._left = now, [self._links, *self._parts]
                self._backoff.reset()
                await asyncio.to_thread(self._try, now)
            elif time.monotonic() >= self._due_s:
                await asyncio.to_thread(self._try, now)

    def _try(self, now: _Stamp) -> None:
        try:
            identity = self._take_up()
        except Exception as error:  # noqa: BLE001 - whatever it is, the old certificate is in use and ends some day
            why = str(error) if isinstance(error, MeshError) else repr(error)
            self._due_s = time.monotonic() + min(self._backoff.next_s(), self._valid_in_s())
            self._troubles.begin("certificate", "", f"the new certificate is not in use: {why}")
        else:
            self._used = now
            self._troubles.end("certificate")
            _log.info("a new certificate is in use, valid until %s", identity.not_after)

    def _take_up(self) -> NodeIdentity:
        files = self._credentials
        identity = load_identity(files.certificate, files.key, files.authority)
        if identity.peer != self._peer:
            raise IdentityError(
                f"{files.certificate} now belongs to {identity.peer.role.value} {identity.peer.node}, this node is "
                f"{self._peer.role.value} {self._peer.node}: copy the right file, or restart"
            )
        failed: Exception | None = None
        for use in tuple(self._left):
            try:
                use(files, identity)
            except Exception as error:  # noqa: BLE001 - one part must not keep the others from it
                failed = failed or error
                if use is self._links:
                    break
            else:
                self._left.remove(use)
        if failed is not None:
            raise failed
        return identity

    def _valid_in_s(self) -> float:
        """How long until the certificate is valid; infinite when that is not what is wrong."""
        files, now = self._credentials, datetime.now(UTC)
        try:
            begins = inspect(files.certificate, files.key, files.authority).not_before
        except MeshError:
            return float("inf")
        return (begins - now).total_seconds() if begins > now else float("inf")


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
