"""One sink: it reads on from its position, hands over a portion, and moves its position once that is confirmed.

The loop never gives a record up by itself. What a receiver does not confirm is sent again, after pauses that grow to a
minute, over a new connection. What it refuses is halved until the record is found that it will not take; this one is
kept in a file with the reason, counted for the node that sent it, and the rest goes on.

A receiver that refuses one record after another may be wrong itself, or it is one node that sends what it never takes.
So after ``MAX_REFUSED_IN_A_ROW`` records nothing more is given up until the receiver takes a record of a node of which
it refused none meanwhile; that record is sent ahead, and comes again in its turn. If these are refused too, or nobody
else has sent anything, the sink waits, as it waits for a receiver that is down. So no node alone stops a sink for the
others, and a receiver that takes nothing costs no backlog.

Invariant: the position that is on disk is never above what was confirmed, refused by name, or skipped as a gap. It is
saved once for each portion, however many of its records are refused: saving costs more than asking.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Collection
from random import Random
from typing import Any, Final

from msgspec import structs

from cloud_relay.sinks.contract import DeliveryFailed, DeliveryRefused, Portion, SinkTarget, identity_of
from cloud_relay.sinks.progress import RefusedOrigin, SinkProgress
from cloud_relay.sinks.refusals import RefusedRecords, SetAside
from cloud_relay.sinks.secrecy import scrubbed, without_secrets
from cloud_relay.sinks.settings import SinkSettings
from cloud_relay.sinks.stores.contract import SinkStore
from cloud_relay.sinks.witnesses import Witnesses
from meshnode.backoff import Backoff
from protocols.base.errors import MeshError

TAKE_S: Final = 2.0
"""Between two looks whether a sink that another relay delivers has become free."""
MAX_FAILURES_IN_A_TURN: Final = 5
"""In a row, over some 15 s. It may be this host alone that can't reach the receiver, so another relay gets its turn."""
LOOK_S: Final = 0.5
"""Between two looks for what was stored. Looking costs the store's writer nothing, and a bell would."""
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0
LONGEST_RETRY_AFTER_S: Final = 600.0
"""A receiver may ask for so much patience at most."""
MAX_REFUSED_IN_A_ROW: Final = 20
"""Records. A few bad ones may come together; a receiver that wants a column, a right or a topic refuses all."""
MAX_WITNESSES_ASKED: Final = 20
"""Nodes. If records of so many are refused one after another, it is the receiver."""
SAVE_AFTER_S: Final = 10.0
"""The time between two savings of the position while a sink passes records of which none is for it. After a crash it
passes these once more, and ``cloud-relay sinks`` shows no backlog that is older."""
_log = logging.getLogger(__name__)


class SinkDelivery:
    """The work of one sink. ``statistics`` may be called from any thread, all else from the thread that made it."""

    def __init__(
        self, settings: SinkSettings, target: SinkTarget, store: SinkStore, refused: RefusedRecords,
        random: Random, end_connections: Callable[[], None],
    ) -> None:  # fmt: skip
        """``end_connections`` ends those that the target left open when it was closed."""
        self._settings, self._target, self._store = settings, target, store
        self._refused, self._random = refused, random
        self._end_connections = end_connections
        self._progress: SinkProgress | None = None
        self._on_disk: SinkProgress | None = None
        """What is saved of it."""
        self._seen = SinkProgress(0)
        """What is shown as long as the progress is not known: what it was last, or what another relay has saved."""
        self._waits = False
        """Another relay delivers this sink."""
        self._set_aside: list[SetAside] = []
        """Refused records that are not in their file yet."""
        self._saved_s = 0.0
        self._newest = self._backlog = 0
        self._trouble = ""
        """What is wrong while the progress is not known, or not ours to save."""
        self._refused_in_a_row = 0
        self._refused_nodes: set[str] = set()
        """Whose records these are."""
        self._witnesses = Witnesses(store)
        self._delivered_since_pause = False
        self._failures_in_a_turn = 0

    def statistics(self) -> dict[str, Any]:
        """How far it has come."""
        progress = self._progress or self._seen
        return {
            "kind": self._settings.kind.value,
            "delivering": not self._waits,
            "working": not (progress.error or self._trouble),
            "position": progress.position,
            "backlog": self._backlog,
            "delivered": progress.delivered,
            "refused": progress.refused,
            "refused_by": {node.origin: node.records for node in progress.refused_by},
            "skipped": progress.skipped,
            "deleted": progress.deleted,
            "failures": progress.failures,
            "delivered_utc_s": progress.delivered_utc_s,
            "error": self._trouble or progress.error,
        }

    async def run(self) -> None:
        """Deliver until cancelled."""
        pause = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S, self._random)
        while True:
            waits_s = 0.0
            self._delivered_since_pause = False
            try:
                await self._deliver()
            except MeshError as error:
                waits_s = self._failed(error)
            except Exception as error:  # noqa: BLE001 - a bug, or what a library lets out: this sink alone waits
                told = without_secrets(traceback.format_exc(), self._settings.secrets.values())
                _log.error("sink %s: an error that was not expected\n%s", self._settings.name, told)
                waits_s = self._failed(DeliveryFailed(f"{type(error).__name__}: {error}"))
            self._failures_in_a_turn += 1
            if self._delivered_since_pause:
                pause.reset()
                self._failures_in_a_turn = 0
            elif self._failures_in_a_turn >= MAX_FAILURES_IN_A_TURN and not waits_s:
                self._store.give_way()
                self._failures_in_a_turn = 0
            await asyncio.sleep(max(pause.next_s(), waits_s))

    async def _deliver(self) -> None:
        """Deliver over one connection until it fails."""
        await self._take()
        self._known()
        self._trouble = ""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._target.open()
            while True:
                if self._known() is not self._on_disk:
                    self._save(self._known())  # before more is done whose repetition would be owed to it
                self._skip_if_too_far_behind(self._known())
                await self._send(await self._next_portion(self._known()))
                self._save(self._known())
        except TimeoutError as error:
            raise DeliveryFailed(f"no answer within {self._settings.timeout_s:g} s") from error
        finally:
            await self._target.close()
            self._end_connections()

    async def _take(self) -> None:
        """Wait until this sink is ours. What we knew of it may be old then."""
        if self._store.is_held:
            return
        self._seen = self._progress or self._seen
        self._progress = self._on_disk = None
        self._set_aside.clear()
        while not self._store.take():
            if not self._waits:
                _log.info(
                    "sink %s is delivered by another relay: this one takes over when that ends", self._settings.name
                )
            saved = self._store.load() or SinkProgress(0)
            self._backlog = self._store.behind(saved.position)
            self._waits, self._seen, self._trouble = True, saved, ""
            await asyncio.sleep(TAKE_S)
        self._waits = False

    async def _next_portion(self, progress: SinkProgress) -> Portion:
        """The records that come next, at least one; it waits for them."""
        begins = progress.position + 1
        portion, waits_until_s = Portion(begins, progress.position, []), None
        limit = progress.under_way
        while True:
            portion, whole, newest, is_thinned = self._store.extend(portion, self._target.most_records, limit)
            self._newest = max(self._newest, newest)
            self._backlog = self._store.behind(self._known().position)
            abreast = portion.last >= newest
            if is_thinned and limit is not None and limit == progress.under_way:
                # What has this name at the receiver may be all of it, and must not be replaced by what is left.
                limit, portion = (limit - 1 if limit > begins else None), Portion(begins, begins - 1, [])
                continue
            if portion.records:
                waits_until_s = waits_until_s or time.monotonic() + self._target.longest_wait_s
                if whole or (abreast and time.monotonic() >= waits_until_s):
                    if self._target.repeats_portions and portion.last != self._known().under_way:
                        self._save(structs.replace(self._known(), under_way=portion.last))
                    return portion
            else:
                self._passed(portion, abreast=abreast)
                limit = limit if portion.last < (limit or 0) else None
                portion = Portion(portion.last + 1, portion.last, [])
            await asyncio.sleep(LOOK_S if abreast else 0)

    async def _send(self, portion: Portion) -> None:
        try:
            await self._hand_over(portion)
        except DeliveryRefused as error:
            if len(portion.records) > 1:
                for half in portion.halves():
                    await self._send(half)
                return
            await self._give_up(portion, self._told(error))
            return
        self._advance(portion, delivered=len(portion.records))

    async def _hand_over(self, portion: Portion) -> None:
        """Have the receiver confirm a portion, within the time that it has."""
        async with asyncio.timeout(self._settings.timeout_s):
            await self._target.send(portion)
        self._refused_in_a_row = 0
        self._refused_nodes.clear()

    async def _give_up(self, portion: Portion, reason: str) -> None:
        """Set the only record of a portion aside. :raises DeliveryFailed: it may well be the receiver that is wrong."""
        ((number, record),) = portion.records
        origin = record.fields["origin"]
        if self._refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
            await self._see_that_others_are_taken(portion.last, {*self._refused_nodes, origin}, reason)
        self._set_aside.append(SetAside(number, record, reason))
        self._refused_in_a_row += 1
        self._refused_nodes.add(origin)
        self._advance(portion, refused=RefusedOrigin(origin, 1, number, number, int(time.time()), reason))

    async def _see_that_others_are_taken(self, position: int, refused: set[str], reason: str) -> None:
        while len(refused) <= MAX_WITNESSES_ASKED:
            witness = await self._witnesses.next(position, refused)
            if witness is None:
                raise DeliveryFailed(
                    f"the receiver has refused {self._refused_in_a_row} records one after another, and no record of a "
                    f"node other than {_some(refused)} is there that would tell whether it takes any, so no more are "
                    f"given up: {reason}"
                )
            try:
                await self._hand_over(Portion(witness[0], witness[0], [witness]))
            except DeliveryRefused as error:
                refused.add(witness[1].fields["origin"])
                reason = self._told(error)
            else:
                return
        raise DeliveryFailed(
            f"the receiver has refused {self._refused_in_a_row} records one after another, and records of "
            f"{len(refused)} nodes, so no more are given up until it takes one: {reason}"
        )

    # --- progress --------------------------------------------------------------------------------------------------
    def _known(self) -> SinkProgress:
        """The progress, from its file at first."""
        if self._progress is None:
            self._newest = self._store.newest()
            saved = self._store.load()
            known = saved or SinkProgress(self._newest if self._settings.begins_newest else 0)
            self._backlog = self._store.behind(known.position)  # first, or a backlog of none would be shown meanwhile
            if saved is None:
                self._save(known)
            self._progress = self._on_disk = known
        if self._progress.position > self._newest:
            self._newest = self._store.newest()
            if self._progress.position > self._newest:
                raise DeliveryFailed(
                    f"its position {self._progress.position} is above {self._newest}, the newest that there is, so it "
                    f"is of another store: stop the relay and say 'cloud-relay sinks move {self._settings.name} oldest'"
                )
        return self._progress

    def _advance(self, portion: Portion, delivered: int = 0, refused: RefusedOrigin | None = None) -> None:
        """Note what became of a portion, or of a part of one; it is saved with the whole."""
        progress, self._delivered_since_pause = self._known_past(portion), True
        now_utc_s = int(time.time())
        if progress.error and delivered:
            _log.info("sink %s works again", self._settings.name)
        under_way = progress.under_way if progress.under_way is not None and progress.under_way > portion.last else None
        if refused is not None:
            progress = progress.refusing(refused)
        self._progress = structs.replace(
            progress, position=portion.last, under_way=under_way, delivered=progress.delivered + delivered,
            error="" if delivered else progress.error,
            delivered_utc_s=now_utc_s if delivered else progress.delivered_utc_s,
        )  # fmt: skip

    def _passed(self, portion: Portion, *, abreast: bool) -> None:
        """Nothing in a portion is for this sink. ``abreast``: there is nothing behind it either."""
        progress, position = self._known_past(portion), portion.last
        under_way = progress.under_way if (progress.under_way or 0) > position else None
        fresh = structs.replace(progress, position=position, under_way=under_way)
        if abreast and fresh.error:
            fresh = structs.replace(fresh, error="")  # it is connected, and owes nothing
        saved = -1 if self._on_disk is None else self._on_disk.position
        late = position > saved and time.monotonic() - self._saved_s >= SAVE_AFTER_S
        if late or portion.deleted or (fresh.under_way, fresh.error) != (progress.under_way, progress.error):
            self._save(fresh)
        else:
            self._progress = fresh

    def _known_past(self, portion: Portion) -> SinkProgress:
        """The progress with what retention deleted of a portion noted."""
        if portion.deleted:
            _log.warning(
                "sink %s: retention had deleted %d of the records with numbers from %d to %d before it came to them",
                self._settings.name, portion.deleted, portion.first, portion.last,
            )  # fmt: skip
        return self._known().past_deleted(portion.first, portion.last, portion.deleted, int(time.time()))

    def _skip_if_too_far_behind(self, progress: SinkProgress) -> None:
        if self._settings.max_backlog is None:
            return
        skip = self._store.skip(progress.position, self._settings.max_backlog)
        if skip is not None:
            fresh = progress.skipping_to(skip.number, skip.records, int(time.time()))
            _log.warning(
                "sink %s is more than %d records behind: %d with numbers from %d to %d are skipped",
                self._settings.name, self._settings.max_backlog, skip.records, fresh.gaps[-1].first, skip.number,
            )  # fmt: skip
            self._save(fresh)

    def _save(self, progress: SinkProgress) -> None:
        """Have it on disk, after what was set aside."""
        if self._set_aside:
            self._refused.add(self._set_aside)
            first, last = self._set_aside[0], self._set_aside[-1]
            _log.warning(
                "sink %s will never take %d records, from %s to %s: %s", self._settings.name, len(self._set_aside),
                identity_of(first.record), identity_of(last.record), last.reason,
            )  # fmt: skip
            self._set_aside.clear()
        self._store.save(progress)
        self._progress = self._on_disk = progress
        self._saved_s = time.monotonic()

    # --- failures --------------------------------------------------------------------------------------------------
    def _failed(self, error: MeshError) -> float:
        """Note a failure. Returns the pause that the receiver asked for."""
        told = self._told(error)
        before = self._progress or self._seen
        if told not in (before.error, self._trouble):
            _log.warning("sink %s waits: %s", self._settings.name, told)
        if self._progress is None or not self._store.is_held:  # it can't be saved, so it must not be counted either
            self._trouble = told
        else:
            self._trouble = ""
            fresh = structs.replace(before, failures=before.failures + 1, failed_utc_s=int(time.time()), error=told)
            self._progress = fresh
            try:
                self._backlog = self._store.behind(fresh.position)
                self._save(fresh)
            except MeshError:  # it is the disk that fails; what was noted is shown as long as this runs
                pass
        return min(error.retry_after_s, LONGEST_RETRY_AFTER_S) if isinstance(error, DeliveryFailed) else 0.0

    def _told(self, error: Exception) -> str:
        return scrubbed(str(error) or type(error).__name__, self._settings.secrets.values())


def _some(nodes: Collection[str]) -> str:
    named = sorted(nodes)[:3]
    return ", ".join(named) + (f" and {len(nodes) - len(named)} more" if len(nodes) > len(named) else "")
