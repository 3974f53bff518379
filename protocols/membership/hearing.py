"""Whether neighbours hear this node, and what follows when one does not.

A lane may be lost although nothing reports it: the address that it leads to has moved to another computer or is gone,
or something on the way forgot the connection. What is sent on it then waits in the kernel for many minutes. The
neighbour hears nothing and gives us up, while its own frames, on a new pipe, keep it alive for us. So:

1. A neighbour that says Hello again on a realtime pipe, in the same life, may have lost our lane. It is asked for an
   answer on that lane, and has as long as silence takes to raise suspicion.
2. If that neighbour was silent before, and comes from an address to which our lane does not lead, it has moved. Nothing
   is asked.
3. A neighbour whose heartbeats go on, and which has not heard one of ours for ``_LIVES`` times as long as it takes to
   die of silence, does not hear us either. That is far longer than a callback may hold up its receiving thread.
4. A neighbour that falls silent when the network of our own host has just changed can't be asked: our lanes to it may
   come from an address that is gone.

A lost lane is closed, and dialled anew at the address of the newest Hello.
"""

from typing import Final

from protocols.base.ids import Lane
from protocols.base.time import NEVER
from protocols.membership.contacts import Contacts
from protocols.membership.heartbeats import HEARTBEATS_A_ROUND, Heartbeats
from protocols.membership.neighbour import Neighbour, State
from protocols.membership.settings import MembershipSettings
from protocols.wire.membership import Hello

_LIVES: Final = 4
_TURNS: Final = 4
"""On a full channel question and answer wait for a turn each."""
_CHANGE_SILENCES: Final = 2
"""For so many times the silence that raises suspicion, a silence may come from a change of our own network."""
_REALTIME: Final = Lane.REALTIME.value


class Hearing:
    """What one node knows of whether its neighbours hear it."""

    def __init__(self, settings: MembershipSettings, contacts: Contacts, heartbeats: Heartbeats) -> None:
        self._contacts, self._heartbeats = contacts, heartbeats
        self._answer_ns = settings.suspect_after_silence_ns
        self._patience_ns = _LIVES * max(
            settings.suspect_after_silence_ns + settings.suspicion_max_ns,
            HEARTBEATS_A_ROUND * settings.heartbeat_interval_ns,
        )
        self._changed_ns = -NEVER  # when our own network changed last
        self.counters = {"lanes_unheard": 0}

    def said_hello(self, neighbour: Neighbour, hello: Hello, host: str, now: int) -> None:
        """Note that a neighbour said Hello on a pipe from ``host``; ``neighbour`` is still in its state before."""
        others = (other for other in hello.addresses if other != host)
        neighbour.inbox = tuple((each, hello.inbox_port) for each in (host, *others))
        if not neighbour.realtime:
            self._contacts.dial_back(neighbour.node, neighbour.inbox, now)
        elif neighbour.met and hello.lane == _REALTIME:
            dialling = self._contacts.dialling(neighbour.realtime)
            if neighbour.state is State.SUSPECT and dialling is not None and dialling.address[0] != host:
                self._give_up(neighbour, now)
            elif not neighbour.doubt:
                self._heartbeats.send(neighbour, now, answer=True)
                patience_ns = max(self._answer_ns, _TURNS * self._heartbeats.gap_ns)
                neighbour.doubt, neighbour.doubt_ends_ns = neighbour.heartbeat_sent, now + patience_ns

    def suspected(self, neighbour: Neighbour, now: int) -> None:
        """Note that a neighbour fell silent, or that its pipes are gone. It may answer, on a lane that it can hear."""
        unheard_since = neighbour.echo_came_ns <= self._changed_ns  # however long we did not run meanwhile
        if neighbour.realtime and (unheard_since or now < self._changed_ns + _CHANGE_SILENCES * self._answer_ns):
            self._give_up(neighbour, now)
        elif neighbour.realtime:
            self._heartbeats.send(neighbour, now, answer=True)

    def network_changed(self, now: int) -> None:
        """Note that our host has other addresses, or that an interface was away; see
        :meth:`Contacts.network_changed`."""
        self._changed_ns = now
        self._contacts.network_changed(now)

    def lane_opened(self, neighbour: Neighbour, now: int) -> None:
        """Note that a lane to a neighbour is open. It has time to answer on it."""
        neighbour.doubt, neighbour.heard_ns = 0, now

    def forgive(self, neighbour: Neighbour, now: int) -> None:
        """Note that this node did not run, so that answers may have come in vain."""
        neighbour.heard_ns, neighbour.doubt_ends_ns = now, now + self._answer_ns

    def check(self, neighbour: Neighbour, now: int) -> None:
        """Give up the lanes of a neighbour that is alive if it does not hear us."""
        if not neighbour.realtime:
            return
        unheard = False
        if neighbour.doubt:
            if neighbour.echoed >= neighbour.doubt:
                neighbour.doubt = 0
            else:
                unheard = now >= neighbour.doubt_ends_ns
        elif neighbour.echo_came_ns - neighbour.heard_ns >= self._patience_ns:
            unheard = neighbour.heartbeat_sent - neighbour.echoed > 2 * HEARTBEATS_A_ROUND
        if unheard:
            self._give_up(neighbour, now)

    def _give_up(self, neighbour: Neighbour, now: int) -> None:
        """Close the lanes to a neighbour, and dial where its newest pipe came from. What waits in its queues stays."""
        self.counters["lanes_unheard"] += 1
        for dial in (neighbour.realtime, neighbour.bulk):
            if dial:
                self._contacts.hang_up(dial, lost=True)
        neighbour.realtime = neighbour.bulk = neighbour.doubt = 0
        if neighbour.inbox:
            self._contacts.dial_back(neighbour.node, neighbour.inbox, now)
