"""A node that waits until its clock is plausible, because a board without a battery boots in 1970.

Meanwhile it takes no part in the mesh: nothing listens for neighbours, nothing is sent, and no incarnation is taken. It
says what it waits for in its log and over HTTP. When the clock is set, or other files are put in the place of those
that can't be used at that time, it goes on within ``LOOK_S``.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from meshnode.config.sections import NodeConfig
from meshnode.http.section import HttpSection
from meshnode.identity import NodeIdentity
from meshnode.troubles import Troubles
from protocols.base.errors import ClockImplausible, MeshError, TransportError

_log = logging.getLogger(__name__)
LOOK_S: Final = 1.0
"""The time between two looks at the clock and the files, each of which takes 2 ms."""
REMIND_S: Final = 600.0
"""How often the log repeats what the node waits for."""


async def wait_for_clock(
    config: NodeConfig, identify: Callable[[], NodeIdentity], implausible: ClockImplausible
) -> NodeIdentity:
    """Call ``identify`` until it raises nothing, and return what it returns. ``implausible`` is what it has raised.

    Files that are wrong in other ways meanwhile, because they are being copied, say, are waited for as well.
    """
    troubles = Troubles()
    waits = _Waits(troubles)
    waits.told(implausible)
    async with AsyncExitStack() as closing:
        await _answer(config, troubles, closing)
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                identity = identify()
            except MeshError as error:
                waits.told(error)
            else:
                _log.info("the clock is plausible now, and %s opens", config.node.id)
                return identity


class _Waits:
    """Tells what the node waits for: in the log when it changes and then rarely."""

    def __init__(self, troubles: Troubles) -> None:
        self._troubles = troubles
        self._fault, self._reminded_s = "", time.monotonic()

    def told(self, error: MeshError) -> None:
        """What the last look found."""
        fault, now_s = error.fault if isinstance(error, ClockImplausible) else str(error), time.monotonic()
        if fault != self._fault:
            self._troubles.begin("clock", "", f"the node waits: {error}", essential=True)
            self._fault, self._reminded_s = fault, now_s
        elif now_s - self._reminded_s >= REMIND_S:
            _log.warning("the node still waits: %s", error)
            self._reminded_s = now_s


async def _answer(config: NodeConfig, troubles: Troubles, closing: AsyncExitStack) -> None:
    """Answer over HTTP if the configuration wants it and the port can be used."""
    section = config.of(HttpSection)
    if not section.enabled:
        return
    from meshnode.http.waiting import WaitingHttp  # its libraries take 10 MB, which only a node with HTTP pays

    server = WaitingHttp(config.node.id, troubles)
    try:
        port = await server.start(section.host, section.port)
    except TransportError as error:
        _log.warning("the node waits without HTTP: %s", error)
        return
    closing.push_async_callback(server.close)
    _log.info("the waiting node answers at HTTP port %d", port)
