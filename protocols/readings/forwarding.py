"""Takes signed parcels from neighbours, and passes them on to further ones.

The router delivers what is in a parcel as it delivers everything else. This decides before whether a parcel is worth a
check of its signature, and afterwards who gets it.
"""

from typing import Final, NamedTuple

from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.links.queues import Drops
from protocols.readings.interest import decide_routes
from protocols.readings.queueing import Queueing
from protocols.readings.signing.authorship import Authorship
from protocols.readings.streams import Peer, Stream
from protocols.wire.readings import Reading, SignedReadings

_MS: Final = limits.MS


class TakenParcel(NamedTuple):
    """A signed parcel that was taken, and may be delivered."""

    frame: SignedReadings
    readings: tuple[Reading, ...]
    source: NodeId
    proven: Role | None
    """The role of the author, if its signature was checked. None: the source is the author."""
    before: int
    """The newest sequence of the stream before."""


class Forwarding:
    """What one router does with signed parcels. It looks into the router's tables, and changes only decisions that are
    kept in a stream."""

    __slots__ = ("_authorship", "_drops", "_node", "_peers", "_queueing", "_streams")

    def __init__(
        self, node: NodeId, streams: dict[tuple[str, str], Stream], peers: dict[NodeId, Peer], drops: Drops,
        authorship: Authorship, queueing: Queueing,
    ) -> None:  # fmt: skip
        self._node, self._streams, self._peers, self._drops = node, streams, peers, drops
        self._authorship, self._queueing = authorship, queueing

    def take(self, frame: SignedReadings, source: NodeId, now: int, latest_utc_ns: int) -> TakenParcel | None:
        """Take a parcel from a neighbour. What the neighbour says of itself is not checked here. ``latest_utc_ns``: the
        time by UTC, less the uncertainty of this node's clock. None: it is refused, which is counted."""
        readings = self._authorship.untrusted_readings(frame, source, now)
        if not readings:
            return None
        newest = readings[-1]
        stream = self._streams.get((newest.origin, newest.key))
        before = -1 if stream is None else stream.newest
        if newest.origin == source:
            return TakenParcel(frame, readings, source, None, before)
        refused = self._refusal(stream, newest, latest_utc_ns)
        if refused:
            self._drops.count(source, "*" if stream is None else newest.key, refused, len(readings))
            return None
        role = self._authorship.proven_role(newest, frame, source, now, len(readings))
        if role is None:
            return None
        if stream is not None and stream.role is not role:
            stream.version = -1  # what it may do is decided anew
        return TakenParcel(frame, readings, source, role, before)

    def _refusal(self, stream: Stream | None, newest: Reading, latest_utc_ns: int) -> str:
        """Why a parcel that a neighbour passed on need not be checked; empty: it must be. A reading without a lifespan
        is passed on for ``MAX_LIFESPAN_MS``, so that nobody can replay it for ever."""
        if newest.origin == self._node:
            return "echo"
        if stream is not None and (
            newest.sequence <= stream.newest
            or (stream.direct is not None and stream.direct is self._peers.get(NodeId(newest.origin)))
        ):
            return "stale"
        lifespan_ms, when = newest.lifespan_ms or limits.MAX_LIFESPAN_MS, newest.when
        return "expired" if latest_utc_ns > when.utc_ns + when.uncertainty_ns + lifespan_ms * _MS else ""

    def pass_on(self, parcel: TakenParcel, version: int, now: int, utc_now: int) -> int:
        """Queue a parcel for further neighbours, if its newest reading was accepted and has hops left, and hold it for
        those that will ask later. ``version``: of all interests. Returns how many readings were queued."""
        newest = parcel.readings[-1]
        stream = self._streams.get((newest.origin, newest.key))
        if not newest.hops or stream is None or stream.newest != newest.sequence or stream.newest == parcel.before:
            return 0
        signed = self._authorship.keep(parcel.frame, newest, parcel.source, parcel.proven is not None)
        if stream.routes_version != version:
            decide_routes(stream, self._peers.values(), version)
        if not stream.routes:
            return 0
        return self._queueing.pass_on(stream.routes, newest, len(parcel.readings), signed, now, utc_now)
