"""Records as a part of a node: readings that rules choose wait on disk and go to the relay."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.links.transport import CredentialFiles
from meshnode.readings.publisher import PublishedWatch
from meshnode.records.rules.section import RulesSection
from meshnode.records.section import CarryingSection, CurationRulesSection, RelaySection
from meshnode.records.using import NodeRules
from meshnode.running import Host, RunningPart
from protocols.base.effects import Event
from protocols.machine import Machine
from protocols.records.carrying.events import BatchHandedOver, CarriedBatchRefused, ReplyBrought
from protocols.records.events import UplinkState
from protocols.wire.readings import Reading

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from meshnode.records.carrying.performing import CarryingPerformer
    from meshnode.records.recording import Recorder
    from meshnode.records.rules.predicting import ModelCall
    from protocols.records.curation import ReadingDerived

_log = logging.getLogger(__name__)
_FLUSH_S: Final = 1.0
"""How long a closing node tries to deliver records to the relay; the rest stays in the outbox."""


class RunningRecords(RunningPart):
    """See the module."""

    gauges = frozenset({
        "outbox_pending", "outbox_pending_bytes", "outbox_untold_fates", "carrying_on_their_way", "carrying_held",
        "carrying_held_bytes",
    })  # fmt: skip

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._relay = host.config.given(RelaySection)
        section = host.config.of(RulesSection)
        self._wanted = bool(host.config.of(CurationRulesSection).rules or section.files or section.release)
        self._wanted = self._wanted or self._relay is not None
        self._recorder: Recorder | None = None
        self.rules = NodeRules(host.config, lambda: self._recorder)
        self.infer: ModelCall | None = None
        """Has models computed. The node says so before it opens."""
        self.installed_rules: Callable[[], Sequence[Path]] = list
        """Files of rules, each of which holds alone in place of those of the configuration, the one to be used first at
        the beginning. The part that installs them says so before this one is opened."""
        self._carrying = host.config.given(CarryingSection)

    @cached_property
    def performer(self) -> "CarryingPerformer | None":
        """What carries records for others and hands over own ones; None: this node does neither."""
        if self._carrying is None or not self._wanted:
            return None
        from meshnode.records.carrying.performing import CarryingPerformer  # HPKE, which only such a node pays for

        return CarryingPerformer(self.host, self._carrying)

    def machines(self) -> Sequence[Machine]:
        """The machine of carrying."""
        return () if self.performer is None else (self.performer.machine,)

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """It seals, keeps files, and asks the relay."""
        return {} if self.performer is None else self.performer.performers()

    def handlers(self) -> Mapping[type[Event], Callable[[Any], object]]:
        """It logs what was handed over and what came back."""
        return {BatchHandedOver: _was_handed_over, ReplyBrought: _was_brought, CarriedBatchRefused: _was_refused}

    def watches_published(self) -> PublishedWatch | None:
        """Let rules choose from own readings."""
        return self._consider if self._wanted else None

    async def prepare(self, closing: AsyncExitStack) -> None:
        """Open the outbox. One that can't be used is a trouble, and tried again."""
        host = self.host
        if self._wanted:
            from meshnode.records.recording import Recorder  # the database and libnng, which only such a node pays for

            rules = await asyncio.to_thread(self.rules.first, self.installed_rules)
            recorder = Recorder(
                host.config, host.mesh, host.incarnation, self._count_drop, self._publish, rules, host.troubles,
                partial(host.begin_asking, "history"), self.infer,
            )  # fmt: skip
            await recorder.open()
            closing.push_async_callback(recorder.close, _FLUSH_S)
            self._recorder = recorder

    async def join(self, closing: AsyncExitStack) -> None:
        """Let rules choose from readings of neighbours too."""
        if self._recorder is not None:
            self._recorder.listen(self.host.subscribe)
            if self.performer is not None:
                await self.performer.open(self._recorder)
                closing.push_async_callback(self.performer.close)

    def renewed(self, credentials: CredentialFiles, ends: datetime) -> None:
        """Sign receipts with the new key."""
        if self._recorder is not None:
            self._recorder.renewed(credentials)
        if self.performer is not None:
            self.performer.renewed(credentials)

    def _publish(self, derived: "ReadingDerived") -> None:
        publisher = self.host.kept_publisher(derived.key, derived.how, derived.priority, derived.lifespan_ms)
        publisher.put_sensed(derived.value, derived.where, derived.when)

    def _count_drop(self, key: str, reason: str) -> None:
        self.host.driver.look(lambda engine, _: engine.drops.count("", key, reason))

    def _consider(self, reading: Reading, alone: bytes | None) -> None:
        if self._recorder is not None:
            self._recorder.consider(reading, alone)

    # --- what it tells ---------------------------------------------------------------------------------------------
    @property
    def uplink_state(self) -> str:
        """The state of the connection to the relay: a word, and the reason when it is not a good one; empty without a
        relay."""
        if self._relay is None or self._recorder is None:
            return ""
        uplink = self._recorder.uplink
        if uplink is None:
            return f"{UplinkState.STORAGE.value} {self._recorder.keeper.why}".strip()
        return f"{uplink.state.value} {uplink.detail}".strip()

    def statistics(self) -> Mapping[str, int]:
        """Counters of the outbox and of the way to the relay."""
        recorder = self._recorder
        if recorder is None:
            return {}
        of_rules: Counter[str] = Counter()
        for counters in (*recorder.rule_counters().values(), recorder.former_counts()):
            of_rules.update({f"rules_{name}": number for name, number in counters.items()})
        if recorder.not_recalled:
            of_rules["rules_not_recalled"] += recorder.not_recalled
        if recorder.readings_lost:
            of_rules["rules_lost"] += recorder.readings_lost
        egress = {} if recorder.door is None else recorder.door.statistics()
        return recorder.keeper.statistics() | {"outbox_not_stored": recorder.not_stored} | of_rules | egress

    def questions(self) -> Mapping[str, Callable[[Any], Any]]:
        """``uplink``: the state of the link to the relay."""
        return {"uplink": lambda _: self.uplink_state}

    def node_view(self) -> Mapping[str, Any]:
        """``relay``, ``carrying``, ``egress``, and ``rules`` with the counters of each."""
        recorder = self._recorder
        rules = {} if recorder is None else recorder.rule_counters()
        door = None if recorder is None else recorder.door
        carrying = None if self.performer is None else self.performer.view()
        view = {"carrying": carrying, "egress": None if door is None else door.view(), "rules": rules}
        if self._relay is None:
            return {"relay": None} | view
        state, _, detail = self.uplink_state.partition(" ")
        return {"relay": {"address": str(self._relay.address), "state": state, "detail": detail}} | view

    def metrics(self) -> "Iterable[Metric]":
        """Whether the relay answers."""
        if self._relay is None:
            return ()
        from meshnode.http.exposition import gauge

        connected = self.uplink_state.partition(" ")[0] == "connected"
        return (gauge("relay_connected", "Whether the relay answers.", [((), float(connected))]),)


def _was_handed_over(event: BatchHandedOver) -> None:
    _log.debug("%s carries %d records of this node", event.carrier, event.records)


def _was_brought(event: ReplyBrought) -> None:
    if event.is_believed and event.detail:
        _log.warning("the relay refuses what %s carried: %s", event.carrier, event.detail)


def _was_refused(event: CarriedBatchRefused) -> None:
    _log.info("the relay can't open a batch of %s that was carried: %s", event.node, event.code)
