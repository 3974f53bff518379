"""Opens NNG sockets over mutual TLS 1.3: links, requesters and responders. No other module imports pynng.

Invariants:
- TLS 1.3 with a certificate of the mesh's authority on both sides, and no message above ``MAX_FRAME_BYTES``,
  in exchanges none above ``MAX_EXCHANGE_BYTES``;
- a peer is judged in NNG's pre-connect callback, so nothing is ever received from a refused peer or sent to it. A
  judge that fails refuses.

NNG is not fork-safe: start processes with ``spawn``. Every call here lets other Python threads run while NNG works.
"""

import atexit
import itertools
import logging
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import pynng
from pynng import TLSConfig, ffi, lib

from meshnode.links.nng.contract import Handshake, Watch
from meshnode.links.nng.exchange import RelayRequester, RelayResponder
from meshnode.links.nng.links import NngLinks
from meshnode.links.peer import plain_host, read_credentials, url_of
from meshnode.links.transport import Address, CredentialFiles, Handler, Requester, Transport, TransportObserver
from protocols.base.errors import IdentityError, TransportError
from protocols.base.ids import SERVER_NAME, MeshName, NodeId, Role
from protocols.base.limits import MAX_EXCHANGE_BYTES, MAX_FRAME_BYTES

_log = logging.getLogger(__name__)

_LOST_CHECK_MS = 200
"""How often a request that waits checks whether its connection is still there."""
_MAX_ALTERNATIVE_NAMES = 64
_LINK_REDIAL_MS = (100, 500)
"""Serves only until the first pipe: a listener that starts a moment after us is met at once."""
_LASTING = frozenset(("auth", "proto"))
"""Counters of failures that dialling again does not mend. Another address may lead to somebody else."""
_EXCHANGE_REDIAL_MS = (250, 8_000)
_ANSWER_TIMEOUT_MS = 5_000
"""How long an answer may wait for the one before it on the same pipe. Without an end, nodes that never read would keep
every thread of a relay. A node asks one question at a time on a pipe, so an honest one never lets an answer wait."""


def open_transport(credentials: CredentialFiles, observer: TransportObserver, mesh: MeshName) -> Transport:
    """The links of one node. :raises IdentityError: when the credentials can't be used."""
    return _kept(NngLinks(_NngLibrary(credentials), observer, mesh))


def open_requester(
    credentials: CredentialFiles, address: Address, mesh: MeshName, role: Role = Role.RELAY, node: NodeId | None = None
) -> Requester:
    """A connection to the relay at ``address``, dialled in the background; ``node`` pins one relay.

    :raises IdentityError: when the credentials can't be used.
    :raises TransportError: when the address can't be dialled at all.
    """
    return _kept(RelayRequester(_NngLibrary(credentials), address, mesh, role, node))


def open_responder(
    credentials: CredentialFiles, host: str, port: int, mesh: MeshName, handler: Handler, workers: int = 8
) -> RelayResponder:
    """Answer requests on ``host`` and ``port`` (0: any free one), ``workers`` at a time, each on its own thread.

    :raises IdentityError: when the credentials can't be used.
    :raises TransportError: when the port is in use; names it and the way out.
    """
    return _kept(RelayResponder(_NngLibrary(credentials), host, port, mesh, handler, workers))


class _Closable(Protocol):
    def close(self) -> None: ...


_T = TypeVar("_T", bound=_Closable)
_open: "weakref.WeakSet[Any]" = weakref.WeakSet()
_configuring = threading.Lock()
_configured = False


def _kept(item: _T) -> _T:
    _open.add(item)
    return item


@atexit.register  # registered after pynng's own, so it runs first: NNG must not call into a dying interpreter
def _close_all() -> None:
    for item in list(_open):
        item.close()


def _configure() -> None:
    """Make NNG's thread pools small, once, before the first socket: fewer threads hand a frame over faster."""
    global _configured
    with _configuring:
        if not _configured:
            lib.nng_init_set_parameter(lib.NNG_INIT_NUM_TASK_THREADS, 2)
            lib.nng_init_set_parameter(lib.NNG_INIT_NUM_POLLER_THREADS, 1)
            lib.nng_init_set_parameter(lib.NNG_INIT_NUM_EXPIRE_THREADS, 1)
            lib.nng_init_set_parameter(lib.NNG_INIT_NUM_RESOLVER_THREADS, 1)
            _configured = True


class _NngLibrary:
    """One node's credentials in NNG's form. NNG freezes a configuration that is in use: new credentials need a new
    object."""

    def __init__(self, credentials: CredentialFiles) -> None:
        _configure()
        pem = read_credentials(credentials)
        configs = []
        for mode, server_name in ((TLSConfig.MODE_CLIENT, SERVER_NAME), (TLSConfig.MODE_SERVER, None)):
            try:
                config = TLSConfig(
                    mode,
                    ca_string=pem.authority,
                    own_cert_string=pem.certificate,
                    own_key_string=pem.key,
                    auth_mode=TLSConfig.AUTH_MODE_REQUIRED,
                    server_name=server_name,
                )
                handle = config._tls_config  # noqa: SLF001 -- pynng has no public way to set the version
                pynng.check_err(lib.nng_tls_config_version(handle, lib.NNG_TLS_1_3, lib.NNG_TLS_1_3))
            except pynng.NNGException as error:
                raise IdentityError(
                    f"{credentials.certificate}, {credentials.key} or {credentials.authority} can't be used for TLS "
                    f"({error}): issue ECDSA P-256 ones with 'mesh issue'"
                ) from error
            configs.append(config)
        self._client, self._server = configs

    def push(self, address: Address, watch: Watch) -> "_Push":
        url = url_of(address)
        sock = _watched(pynng.Push0, self._client, watch, address)
        sock.recv_max_size = 1024  # nothing may come back on a PUSH socket
        _dial(sock, url, _LINK_REDIAL_MS)
        return _Push(sock)

    def pull(self, host: str, port: int, watch: Watch) -> "_Pull":
        sock = _watched(pynng.Pull0, self._server, watch)
        return _Pull(sock, _listen(sock, Address(host, port)))

    def request(self, address: Address, watch: Watch) -> "_Request":
        url = url_of(address)
        sock = _watched(pynng.Req0, self._client, watch, address)
        sock.recv_max_size = MAX_EXCHANGE_BYTES
        # -1: a request is never repeated behind our back, and a lost connection ends it at once
        pynng.check_err(lib.nng_socket_set_ms(sock.socket, b"req:resend-time", -1))
        _dial(sock, url, _EXCHANGE_REDIAL_MS)
        return _Request(sock, address)

    def reply(self, host: str, port: int, watch: Watch) -> "_Reply":
        sock = _watched(pynng.Rep0, self._server, watch)
        sock.recv_max_size = MAX_EXCHANGE_BYTES
        sock.send_timeout = _ANSWER_TIMEOUT_MS  # contexts that are opened from now on inherit it
        return _Reply(sock, _listen(sock, Address(host, port)))


# --- opening -------------------------------------------------------------------------------------------------------


def _watched(kind: Any, tls: Any, watch: Watch, dialled: Address | None = None) -> Any:
    def pre_connect(pipe: Any) -> None:
        admitted = False
        try:
            names, remote = tuple(_alternative_names(pipe)), _remote(pipe, dialled)
            admitted = watch.judge(Handshake(pipe.id, names, *remote, _own_port(pipe)))
        except pynng.NNGException as error:
            _log.debug("a peer went before it could be judged (%s)", error)
        except Exception:  # noqa: BLE001 -- whatever fails here must refuse, and not escape into NNG
            _log.exception("a handshake could not be judged: the peer is refused")
        finally:
            if not admitted:
                pipe.close()

    try:
        sock = kind(tls_config=tls, recv_max_size=MAX_FRAME_BYTES)
    except pynng.NNGException as error:
        raise TransportError(f"can't open a socket ({error}): raise the limit of open files") from error
    sock.tcp_nodelay = True
    sock.tcp_keepalive = True
    sock.add_pre_pipe_connect_cb(pre_connect)
    sock.add_post_pipe_connect_cb(lambda pipe: watch.connected(pipe.id))
    sock.add_post_pipe_remove_cb(lambda pipe: watch.removed(pipe.id))
    return sock


def _dial(sock: Any, url: str, redial_ms: tuple[int, int]) -> None:
    sock.reconnect_time_min, sock.reconnect_time_max = redial_ms
    try:
        sock.dial(url, block=False)
    except pynng.NNGException as error:
        sock.close()
        raise TransportError(f"can't dial {url} ({error}): use an address of an inbox") from error


def _listen(sock: Any, address: Address) -> int:
    try:
        listener = sock.listen(url_of(address))
    except pynng.AddressInUse as error:
        sock.close()
        raise TransportError(f"{address} is in use by another program: stop it or configure another port") from error
    except pynng.NNGException as error:
        sock.close()
        raise TransportError(f"can't listen on {address} ({error}): configure an address of this computer") from error
    except TransportError:
        sock.close()
        raise
    return socket.ntohs(listener.local_address.port)


def _alternative_names(pipe: Any) -> list[str]:
    pointer = ffi.new("void **")
    if lib.nng_pipe_get_ptr(pipe.pipe, b"tls-peer-alt-names", pointer) != 0 or pointer[0] == ffi.NULL:
        return []
    array = ffi.cast("char **", pointer[0])
    names = []
    for i in itertools.count():
        if array[i] == ffi.NULL:
            break
        if i < _MAX_ALTERNATIVE_NAMES:
            names.append(ffi.string(array[i]).decode("utf-8", "backslashreplace"))
        lib.nng_strfree(array[i])
    lib.nng_free(array, 0)
    return names


def _remote(pipe: Any, dialled: Address | None) -> tuple[str, int]:
    try:
        host, _, port = str(pipe.remote_address).rpartition(":")
    except pynng.NNGException:  # it has hung up already, which must not leave a dialled socket redialling unjudged
        if dialled is None:
            raise
        return dialled.host, dialled.port
    return plain_host(host.strip("[]")), int(port)


def _own_port(pipe: Any) -> int:
    try:
        return int(str(pipe.local_address).rpartition(":")[2])
    except (pynng.NNGException, ValueError):
        return 0


def _counters(find: Callable[[Any], Any]) -> dict[str, int]:
    """NNG's counters of one dialer or listener, found by ``find`` in a snapshot of all statistics."""
    pointer = ffi.new("nng_stat **")
    if lib.nng_stats_get(pointer) != 0:
        return {}
    try:
        found = find(pointer[0])
        child = lib.nng_stat_child(found) if found != ffi.NULL else ffi.NULL
        counters = {}
        while child != ffi.NULL:
            if lib.nng_stat_type(child) == lib.NNG_STAT_COUNTER:
                counters[ffi.string(lib.nng_stat_name(child)).decode()] = int(lib.nng_stat_value(child))
            child = lib.nng_stat_next(child)
        return counters
    finally:
        lib.nng_stats_free(pointer[0])


def _dial_counters(sock: Any) -> dict[str, int]:
    counted = [
        _counters(lambda tree, dialer=dialer: lib.nng_stat_find_dialer(tree, dialer.dialer))  # type: ignore[misc]
        for dialer in sock.dialers
    ]
    names = {name for counters in counted for name in counters}
    return {name: (min if name in _LASTING else sum)(counters.get(name, 0) for counters in counted) for name in names}


def _close_pipe(pipe: int) -> None:
    handle = ffi.new("nng_pipe *")
    handle.id = pipe
    lib.nng_pipe_close(handle[0])


def _take(message: Any) -> bytes:
    frame: bytes = ffi.buffer(lib.nng_msg_body(message), lib.nng_msg_len(message))[:]
    lib.nng_msg_free(message)
    return frame


def _message(frame: bytes) -> Any:
    pointer = ffi.new("nng_msg **")
    if lib.nng_msg_alloc(pointer, 0) != 0 or lib.nng_msg_append(pointer[0], frame, len(frame)) != 0:
        raise TransportError(f"no memory for a frame of {len(frame)} bytes: free some")
    return pointer[0]


# --- sockets -------------------------------------------------------------------------------------------------------


class _Push:
    def __init__(self, sock: Any) -> None:
        self._sock, self._handle = sock, sock.socket
        self.descriptor: int = sock.send_fd

    def dial_also(self, address: Address) -> None:
        try:
            self._sock.dial(url_of(address), block=False)
        except pynng.NNGException as error:
            _log.debug("%s is not dialled (%s)", address, error)

    def keep_only(self, pipe: int) -> None:
        dialers = self._sock.dialers
        if len(dialers) > 1:
            handle = ffi.new("nng_pipe *")
            handle.id = pipe
            kept = lib.nng_dialer_id(lib.nng_pipe_dialer(handle[0]))
            for dialer in dialers:
                if lib.nng_dialer_id(dialer.dialer) != kept:
                    dialer.close()

    def try_send(self, frame: bytes) -> bool:
        return bool(lib.nng_send(self._handle, frame, len(frame), lib.NNG_FLAG_NONBLOCK) == 0)

    def counters(self) -> dict[str, int]:
        return _dial_counters(self._sock)

    def close(self) -> None:
        self._sock.close()


class _Pull:
    def __init__(self, sock: Any, port: int) -> None:
        self._sock, self._handle, self.port = sock, sock.socket, port
        self._message = ffi.new("nng_msg **")

    def receive(self) -> tuple[int, bytes] | None:
        while True:
            error = lib.nng_recvmsg(self._handle, self._message, 0)
            if error == 0:
                message = self._message[0]
                pipe: int = lib.nng_msg_get_pipe(message).id
                return pipe, _take(message)
            if error == lib.NNG_ECLOSED:
                return None
            _log.warning("the inbox failed to receive: NNG error %d", error)
            time.sleep(0.1)  # the only other known error is lack of memory, which spinning would not mend

    def close_pipe(self, pipe: int) -> None:
        _close_pipe(pipe)

    def counters(self) -> dict[str, int]:
        listeners = self._sock.listeners
        return _counters(lambda tree: lib.nng_stat_find_listener(tree, listeners[0].listener)) if listeners else {}

    def close(self) -> None:
        self._sock.close()


class _Request:
    def __init__(self, sock: Any, address: Address) -> None:
        self._sock, self._handle, self._address = sock, sock.socket, address
        self._answered = select.poll()
        self._answered.register(sock.recv_fd, select.POLLIN)

    def ask(self, frame: bytes, timeout_s: float, lost: Callable[[], bool]) -> bytes:
        deadline = time.monotonic() + timeout_s
        pointer = ffi.new("nng_msg **")
        self._sock.send_timeout = max(1, int(timeout_s * 1000))
        # a new request makes NNG forget the one before, so that a late response can't be taken for this one's
        error = lib.nng_send(self._handle, frame, len(frame), 0)
        if error == 0:
            # Not by a timed receive: NNG does not end a request whose connection is lost, and a receive that times out
            # would end one whose connection is good.
            while not self._answered.poll(min(_LOST_CHECK_MS, max(0, (deadline - time.monotonic()) * 1_000))):
                if lost():
                    raise TransportError(f"the connection to {self._address} was lost before it answered: try again")
                if time.monotonic() >= deadline:
                    break
            error = lib.nng_recvmsg(self._handle, pointer, lib.NNG_FLAG_NONBLOCK)
            if error == lib.NNG_EAGAIN:
                error = lib.NNG_ETIMEDOUT
        if error == 0:
            return _take(pointer[0])
        if error == lib.NNG_ETIMEDOUT:
            raise TransportError(f"no answer from {self._address} within {timeout_s:g} s: try again later")
        if error == lib.NNG_ECLOSED:
            raise TransportError(f"the connection to {self._address} was closed here: open a new one")
        text = ffi.string(lib.nng_strerror(error)).decode()
        raise TransportError(f"the connection to {self._address} was lost before it answered ({text}): try again")

    def counters(self) -> dict[str, int]:
        return _dial_counters(self._sock)

    def close(self) -> None:
        self._sock.close()


class _Reply:
    def __init__(self, sock: Any, port: int) -> None:
        self._sock, self.port = sock, port

    def context(self) -> "_ReplyContext":
        return _ReplyContext(self._sock)

    def close_pipe(self, pipe: int) -> None:
        _close_pipe(pipe)

    def close(self) -> None:
        self._sock.close()


class _ReplyContext:
    def __init__(self, sock: Any) -> None:
        self._context = ffi.new("nng_ctx *")
        pynng.check_err(lib.nng_ctx_open(self._context, sock.socket))
        self._message = ffi.new("nng_msg **")

    def receive(self) -> tuple[int, bytes] | None:
        if lib.nng_ctx_recvmsg(self._context[0], self._message, 0) != 0:
            return None
        message = self._message[0]
        pipe: int = lib.nng_msg_get_pipe(message).id
        return pipe, _take(message)

    def reply(self, frame: bytes) -> bool:
        message = _message(frame)
        error = lib.nng_ctx_sendmsg(self._context[0], message, 0)
        if error != 0:
            lib.nng_msg_free(message)
        return bool(error != lib.NNG_ETIMEDOUT)

    def close(self) -> None:
        lib.nng_ctx_close(self._context[0])
