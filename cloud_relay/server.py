"""The relay as a process. It opens identity, store, ingest and responder, and closes them when it is told to end."""

import logging
import queue
import signal
from collections.abc import Callable
from itertools import count
from typing import Final

from cloud_relay.config import RelayConfig
from cloud_relay.ingest.batches import Ingest
from cloud_relay.releases.renewing import RENEW_S, renew_if_due
from cloud_relay.releases.serving import MAX_WAITING, ReleaseService, by_frame
from cloud_relay.store.sqlite import Store
from meshnode.identity import NodeIdentity, load_identity
from meshnode.identity.private_files import make_private_folder
from meshnode.links.nng.library import open_responder
from protocols.base.errors import ClockImplausible, ConfigError, IdentityError, StorageError
from protocols.base.ids import Role

_log = logging.getLogger(__name__)
_LOOK_S: Final = 1.0
"""The time between two looks at a clock that is wrong, and at the files."""
_LOOKS_PER_REMINDER: Final = 600
THREADS: Final = 8 + MAX_WAITING
"""Those that handle requests. Nodes that wait for news of releases leave eight for batches."""


def serve(config: RelayConfig, ready: Callable[[int], None]) -> None:
    """Run until SIGTERM or SIGINT, then answer what is under way and return. Call it on the main thread.

    While the clock shows a time at which the certificate can't be used, it waits until the clock is set or the files
    were renewed. ``ready(port)`` is called once nodes can connect.

    :raises ConfigError: the certificate is not that of this relay.
    :raises IdentityError: certificate, key or authority can't be used.
    :raises StorageError: the store can't be used.
    :raises TransportError: the port can't be listened on.
    """
    stop = _Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.tell())
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
    store = Store(config.store)
    try:
        ingest = Ingest(store, config.access)
        releases = ReleaseService(config.releases, config.access)
        handler = by_frame(ingest.answer, releases.answer)
        responder = open_responder(files, config.host, config.port, identity.peer.mesh, handler, THREADS)
        try:
            ready(responder.port)
            renew_if_due(config.releases)
            while not stop.wait(RENEW_S):
                renew_if_due(config.releases)
            _log.info("stopping: batches under way are finished first")
        finally:
            releases.close()
            responder.close()
    finally:
        store.close()
    counted = {
        **store.statistics(),
        **responder.statistics(),
        "refusals": ingest.statistics(),
        "releases": releases.statistics(),
    }
    _log.info("stopped: %s", counted)


class _Stop:
    """Whether the relay was told to end. A ``threading.Event`` would not do: its lock is held for a moment while the
    main thread begins to wait, and a signal handler, which runs on that thread, would wait for it for ever."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put may interrupt its get

    def tell(self) -> None:
        """End. A signal handler may call it."""
        self._told.put(None)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it was told, or for so long. Returns whether it was."""
        try:
            self._told.get(timeout=timeout_s)
        except queue.Empty:
            return False
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
