"""Functions at work: readings wait for each, and calls are made of them, one after the other or several at a time.

A function is called once for each reading that comes while it is wanted, and never for what was derived through itself:
what it publishes has ``function NAME`` first in its lineage. A reading whose lineage has no room for that step makes no
call, and is counted. So is one that gives way to newer ones, because too many wait for their turn: the oldest of the
node that has most of them there.

All lines of a call are published, or none: each is checked before the first one is.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec

from meshnode.functions.calling import Call, call
from meshnode.functions.section import FunctionSection, FunctionsSection
from meshnode.groups import program_in
from meshnode.http.guard import BadRequest
from meshnode.http.reading_json import parse_untrusted_publish, reading_form
from meshnode.readings.publisher import Publisher
from meshnode.readings.subscriptions import Subscription
from meshnode.running import Host, RunningPart
from meshnode.tasks import told
from protocols.access import DEFAULT_RULES, AccessTable
from protocols.base.errors import LocalProtocolError, MeshError, NotPermitted, ValueUnsupported
from protocols.base.keys import matches
from protocols.base.limits import MAX_LINEAGE
from protocols.readings.publication import checked_publication
from protocols.wire.parcels import encode_alone
from protocols.wire.readings import EventTime, Position, Provenance, Reading

MAX_LINES: Final = 100
"""How many readings one call may publish."""

_Draft = tuple[Publisher, Any, Position, int | None]
"""A publisher, and the value, place and time that it is to publish."""


class Function:
    """One function of a node."""

    def __init__(self, host: Host, section: FunctionSection) -> None:
        self._host, self._section = host, section
        self._program = program_in(host.folder, section.run)
        self._mark = f"function {section.name}"
        self.counts: Counter[str] = Counter()
        self._next_ns = 0
        rules = host.config.access.rules
        self._access = AccessTable(DEFAULT_RULES if rules is None else rules)

    @property
    def name(self) -> str:
        """Its name."""
        return self._section.name

    async def run(self, subscription: Subscription) -> None:
        """Make calls for the readings of a subscription until it ends."""
        places = asyncio.Semaphore(self._section.at_once)
        async with asyncio.TaskGroup() as calls:
            async for reading in subscription:
                if self._mark in reading.how.lineage:
                    continue
                if len(reading.how.lineage) >= MAX_LINEAGE:
                    self.counts["lineage_full"] += 1
                    continue
                await places.acquire()
                await self._wait_for_turn()
                calls.create_task(self._make(reading, places))

    async def _wait_for_turn(self) -> None:
        left_ns = self._next_ns - time.monotonic_ns()
        if left_ns > 0:
            await asyncio.sleep(left_ns / 1e9)
        self._next_ns = time.monotonic_ns() + self._section.min_interval_ms * 1_000_000

    async def _make(self, reading: Reading, places: asyncio.Semaphore) -> None:
        try:
            given = msgspec.json.encode(reading_form(reading)) + b"\n"
            section = self._section
            made = await call(self._program, self._host.folder, given, section.timeout_s, section.memory_mib)
            self._take(reading, made)
        except ValueUnsupported:
            self.counts["unsupported"] += 1
        finally:
            places.release()

    def _take(self, reading: Reading, made: Call) -> None:
        self.counts["called"] += 1
        if made.outcome != "done":
            self.counts[made.outcome] += 1
            self._host.troubles.begin("function", self.name, f"a call for {reading.key} failed: {made.why}")
            return
        try:
            drafts = self._drafts(reading, made.lines)
            for publisher, value, where, time_ns in drafts:
                publisher.put(value, where=where, time_ns=time_ns)
                self.counts["published"] += 1
        except (MeshError, BadRequest) as error:
            self.counts["refused"] += 1
            self._host.troubles.begin(
                "function", self.name, f"what it wrote for {reading.key} is not published: {error}"
            )
            return
        self._host.troubles.end("function", self.name)

    def _drafts(self, reading: Reading, lines: Sequence[bytes]) -> list[_Draft]:
        """What the lines of a call publish. :raises MeshError: when something is wrong with one of them.
        :raises BadRequest: when one is no reading."""
        if len(lines) > MAX_LINES:
            raise LocalProtocolError(f"it wrote more than {MAX_LINES} lines")
        return [self._draft(reading, line) for line in lines]

    def _draft(self, reading: Reading, line: bytes) -> _Draft:
        """What a line publishes, checked as publishing it will: against the access table, and by encoding it."""
        form = parse_untrusted_publish(line)
        host, allowed = self._host, self._section.publishes
        if allowed is None or not matches(allowed, form.key):
            raise LocalProtocolError(
                f"{form.key!r} is none of the keys that it may publish ({allowed or 'none'}): set 'publishes'"
            )
        sensor = form.sensor if form.sensor != "http" else self._mark
        # What it says itself comes before what was, not in its place: two functions would call each other for ever.
        lineage = tuple(dict.fromkeys((self._mark, *form.lineage, *reading.how.lineage)))
        how = Provenance(sensor, form.unit, form.quality, form.calibration, lineage)
        where = form.position or reading.where
        checked_publication(form.key, how, where, form.priority, form.lifespan_ms, form.hops)
        if not self._access.permits_publish(host.role, host.id, form.key):
            raise NotPermitted(f"the access table does not let {host.role.value} {host.id} publish on {form.key!r}")
        when = reading.when if form.time_ns is None else EventTime(form.time_ns, 0)
        encode_alone(
            Reading(form.key, host.id, 1, form.value, where, when, how, form.priority, form.lifespan_ms, form.hops)
        )
        publisher = host.kept_publisher(form.key, how, form.priority, form.lifespan_ms, form.hops)
        return publisher, form.value, where, form.time_ns


class RunningFunctions(RunningPart):
    """See the module."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._functions = [Function(host, section) for section in host.config.of(FunctionsSection).functions]
        self._subscriptions: dict[str, Subscription] = {}

    async def serve(self, closing: AsyncExitStack) -> None:
        """Begin to call functions."""
        for function, section in zip(self._functions, self.host.config.of(FunctionsSection).functions, strict=True):
            subscription = self.host.subscribe(
                section.keys, history=False, own=True, depth=section.max_waiting, every=True
            )  # fmt: skip
            self._subscriptions[function.name] = subscription
            task = asyncio.create_task(function.run(subscription), name=f"function {function.name}")
            task.add_done_callback(told)
            closing.push_async_callback(_ended, task)

    def statistics(self) -> Mapping[str, int]:
        """Calls by how they ended, readings published, and readings that gave way."""
        total: Counter[str] = Counter()
        for function in self._functions:
            total.update({f"functions_{name}": count for name, count in function.counts.items()})
        gave_way = sum(subscription.dropped for subscription in self._subscriptions.values())
        return total | ({"functions_gave_way": gave_way} if self._functions else {})

    def node_view(self) -> Mapping[str, Any]:
        """``functions``: what became of the calls of each."""
        return {"functions": {function.name: dict(function.counts) for function in self._functions}}


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
