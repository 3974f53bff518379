"""Follows records on a thread of its own, as long as the store is open."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from cloud_relay.store.places import PostgresPlace
from cloud_relay.store.postgres.aggregates.following import AggregateFollower
from cloud_relay.store.postgres.session import BY_INDEX, CLASHES, ERRORS, LOST, PostgresSession, postgres_error
from meshnode.backoff import Backoff
from protocols.base.errors import MeshError

LOOK_S: Final = 0.5
"""Between two looks for what other relays stored, or what a transaction held up that was under way."""
STATEMENT_S: Final = 5.0
RETRY_S: Final = (1.0, 30.0)
"""The time until the next look after something failed, at least and at most."""
_SETTINGS: Final = {"lock_timeout": "4s", **BY_INDEX}
_log = logging.getLogger(__name__)


class FollowingThread:
    """Keeps the aggregates of one store right, until it is closed."""

    def __init__(self, place: PostgresPlace, tell: Callable[[], None]) -> None:
        """``tell`` is called on our thread when groups have changed."""
        self._place, self._tell = place, tell
        self._session = PostgresSession(place, STATEMENT_S, _SETTINGS, writes=True)
        self._follower = AggregateFollower(self._session)
        self._rung, self._ended = threading.Event(), threading.Event()
        self.failures = 0
        """Looks that failed."""
        self._thread = threading.Thread(target=self._run, name="aggregates")
        self._thread.start()

    def ring(self) -> None:
        """Records were stored."""
        self._rung.set()

    def close(self) -> None:
        """End after the slice that is under way."""
        self._ended.set()
        self._rung.set()
        self._thread.join()

    def _run(self) -> None:
        retry, pause_s = Backoff(*RETRY_S), 0.0
        while not self._ended.is_set():
            self._rung.wait(pause_s)
            self._rung.clear()
            if self._ended.is_set():
                break
            try:
                self._session.connect()
                has_changed = False
                while self._follower.work() and not self._ended.is_set():
                    if not has_changed:
                        has_changed = True
                        self._tell()
                if has_changed:
                    self._tell()
                retry.reset()
                pause_s = LOOK_S
            except Exception as error:  # noqa: BLE001 - batches go on, whatever it is
                self._failed(error)
                self._ended.wait(retry.next_s())  # whatever is stored meanwhile
                pause_s = 0.0
        self._session.close()

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self._session.drop()
        if isinstance(error, (*ERRORS, *LOST, *CLASHES, MeshError)):
            _log.error("aggregates are filled later: %s", postgres_error(self._place, error))
        else:
            _log.exception("aggregates of %s can't be filled now: this is a bug of the relay", self._place)
