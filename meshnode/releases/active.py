"""The releases of a node that takes some: everything that works together for them."""

import asyncio
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, Final

from meshnode.inference.running import RunningInference
from meshnode.inference.section import InferenceSection, ModelsSection
from meshnode.links.transport import Requester
from meshnode.records.rules.section import RulesSection
from meshnode.records.running import RunningRecords
from meshnode.records.section import RelaySection
from meshnode.releases.audit import AUDIT_FILE, AuditLog
from meshnode.releases.install.installer import Installer
from meshnode.releases.install.rules import RuleKind
from meshnode.releases.install.stand import NodeModels
from meshnode.releases.performing import TROUBLE, ReleasePerformer
from meshnode.releases.planning import KeptRollouts
from meshnode.releases.relay import RelayClient
from meshnode.releases.section import ALL_MODELS, ReleasesSection
from meshnode.releases.store.chunks import ChunkStore
from meshnode.releases.trust import Trust
from meshnode.running import Host
from protocols.access import DEFAULT_RULES, AccessTable
from protocols.base.effects import Event
from protocols.base.errors import ConfigError
from protocols.base.ids import Role
from protocols.engine import Engine
from protocols.releases.events import (
    AskRelay,
    ChunkForged,
    MetadataRefused,
    MetadataTaken,
    ReleaseState,
    RolloutState,
)
from protocols.releases.machine import Releases
from protocols.releases.rollout.health import reason_of
from protocols.releases.rollout.rollouts import FollowedPath, Rollouts
from protocols.releases.settings import ReleaseSettings
from protocols.wire.releases import ReleaseNews

_log = logging.getLogger(__name__)
FOLDER: Final = "releases"
"""In the state folder."""
_TICK_S: Final = 2.0
_EXPIRY_S: Final = 60.0
_MIB: Final = 1024 * 1024
_HAVE_ROOM: Final = frozenset({"fetched", "staged", "serving"})
_GIVEN_UP: Final = frozenset({"aborted", "halted"})
"""A release of a path had no room. These states of one, and of an order, end that."""


class ActiveReleases:
    """See the module. Made once all parts of the node are."""

    def __init__(self, host: Host, section: ReleasesSection) -> None:
        self._host, self._section = host, section
        self.folder: Path = host.config.node.state_dir / FOLDER
        followed = section.followed(host.config)
        self._paths = tuple(path for path in followed if path != ALL_MODELS)
        access = AccessTable(DEFAULT_RULES if host.config.access.rules is None else host.config.access.rules)
        self.rollouts = Rollouts(
            host.id, host.role, section.labels, followed, lambda data: hashlib.sha256(data).digest(),
            lambda path: access.permits_release(host.role, host.id, path),
        )  # fmt: skip
        settings = ReleaseSettings(
            fetch_bytes_per_hour=section.fetch_bytes_per_hour,
            relay_bytes_per_hour=section.relay_bytes_per_hour, serve_bytes_per_s=section.serve_bytes_per_s,
            store_bytes=section.store_mib * _MIB,
        )  # fmt: skip
        self.machine = Releases(host.id, access, settings, Random(), self.rollouts)
        compute = host.part(RunningInference).compute
        self.store = ChunkStore(self.folder, section.store_mib * _MIB)
        stand = NodeModels(
            compute, host.config.of(ModelsSection), host.config.of(InferenceSection), self._follow
        )  # fmt: skip
        self.installer = Installer(self.folder, self.store, stand, section.keep, rules=self._rules())
        self.audit = AuditLog(self.folder / AUDIT_FILE)
        self._plan = KeptRollouts(self.folder / "rollouts.json", self.rollouts, self._look)
        self.trust = Trust(self.folder / "tuf", section.root)
        self.performer = ReleasePerformer(
            self.folder, self.store, self.installer, compute, self.trust, self._plan.kept, self._tell, self._plan.save,
            self.audit, host.troubles,
        )  # fmt: skip
        self.relay = self._relay()

    def _rules(self) -> RuleKind | None:
        """Let rules come from releases, if the configuration names some. The records part opens first, and begins with
        those that are installed."""
        path, records = self._host.config.of(RulesSection).released_path, self._host.part(RunningRecords)
        if path is None:
            return None
        records.installed_rules = lambda: self.installer.installed_files(path)
        return RuleKind(path, records.rules)

    def _relay(self) -> RelayClient | None:
        host, relay = self._host, self._host.config.given(RelaySection)
        address = self._section.relay or (relay.address if relay is not None else None)
        if address is None:
            return None
        pinned = relay.id if relay is not None and relay.address == address else None

        def connect() -> Requester:
            from meshnode.links.nng.library import open_requester  # only a node with a relay loads libnng

            return open_requester(host.config.identity.credentials, address, host.mesh, Role.RELAY, pinned)

        return RelayClient(connect, self._version, self._told, self._connected, self.performer.store_chunk)

    # --- to the engine; any thread ---------------------------------------------------------------------------------
    def _tell(self, do: Callable[[Releases, int], None]) -> None:
        self._host.driver.act(lambda _, now: do(self.machine, now))

    def _look(self, do: Callable[[int], Any]) -> Any:
        return self._host.driver.look(lambda _, now: do(now))

    def _follow(self, name: str, digest: str, private: bool) -> None:
        def follow(engine: Engine, _: int) -> None:
            engine.inference.follow(name, digest, private)

        self._host.driver.act(follow)

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """The functions that perform the effects of the machine."""
        return {**self.performer.performers(), AskRelay: self._ask_relay}

    def _ask_relay(self, effect: AskRelay) -> None:
        if self.relay is not None:
            self.relay.fetch(effect.digest)
        else:
            self.performer.store_chunk(effect.digest, b"")

    def _version(self) -> int:
        catalogue = self.trust.current()
        return 0 if catalogue is None else catalogue.timestamp_version

    def _told(self, news: ReleaseNews | None) -> None:
        self._tell(lambda machine, now: machine.relay_told(news, now))

    def _connected(self, is_connected: bool) -> None:
        self._tell(lambda machine, now: machine.relay_connected(is_connected, now))

    def pin(self, path: str, counter: int | None) -> None:
        """See :meth:`meshnode.releases.running.RunningReleases.pin`."""
        self.audit.note("pinned", path=path, counter=counter)
        self._tell(lambda machine, now: machine.pin(path, counter, now))

    # --- life ------------------------------------------------------------------------------------------------------
    def open(self) -> None:
        """Open what is on the disk.

        :raises StorageError: it can't be used. :raises ConfigError: packages are missing.
        """
        if importlib.util.find_spec("tuf") is None:
            raise ConfigError("[releases] needs packages that are not installed: pip install 'meshnode[releases]'")
        self.store.open()
        self.audit.open()
        self._host.driver.act(lambda _, now: self._plan.restore(now))
        self._plan.save()  # this life has not ended in an orderly way, until it does

    def begin(self) -> None:
        """Serve what is installed, and look for more. Blocks for seconds."""
        self.performer.begin()
        for path in {*self._paths, *self.installer.journal.paths}:
            self.performer.watch_path(path)
        if self.relay is not None:
            self.relay.start()

    async def tick(self) -> None:
        """Measure, and look at the clock."""
        count = 0
        while True:
            await asyncio.sleep(_TICK_S)
            count += 1
            await asyncio.to_thread(self.performer.measure)
            await asyncio.to_thread(self._plan.save_now_and_then)
            if count % int(_EXPIRY_S / _TICK_S) == 0:
                self.performer.check_expiry()
                self.performer.keep_journal()
                self.performer.import_again()

    def close(self) -> None:
        """End the threads, and keep what the next life needs."""
        if self.relay is not None:
            self.relay.close()
        self.performer.close()
        self._plan.save(is_clean=True)

    # --- what it tells ---------------------------------------------------------------------------------------------
    def handlers(self) -> Mapping[type[Event], Callable[[Any], object]]:
        """The functions that handle the events of the machine."""
        return {
            MetadataTaken: self._happened, MetadataRefused: self._was_bad, ChunkForged: self._was_bad,
            ReleaseState: self._got_on, RolloutState: self._concluded,
        }  # fmt: skip

    def _happened(self, event: Event) -> None:
        _log.info("%s", event)
        self._note(event)

    def _got_on(self, event: ReleaseState) -> None:
        self._happened(event)
        if reason_of(event.detail) == "no_room":
            why = f"{event.path} {event.counter}: {event.detail}"
            self._host.troubles.begin(TROUBLE, f"room for {event.path}", why)
        elif event.state in _HAVE_ROOM:
            self._host.troubles.end(TROUBLE, f"room for {event.path}")

    def _concluded(self, event: RolloutState) -> None:
        self._happened(event)
        if event.state in _GIVEN_UP:
            self._host.troubles.end(TROUBLE, f"room for {event.path}")

    def _was_bad(self, event: Event) -> None:
        _log.warning("%s", event)
        self._note(event)

    def _note(self, event: Event) -> None:
        self.performer.later(self._noted, event)

    def _noted(self, event: Event) -> None:
        details = {name: getattr(event, name) for name in event.__struct_fields__}
        self.audit.note(type(event).__name__, **details)
        self._plan.is_urgent = True

    def serving(self) -> dict[str, int]:
        """The release that serves, by path. The journal is written before a swap, so it is a moment ahead of it."""
        journal, followed = self.installer.journal, {each.path: each.current for each in self.followed()}
        others = {*self._paths, *journal.paths} - followed.keys()
        return dict(sorted({**followed, **{path: journal.of(path).current for path in others}}.items()))

    def followed(self) -> tuple[FollowedPath, ...]:
        """What the rollouts know of each path."""
        found: tuple[FollowedPath, ...] = self._look(self.rollouts.followed)
        return found

    def wanted(self) -> frozenset[tuple[str, int]]:
        """The releases whose chunks are fetched, or to be fetched."""
        found: frozenset[tuple[str, int]] = self._look(lambda _: self.rollouts.wanted())
        return found

    def statistics(self) -> Mapping[str, int]:
        """What the store holds."""
        return {"releases_store_bytes": self.store.size_bytes, "releases_damaged_chunks": self.store.damaged}
