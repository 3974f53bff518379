"""The stages that this node has cut, and the neighbours that were asked to run them.

A neighbour that is to run a stage is asked to make it ready. It fetches the bytes if it lacks them, and says when it is
ready. A neighbour that refuses, fails or stays silent is asked again after a pause, which doubles.

Only neighbours that were asked get bytes, and each of them ``MAX_COPIES`` times the stage at most for each time that it
was asked, so that nobody can have them sent for ever.
"""

from collections.abc import Iterator
from typing import Final, Literal

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.inference.events import Decided
from protocols.inference.split.events import Stage
from protocols.links.drops import Drops
from protocols.wire.inference import StageAsked, StageChunk, StageState, StageWanted

MAX_LENT: Final = 64
"""Stages of this node that neighbours may be asked to run; the one that was made first is forgotten first."""
MAX_COPIES: Final = 3
SILENCE_NS: Final = 30 * limits.SECOND
"""A neighbour that neither fetched nor answered for this long has failed."""
FIRST_PAUSE_NS: Final = 5 * limits.SECOND
LONGEST_PAUSE_NS: Final = 300 * limits.SECOND
REFRESH_NS: Final = 20 * limits.SECOND
"""A neighbour that is ready is asked again after this, so that it does not drop the stage as idle."""

LoanState = Literal["asked", "ready", "dropped", "refused", "forgotten"]
"""``forgotten``: it is no longer needed; what the neighbour still says of it is no news, and no fault of it."""


class _Loan:
    """A stage at one neighbour."""

    __slots__ = ("again_ns", "detail", "heard_ns", "model", "sent_bytes", "state", "tries")

    def __init__(self, model: str) -> None:
        """``model``: the name of the whole."""
        self.model = model
        self.state: LoanState = "asked"
        self.detail = ""
        self.heard_ns = self.again_ns = 0
        self.sent_bytes = self.tries = 0


class Lending:
    """The stages of this node at its neighbours."""

    def __init__(self, drops: Drops, decided: Decided) -> None:
        self._drops, self._decided = drops, decided
        self._stages: dict[str, tuple[str, str, Stage]] = {}
        """By digest: the name and the file of the whole model, and the stage."""
        self._loans: dict[tuple[NodeId, str], _Loan] = {}

    def add(self, model: str, whole: str, stage: Stage) -> None:
        """Note a stage that this node has made."""
        self._stages.pop(stage.digest, None)
        if len(self._stages) >= MAX_LENT:
            self.forget(next(iter(self._stages)))
        self._stages[stage.digest] = model, whole, stage

    def forget(self, digest: str) -> None:
        """Forget a stage. Neighbours drop it when nobody asks for it. Who has refused it is remembered."""
        self._stages.pop(digest, None)
        for (_, other), loan in self._loans.items():
            if other == digest and loan.state != "refused":
                loan.state = "forgotten"

    def want(self, node: NodeId, digest: str, now: int) -> None:
        """Have a neighbour make a stage ready, unless it was asked lately."""
        lent = self._stages.get(digest)
        if lent is None:
            return
        model, whole, stage = lent
        loan = self._loans.get((node, digest))
        if loan is None or loan.state == "forgotten":
            loan = self._loans[node, digest] = _Loan(model)
        elif now < loan.again_ns:
            return
        if loan.state == "ready":
            loan.again_ns = now + REFRESH_NS
        else:
            loan.state, loan.heard_ns, loan.sent_bytes = "asked", now, 0
            loan.again_ns = now + SILENCE_NS
            loan.tries += 1
        self._decided.messages.append((node, StageAsked(digest, model, whole, stage.size_bytes)))

    def is_ready(self, node: NodeId, digest: str) -> bool:
        """Whether a neighbour can run a stage."""
        loan = self._loans.get((node, digest))
        return loan is not None and loan.state == "ready"

    def state(self, node: NodeId, digest: str) -> tuple[LoanState, str]:
        """How a stage at a neighbour stands, and why it is refused."""
        loan = self._loans.get((node, digest))
        return ("asked", "") if loan is None else (loan.state, loan.detail)

    def why_refused(self, node: NodeId, model: str, now: int) -> str:
        """Why a neighbour does not get stages of a model until it is asked again; empty: it may be asked."""
        return next((loan.detail for loan in self._refusals(node, model) if now < loan.again_ns), "")

    def last_refusal(self, node: NodeId, model: str) -> str:
        """Why a neighbour refused a stage of a model, though it may be asked again now; empty: it has not."""
        return next((loan.detail for loan in self._refusals(node, model)), "")

    def _refusals(self, node: NodeId, model: str) -> Iterator[_Loan]:
        for (other, _), loan in self._loans.items():
            if other == node and loan.model == model and loan.state == "refused":
                yield loan

    def wanted(self, frame: StageWanted, source: NodeId, now: int) -> None:
        """A neighbour that was asked wants bytes."""
        lent, loan = self._stages.get(frame.digest), self._loans.get((source, frame.digest))
        if loan is not None and loan.state == "forgotten":
            return
        if lent is None or loan is None or loan.state not in ("asked", "ready"):
            self._drops.count(source, "", "stage_not_lent")
            return
        stage = lent[2]
        data = bytes(stage.content[frame.offset : frame.offset + limits.STAGE_CHUNK_BYTES])
        if not data or loan.sent_bytes + len(data) > MAX_COPIES * stage.size_bytes:
            self._drops.count(source, "", "stage_not_lent")
            return
        loan.sent_bytes += len(data)
        loan.heard_ns, loan.again_ns = now, now + SILENCE_NS
        self._decided.messages.append((source, StageChunk(frame.digest, frame.offset, data)))

    def expects(self, frame: StageWanted | StageState, source: NodeId) -> bool:
        """Whether a neighbour was asked about this stage."""
        loan = self._loans.get((source, frame.digest))
        return loan is not None and loan.state == "asked"

    def told(self, frame: StageState, source: NodeId, now: int) -> bool:
        """A neighbour says how a stage stands there. Returns whether this node had asked."""
        loan = self._loans.get((source, frame.digest))
        if loan is None:
            self._drops.count(source, "", "stage_not_lent")
            return False
        if loan.state == "forgotten":
            return False
        loan.heard_ns, loan.detail = now, "" if frame.state == "ready" else frame.detail or frame.state
        if frame.state == "ready":
            loan.state, loan.tries, loan.again_ns = "ready", 0, now + REFRESH_NS
        elif frame.state == "dropped":
            loan.state, loan.again_ns = "dropped", now + FIRST_PAUSE_NS
        else:
            self._refused(loan, now)
        return True

    def _refused(self, loan: _Loan, now: int) -> None:
        loan.state = "refused"
        loan.again_ns = now + min(FIRST_PAUSE_NS << min(max(loan.tries - 1, 0), 16), LONGEST_PAUSE_NS)

    def neighbour_gone(self, node: NodeId) -> None:
        """A neighbour is gone, and with it what was ready there."""
        self._loans = {key: loan for key, loan in self._loans.items() if key[0] != node}

    def handle_timer(self, now: int) -> None:
        """Note who stays silent, and forget what neighbours said of stages that are no longer needed."""
        for (node, digest), loan in list(self._loans.items()):
            if loan.state == "asked" and now - loan.heard_ns >= SILENCE_NS:
                loan.detail = "it does not answer"
                self._refused(loan, now)
            elif digest not in self._stages and now - max(loan.again_ns, loan.heard_ns) >= LONGEST_PAUSE_NS:
                del self._loans[node, digest]
