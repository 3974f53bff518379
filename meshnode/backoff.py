"""Pauses between tries of something that the world may mend by itself: a file, a device, an address, a disk."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from meshnode.troubles import Troubles
from protocols.base.errors import TransportError

_SHORTENED_BY: Final = 0.25
"""The largest share by which a pause is shortened by chance, so that what failed together is not tried together."""


class Backoff:
    """Each pause is twice as long as the one before, up to a bound. Not thread-safe: its owner sees to that."""

    def __init__(self, first_s: float, longest_s: float, random: Random | None = None) -> None:
        """``random`` draws by how much a pause is shortened, a quarter at most."""
        self._first_s, self._longest_s = first_s, longest_s
        self._random = random or Random()
        self._pause_s = first_s

    def next_s(self) -> float:
        """How long to wait before the next try, in seconds."""
        pause_s, self._pause_s = self._pause_s, min(self._longest_s, 2 * self._pause_s)
        return pause_s * (1 - self._random.random() * _SHORTENED_BY)

    def reset(self) -> None:
        """It has worked: begin with the shortest pause again."""
        self._pause_s = self._first_s


ADDRESS_FIRST_S: Final = 0.25
ADDRESS_LONGEST_S: Final = 2.0
"""Pauses between tries to listen on an address: a cable that is plugged in is noticed by people."""


async def listen_now_or_later(
    attempt: Callable[[], Awaitable[object]], part: str, troubles: Troubles, *, essential: bool = False
) -> "asyncio.Task[None] | None":
    """Call ``attempt`` until it raises no ``TransportError``; meanwhile that is a trouble of ``part``. Returns a task
    that tries again, for the caller to cancel; None: the first attempt worked."""

    async def listens() -> bool:
        try:
            await attempt()
        except TransportError as error:
            troubles.begin(part, "", str(error), essential=essential)
            return False
        troubles.end(part)
        return True

    async def later() -> None:
        backoff = Backoff(ADDRESS_FIRST_S, ADDRESS_LONGEST_S)
        while True:
            await asyncio.sleep(backoff.next_s())
            if await listens():
                return

    return None if await listens() else asyncio.create_task(later(), name=f"{part} listens")
