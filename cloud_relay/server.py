"""The relay as a process. It opens identity, store, ingest and responder, and closes them when it is told to end."""

import logging
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import Any, ClassVar, Final, Protocol, Self

from cloud_relay.config import RelayConfig
from cloud_relay.inference.section import served_models
from cloud_relay.inference.serving import InferenceService
from cloud_relay.ingest.batches import Ingest
from cloud_relay.ingest.carried import CarriedIngest
from cloud_relay.ingest.receipts import ReceiptCheck
from cloud_relay.ingest.signing import RelaySigner
from cloud_relay.keeping import keeper_of
from cloud_relay.learning.retraining.background import TrainingProcess
from cloud_relay.learning.retraining.triggers import triggers_of
from cloud_relay.metrics.page import RelayMetrics
from cloud_relay.metrics.requests import measured
from cloud_relay.query.nodes import MAX_AT_ONCE, NodeQuestions
from cloud_relay.query.readers.opening import open_readers
from cloud_relay.releases.renewing import RENEW_S, renew_if_due
from cloud_relay.releases.serving import MAX_WAITING, ReleaseService
from cloud_relay.sinks.running import Sinks
from cloud_relay.sinks.settings import sinks_of
from cloud_relay.store.opening import open_store
from meshnode.identity import NodeIdentity, load_identity
from meshnode.identity.private_files import make_private_folder
from meshnode.identity.sealing import read_or_make_sealing_key
from meshnode.identity.signatures import read_authority
from meshnode.links.nng.library import open_responder
from meshnode.links.transport import Handler
from protocols.base.errors import ClockImplausible, ConfigError, IdentityError, StorageError
from protocols.base.ids import PeerIdentity, Role
from protocols.base.limits import MAX_SERVED_REQUESTS
from protocols.wire.encoding.messagepack import untrusted_frame_number
from protocols.wire.frame import Frame, number_of

_log = logging.getLogger(__name__)
_LOOK_S: Final = 1.0
"""The time between two looks at a clock that is wrong, and at the files."""
_LOOKS_PER_REMINDER: Final = 600
THREADS: Final = 8 + MAX_WAITING
"""Those that handle requests. Nodes that wait for news of releases leave eight for batches. A relay that computes has
one more for each inference that it holds."""


class _Service(Protocol):
    FRAMES: ClassVar[tuple[type[Frame], ...]]
    """What it is handed."""

    def answer(self, peer: PeerIdentity, data: bytes) -> bytes: ...


def by_frame(others: Handler, *services: _Service) -> Handler:
    """A handler that hands each frame to the service that it is for, and everything else, malformed or not, to
    ``others``. The head of a frame is looked at once, and nothing is decoded twice."""
    handlers: dict[int | None, Handler] = {
        number_of(frame): service.answer for service in services for frame in service.FRAMES
    }

    def answer(peer: PeerIdentity, data: bytes) -> bytes:
        return handlers.get(untrusted_frame_number(data), others)(peer, data)

    return answer


def serve(config: RelayConfig, ready: Callable[[int], None], answers: Callable[[int], None]) -> None:
    """Run until SIGTERM or SIGINT, then answer what is under way and return. Call it on the main thread.

    While the clock shows a time at which the certificate can't be used, it waits until the clock is set or the files
    were renewed. ``answers(port)`` is called once the HTTP server listens, if there is one. ``ready(port)`` comes last,
    once nodes can connect.

    :raises ConfigError: the certificate is not that of this relay.
    :raises IdentityError: certificate, key or authority can't be used.
    :raises StorageError: the store can't be used.
    :raises TransportError: the port can't be listened on.
    """
    with _Stop(signal.SIGTERM, signal.SIGINT) as stop:
        _serve(config, ready, answers, stop)


def _serve(config: RelayConfig, ready: Callable[[int], None], answers: Callable[[int], None], stop: "_Stop") -> None:
    files = config.credentials
    identity = _identity(config, stop)
    if identity is None:
        return
    if identity.peer.role is not Role.RELAY or identity.peer.node != config.node:
        raise ConfigError(
            f"{files.certificate} is the certificate of {identity.peer.role} {identity.peer.node}, relay.id is "
            f"{config.node}: issue one with --role relay --id {config.node}"
        )
    try:
        make_private_folder(config.state_dir)
    except OSError as error:
        raise StorageError(
            f"the state folder {config.state_dir} can't be made ({error.strerror}): set [relay] state_dir to a folder "
            "that you may write to"
        ) from error
    settings_of_sinks = sinks_of(config)
    triggers = triggers_of(config)
    served = served_models(config)
    with ExitStack() as closing:
        store = open_store(config.store, config.aggregates)
        closing.callback(store.close)
        sinks = Sinks(settings_of_sinks, config.store, config.state_dir)
        closing.callback(sinks.close)
        keeper = keeper_of(config, store)
        if keeper is not None:
            closing.callback(keeper.close)
            keeper.start()
        receipts = ReceiptCheck(read_authority(files.authority), required=config.receipts_required)
        ingest = Ingest(store, config.access, receipts)
        releases = ReleaseService(config.releases, config.access)
        sealing_key = read_or_make_sealing_key(config.sealing_key)
        signer = RelaySigner(files, identity.peer.mesh, config.node, sealing_key)
        carried = CarriedIngest(ingest, identity.peer.mesh, sealing_key, signer, read_authority(files.authority))
        metrics = RelayMetrics()
        store.at_end = lambda took_s, done: metrics.commits.observe(took_s, "yes" if done else "no")
        readers = open_readers(config.store, MAX_AT_ONCE)
        closing.callback(readers.close)
        questions = NodeQuestions(readers, config.access)
        inference = InferenceService(config.node, served, config.access, config.releases, config.state_dir / "computed")
        threads = THREADS + (MAX_SERVED_REQUESTS if served is not None else 0)
        handler = measured(by_frame(ingest.answer, carried, questions, releases, inference), metrics.requests)
        responder = open_responder(files, config.host, config.port, identity.peer.mesh, handler, threads)
        closing.callback(responder.close)
        closing.callback(releases.close)
        closing.callback(inference.close)

        def counted() -> dict[str, Any]:
            return {
                **store.statistics(),
                **responder.statistics(),
                "refusals": ingest.statistics(),
                "carried": carried.statistics(),
                "releases": releases.statistics(),
                "sinks": sinks.statistics(),
                "questions": questions.statistics(),
                "inference": inference.statistics(),
                **({} if keeper is None else {"keeping": keeper.statistics()}),
            }

        if config.http is not None:
            from cloud_relay.http.serving import (
                RelayHttp,
            )  # its libraries take 10 MB, which only a relay with HTTP pays

            metrics.about = {"relay": config.node, "mesh": identity.peer.mesh}
            http = RelayHttp(config.http, counted, identity.peer.mesh, metrics)
            closing.callback(http.close)
            store.at_commit = http.stored
            answers(http.port)
        if triggers:
            closing.callback(TrainingProcess(config.path).close)
        ready(responder.port)
        renew_if_due(config.releases)
        while not stop.wait(RENEW_S):
            renew_if_due(config.releases)
        _log.info("stopping: batches under way are finished first")
    done = store.statistics()
    _log.info(
        "stopped: %d records were stored, %d came again, %d transactions failed", done["stored"], done["repeated"],
        done["failures"],
    )  # fmt: skip
    _log.debug("counted: %s", counted())


class _Stop:
    """Whether the relay was told to end by a signal. The system itself writes the number of a signal into a socket, so
    none is missed that comes just as the main thread begins to wait, before Python could run a handler."""

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = frozenset(signals)
        self._told = False
        self._reader, self._writer = socket.socketpair()

    def __enter__(self) -> Self:
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it was told, or for so long. Returns whether it was."""
        until_s = time.monotonic() + timeout_s
        while not self._told:
            readable, _, _ = select.select([self._reader], [], [], max(until_s - time.monotonic(), 0.0))
            if not readable:
                return False
            self._told = not self._signals.isdisjoint(self._reader.recv(4_096))
        return True


def _identity(config: RelayConfig, stop: _Stop) -> NodeIdentity | None:
    """The identity of this relay, once its clock is plausible. None: it was told to end before.

    :raises IdentityError: the files are wrong in another way from the beginning. Later they may be being copied.
    """
    files = config.credentials
    for look in count():
        try:
            return load_identity(files.certificate, files.key, files.authority)
        except IdentityError as error:
            if look == 0 and not isinstance(error, ClockImplausible):
                raise
            if look % _LOOKS_PER_REMINDER == 0:
                _log.error("the relay waits: %s", error)
        if stop.wait(_LOOK_S):
            return None
    return None
