"""A PostgreSQL of one's own: made in a folder, on a free port and a socket, stopped, killed and thrown away."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Self

from demo.processes import free_port

_HBA: Final = """
local all all trust
host all all 127.0.0.1/32 scram-sha-256
"""
_SETTINGS: Final = """
listen_addresses = '127.0.0.1'
max_connections = 60
shared_buffers = 64MB
max_wal_size = 512MB
logging_collector = off
log_min_messages = fatal
autovacuum_naptime = 10s
"""
_START_S: Final = 60.0


def programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``; None: PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    named = shutil.which("postgres")
    return None if named is None else Path(named).resolve().parent


class PostgresServer:
    """A server. It does not run as root: PostgreSQL refuses that, so root gives it to another user.
    ``with PostgresServer() as server:``"""

    def __init__(self, *, syncs: bool = True) -> None:
        """``syncs``: what it acknowledged is on disk, as its defaults have it. Without, it is several times faster, and
        for those who don't kill it. Then it has no transactions of its own either: streams and sinks wait for all that
        are open, and who asks at such a moment is told nothing."""
        self._programs = programs()
        assert self._programs is not None, "PostgreSQL is installed"
        self.folder = Path(tempfile.mkdtemp(prefix="mesh-pg-", dir="/tmp"))  # sockets have short names
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        self.folder.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        data = self.folder / "data"
        self._call(
            "initdb", "--no-sync", "--pgdata", data, "--username", "relay", "--encoding", "UTF8", "--locale", "C"
        )
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"{_SETTINGS}port = {self.port}\n" + ("" if syncs else "fsync = off\nautovacuum = off\n"))
            file.write(f"unix_socket_directories = '{self.folder}'\n")
        (data / "pg_hba.conf").write_text(_HBA)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self._programs is not None
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.folder / "data"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, start_new_session=True, **self._as,
            )  # fmt: skip
        ends_s = time.monotonic() + _START_S
        while not self._answers():
            if time.monotonic() > ends_s or self._process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-2_000:])
            time.sleep(0.05)

    def pin(self, cores: set[int]) -> None:
        """Keep it to some cores, with all its processes to come."""
        assert self._process is not None
        os.sched_setaffinity(self._process.pid, cores)

    def stop(self) -> None:
        """End it at once as an operator does who can't wait: connections break, and the next start recovers."""
        self._end(signal.SIGQUIT)

    def kill(self) -> None:
        """SIGKILL. Its children notice, and end. Idempotent."""
        self._end(signal.SIGKILL)

    def url(self, database: str) -> str:
        """The URL of a database, over the socket."""
        return f"postgresql://relay@/{database}?host={self.folder}&port={self.port}"

    def create(self, database: str) -> str:
        """Make a database. Returns its URL."""
        self.sql(f'CREATE DATABASE "{database}" TEMPLATE template0')
        return self.url(database)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement, and return what ``psql`` printed."""
        return self._call(
            "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1", "--host",
            self.folder, "--port", self.port, "--username", "relay", "--dbname", database, "--command", statement,
        ).strip()  # fmt: skip

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._programs is not None
        asked = [str(self._programs / "pg_isready"), "--quiet", "--host", str(self.folder), "--port", str(self.port)]
        return subprocess.run(asked, check=False, cwd=self.folder, **self._as).returncode == 0

    def _call(self, program: str, *arguments: object) -> str:
        assert self._programs is not None
        command = [str(self._programs / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder, **self._as)
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr[-2_000:]}")
        return str(done.stdout)
