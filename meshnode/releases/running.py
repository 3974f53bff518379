"""Releases as a part of a node: what is fetched, tried, served and given to neighbours."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any

from meshnode.releases.active import ActiveReleases
from meshnode.releases.section import ReleasesSection
from meshnode.running import Host, HttpService, RunningPart
from protocols.base.effects import Event
from protocols.base.errors import LocalProtocolError
from protocols.machine import Machine

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from starlette.routing import BaseRoute


class RunningReleases(RunningPart):
    """See the module. Without its section it does nothing."""

    gauges = frozenset({"releases_store_bytes"})

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._section = host.config.given(ReleasesSection)

    @cached_property
    def active(self) -> ActiveReleases | None:
        """All that works together for releases; None: this node takes none. Made when it is first asked for: then the
        other parts are there."""
        return None if self._section is None else ActiveReleases(self.host, self._section)

    def machines(self) -> Sequence[Machine]:
        """The machine of releases."""
        return () if self.active is None else (self.active.machine,)

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """It works on the disk, on the models of the node, and asks the relay."""
        return {} if self.active is None else self.active.performers()

    def handlers(self) -> Mapping[type[Event], Callable[[Any], object]]:
        """It logs what happens, and keeps it in the audit log."""
        return {} if self.active is None else self.active.handlers()

    async def prepare(self, closing: AsyncExitStack) -> None:
        """Open what is on the disk."""
        if self.active is not None:
            await asyncio.to_thread(self.active.open)
            closing.push_async_callback(asyncio.to_thread, self.active.close)

    async def serve(self, closing: AsyncExitStack) -> None:
        """Serve the releases that are installed, and begin to look for newer ones."""
        if self.active is not None:
            await asyncio.to_thread(self.active.begin)
            ticking = asyncio.create_task(self.active.tick(), name="releases")
            closing.callback(ticking.cancel)
            closing.callback(self.active.performer.stop)

    # --- what it tells ---------------------------------------------------------------------------------------------
    def view(self) -> dict[str, Any]:
        """What ``GET /v1/releases`` gives; empty without releases."""
        from meshnode.releases.views import release_view

        return {} if self.active is None else release_view(self.active)

    def statistics(self) -> Mapping[str, int]:
        """What the store holds. The machine counts the rest."""
        return {} if self.active is None else self.active.statistics()

    def node_view(self) -> Mapping[str, Any]:
        """``releases``: what serves, by path; null without releases."""
        return {"releases": None if self.active is None else self.active.serving()}

    def routes(self, service: HttpService) -> "Sequence[BaseRoute]":
        """``GET /v1/releases``, and the orders of the operator of this node."""
        from meshnode.releases.routes import release_routes

        return release_routes(self, service.body)

    def pin(self, path: str, counter: int | None) -> None:
        """Serve one release of a path whatever orders say; None: follow them again.

        :raises LocalProtocolError: this node takes no releases.
        """
        if self.active is None:
            raise LocalProtocolError("this node takes no releases: add [releases] to its configuration")
        self.active.pin(path, counter)

    def imported(self) -> None:
        """Look at the disk again: chunks were put there."""
        if self.active is not None:
            self.active.performer.imported()

    def metrics(self) -> "Iterable[Metric]":
        """Which release of each path serves."""
        if self.active is None:
            return ()
        from meshnode.http.exposition import gauge

        samples = [((path,), float(counter)) for path, counter in self.active.serving().items()]
        return (gauge("release_counter", "The release that serves; 0: the configured file.", samples, "path"),)
