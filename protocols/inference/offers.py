"""What neighbours offer to compute, and which file the name of a model stands for.

The file is, in this order: that of the model loaded here; the one that the configuration pins; the one that most
neighbours offer; of several, the one that was offered first. So a neighbour that comes later can't replace it alone,
whatever digest it makes up. Offers that the table of access does not permit are not kept.
"""

from collections.abc import Mapping
from typing import Final

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.ids import NodeId, Role
from protocols.inference.signature import ModelSignature, of_wire
from protocols.links.drops import Drops
from protocols.wire.inference import Offer, Offers, Signature

OFFERS_PER_S: Final = 20
MAX_OFFERS_BURST: Final = 40
"""Frames of offers of one neighbour that are looked at; an honest one sends at most ten a second."""
MAX_SIGNATURE_CHARS: Final = 8_192
"""Names in one signature: 64 neighbours with 64 models each may take 32 MB of memory so, and not 2 GB."""
MAX_SIGNATURES_BURST: Final = 2 * limits.MAX_OFFERS
"""Signatures of one neighbour that are looked at: as many a second as offers, and at once those of all its models,
twice, since it may restart."""


class _Row:
    """The offers of one neighbour."""

    __slots__ = ("allowance", "offers", "runs", "signature_allowance", "signatures", "since", "stages", "version")

    def __init__(self, now: int) -> None:
        self.version, self.runs = -1, 1
        self.offers: dict[str, Offer] = {}
        self.since: dict[str, int] = {}  # model -> when its file was first offered, as a number that grows
        self.allowance = Allowance(OFFERS_PER_S, MAX_OFFERS_BURST, now)
        self.signatures: dict[str, ModelSignature] = {}  # by digest
        self.signature_allowance = Allowance(OFFERS_PER_S, MAX_SIGNATURES_BURST, now)
        self.stages: dict[str, Offer] = {}  # by name: stages of this node that are ready there


class OfferTable:
    """The offers of all neighbours: at most ``MAX_OFFERS`` of each."""

    def __init__(self, access: AccessTable, drops: Drops) -> None:
        self._access, self._drops = access, drops
        self._rows: dict[NodeId, _Row] = {}
        self._next = 0
        self.pinned: Mapping[str, str] = {}
        """Digests by name of the model, as the configuration has them."""
        self._own_stages: dict[str, tuple[str, ModelSignature]] = {}  # by name: those that this node has made

    def receive(self, frame: Offers, source: NodeId, role: Role, now: int) -> bool:
        """Take what a neighbour offers, and return whether it was taken: not if it comes too often or was overtaken.
        Which offers of the relay count was decided before."""
        row = self._rows.get(source)
        if row is None:
            row = self._rows[source] = _Row(now)
        if not row.allowance.take(now):
            self._drops.count(source, "", "too_many_offers")
            return False
        if frame.version <= row.version:  # a large one, on the bulk lane, may be overtaken
            return False
        row.version = frame.version
        offers: dict[str, Offer] = {}
        since: dict[str, int] = {}
        refused = 0
        permits = self._access.permits_offer
        for offer in frame.offers:
            before = row.offers.get(offer.model)
            if before is None and role is not Role.RELAY and not permits(role, source, offer.model):
                refused += 1
                continue
            offers[offer.model] = offer
            if before is not None and before.digest == offer.digest:
                since[offer.model] = row.since[offer.model]
            else:
                since[offer.model] = self._next
                self._next += 1
        row.offers, row.since = offers, since
        row.runs = min(max(frame.runs, 1), limits.MAX_REQUEST_RUNS)
        if refused:
            self._drops.count(source, "", "offer_not_permitted", refused)
        return True

    def receive_signature(self, frame: Signature, source: NodeId, now: int) -> None:
        """Take what a neighbour says that a model takes and gives. It counts only while the neighbour offers it; it may
        come before the offer."""
        row = self._rows.get(source)
        if row is None:
            row = self._rows[source] = _Row(now)
        if not row.signature_allowance.take(now):
            self._drops.count(source, "", "too_many_signatures")
            return
        kinds = (*frame.inputs, *frame.outputs)
        if sum(len(kind.name) + sum(map(len, kind.sizes)) for kind in kinds) > MAX_SIGNATURE_CHARS:
            self._drops.count(source, "", "signature_too_long")
            return
        row.signatures.pop(frame.digest, None)
        if len(row.signatures) >= limits.MAX_OFFERS:
            del row.signatures[next(iter(row.signatures))]
        row.signatures[frame.digest] = of_wire(frame)

    def described_by(self, source: NodeId) -> set[str]:
        """The digests whose signatures a neighbour has told."""
        row = self._rows.get(source)
        return set() if row is None else set(row.signatures)

    def signature_of(self, model: str, digest: str) -> ModelSignature | None:
        """What the model takes and gives, by more than half of those who offer it; None when so many don't agree. One
        liar among neighbours that say nothing would otherwise make liars of them. This node knows its own stages."""
        if model in self._own_stages:
            return self._own_stages[model][1]
        votes: dict[ModelSignature, int] = {}
        offering = 0
        for row in self._rows.values():
            offer, signature = row.offers.get(model), row.signatures.get(digest)
            if offer is not None and offer.digest == digest:
                offering += 1
                if signature is not None:
                    votes[signature] = votes.get(signature, 0) + 1
        return next((signature for signature, count in votes.items() if 2 * count > offering), None)

    # --- stages ----------------------------------------------------------------------------------------------------
    def add_stage(self, name: str, digest: str, signature: ModelSignature) -> None:
        """Note a stage that this node has made, and what it takes and gives."""
        self._own_stages[name] = digest, signature

    def forget_stage(self, name: str) -> None:
        """Forget a stage of this node, here and at all neighbours."""
        self._own_stages.pop(name, None)
        for row in self._rows.values():
            row.stages.pop(name, None)

    def stage_ready(self, node: NodeId, name: str, compute_us: int, now: int) -> None:
        """Note that a neighbour runs a stage that this node has made. Nobody else is told of such an offer."""
        row = self._rows.get(node)
        if row is None:
            row = self._rows[node] = _Row(now)
        row.stages[name] = Offer(name, self._own_stages[name][0], compute_us)

    def stage_lost(self, node: NodeId, name: str) -> None:
        """Note that a neighbour does not run a stage any more."""
        row = self._rows.get(node)
        if row is not None:
            row.stages.pop(name, None)

    def forget(self, node: NodeId) -> None:
        """Forget what a neighbour offers, because it is gone."""
        self._rows.pop(node, None)

    def of(self, node: NodeId) -> tuple[Offer, ...]:
        """Everything that a neighbour offers."""
        row = self._rows.get(node)
        return () if row is None else tuple(row.offers.values())

    def find(self, node: NodeId, model: str, digest: str) -> Offer | None:
        """The offer of a neighbour to compute that file under that name."""
        row = self._rows.get(node)
        offer = None if row is None else row.offers.get(model) or row.stages.get(model)
        return offer if offer is not None and offer.digest == digest else None

    def most_runs(self, node: NodeId) -> int:
        """How many runs one request to a neighbour may ask for."""
        row = self._rows.get(node)
        return 1 if row is None else row.runs

    def digest_of(self, model: str) -> str | None:
        """The file that ``model`` stands for at a node that has not loaded it; None when nobody offers it."""
        if model in self.pinned:
            return self.pinned[model]
        if model in self._own_stages:
            return self._own_stages[model][0]
        votes: dict[str, tuple[int, int]] = {}  # digest -> number of neighbours, and the first of them negated
        for row in self._rows.values():
            offer = row.offers.get(model)
            if offer is not None:
                count, first = votes.get(offer.digest, (0, -self._next))
                votes[offer.digest] = count + 1, max(first, -row.since[model])
        return max(votes, key=votes.__getitem__, default=None)

    def names(self) -> set[str]:
        """The names of all models that are offered or pinned."""
        return {*self.pinned, *(name for row in self._rows.values() for name in row.offers)}
