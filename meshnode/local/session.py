"""An application's connection to its node: the receiving thread, questions and their answers, and reconnecting.

When the node goes, questions fail at once, and readings to be published wait in the bounded queue. The socket is tried
again after 50 ms, then after twice as long each time up to a second, until a node answers. The receiving thread does
all of that, and hands what it receives to ``on_frame``. A question asked on the receiving thread itself (by a callback)
reads on until its answer is there; what came before the answer is handed out after the callback, in order.
"""

import logging
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from meshnode.local.outgoing import Outgoing
from meshnode.local.pipe import Pipe
from protocols.base import limits
from protocols.base.errors import (
    BoundExceeded,
    LocalProtocolError,
    MeshError,
    RemoteProtocolError,
    TransportError,
    UnknownFrame,
)
from protocols.links.drops import Drops
from protocols.local import (
    LOCAL_MAJOR,
    LOCAL_MINOR,
    ApplicationFrame,
    Closing,
    Done,
    LocalNodeFrame,
    Open,
    Told,
    Welcome,
    decode_untrusted_local_node_frame,
    encode_local,
    error_named,
)

_log = logging.getLogger(__name__)
_ANSWER_S: Final = limits.LOCAL_ANSWER_TIMEOUT_NS / limits.SECOND
_DRAIN_S: Final = 0.5
"""How long a closing application tries to hand over what waits."""
_STEADY_S: Final = 2.0
"""After a connection that lasted longer, the pauses between attempts to reconnect start small again."""
_MAX_BACKLOG: Final = 4_096
"""Frames put off while a callback waits for an answer."""


class _Question:
    __slots__ = ("answer", "answered")

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.answer: Done | Told | MeshError | None = None


class Session:
    """One application, connected or looking for its node."""

    def __init__(
        self,
        path: Path,
        name: str,
        on_frame: Callable[[LocalNodeFrame], None],
        on_up: Callable[[Welcome], None],
        on_down: Callable[[str], None],
    ) -> None:
        """``on_frame``, ``on_up`` (for every connection but the first) and ``on_down`` run on the receiving thread."""
        self.path = path
        self.drops = Drops()
        self.outgoing = Outgoing("", self.drops)
        self.frames_unknown = self.frames_malformed = self.backlog_dropped = 0
        self._name, self._on_frame, self._on_up, self._on_down = name, on_frame, on_up, on_down
        self._questions: dict[int, _Question] = {}
        self._asking = threading.Lock()
        self._next = 1
        self._away: str | None = "it was never reached"
        self._backlog: deque[LocalNodeFrame] = deque()
        self._pipe: Pipe | None = None
        self._closing = False
        self._redial_ns: int = limits.LOCAL_REDIAL_MIN_NS
        self._thread = threading.Thread(target=self._run, name="meshnode-application", daemon=True)

    # --- life ------------------------------------------------------------------------------------------------------
    def start(self) -> Welcome:
        """Connect. :raises TransportError: when no node answers, with the reason and the way out."""
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        try:
            welcome = self._connect()
        except BaseException:
            self._epoll.close()
            os.close(self._wake)
            raise
        self._thread.start()
        return welcome

    def close(self) -> None:
        """Send what waits, for at most half a second, and disconnect. Idempotent. Not to be called by a callback."""
        if self._closing or not self._thread.ident:
            return
        ends_s = time.monotonic() + _DRAIN_S
        while self._away is None and not self.outgoing.idle and time.monotonic() < ends_s:
            time.sleep(0.002)
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(5)
        os.close(self._wake)
        self._fail("the application closed its connection")

    @property
    def on_receiving_thread(self) -> bool:
        """Whether the caller is a callback."""
        return threading.get_ident() == self._thread.ident

    # --- questions -------------------------------------------------------------------------------------------------
    def number(self) -> int:
        """A number for a question, unique in this process."""
        with self._asking:
            number, self._next = self._next, self._next + 1
            return number

    def ask(self, number: int, frame: ApplicationFrame) -> Done | Told:
        """Send a question and wait for its answer, normally well below a millisecond.

        :raises TransportError: when the node is away, goes, or does not answer within ``LOCAL_ANSWER_TIMEOUT_NS``.
        :raises MeshError: the error that the node answered.
        """
        question = _Question()
        self._questions[number] = question
        try:
            self.say(frame)
            if self.on_receiving_thread:
                self._read_on(question)
            else:
                question.answered.wait(_ANSWER_S)
        finally:
            self._questions.pop(number, None)
        answer = question.answer
        if answer is None:
            raise TransportError(f"the node at {self.path} did not answer within {_ANSWER_S:g} s: is it overloaded?")
        if isinstance(answer, MeshError):
            raise answer
        if type(answer) is Done and answer.error:
            raise error_named(answer.error, answer.detail)
        return answer

    def say(self, frame: ApplicationFrame, last: bool = False) -> None:
        """Send a frame. ``last``: send it after all readings that wait.

        :raises TransportError: when the node is away. :raises BoundExceeded: when too much waits for it already.
        """
        data = encode_local(frame)
        if not (self.outgoing.send_last(data) if last else self.outgoing.send_control(data)):
            raise TransportError(f"the node at {self.path} is away ({self._away}): wait for NodeBack, or try again")

    def _read_on(self, question: _Question) -> None:
        """Wait for an answer on the thread that receives it."""
        pipe, ends_s = self._pipe, time.monotonic() + _ANSWER_S
        while pipe is not None and question.answer is None and (left_s := ends_s - time.monotonic()) > 0:
            frames = self._poll(pipe, left_s)
            if frames is None:
                question.answer = TransportError(f"the node at {self.path} went before it answered: try again")
                return
            for frame in frames:
                if not self._answered(frame):
                    if len(self._backlog) >= _MAX_BACKLOG:
                        self._backlog.popleft()
                        self.backlog_dropped += 1
                    self._backlog.append(frame)

    def _answered(self, frame: LocalNodeFrame) -> bool:
        if type(frame) is not Done and type(frame) is not Told:
            return False
        question = self._questions.get(frame.question)
        if question is None:
            return False
        question.answer = frame
        question.answered.set()
        return True

    def _fail(self, reason: str) -> None:
        for question in list(self._questions.values()):
            question.answer = TransportError(f"the node at {self.path} was lost before it answered: {reason}")
            question.answered.set()

    # --- the thread ------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        since_s = time.monotonic()
        try:
            while not self._closing:
                reason = self._serve()
                self._disconnect(reason)
                if time.monotonic() - since_s > _STEADY_S:
                    self._redial_ns = limits.LOCAL_REDIAL_MIN_NS
                if not self._closing:
                    self._on_down(reason)
                    self._reconnect()
                    since_s = time.monotonic()
        except Exception:  # noqa: BLE001 -- the thread must not end without failing what waits
            _log.exception("the connection to the node at %s failed for good", self.path)
            self._disconnect("it failed here")
        finally:
            self._epoll.close()

    def _serve(self) -> str:
        """Hand out what comes until the connection ends; returns why it ended."""
        pipe = self._pipe
        assert pipe is not None
        reason = "the connection ended"
        while not self._closing:
            while self._backlog:
                reason = self._hand_out(self._backlog.popleft()) or reason
            frames = self._poll(pipe, None)
            if frames is None:
                while self._backlog:
                    reason = self._hand_out(self._backlog.popleft()) or reason
                return reason
            self._backlog.extend(frames)
        return "closed here"

    def _hand_out(self, frame: LocalNodeFrame) -> str | None:
        if type(frame) is Closing:
            return f"{frame.code}: {frame.detail}"
        if not self._answered(frame):
            self._on_frame(frame)
        return None

    def _poll(self, pipe: Pipe, timeout_s: float | None) -> list[LocalNodeFrame] | None:
        """Frames that came; None when the connection ended."""
        for descriptor, mask in self._epoll.poll(timeout_s):
            if descriptor != pipe.descriptor:
                continue
            if mask & select.EPOLLOUT:
                self.outgoing.flush()
            if mask & ~select.EPOLLOUT:
                return self._read(pipe)
        return []

    def _read(self, pipe: Pipe) -> list[LocalNodeFrame] | None:
        try:
            received = pipe.receive()
            if received is None:
                return None
            frames = []
            for data in received:
                try:
                    frames.append(decode_untrusted_local_node_frame(data))
                except UnknownFrame:
                    self.frames_unknown += 1
            return frames
        except RemoteProtocolError as error:
            self.frames_malformed += 1
            _log.warning("the node at %s sent a malformed frame: %s", self.path, error)
            return None

    def _connect(self) -> Welcome:
        pipe = Pipe(_dialled(self.path))
        descriptor = pipe.descriptor
        try:
            pipe.try_send(encode_local(Open(LOCAL_MAJOR, LOCAL_MINOR, self._name)))
            self._epoll.register(descriptor, select.EPOLLIN)
            welcome = self._welcome(pipe)
        except BaseException:
            pipe.close()
            raise
        self._pipe = pipe
        self.outgoing.attach(
            pipe,
            lambda wanted: self._epoll.modify(
                descriptor, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN
            ),
        )
        self._away = None
        return welcome

    def _welcome(self, pipe: Pipe) -> Welcome:
        ends_s = time.monotonic() + _ANSWER_S
        while (left_s := ends_s - time.monotonic()) > 0 and not self._closing:
            frames = self._poll(pipe, left_s)
            if frames is None:
                raise TransportError(f"what listens at {self.path} hung up at once: is it a node of this version?")
            if frames:
                first, *rest = frames
                if type(first) is Welcome:
                    self._backlog.extend(rest)
                    return first
                if type(first) is Closing:
                    raise TransportError(
                        f"the node at {self.path} refused this application: {first.code}: {first.detail}"
                    )
                raise TransportError(f"what listens at {self.path} is not a node: correct the path")
        raise TransportError(f"what listens at {self.path} did not answer within {_ANSWER_S:g} s: is it a node?")

    def _disconnect(self, reason: str) -> None:
        self._away = reason
        self.outgoing.detach()
        self._backlog.clear()
        if self._pipe is not None:
            with suppress(OSError):
                self._epoll.unregister(self._pipe.descriptor)
            self._pipe.close()
            self._pipe = None
        self._fail(reason)

    def _reconnect(self) -> None:
        while not self._closing:
            self._epoll.poll(self._redial_ns / limits.SECOND)
            self._redial_ns = min(self._redial_ns * 2, limits.LOCAL_REDIAL_MAX_NS)
            if self._closing:
                return
            try:
                welcome = self._connect()
            except TransportError as error:
                _log.debug("looking for the node again: %s", error)
                continue
            try:
                self._on_up(welcome)
            except (BoundExceeded, LocalProtocolError, TransportError) as error:
                _log.warning("the node at %s came back and went away again: %s", self.path, error)
            return


def _dialled(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > limits.MAX_SOCKET_PATH_BYTES:
        raise TransportError(f"{path} is longer than a Unix socket's path may be: it can't be a node's")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_ANSWER_S), 0))
        sock.connect(os.fspath(path))
    except FileNotFoundError as error:
        sock.close()
        raise TransportError(
            f"no node listens at {path}: start one with 'meshnode run', or correct the path"
        ) from error
    except PermissionError as error:
        sock.close()
        raise TransportError(
            f"this user may not use {path}: run the application as the node's user, or give the node "
            '[local] mode = "0660" and add the user to the group of the socket'
        ) from error
    except OSError as error:
        sock.close()
        raise TransportError(
            f"no node answers at {path} ({error.strerror or error}): start it with 'meshnode run'"
        ) from error
    return sock
