"""The node's end of the local socket: who may connect, and the one thread that serves all applications.

Invariants:
- the file's mode is set before anybody can connect, and a folder in which strangers could replace it is refused;
- at most ``MAX_LOCAL_APPLICATIONS`` connections, each with bounded queues; a broken or hostile one is disconnected and
  counted, and affects neither the node nor the others;
- nothing of an application outlives its connection; a socket left behind by a killed node is removed at the next start.
"""

import logging
import os
import select
import socket
import stat
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

from meshnode.local.application import Application, ProcessCredentials
from meshnode.local.pipe import Pipe
from meshnode.local.rights import Rights
from meshnode.running import DropCount, Host
from protocols.base import limits
from protocols.base.effects import Event
from protocols.base.errors import ConfigError, RemoteProtocolError, TransportError
from protocols.local import Closing, encode_local, happened
from protocols.readings.events import DeadlineMissed

_log = logging.getLogger(__name__)
_CREDENTIALS = struct.Struct("3i")
_BACKLOG = 64
_READ = select.EPOLLIN
_BOTH = select.EPOLLIN | select.EPOLLOUT


class LocalServer:
    """Serves applications until :meth:`close`."""

    def __init__(self, host: Host, rights: Rights | None = None) -> None:
        """``host`` must be open, and closes the server first. ``rights``: of all applications at this socket; None:
        they may do all that the node may."""
        self._host, self._rights = host, rights
        self.heard_ns = 0
        """When the last frame of an application came, on the monotonic clock; 0: none has."""
        self._applications: dict[int, Application] = {}  # by descriptor
        self._next = 1
        self._counters = dict.fromkeys(
            ("opened", "closed", "turned_away", "malformed", "frames_unknown", "published", "refused", "inferences"), 0
        )
        self._past_drops: dict[tuple[str, str, str], int] = {}
        self._closing = False

    def start(self, path: Path, mode: int) -> None:
        """Listen on ``path`` with the permissions ``mode``.

        :raises ConfigError: when the path is too long for a socket.
        :raises TransportError: when the path is in use or not a socket, or its folder is missing or open to everybody.
        """
        self._path = path
        self._listener = _listening(path, mode)
        self._inode = path.lstat().st_ino
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._listener.fileno(), _READ)
        self._epoll.register(self._wake, _READ)
        self._thread = threading.Thread(target=self._run, name="meshnode-local", daemon=True)
        self._host.on_event(self._happened)
        self._thread.start()
        _log.info("local applications: %s, mode %04o", path, mode)

    def close(self) -> None:
        """Say goodbye to every application and remove the socket. Idempotent."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(5)
        os.close(self._wake)

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return dict(self._counters)

    def drops(self) -> list[DropCount]:
        """((application, key, reason), count) of readings that applications were too slow for."""
        counts = dict(self._past_drops)
        for application in list(self._applications.values()):
            counts.update(application.drops())
        return sorted(counts.items())

    def _happened(self, event: Event) -> None:
        """Send an event to the applications. Called on any thread."""
        applications = list(self._applications.values())
        if not applications:
            return
        if type(event) is DeadlineMissed:
            for application in applications:
                if application.missed(event.subscription, event.origin, event.key):
                    return
        frame = happened(event)
        if frame is not None:
            data = encode_local(frame)
            for application in applications:
                application.notify(data)

    # --- the thread ------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            while not self._closing:
                opening = any(not application.name for application in self._applications.values())
                for descriptor, mask in self._epoll.poll(0.5 if opening else None):
                    if descriptor == self._listener.fileno():
                        self._accept()
                    elif descriptor in self._applications:
                        self._serve(self._applications[descriptor], mask)
                if opening:
                    self._close_mute()
        finally:
            for application in list(self._applications.values()):
                application.farewell(Closing("leaving", f"the node {self._host.id} is leaving"))
                self._hang_up(application)
            self._listener.close()
            self._epoll.close()
            with suppress(OSError):
                if self._path.lstat().st_ino == self._inode:  # not one that somebody put in its place
                    self._path.unlink()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            _log.warning("a local connection could not be accepted (%s): raise the limit of open files", error)
            time.sleep(0.05)  # out of descriptors: the connection stays in the queue and would wake us at once
            return
        pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        pipe = Pipe(sock)
        number, self._next = self._next, self._next + 1
        application = Application(number, pipe, ProcessCredentials(pid, uid), self._host, self._counters, self._rights)
        if len(self._applications) >= limits.MAX_LOCAL_APPLICATIONS:
            self._counters["turned_away"] += 1
            _log.warning("%s is turned away: %d are connected", application, len(self._applications))
            application.farewell(
                Closing("full", f"{limits.MAX_LOCAL_APPLICATIONS} applications are connected: end one, or share one")
            )
            pipe.close()
            return
        descriptor = pipe.descriptor
        self._applications[descriptor] = application
        self._epoll.register(descriptor, _READ)
        application.outgoing.attach(pipe, lambda wanted: self._epoll.modify(descriptor, _BOTH if wanted else _READ))

    def _serve(self, application: Application, mask: int) -> None:
        """Serve one application once: at most one read of its socket, so that a busy one leaves time for others."""
        try:
            if mask & select.EPOLLOUT:
                application.flush()
            if not mask & ~select.EPOLLOUT:
                return
            frames = application.pipe.receive()
            alive = frames is not None
            if frames:
                self.heard_ns = time.monotonic_ns()
            for frame in frames or ():
                alive = application.receive(frame) and alive
        except RemoteProtocolError as error:
            self._counters["malformed"] += 1
            _log.warning("%s sent a malformed frame, hanging up: %s", application, error)
            application.farewell(Closing("malformed", str(error)[:4_096]))
            alive = False
        except Exception:  # noqa: BLE001 -- whatever an application makes happen, the node goes on
            _log.exception("serving %s failed, hanging up", application)
            alive = False
        if not alive:
            self._hang_up(application)

    def _hang_up(self, application: Application) -> None:
        self._applications.pop(application.pipe.descriptor, None)
        application.end()
        with suppress(OSError):
            self._epoll.unregister(application.pipe.descriptor)
        application.pipe.close()
        for (_, key, reason), count in application.drops():
            entry = ("application", key, reason)
            if entry not in self._past_drops and len(self._past_drops) >= limits.MAX_DROP_REASONS:
                entry = ("application", "*", reason)
            self._past_drops[entry] = self._past_drops.get(entry, 0) + count

    def _close_mute(self) -> None:
        now = time.monotonic_ns()
        for application in list(self._applications.values()):
            if not application.name and now - application.since_ns > limits.LOCAL_OPEN_TIMEOUT_NS:
                self._counters["malformed"] += 1
                _log.warning("%s has not said who it is, hanging up", application)
                self._hang_up(application)


def check_place(path: Path) -> int:
    """Return the permissions of the folder of a socket.

    :raises ConfigError: when the path is too long. :raises TransportError: when the folder is missing or open to
        everybody, or something other than a socket is there.
    """
    check_length(path)
    folder = path.parent
    try:
        permissions = folder.stat().st_mode
    except OSError as error:
        raise TransportError(
            f"the folder {folder} of the local socket can't be used ({error.strerror}): create it, or set another "
            "[local] socket"
        ) from error
    if permissions & stat.S_IWOTH and not permissions & stat.S_ISVTX:
        raise TransportError(
            f"the folder {folder} of the local socket may be written by everybody, so anyone could replace the socket: "
            "'chmod o-w' it, or set [local] socket"
        )
    with suppress(OSError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise TransportError(f"{path} is not a socket: move it away, or set [local] socket to another path")
    return permissions


def _listening(path: Path, mode: int) -> socket.socket:
    permissions, folder = check_place(path), path.parent
    _remove_stale(path)
    if mode & stat.S_IWGRP and not permissions & stat.S_IXGRP:
        with suppress(OSError):  # the group may reach the socket in the state folder, and read nothing there
            folder.chmod(stat.S_IMODE(permissions) | stat.S_IXGRP)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(mode)  # until listen() nobody can connect
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise TransportError(
            f"can't listen on {path} ({error.strerror}): make the folder writable, or set [local] socket"
        ) from error
    return listener


def check_length(path: Path) -> None:
    """:raises ConfigError: when ``path`` is longer than the kernel allows for a socket."""
    length = len(os.fsencode(path))
    if length > limits.MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the local socket {path} has a path of {length} bytes, and Linux allows {limits.MAX_SOCKET_PATH_BYTES}: "
            "set [local] socket to a shorter one, as in '/run/mesh/node.sock', or enabled = false"
        )


def _remove_stale(path: Path) -> None:
    """Remove a killed node's socket. :raises TransportError: when somebody listens on it."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            with suppress(OSError):
                path.unlink()
            return
        except OSError:
            pass
    raise TransportError(f"{path} is in use by another program: stop it, or set [local] socket to another path")
