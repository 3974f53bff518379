"""Deliberate bugs: what each check is there to catch, planted into the engines of a simulated world.

A check that never failed proves nothing. Each bug here is one that somebody could write; beside it stands the check
that has to catch it, and tests hold both to it. Bugs reach into machines from outside, so that nothing of the kind is
in ``protocols``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec.structs import replace

from protocols.engine import Engine
from protocols.events import Delivery
from protocols.ids import NodeId, PeerIdentity
from protocols.ledger import Ledger
from protocols.limits import SECOND
from protocols.membership import Neighbour, State
from protocols.messages import InferAnswer, Interest, Reading
from protocols.queues import NEVER
from sims.errors import ScenarioError
from sims.schema import nearest


class Bug(NamedTuple):
    """One of them."""

    check: str
    """Name of the check that has to catch it."""
    spoil: Callable[[Any], None]
    of: type[Engine] | type[Ledger] = Engine
    """What it spoils."""


BUGS: dict[str, Bug] = {}
"""By name."""


def plant(part: Engine | Ledger, bugs: frozenset[str]) -> None:
    """Spoil a fresh engine or ledger. The world calls it for every life of every node, before anything else happens.

    :raises ScenarioError: when a bug is not known.
    """
    for name in sorted(bugs):
        if name not in BUGS:
            raise ScenarioError(f"no bug is called {name!r}{nearest(name, BUGS)}")
        if isinstance(part, BUGS[name].of):
            BUGS[name].spoil(part)


def _caught_by(check: str, of: type[Engine] | type[Ledger] = Engine) -> Callable[[Callable[[Any], None]], None]:
    def keep(spoil: Callable[[Any], None]) -> None:
        BUGS[spoil.__name__.replace("_", "-")] = Bug(check, spoil, of)

    return keep


def _inside(engine: Engine, *path: str) -> Any:
    """A machine of the engine, or a part of one."""
    part: Any = engine
    for name in path:
        part = getattr(part, f"_{name}")
    return part


def _instead(owner: object, method: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Put ``make(the method)`` in the place of a method."""
    setattr(owner, method, make(getattr(owner, method)))


# --- trust ---------------------------------------------------------------------------------------------------------
@_caught_by("no_frame_from_unverified")
def frames_before_hello(engine: Engine) -> None:
    """Whoever has a certificate is listened to at once."""
    membership = _inside(engine, "membership")

    def make(neighbour_of_pipe: Any) -> Callable[..., Any]:
        def early(pipe: int) -> Neighbour | None:
            known = membership._pipes.get(pipe)  # noqa: SLF001
            if known is not None and not known.spoken and not known.closing:
                return Neighbour(known.identity.node, known.identity.role, 0, 0)
            return neighbour_of_pipe(pipe)  # type: ignore[no-any-return]

        return early

    _instead(membership, "neighbour_of_pipe", make)


@_caught_by("no_frame_from_unverified")
def strangers_admitted(engine: Engine) -> None:
    """Certificates are not looked at."""

    def anybody(identity: PeerIdentity, now: int) -> str | None:
        del identity, now
        return None

    _instead(_inside(engine, "membership"), "admit", lambda _: anybody)


# --- life and death ------------------------------------------------------------------------------------------------
@_caught_by("no_neighbour_older_than_lifetime")
def nobody_dies(engine: Engine) -> None:
    """A suspect is given one more chance, each time."""

    def spare(neighbour: Neighbour, now: int) -> None:
        assert neighbour.suspicion is not None
        neighbour.suspicion.restart(now, 60 * SECOND)

    _instead(_inside(engine, "membership"), "_die", lambda _: spare)


@_caught_by("no_neighbour_older_than_lifetime")
def hints_raise_the_dead(engine: Engine) -> None:
    """An advert counts as life."""
    membership = _inside(engine, "membership")

    def make(hint: Any) -> Callable[..., None]:
        def believed(name: str, node: NodeId | None, addresses: tuple[tuple[str, int], ...], now: int) -> None:
            hint(name, node, addresses, now)
            neighbour = membership.neighbours.get(node)
            if neighbour is not None and neighbour.state is State.DEAD:
                neighbour.state, neighbour.last_heard_ns = State.ALIVE, now + 60 * SECOND

        return believed

    _instead(membership, "hint", make)


@_caught_by("membership_converges")
def the_dead_are_not_dialled(engine: Engine) -> None:
    """After a partition each side waits for the other."""
    membership = _inside(engine, "membership")

    def make(may_dial: Any) -> Callable[[NodeId | None], bool]:
        def unless_dead(node: NodeId | None) -> bool:
            neighbour = membership.neighbours.get(node)
            return bool(may_dial(node)) and (neighbour is None or neighbour.state is not State.DEAD)

        return unless_dead

    _instead(membership, "_may_dial", make)


@_caught_by("membership_converges")
def redial_is_forgotten(engine: Engine) -> None:
    """A dial that failed is the last one."""
    contacts = _inside(engine, "membership", "contacts")

    def make(closed: Any) -> Callable[..., Any]:
        def for_ever(dial: int, refused: bool, now: int) -> Any:
            dialling = closed(dial, refused, now)
            if dialling is not None:
                dialling.contact.next_dial_ns = NEVER
            return dialling

        return for_ever

    _instead(contacts, "closed", make)
    _instead(contacts, "dial_back", lambda _: lambda node, addresses, now: None)


# --- readings ------------------------------------------------------------------------------------------------------
@_caught_by("readings_in_order_once")
def duplicates_taken(engine: Engine) -> None:
    """Nobody remembers what came before."""
    readings = _inside(engine, "readings")

    def make(accept: Any) -> Callable[..., list[Delivery]]:
        def forgetful(frame: tuple[Reading, ...], *rest: Any) -> list[Delivery]:
            for reading in frame:
                stream = readings._streams.get((reading.origin, reading.key))  # noqa: SLF001
                if stream is not None:
                    stream.newest, stream.direct = -1, None
            return accept(frame, *rest)  # type: ignore[no-any-return]

        return forgetful

    _instead(readings, "accept", make)


@_caught_by("readings_in_order_once")
def delivered_backwards(engine: Engine) -> None:
    """What came in one frame is handed over newest first."""
    _instead(_inside(engine, "readings"), "accept", lambda accept: lambda *given: accept(*given)[::-1])


@_caught_by("readings_flow")
def interest_told_once(engine: Engine) -> None:
    """A neighbour that comes back is told that nothing is wanted of it."""
    told: set[NodeId] = set()

    def make(interest_for: Any) -> Callable[[NodeId], Interest]:
        def empty_later(peer: NodeId) -> Interest:
            interest: Interest = interest_for(peer)
            return replace(interest, wants=()) if peer in told else interest

        return empty_later

    def remember(gone: Any) -> Callable[..., None]:
        def and_remember(node: NodeId, reason: str, now: int) -> None:
            told.add(node)
            gone(node, reason, now)

        return and_remember

    _instead(_inside(engine, "readings"), "interest_for", make)
    _instead(engine, "_gone", remember)


@_caught_by("drops_accounted")
def drops_uncounted(engine: Engine) -> None:
    """What waited for a neighbour that died is forgotten without a word."""

    def silent(peer: str, key: str, reason: str, number: int = 1) -> None:
        del peer, key, reason, number

    _instead(engine.drops, "count", lambda _: silent)


@_caught_by("queues_within_bounds")
def queues_unbounded(engine: Engine) -> None:
    """A slow neighbour may cost all memory."""

    def make(queues_of: Any) -> Callable[[NodeId], Any]:
        def endless(node: NodeId) -> Any:
            queues = queues_of(node)
            queues.realtime._max_readings = queues.bulk._max_readings = NEVER  # noqa: SLF001
            return queues

        return endless

    _instead(engine, "_queues_of", make)


# --- inference -----------------------------------------------------------------------------------------------------
@_caught_by("one_answer_per_request")
def answered_twice(engine: Engine) -> None:
    """The caller hears of each end twice."""
    _instead(
        _inside(engine, "inference"), "events", lambda events: lambda: [e for event in events() for e in (event,) * 2]
    )


@_caught_by("answer_is_right")
def answers_mixed_up(engine: Engine) -> None:
    """The result of the run before is sent."""
    before: list[InferAnswer] = []

    def make(computed: Any) -> Callable[..., None]:
        def late(run: int, answer: InferAnswer, now: int) -> None:
            before.append(answer)
            computed(run, replace(answer, outputs=before.pop(0).outputs) if len(before) > 1 else answer, now)

        return late

    _instead(_inside(engine, "inference"), "computed", make)


@_caught_by("requests_end_by_deadline")
def lost_on_failover(engine: Engine) -> None:
    """A request dies with the neighbour that had it, and nobody tells its caller."""
    inference = _inside(engine, "inference")

    def make(lose: Any) -> Callable[..., None]:
        def forget(request: Any, run: Any, report: Any, now: int) -> None:
            if report.outcome == "dead":
                inference._end_run(request, run)  # noqa: SLF001
                del inference._requests[request.number]  # noqa: SLF001
            else:
                lose(request, run, report, now)

        return forget

    _instead(inference, "_lose", make)


@_caught_by("requests_end_by_deadline")
def deadlines_ignored(engine: Engine) -> None:
    """A request waits for its answer as long as it takes."""
    inference = _inside(engine, "inference")

    def make(handle_timer: Any) -> Callable[[int], None]:
        def patient(now: int) -> None:
            for request in inference._requests.values():  # noqa: SLF001
                if now >= request.deadline_ns:
                    request.deadline_ns = now + 3_600 * SECOND
            handle_timer(now)

        return patient

    _instead(inference, "handle_timer", make)


# --- gossip --------------------------------------------------------------------------------------------------------
@_caught_by("gossip_forward_only")
def entries_go_back(engine: Engine) -> None:
    """An older version replaces a newer one."""
    _instead(_inside(engine, "gossip", "store"), "is_news", lambda _: lambda key, version, fingerprint: True)
    _instead(_inside(engine, "gossip", "admission"), "is_refused", lambda _: lambda fingerprint, now: False)


@_caught_by("gossip_author_only")
def signatures_unchecked(engine: Engine) -> None:
    """Entries are believed."""
    gossip = _inside(engine, "gossip")
    seal = gossip._seal  # noqa: SLF001
    if seal is not None:
        gossip._seal = replace(seal, verify=lambda entry: seal.verify(entry) or True)  # noqa: SLF001


@_caught_by("newest_entry_everywhere")
def entries_kept_to_oneself(engine: Engine) -> None:
    """Only what a node authors itself is told and given to others."""
    gossip = _inside(engine, "gossip")

    def make(messages: Any) -> Callable[[], list[Any]]:
        def first_hand() -> list[Any]:
            return [(node, frame) for node, frame in messages() if gossip._own and _pushed(frame)]  # noqa: SLF001

        return first_hand

    _instead(gossip, "messages", make)


def _pushed(frame: object) -> bool:
    return type(frame).__name__ == "GossipEntries"


# --- records -------------------------------------------------------------------------------------------------------
@_caught_by("record_in_one_state", Ledger)
def evicted_without_a_word(ledger: Ledger) -> None:
    """What had no place is not written down as evicted."""
    lost: dict[str, int] = getattr(ledger, "_lost")  # noqa: B009

    def make(evict: Any) -> Callable[[], None]:
        def silent() -> None:
            before = lost["evicted"]
            evict()
            lost["evicted"] = before

        return silent

    _instead(ledger, "_evict", make)
