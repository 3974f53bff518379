"""Tells when the clock of a running node leaves the time in which its certificate can be used.

The node goes on: open links stay until their certificates end, and no new one comes about. Whoever looks at the node
should read that the clock or the certificate is the reason.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from meshnode.identity.inspection import OLDEST_UTC_S
from meshnode.troubles import Troubles

CHECK_S: Final = 5.0
"""The time between two looks at the clock."""


class ClockWatch:
    """Watches the clock of one node."""

    def __init__(self, begins: datetime, ends: Callable[[], datetime], troubles: Troubles) -> None:
        """``begins``, ``ends``: in which time the certificate can be used; ``ends`` is asked again each time, because
        certificates are renewed."""
        self._begins = max(begins, datetime.fromtimestamp(OLDEST_UTC_S, UTC))
        self._ends, self._troubles = ends, troubles

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.check(datetime.now(UTC))
            await asyncio.sleep(CHECK_S)

    def check(self, now: datetime) -> None:
        """Begin or end the trouble. The message holds no time that changes, so that it is logged once."""
        ends = self._ends()
        if now < self._begins:
            why = f"it shows a time before {self._begins:%Y-%m-%d %H:%M} UTC, when the certificate begins: set it"
        elif now > ends:
            why = (
                f"it shows a time after {ends:%Y-%m-%d %H:%M} UTC, when the certificate has ended: issue it again with "
                "'meshnode mesh issue', or set the clock if it is ahead"
            )
        else:
            self._troubles.end("clock")
            return
        self._troubles.begin("clock", "", why, essential=True)
