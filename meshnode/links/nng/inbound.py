"""The pipes into an inbox: which notices are given, in which order, and from which thread.

Invariants, per pipe:
- ``inbound_opened`` comes before the first ``frame_received``, ``inbound_closed`` after the last, each exactly once;
- no two notices run at the same time, though they may run on different threads (the receiving or the I/O thread).

Either thread may be the first to see a new pipe. The first one announces it, and the other waits for that. The I/O
thread reports the end of a pipe, unless the receiving thread is inside a notice of it. Then the receiving thread
reports it on its way out, so that a slow subscriber never holds up the I/O thread.
"""

import threading
from dataclasses import dataclass, field

from meshnode.links.transport import TransportObserver
from protocols.base.ids import PeerIdentity


@dataclass(slots=True, eq=False)
class InboundPipe:
    """One admitted pipe. Fields below ``ends_ns`` belong to ``InboundPipes``."""

    pipe: int
    identity: PeerIdentity
    remote_host: str
    remote_port: int
    ends_ns: int
    """The monotonic instant at which it is closed, so that a new pipe proves the certificate again."""
    announcing: threading.Lock = field(default_factory=threading.Lock)
    announced: bool = False
    ending: bool = False
    """Its time was over, and its end was asked for: NNG tells of the end when it comes."""
    gone: bool = False


class InboundPipes:
    """Every admitted pipe of one inbox."""

    def __init__(self, observer: TransportObserver, capacity: int) -> None:
        self._observer = observer
        self._capacity = capacity
        self._lock = threading.Lock()
        self._pipes: dict[int, InboundPipe] = {}
        self._receiving: InboundPipe | None = None
        self._silent = False

    def admit(self, pipe: InboundPipe) -> bool:
        """Take in a pipe before its first frame. False: ``capacity`` pipes are open."""
        with self._lock:
            if len(self._pipes) >= self._capacity:
                return False
            self._pipes[pipe.pipe] = pipe
            return True

    def remotes(self) -> dict[tuple[str, int], int]:
        """Every pipe by host and port of its other end."""
        with self._lock:
            return {(pipe.remote_host, pipe.remote_port): pipe.pipe for pipe in self._pipes.values()}

    def outlived(self, now_ns: int) -> list[int]:
        """The pipes whose time is over, each once."""
        with self._lock:
            found = [p for p in self._pipes.values() if p.ends_ns <= now_ns and not p.ending and not p.gone]
            for pipe in found:
                pipe.ending = True
            return [pipe.pipe for pipe in found]

    def announce(self, pipe: InboundPipe) -> None:
        """Tell the observer of a new pipe, unless it knows already."""
        with pipe.announcing:
            if not pipe.announced and not self._silent:
                self._observer.inbound_opened(pipe.pipe, pipe.identity, pipe.remote_host)
            pipe.announced = True

    def receive(self, number: int, frame: bytes) -> bool:
        """Hand one frame to the observer, on the receiving thread. False: the pipe is not open, the frame is lost."""
        with self._lock:
            pipe = self._pipes.get(number)
            if pipe is None or pipe.gone or self._silent:
                return False
            self._receiving = pipe
        try:
            if not pipe.announced:
                self.announce(pipe)
            self._observer.frame_received(number, frame)
        finally:
            with self._lock:
                self._receiving = None
                gone = pipe.gone
            if gone:
                self._withdraw(pipe)
        return True

    def get(self, number: int) -> InboundPipe | None:
        """The pipe of that number, when it was admitted and its end is not announced yet."""
        with self._lock:
            return self._pipes.get(number)

    def close(self, pipe: InboundPipe) -> None:
        """Tell the observer that a pipe is gone, now or when the notice under way has returned."""
        with self._lock:
            pipe.gone = True
            if self._receiving is pipe:
                return
        self._withdraw(pipe)

    def silence(self) -> None:
        """No notice starts from now on."""
        with self._lock:
            self._silent = True

    def _withdraw(self, pipe: InboundPipe) -> None:
        with self._lock:
            if self._pipes.get(pipe.pipe) is not pipe:
                return
            del self._pipes[pipe.pipe]
        self.announce(pipe)
        if not self._silent:
            self._observer.inbound_closed(pipe.pipe)
