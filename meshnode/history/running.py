"""The history as a part of a node: it keeps readings of the last hours, and answers what is asked about them."""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, Final

from meshnode.history.query import (
    EncodedPage,
    HistoryPage,
    HistoryQuery,
    plain_answer,
    query_of_untrusted,
)
from meshnode.history.section import HistorySection
from meshnode.readings.publisher import PublishedWatch
from meshnode.running import Host, HttpService, RunningPart
from protocols.access import DEFAULT_RULES, AccessTable
from protocols.base.errors import BoundExceeded, LocalProtocolError
from protocols.base.ids import UtcNs
from protocols.base.keys import matches
from protocols.wire.readings import Reading

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from meshnode.history.keeping import HistoryKeeper

MAX_ASKED: Final = 32
"""Questions that wait for an answer. One is answered after the other, so that they take one core at most."""


class RunningHistory(RunningPart):
    """See the module."""

    gauges = frozenset({"history_rows", "history_bytes", "history_waiting"})

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._section = host.config.given(HistorySection)
        self._keeper: HistoryKeeper | None = None
        self._answering: ThreadPoolExecutor | None = None
        self._places = BoundedSemaphore(MAX_ASKED)
        rules = host.config.access.rules
        self._access = AccessTable(DEFAULT_RULES if rules is None else rules)

    def watches_published(self) -> PublishedWatch | None:
        """Keep own readings."""
        return None if self._section is None else self._consider

    def _consider(self, reading: Reading, alone: bytes | None) -> None:
        if self._keeper is not None:
            self._keeper.consider(reading, alone)

    async def prepare(self, closing: AsyncExitStack) -> None:
        """Open the folder. One that can't be used is a trouble, and tried again."""
        section = self._section
        if section is None:
            return
        from meshnode.history.keeping import HistoryKeeper  # the database, which only such a node pays for
        from meshnode.history.store import FOLDER, HistoryStore

        host = self.host
        store = HistoryStore(host.config.node.state_dir / FOLDER, section.max_bytes, section.keep_ns)
        keeper = HistoryKeeper(store, section.keys, section.min_interval_ns, host.troubles, self._count_drop)
        await asyncio.to_thread(keeper.start)
        closing.push_async_callback(asyncio.to_thread, keeper.close)
        self._answering = ThreadPoolExecutor(1, "meshnode-history-find")
        closing.push_async_callback(asyncio.to_thread, self._answering.shutdown)
        self._keeper = keeper

    async def join(self, closing: AsyncExitStack) -> None:
        """Keep readings of neighbours too."""
        if self._section is not None:
            for number, expression in enumerate(self._section.keys):
                self.host.subscribe(expression, callback=partial(self._heard, number), own=False, history=False)

    def _heard(self, number: int, reading: Reading) -> None:
        """A reading comes once for each expression that it matches, and is kept when it comes for the first."""
        assert self._section is not None, "it was subscribed to"
        if not any(matches(expression, reading.key) for expression in self._section.keys[:number]):
            self._consider(reading, None)

    def _count_drop(self, key: str, reason: str) -> None:
        self.host.driver.look(lambda engine, _: engine.drops.count("", key, reason))

    # --- questions ---------------------------------------------------------------------------------------------------
    def begin(self, query: HistoryQuery, permits: Callable[[str], bool] | None = None) -> "Future[EncodedPage]":
        """Look for a page. ``permits``: whether who asks may have readings on a key. May be called from any thread.

        :raises LocalProtocolError: the node keeps no history, or has closed. :raises BoundExceeded: too many ask.
        """
        keeper, answering = self._keeper, self._answering
        if keeper is None or answering is None:
            raise LocalProtocolError(
                f'the node {self.host.id} keeps no history: add [history] with keys = ["**"] to its configuration'
            )
        if not self._places.acquire(blocking=False):
            raise BoundExceeded(f"{MAX_ASKED} questions wait for the history: ask again later")
        try:
            answer = answering.submit(keeper.store.find, query, permits)
        except RuntimeError as error:
            self._places.release()
            raise LocalProtocolError(f"the node {self.host.id} has closed") from error
        answer.add_done_callback(lambda _: self._places.release())
        return answer

    async def find(self, query: HistoryQuery) -> HistoryPage:
        """A page. It raises the errors of :meth:`begin`, and ``StorageError`` when the disk fails."""
        page = await asyncio.wrap_future(self.begin(query))
        return await asyncio.to_thread(lambda: page.decoded)

    def questions(self) -> Mapping[str, Callable[[Any], Any]]:
        """``history``: a page, for local applications."""
        return {"history": self._told}

    def _told(self, argument: Any) -> "Future[dict[str, Any]]":
        """What may be subscribed to here, as the table of access says, may be asked for."""
        query = query_of_untrusted(argument, UtcNs(time.time_ns()))
        told: Future[dict[str, Any]] = Future()
        self.begin(query, self._permits).add_done_callback(partial(_hand_on, told))
        return told

    def _permits(self, key: str) -> bool:
        return self._access.permits_subscribe(self.host.role, self.host.id, key)

    def routes(self, service: HttpService) -> "list[BaseRoute]":
        """``GET /v1/history``."""
        from meshnode.history.routes import history_routes

        return history_routes(self.begin)

    def statistics(self) -> Mapping[str, int]:
        """See :meth:`meshnode.history.keeping.HistoryKeeper.statistics`."""
        return {} if self._keeper is None else self._keeper.statistics()


def _hand_on(told: "Future[dict[str, Any]]", answer: "Future[EncodedPage]") -> None:
    error = answer.exception()
    if error is not None:
        told.set_exception(error)
    else:
        told.set_result(plain_answer(answer.result()))
