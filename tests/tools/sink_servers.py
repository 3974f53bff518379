"""Servers that sinks deliver to, each in a folder and on a port of its own: mosquitto, PostgreSQL, librdkafka's broker
inside kcat, moto's S3, and an HTTP server that fails as it is told."""

import json
import os
import pwd
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from demo.processes import free_port
from tests.tools.eventually import eventually


def program(name: str, *folders: str) -> str:
    """The path of a server's program; the test is skipped without it."""
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", *folders)))
    if found is None:
        pytest.skip(f"{name} is not installed: .ci/servers installs it")
    return found


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def certificate_of_this_host(folder: Path) -> tuple[Path, Path]:
    """The files of a certificate for 127.0.0.1 that signs itself, and of its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "receiver.pem", folder / "receiver.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


class Mosquitto:
    """A broker that can go away and come back on the same port. ``with Mosquitto(folder) as broker:``"""

    def __init__(self, folder: Path, *lines: str) -> None:
        self._program, self.port, self._folder = program("mosquitto"), free_port(), folder
        self._config = folder / "mosquitto.conf"
        user = pwd.getpwuid(os.geteuid()).pw_name
        given = lines or ("allow_anonymous true",)
        self._config.write_text("\n".join((f"listener {self.port} 127.0.0.1", f"user {user}", *given)) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve."""
        with (self._folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", str(self._config)], stdout=log, stderr=log)
        eventually(lambda: _listens(self.port), "mosquitto listens")

    def stop(self) -> None:
        """Go away at once, as after a loss of power."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class PostgresServer:
    """A server of PostgreSQL with a superuser ``postgres`` and a database of this name."""

    def __init__(self) -> None:
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        self._initdb = program("initdb", *map(str, versions))
        self._postgres = program("postgres", *map(str, versions))
        self.port = free_port()
        # It refuses to run as root, and the folders of pytest are for this user alone.
        self._user = "nobody" if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            command = [self._initdb, "-D", str(self._data), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"]
            subprocess.run(command, check=True, capture_output=True, user=self._user, cwd="/")
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Serve."""
        command = [
            self._postgres, "-D", str(self._data), "-p", str(self.port), "-c", "listen_addresses=127.0.0.1",
            "-c", f"unix_socket_directories={self._folder}", "-c", "fsync=off", "-c", "shared_buffers=16MB",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=self._user, cwd="/"
        )
        eventually(lambda: _listens(self.port), "PostgreSQL listens")

    def stop(self) -> None:
        """End all connections and the server."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._process = None


class KafkaBroker:
    """The broker that librdkafka brings along for tests, in a process of kcat: Kafka's protocol, written by others than
    those of aiokafka, with topics in memory."""

    def __init__(self, folder: Path) -> None:
        self._program, self._log = program("kcat"), folder / "kcat.log"
        self.address = ""

    def __enter__(self) -> Self:
        command = [self._program, "-P", "-b", "mock", "-t", "none", "-X", "test.mock.num.brokers=1", "-d", "mock"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        self.address = eventually(self._listening, "the broker listens")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()

    def pause(self) -> None:
        """Answer nobody."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer again."""
        self._process.send_signal(signal.SIGCONT)

    def messages(self, topic: str) -> list[dict[str, Any]]:
        """All that is in a topic, as kcat tells it."""
        command = [self._program, "-C", "-b", self.address, "-t", topic, "-e", "-q", "-J", "-o", "beginning"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
        return [json.loads(line) for line in found.splitlines()]

    def _listening(self) -> str:
        found = re.search(r"bootstrap\.servers=(127\.0\.0\.1:\d+)\s", self._log.read_text("utf-8", "replace"))
        return found[1] if found else ""


class HttpReceiver:
    """An HTTP server that keeps what it is given. ``status`` says what it answers to a body; 200: it is kept."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        self.status: Callable[[dict[str, Any]], int] = lambda _: 200
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        """Headers and bodies of all requests that were answered with 200, in order."""
        self.tries = 0
        self.keeps = True
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or what it says waits 40 ms for an acknowledgement

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                receiver.tries += 1
                status = receiver.status(body)
                if status == 200 and receiver.keeps:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    receiver.requests.append((headers, body))
                said = b"" if status < 300 else b"no, because of a test"
                self.send_response(status)
                self.send_header("content-length", str(len(said)))
                with suppress(ConnectionError):  # who asked may have lost patience
                    self.end_headers()
                    self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A relay that was killed in the middle is what tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._server.server_address[1]}/records"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def ids(self) -> list[str]:
        """Of all records that were kept, in order."""
        return [record["id"] for _, body in self.requests for record in body["records"]]

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(name="receiver")
def given_receiver() -> Iterator[HttpReceiver]:
    """One that keeps whatever comes. Import it where the fixture ``receiver`` is used."""
    with closing(HttpReceiver()) as receiver:
        yield receiver


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 server."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
