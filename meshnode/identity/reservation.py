"""Reserves the incarnations whose sequences a long life uses up, so that the next life begins above them.

It matters only when that life can't begin with the clock, because the clock went back. A node that publishes a thousand
readings a second needs a further incarnation once in six days.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from meshnode.identity.state import StateFolder
from meshnode.troubles import Troubles
from protocols.base.errors import StorageError

CHECK_S: Final = 10.0
"""The time between two checks. At least 2^28 readings are left when one finds that less than half of the sequences are,
and no node publishes as many in this time."""


class Reservation:
    """Looks after the incarnation that is kept on disk."""

    def __init__(self, state: StateFolder, next_sequence: Callable[[], int], troubles: Troubles) -> None:
        """``next_sequence`` returns the sequence of the next reading of this node."""
        self._state, self._next_sequence, self._troubles = state, next_sequence, troubles

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            sequence = self._next_sequence()
            if not self._state.is_reserved(sequence):
                await asyncio.to_thread(self.check, sequence)

    def check(self, sequence: int) -> None:
        """Reserve what is needed. A disk that does not take it is a trouble, and asked again at the next check."""
        try:
            self._state.reserve(sequence)
        except StorageError as error:
            self._troubles.begin("state", "incarnation", str(error))
        else:
            self._troubles.end("state", "incarnation")
