"""The pipes into a relay, shared by the identities that opened them.

Invariants:
- an identity holds at most ``MAX_PIPES_PER_IDENTITY`` pipes. Its oldest one gives way to the next, because a node whose
  address changed leaves pipes behind that nobody has closed;
- when all places are taken, the identity that holds most of them gives way;
- an identity has a bounded number of requests that are handled, and of answers that it has not taken yet, so that it
  can't keep all threads of the relay. The two are counted apart: whoever asks again as soon as it has its answer is
  often faster than the thread that has just sent it;
- a pipe that does not take its answers is closed, because each answer that waits for it keeps a thread, and its
  identity is shut out for a minute;
- no pipe outlives its certificate for long: NNG does not show when that ends, so each pipe ends after about an hour
  and a half, as a pipe into the inbox of a node does, and the next handshake proves the certificate again.
"""

import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from protocols.base.ids import NodeId, PeerIdentity, Role
from protocols.base.limits import SECOND
from protocols.base.shares import Shares

MAX_PIPES: Final = 4_096
"""The most pipes into one relay."""
MAX_PIPES_PER_IDENTITY: Final = 9
"""A node needs eight: for records, for those that it carries for others, for news of releases, for their chunks, for
questions, for offers of inference, and for two requests. The other may be left over from before it changed its address
or restarted."""
PIPE_AGE_NS: Final = 5_400 * SECOND
SPREAD: Final = 0.75
"""Each pipe lives for at least this share of its age, so that pipes opened together don't end together."""
_REQUEST_GRACE_NS: Final = 60 * SECOND
_SHUT_OUT_NS: Final = 60 * SECOND
"""A pipe whose time is over may finish its request for this long."""


@dataclass(slots=True, eq=False)
class RequesterPipe:
    """One admitted pipe. ``requests`` are those that are being handled or answered."""

    pipe: int
    identity: PeerIdentity
    remote: tuple[str, int]
    ends_ns: int
    requests: int = 0


class RequesterPipes:
    """Every admitted pipe of one relay. May be called from any thread."""

    def __init__(self, max_requests: int) -> None:
        """``max_requests``: requests of one identity that are handled at a time. Twice as many of its answers may be on
        their way."""
        self._max_requests = max_requests
        self._lock = threading.Lock()
        self._pipes: dict[int, RequesterPipe] = {}
        self._by_node: dict[NodeId, dict[int, RequesterPipe]] = {}
        self._shares: Shares[NodeId] = Shares()
        self._requests: Shares[NodeId] = Shares()
        self._answers: Shares[NodeId] = Shares()
        self._giving_way: list[int] = []
        self._shut_out_until_ns: dict[NodeId, int] = {}
        self._gave_way = self._outlived = self._refused_requests = self._not_taken = 0

    def admit(self, pipe: int, identity: PeerIdentity, remote: tuple[str, int], now_ns: int) -> bool:
        """Take in a pipe before its first request. False: all places are taken, each by another identity, or this one
        did not take its answers a moment ago."""
        with self._lock:
            if now_ns < self._shut_out_until_ns.get(identity.node, now_ns):
                return False
            if self._shares.held(identity.node) >= MAX_PIPES_PER_IDENTITY:
                self._give_way(identity.node)
            elif len(self._pipes) >= MAX_PIPES:
                largest = self._shares.largest()
                if self._shares.held(largest) < 2:
                    return False
                self._give_way(largest)
            age_ns = int(PIPE_AGE_NS * random.uniform(SPREAD, 1.0))
            known = RequesterPipe(pipe, identity, remote, now_ns + age_ns)
            self._pipes[pipe] = known
            self._by_node.setdefault(identity.node, {})[pipe] = known
            self._shares.add(identity.node)
            return True

    def removed(self, pipe: int) -> None:
        """Forget a pipe that has ended; unknown ones are ignored."""
        with self._lock:
            self._forget(pipe)

    def begin(self, pipe: int) -> PeerIdentity | None:
        """Note that a request came on a pipe. Returns who sent it, or None when it is not handled: the pipe has gone,
        or its identity has enough requests under way. ``handled`` and then ``ended`` follow otherwise."""
        with self._lock:
            known = self._pipes.get(pipe)
            if known is None:
                return None
            node = known.identity.node
            if self._requests.held(node) >= self._max_requests or self._answers.held(node) >= 2 * self._max_requests:
                self._refused_requests += 1
                self._giving_way.append(pipe)
                return None
            self._requests.add(node)
            known.requests += 1
            return known.identity

    def handled(self, identity: PeerIdentity) -> None:
        """Note that a request has been handled, and that its answer is sent from now on."""
        with self._lock:
            self._requests.remove(identity.node)
            self._answers.add(identity.node)

    def ended(self, pipe: int, identity: PeerIdentity) -> None:
        """Note that an answer was sent."""
        with self._lock:
            self._answers.remove(identity.node)
            if (known := self._pipes.get(pipe)) is not None:
                known.requests -= 1

    def not_taken(self, pipe: int, now_ns: int) -> None:
        """Note that an answer could not be sent in time, because the requester does not read: its pipe is closed, and
        it gets no other for a minute. An honest one asks one question at a time on a pipe, and so lets none wait."""
        with self._lock:
            known = self._pipes.get(pipe)
            if known is not None:
                self._forget(pipe)
                self._giving_way.append(pipe)
                self._not_taken += 1
                shut_out = {node: until_ns for node, until_ns in self._shut_out_until_ns.items() if until_ns > now_ns}
                self._shut_out_until_ns = {**shut_out, known.identity.node: now_ns + _SHUT_OUT_NS}

    @property
    def has_given_way(self) -> bool:
        """Whether pipes have to be closed at once; cheap."""
        return bool(self._giving_way)

    def remotes(self) -> dict[tuple[str, int], int]:
        """Every pipe by host and port of its other end."""
        with self._lock:
            return {known.remote: known.pipe for known in self._pipes.values()}

    def to_close(self, now_ns: int) -> Iterable[int]:
        """The pipes to close: those that gave way since the last call, and those whose time is over."""
        with self._lock:
            closing, self._giving_way = self._giving_way, []
            for known in list(self._pipes.values()):
                if known.ends_ns + (_REQUEST_GRACE_NS if known.requests else 0) <= now_ns:
                    self._forget(known.pipe)
                    self._outlived += 1
                    closing.append(known.pipe)
            return closing

    def statistics(self) -> dict[str, int]:
        """Open pipes (``requesters``, and by role, as in ``requesters_vehicle``); pipes that gave way, pipes closed at
        their age, and pipes closed because their requesters did not read; requests that were not handled because their
        identity had enough under way."""
        with self._lock:
            roles = [known.identity.role for known in self._pipes.values()]
            return {
                "requesters": len(self._pipes),
                **{f"requesters_{role.value}": roles.count(role) for role in Role},
                "requesters_gave_way": self._gave_way,
                "requesters_outlived": self._outlived,
                "requesters_not_reading": self._not_taken,
                "requests_refused": self._refused_requests,
            }

    def _give_way(self, node: NodeId) -> None:
        oldest = next(iter(self._by_node[node]))
        self._forget(oldest)
        self._giving_way.append(oldest)
        self._gave_way += 1

    def _forget(self, pipe: int) -> None:
        known = self._pipes.pop(pipe, None)
        if known is not None:
            node = known.identity.node
            self._shares.remove(node)
            del self._by_node[node][pipe]
            if not self._by_node[node]:
                del self._by_node[node]
