"""Gossip as a part of a node: how its entries are signed, what it says about itself, and what it keeps."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from meshnode.gossip.notary import Notary
from meshnode.gossip.service import GossipService
from meshnode.links.interfaces import HostAddress
from meshnode.links.transport import CredentialFiles
from meshnode.running import Host, HttpService, RunningPart
from protocols.base.effects import Event
from protocols.engine import Engine
from protocols.gossip.entries import EntryView, Seal, Stored, views
from protocols.gossip.events import EntryAccepted, EntryRefused
from protocols.readings.signing.seal import ReadingSeal

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

_log = logging.getLogger(__name__)
_CHECKED_AGAIN_AT_ONCE = 32
"""Entries that are taken out of the store under one hold of the engine's lock: a millisecond."""


class RunningGossip(RunningPart):
    """See the module."""

    gauges = frozenset({"gossip_entries_held"})

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._notary = Notary(host.identity.credentials, host.mesh)
        self._service: GossipService | None = None
        self._unchecked = False
        """Whether entries are held that the present authority has not vouched for yet."""

    # --- to the engine ---------------------------------------------------------------------------------------------
    def seal(self) -> Seal:
        """How entries are signed and checked."""
        return self._notary.seal()

    def reading_seal(self) -> ReadingSeal:
        """How readings that may be passed on are signed and checked."""
        return self._notary.reading_seal()

    def handlers(self) -> Mapping[type[Event], Callable[[Any], object]]:
        """It logs which entries were taken and refused."""
        return {EntryAccepted: _entry_was_accepted, EntryRefused: _entry_was_refused}

    def entries(self) -> list[EntryView]:
        """Every entry held, by author and kind."""
        return views(self.host.driver.look(lambda engine, now: engine.gossip.stored(now)))

    def put(self, kind: str, body: bytes, lifetime_s: int) -> int:
        """Author an entry; see :meth:`meshnode.node.Node.put_entry`."""
        return self.host.driver.act(lambda engine, now: engine.gossip.put(kind, body, lifetime_s, now))

    # --- life ------------------------------------------------------------------------------------------------------
    async def join(self, closing: AsyncExitStack) -> None:
        """Restore the entries that were kept, and author the address entry, now and whenever it changes."""
        self._service = GossipService(self.host)
        await asyncio.to_thread(self._service.open)
        closing.push_async_callback(asyncio.to_thread, self._service.save)
        self.host.addresses.listen(self._say)
        running = asyncio.create_task(self._service.run(), name="gossip")
        closing.callback(running.cancel)

    def _say(self, held: Sequence[HostAddress], _: frozenset[int]) -> bool:
        if self._service is not None:
            self._service.say(held)
        return True

    def renewed(self, credentials: CredentialFiles, ends: datetime) -> None:
        """Sign with the new certificate. With a new authority, keep only the entries that it vouches for."""
        self._unchecked |= self._notary.renew(credentials)  # what fails half-way is tried again as a whole
        if self._unchecked:
            driver = self.host.driver
            stored = driver.look(lambda engine, now: engine.gossip.stored(now))
            for at in range(0, len(stored), _CHECKED_AGAIN_AT_ONCE):
                few = stored[at : at + _CHECKED_AGAIN_AT_ONCE]
                driver.act(partial(_check_again, few))
            driver.act(lambda engine, now: engine.gossip.sign_again(now))
            self._unchecked = False
        if self._service is not None:
            self._service.renewed(ends)

    # --- over HTTP -------------------------------------------------------------------------------------------------
    def routes(self, service: HttpService) -> "Sequence[BaseRoute]":
        """``GET /v1/gossip``."""
        from meshnode.gossip.routes import gossip_routes

        return gossip_routes(self.entries)


def _check_again(few: Sequence[Stored], engine: Engine, now: int) -> None:
    engine.gossip.check_again(few, now)


def _entry_was_accepted(event: EntryAccepted) -> None:
    _log.debug("%s", event)  # there are thousands in a large mesh


def _entry_was_refused(event: EntryRefused) -> None:
    _log.warning(
        "%s sent an entry that was refused: %s %r of %r, version %d", event.source, event.because, event.kind,
        event.author, event.version,
    )  # fmt: skip
