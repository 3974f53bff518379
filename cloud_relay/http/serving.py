"""The HTTP server of a relay, on a thread and an event loop of its own, so that it never delays a batch of a node."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cloud_relay.config import HttpConfig
from cloud_relay.http.access import Doorkeeper
from cloud_relay.http.answering import THREADS
from cloud_relay.http.app import RelayApi
from cloud_relay.http.tokens import FILE, TokenFile
from cloud_relay.metrics.page import RelayMetrics
from cloud_relay.query.readers.opening import open_readers
from meshnode.http.server import HttpServer
from protocols.base.errors import ConfigError
from protocols.base.ids import MeshName


class RelayHttp:
    """Serves from when it is made until ``close``."""

    def __init__(
        self, config: HttpConfig, statistics: Callable[[], Mapping[str, Any]], mesh: MeshName | None = None,
        metrics: RelayMetrics | None = None,
    ) -> None:  # fmt: skip
        """Returns once it listens. ``statistics`` may be called from another thread. ``mesh``: whose certificates let
        somebody in, if any do. ``metrics``: where the relay counts; None: only HTTP does.

        :raises TransportError: the address can't be used.
        :raises ConfigError: certificate or key can't be used.
        :raises StorageError: the file of tokens can't be read.
        """
        tokens = None
        if config.tokens_required:
            tokens = TokenFile(config.state_dir / FILE)
            tokens.tokens()
        if config.tls is not None:
            _check(config)
        self.port = 0
        self._ring: Callable[[], None] = lambda: None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        listening: Future[int] = Future()
        self._thread = threading.Thread(
            target=self._run,
            args=(
                config,
                partial(
                    RelayApi,
                    open_readers(config.store, THREADS),
                    Doorkeeper(tokens, config.certificates, mesh),
                    statistics,
                    _version(),
                    metrics or RelayMetrics(),
                ),
                listening,
            ),
            name="http",
        )
        self._thread.start()
        try:
            self.port = listening.result()
        except BaseException:
            self._thread.join()
            raise

    def stored(self) -> None:
        """Something was stored: streams look for it. May be called from any thread."""
        self._ring()

    def close(self) -> None:
        """Let requests finish, and stop. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self, config: HttpConfig, made: Callable[[], RelayApi], listening: "Future[int]") -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(config, made, listening))

    async def _serve(self, config: HttpConfig, made: Callable[[], RelayApi], listening: "Future[int]") -> None:
        try:
            api = made()
            server = HttpServer(api.app(), lambda _: api.streams.leave(), config.tls,
                                config.certificates.authority if config.certificates else None)  # fmt: skip
            api.cut, self._ring = server.cut, api.streams.bell.ring
            port = await server.start(config.host, config.port)
        except BaseException as error:  # noqa: BLE001 - whoever made it is told
            listening.set_exception(error)
            return
        listening.set_result(port)
        await self._stop.wait()
        await server.close()
        api.close()


def _check(config: HttpConfig) -> None:
    assert config.tls is not None
    certificate, key = config.tls
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"[http] certificate {certificate} and key {key} can't be used ({error}): name a certificate in PEM and "
            "its key"
        ) from error
    if config.certificates is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(config.certificates.authority)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"[identity] authority {config.certificates.authority} can't be used ({error}): name the certificate "
                "of the mesh's authority in PEM"
            ) from error


def _version() -> str:
    try:
        return version("meshnode")
    except PackageNotFoundError:
        return "0+unknown"
