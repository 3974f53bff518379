"""Deliberate bugs, which are planted into the engines of a simulated world, so that checks can prove that they work.

A check that never failed proves nothing. Each bug here is one that somebody could write, and names the check that has
to catch it. Tests plant the bug and require that this check fails. Bugs replace methods of machines from outside, so
that ``protocols`` contains nothing of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec.structs import replace

from protocols.base.ids import NodeId, PeerIdentity
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.engine import Engine
from protocols.inference.events import Answered
from protocols.inference.split.events import SplitModel
from protocols.membership.neighbour import Neighbour, State
from protocols.readings.events import Delivery
from protocols.records.curation import Curator
from protocols.records.ledger import Ledger
from protocols.wire.gossip import GossipEntries
from protocols.wire.inference import InferAnswer
from protocols.wire.readings import Interest
from protocols.wire.tensors import NamedTensor
from sims.errors import ScenarioError
from sims.scenario.schema import nearest
from sims.world.records.relay import Relay
from sims.world.records.spoiling import (
    acknowledged_before_stored,
    acknowledgements_counted_twice,
    fates_untold,
    given_up_for_good,
    instead,
    neighbours_unheard,
    stored_again,
)
from sims.world.releases.spoiling import promoted_by_one, releases_for_anybody, releases_staged_in_part

Spoilt = Engine | Ledger | Relay | Curator
"""The parts into which bugs can be planted."""


class Bug(NamedTuple):
    """A deliberate bug."""

    check: str
    """The name of the check that has to catch it."""
    spoil: Callable[[Any], None]
    of: type[Spoilt] = Engine
    """The part that it spoils."""


BUGS: dict[str, Bug] = {}
"""All bugs by name."""


def plant(part: Spoilt, bugs: frozenset[str]) -> None:
    """Spoil a fresh engine, ledger or curator (of every life of every node) or the relay, before anything else happens
    to it.

    :raises ScenarioError: when a bug is not known, or the modules are compiled.
    """
    for name in sorted(bugs):
        if name not in BUGS:
            raise ScenarioError(f"no bug is called {name!r}{nearest(name, BUGS)}")
        if isinstance(part, BUGS[name].of):
            if not hasattr(part, "__dict__"):
                raise ScenarioError(
                    f"the bug {name!r} can't be planted into compiled modules: run without build/compiled in PYTHONPATH"
                )
            BUGS[name].spoil(part)


def _caught_by(check: str, of: type[Spoilt] = Engine) -> Callable[[Callable[[Any], None]], None]:
    def keep(spoil: Callable[[Any], None]) -> None:
        BUGS[spoil.__name__.replace("_", "-")] = Bug(check, spoil, of)

    return keep


# --- trust ---------------------------------------------------------------------------------------------------------
@_caught_by("no_frame_from_unverified")
def frames_before_hello(engine: Engine) -> None:
    """Frames are accepted from anybody with a certificate, before a Hello."""
    membership = engine.membership

    def make(inbound_opened: Any) -> Callable[..., None]:
        def trusted(pipe: int, identity: PeerIdentity, host: str, now: int) -> None:
            inbound_opened(pipe, identity, host, now)
            membership.neighbour_of[pipe] = Neighbour(identity.node, identity.role, 0, 0)

        return trusted

    instead(membership, "inbound_opened", make)


@_caught_by("no_frame_from_unverified")
def strangers_admitted(engine: Engine) -> None:
    """Certificates are not checked."""

    def anybody(identity: PeerIdentity, now: int) -> str | None:
        del identity, now
        return None

    instead(engine.membership, "admit", lambda _: anybody)


# --- life and death ------------------------------------------------------------------------------------------------
@_caught_by("no_neighbour_older_than_lifetime")
def nobody_dies(engine: Engine) -> None:
    """The suspicion of a silent neighbour starts anew each time it ends."""

    def spare(neighbour: Neighbour, now: int) -> None:
        assert neighbour.suspicion is not None
        neighbour.suspicion.restart(now, 60 * SECOND)

    instead(engine.membership, "_die", lambda _: spare)


@_caught_by("no_neighbour_older_than_lifetime")
def hints_raise_the_dead(engine: Engine) -> None:
    """An advert counts as a sign of life."""
    membership = engine.membership

    def make(hint: Any) -> Callable[..., None]:
        def believed(name: str, node: NodeId | None, addresses: tuple[tuple[str, int], ...], now: int) -> None:
            hint(name, node, addresses, now)
            neighbour = membership.neighbours.get(node) if node is not None else None
            if neighbour is not None and neighbour.state is State.DEAD:
                neighbour.state, neighbour.last_heard_ns = State.ALIVE, now + 60 * SECOND

        return believed

    instead(membership, "hint", make)


@_caught_by("membership_converges")
def the_dead_are_not_dialled(engine: Engine) -> None:
    """After a partition each side waits for the other."""
    membership = engine.membership

    def make(may_dial: Any) -> Callable[[NodeId | None], bool]:
        def unless_dead(node: NodeId | None) -> bool:
            neighbour = membership.neighbours.get(node) if node is not None else None
            return bool(may_dial(node)) and (neighbour is None or neighbour.state is not State.DEAD)

        return unless_dead

    instead(membership, "_may_dial", make)


@_caught_by("membership_converges")
def redial_is_forgotten(engine: Engine) -> None:
    """A dial that failed is never tried again."""
    contacts = engine.membership._contacts

    def make(closed: Any) -> Callable[..., Any]:
        def for_ever(dial: int, refused: bool, now: int) -> Any:
            dialling = closed(dial, refused, now)
            if dialling is not None:
                dialling.contact.next_dial_ns = NEVER
            return dialling

        return for_ever

    instead(contacts, "closed", make)
    instead(contacts, "dial_back", lambda _: lambda node, addresses, now: None)


# --- readings ------------------------------------------------------------------------------------------------------
@_caught_by("readings_in_order_once")
def duplicates_taken(engine: Engine) -> None:
    """The sequences that came before are not remembered."""
    readings = engine.readings

    def make(accept: Any) -> Callable[..., list[Delivery]]:
        def forgetful(*given: Any) -> list[Delivery]:
            for stream in readings._table.all():
                stream.newest = -1
            return accept(*given)  # type: ignore[no-any-return]

        return forgetful

    instead(readings, "accept", make)
    instead(readings, "accept_signed", make)


@_caught_by("readings_in_order_once")
def delivered_backwards(engine: Engine) -> None:
    """The readings of one frame are delivered newest first."""
    instead(engine.readings, "accept", lambda accept: lambda *given: accept(*given)[::-1])


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

    instead(engine.readings, "interest_for", make)
    instead(engine, "_gone", remember)


@_caught_by("drops_accounted")
def drops_uncounted(engine: Engine) -> None:
    """Readings that waited for a neighbour that died are dropped and not counted."""

    def silent(peer: str, key: str, reason: str, number: int = 1) -> None:
        del peer, key, reason, number

    instead(engine.drops, "count", lambda _: silent)


@_caught_by("queues_within_bounds")
def queues_unbounded(engine: Engine) -> None:
    """The queues for a slow neighbour have no bound."""

    def make(queues_of: Any) -> Callable[[NodeId], Any]:
        def endless(node: NodeId) -> Any:
            queues = queues_of(node)
            queues.realtime._max_readings = queues.bulk._max_readings = NEVER
            return queues

        return endless

    instead(engine.lanes, "queues_of", make)


# --- inference -----------------------------------------------------------------------------------------------------
@_caught_by("one_answer_per_request")
def answered_twice(engine: Engine) -> None:
    """The caller gets the end of each request twice."""
    instead(engine.inference, "events", lambda events: lambda: [e for event in events() for e in (event,) * 2])


@_caught_by("answer_is_right")
def answers_mixed_up(engine: Engine) -> None:
    """The result of the run before is sent."""
    before: list[InferAnswer] = []

    def make(computed: Any) -> Callable[..., None]:
        def late(run: int, answer: InferAnswer, now: int) -> None:
            before.append(answer)
            computed(run, replace(answer, outputs=before.pop(0).outputs) if len(before) > 1 else answer, now)

        return late

    instead(engine.inference, "computed", make)


@_caught_by("requests_end_by_deadline")
def lost_on_failover(engine: Engine) -> None:
    """A request is lost with the neighbour that had it, and its caller is not told."""
    asking = engine.inference._asking

    def make(lose: Any) -> Callable[..., None]:
        def forget(request: Any, run: Any, report: Any, now: int) -> None:
            if report.outcome == "dead":
                asking._end_run(request, run)
                del asking.requests[request.number]
            else:
                lose(request, run, report, now)

        return forget

    instead(asking, "_lose", make)


@_caught_by("requests_end_by_deadline")
def deadlines_ignored(engine: Engine) -> None:
    """A request waits for its answer as long as it takes."""
    asking = engine.inference._asking

    def make(handle_timer: Any) -> Callable[[int], None]:
        def patient(now: int) -> None:
            for request in asking.requests.values():
                if now >= request.deadline_ns:
                    request.deadline_ns = now + 3_600 * SECOND
            handle_timer(now)

        return patient

    instead(asking, "handle_timer", make)


@_caught_by("answer_is_right")
def boundaries_mixed_up(engine: Engine) -> None:
    """A pipeline goes on with what its stage gave to the request before."""
    pipelines = engine.inference.split.pipelines
    before: dict[str, Any] = {}

    def make(child_ended: Any) -> Callable[..., Any]:
        def mixed_up(event: Answered, now: int) -> Any:
            older = before.get(event.model)
            if event.winner is not None:
                before[event.model] = event.outputs
            return child_ended(event if older is None else replace(event, outputs=older), now)

        return mixed_up

    instead(pipelines, "child_ended", make)


@_caught_by("answer_is_right")
def shards_in_the_wrong_place(engine: Engine) -> None:
    """The rows of a shard are put where those of the one before belong."""
    shards = engine.inference.shards
    before: dict[int, tuple[NamedTensor, ...]] = {}

    def make(join: Any) -> Callable[..., None]:
        def shifted(sharded: Any, shard: Any, winner: Any, outputs: tuple[NamedTensor, ...], now: int) -> None:
            older, before[shard.count] = before.get(shard.count, outputs), outputs
            join(sharded, shard, winner, older, now)

        return shifted

    instead(shards, "_join", make)


@_caught_by("one_answer_per_request")
def stages_told_to_the_caller(engine: Engine) -> None:
    """The end of each stage is told as if the caller had asked for it."""

    def make(child_ended: Any) -> Callable[..., list[Answered]]:
        def told(event: Answered, now: int) -> list[Answered]:
            return [event, *child_ended(event, now)]

        return told

    instead(engine.inference.split.pipelines, "child_ended", make)


@_caught_by("private_inputs_stay")
def private_inputs_offloaded(engine: Engine) -> None:
    """A private model is computed wherever that is fastest."""
    candidates = engine.inference._asking.candidates

    def make(there: Any) -> Callable[..., Any]:
        def anywhere(*given: Any) -> Any:
            private, candidates.private = candidates.private, frozenset()
            try:
                return there(*given)
            finally:
                candidates.private = private

        return anywhere

    instead(candidates, "there", make)


@_caught_by("private_inputs_stay")
def first_stages_lent(engine: Engine) -> None:
    """Plans of a private model are made as those of any other."""
    split, inference = engine.inference.split, engine.inference

    def make(set_model: Any) -> Callable[..., None]:
        def as_if_public(model: SplitModel, now: int) -> None:
            set_model(replace(model, private=False), now)

        return as_if_public

    instead(split, "set_model", make)
    instead(inference, "configure", lambda configure: lambda **given: configure(**{**given, "private": ()}))


# --- gossip --------------------------------------------------------------------------------------------------------
@_caught_by("gossip_forward_only")
def entries_go_back(engine: Engine) -> None:
    """An older version replaces a newer one."""
    instead(engine.gossip._store, "is_news", lambda _: lambda key, version, fingerprint: True)
    instead(engine.gossip._admission, "is_refused", lambda _: lambda fingerprint, now: False)


@_caught_by("gossip_author_only")
def signatures_unchecked(engine: Engine) -> None:
    """Signatures of entries are not checked."""
    gossip = engine.gossip
    seal = gossip._seal
    if seal is not None:
        gossip._seal = replace(seal, verify=lambda entry: seal.verify(entry) or True)


@_caught_by("newest_entry_everywhere")
def entries_kept_to_oneself(engine: Engine) -> None:
    """A node announces and sends only its own entries, and does not pass on those of others."""
    gossip = engine.gossip

    def make(messages: Any) -> Callable[[], list[Any]]:
        def first_hand() -> list[Any]:
            return [(node, frame) for node, frame in messages() if gossip.own and isinstance(frame, GossipEntries)]

        return first_hand

    instead(gossip, "messages", make)


# --- records -------------------------------------------------------------------------------------------------------
_caught_by("record_in_one_state", Ledger)(acknowledgements_counted_twice)
_caught_by("record_in_one_state", Ledger)(fates_untold)
_caught_by("record_in_one_state", Relay)(acknowledged_before_stored)
_caught_by("record_in_one_state", Relay)(stored_again)
_caught_by("records_arrive", Ledger)(given_up_for_good)
_caught_by("expected_records", Curator)(neighbours_unheard)


# --- releases ------------------------------------------------------------------------------------------------------
_caught_by("bad_release_stays_with_canaries")(promoted_by_one)
_caught_by("kept_chunks_are_genuine")(releases_staged_in_part)
_caught_by("forbidden_nodes_get_nothing")(releases_for_anybody)
