"""Applications at work: each is started, watched, and started again when it ends, hangs or says nothing for too long.

An application that ends at once again and again is started ever more rarely, up to once a minute, so it costs no more
than its place in the list of troubles. An application with a manifest that can't be read, or that asks for more than it
is granted, is never started, and the rest of the node goes on.
"""

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from meshnode.applications.manifest import ApplicationManifest, granted_rights, read_application
from meshnode.applications.process import Life, begin_life, environment_of
from meshnode.applications.section import ApplicationSection, ApplicationsSection
from meshnode.groups import program_in
from meshnode.identity.private_files import make_private_folder
from meshnode.local.rights import Rights
from meshnode.local.server import LocalServer
from meshnode.running import DropCount, Host, RunningPart
from meshnode.tasks import told
from protocols.base.errors import ConfigError, MeshError
from protocols.base.limits import MAX_SOCKET_PATH_BYTES, SECOND

FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 60.0
"""The longest pause before an application is started again."""
STEADY_S: Final = 60.0
"""After a life that was longer, the pauses are short again."""

_log = logging.getLogger(__name__)


class RunningApplication:
    """One application of a node: its socket, and its lives one after the other."""

    def __init__(self, host: Host, section: ApplicationSection, manifest: ApplicationManifest, rights: Rights) -> None:
        self._host, self._section, self._manifest, self._rights = host, section, manifest, rights
        self._folder = section.manifest.absolute().parent
        self._program = program_in(self._folder, manifest.run)
        self._socket = host.config.node.state_dir / "applications" / f"{manifest.name}.sock"
        self.server = LocalServer(host, rights)
        self._folder_made: Path | None = None
        self._life: Life | None = None
        self.counts: Counter[str] = Counter()

    @property
    def name(self) -> str:
        """Its name."""
        return self._manifest.name

    def listen(self) -> None:
        """Open its socket. Nobody has to find it, so it is elsewhere when the path of the state folder is too long.

        :raises MeshError: it can't be opened. :raises OSError: its folder can't be made.
        """
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH_BYTES:
            self._folder_made = Path(tempfile.mkdtemp(prefix="meshnode-"))  # for its owner alone
            self._socket = self._folder_made / self._socket.name
        make_private_folder(self._socket.parent)
        self.server.start(self._socket, 0o600)

    def close(self) -> None:
        """Close its socket. Blocks until those who are connected have been told."""
        self.server.close()
        if self._folder_made is not None:
            shutil.rmtree(self._folder_made, ignore_errors=True)

    async def run(self) -> None:
        """Start it again and again."""
        pause_s = FIRST_PAUSE_S
        while True:
            began_s = time.monotonic()
            why = await self._live()
            lived_s = time.monotonic() - began_s
            if lived_s >= STEADY_S:
                pause_s = FIRST_PAUSE_S
            self._host.troubles.begin(
                "application", self.name, f"after {lived_s:.1f} s {why}; it is started again in {pause_s:g} s"
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _live(self) -> str:
        """Live once. Returns why that is over."""
        self.counts["started"] += 1
        section = self._section
        environment = environment_of(self.name, self._socket)
        try:
            self._life = await begin_life(
                self.name, self._program, self._folder, environment, section.memory_mib, section.niceness
            )
        except (OSError, ValueError) as error:
            self.counts["not_started"] += 1
            return f"{self._program[0]} could not be started ({error}): correct 'run' in {section.manifest}"
        try:
            return await self._life.run(self._trouble)
        finally:
            life, self._life = self._life, None
            await life.end()
            self.counts["ended"] += 1
            self.counts["lines_dropped"] += life.voice.dropped

    def _trouble(self) -> str:
        """Why the present life must end; empty: it is well."""
        life, section, now = self._life, self._section, time.monotonic_ns()
        assert life is not None, "it lives"
        heard_ns = self.server.heard_ns
        if heard_ns < life.since_ns:
            if now - life.since_ns < section.connects_within_s * SECOND:
                return ""
            why = (
                f"it had not connected after {section.connects_within_s:g} s: raise connects_within_s if it takes long"
            )
        elif section.silent_s and now - heard_ns > section.silent_s * SECOND:
            why = f"nothing came from it for {section.silent_s:g} s: raise silent_s if it may rest for longer"
        else:
            self._host.troubles.end("application", self.name)
            return ""
        self.counts["hung"] += 1
        return why

    def view(self) -> dict[str, Any]:
        """What the node shows of it."""
        manifest, rights, life = self._manifest, self._rights, self._life
        return {
            "version": manifest.version, "publisher": manifest.publisher, "licence": manifest.licence,
            "reads": rights.reads, "publishes": rights.publishes, "infers": rights.infers,
            "pid": None if life is None else life.pid, **self.counts, **self._served(),
        }  # fmt: skip

    def _served(self) -> dict[str, int]:
        served = self.server.statistics()
        return {name: served[name] for name in ("published", "refused", "inferences")}

    def statistics(self) -> Counter[str]:
        """What became of it so far."""
        return self.counts + Counter(self._served())


class RunningApplications(RunningPart):
    """See the module."""

    gauges = frozenset({"applications_running"})

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._applications: dict[str, RunningApplication] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def serve(self, closing: AsyncExitStack) -> None:
        """Start all applications that may be started."""
        for section in self.host.config.of(ApplicationsSection).applications:
            application = self._granted(section)
            if application is None:
                continue
            try:
                application.listen()
            except (MeshError, OSError) as error:
                self.host.troubles.begin("application", application.name, f"it can't be started: {error}")
                continue
            closing.push_async_callback(asyncio.to_thread, application.close)
            self._applications[application.name] = application
            task = asyncio.create_task(application.run(), name=f"application {application.name}")
            task.add_done_callback(told)
            self._tasks.append(task)
        closing.push_async_callback(self._end)

    def _granted(self, section: ApplicationSection) -> RunningApplication | None:
        """An application, if its manifest is right and its name is free."""
        try:
            manifest = read_application(section.manifest)
            rights = granted_rights(manifest, section, self.host.id)
        except ConfigError as error:
            self.host.troubles.begin("application", section.manifest.parent.name, str(error))
            return None
        if manifest.name in self._applications:
            why = f"the name {manifest.name!r} in {section.manifest} is that of another application: change one"
            self.host.troubles.begin("application", section.manifest.parent.name, why)
            return None
        return RunningApplication(self.host, section, manifest, rights)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def statistics(self) -> Mapping[str, int]:
        """What became of all applications together."""
        if not self._applications:
            return {}
        total: Counter[str] = Counter()
        for application in self._applications.values():
            total.update(application.statistics())
        running = sum(application.view()["pid"] is not None for application in self._applications.values())
        return {f"applications_{name}": count for name, count in total.items()} | {"applications_running": running}

    def drops(self) -> Iterable[DropCount]:
        """Readings that applications were too slow for."""
        for application in self._applications.values():
            yield from application.server.drops()

    def node_view(self) -> Mapping[str, Any]:
        """``applications``: what each is, may do, and has done."""
        return {"applications": {name: application.view() for name, application in self._applications.items()}}
