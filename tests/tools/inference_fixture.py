"""One machine of inference and its neighbourhood, without an engine."""

from random import Random

from protocols.access import DEFAULT_RULES, AccessRule, AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.base.reach import Reach
from protocols.base.time import NEVER
from protocols.inference.costs import Answer, Demand
from protocols.inference.events import Answered
from protocols.inference.machine import Inference
from protocols.inference.placement import LocalModel
from protocols.links.drops import Drops
from protocols.wire.frame import Frame
from protocols.wire.inference import InferAnswer, InferRequest, Offer, Offers
from protocols.wire.tensors import NamedTensor, tensor_of

MS, SECOND = limits.MS, limits.SECOND
ME, A, B, C = NodeId("me"), NodeId("a"), NodeId("b"), NodeId("c")
DIGEST, OTHER = "1" * 64, "2" * 64
IMAGE = (NamedTensor("image", tensor_of(bytes(1_000))),)


def model(name: str = "plate", compute_ns: int = 50 * MS, **more: object) -> LocalModel:
    """A model loaded here."""
    fields: dict[str, object] = {"digest": DIGEST, "queue_ns": 0, "served": True, **more}
    return LocalModel(name, compute_ns=compute_ns, **fields)  # type: ignore[arg-type]


class Bench:
    """One machine and its neighbourhood."""

    def __init__(self, *present: NodeId, rules: tuple[AccessRule, ...] = DEFAULT_RULES) -> None:
        self.present = list(present)
        self.now = 0
        self.version = 0
        self.drops = Drops()
        self.lasts_ns: dict[NodeId, int] = {}
        """How long neighbours will probably stay in reach; others stay for ever."""
        self.machine = Inference(ME, AccessTable(rules), self._reachable, self.drops, Random(1))

    def _reachable(self, now: int) -> list[Reach]:
        return [Reach(node, MS, self.lasts_ns.get(node, NEVER)) for node in self.present]

    def serve(self, node: NodeId, number: int, budget_us: int) -> None:
        """A neighbour asks for a run of the model."""
        self.machine.receive(InferRequest(number, "plate", DIGEST, budget_us, IMAGE), node, Role.RSU, self.now)

    def load(self, models: tuple[LocalModel, ...]) -> list[Frame]:
        """What neighbours are told of a change of models."""
        self.machine.set_models(models, self.now)
        self.machine.handle_timer(self.now)
        return [frame for node, frame in self.machine.messages() if node is None]

    def offer(
        self, node: NodeId, compute_us: int = 1_000, name: str = "plate", digest: str = DIGEST, **more: int
    ) -> None:
        self.version += 1
        offers = Offers(self.version, (Offer(name, digest, compute_us, **more),))
        self.machine.receive(offers, node, Role.RSU, self.now)

    def prove(self, node: NodeId, compute_ms: int = 1, name: str = "plate") -> None:
        """Have a neighbour offer a model, and answer two requests for it that nobody sees."""
        self.offer(node, compute_ms * 1_000, name)
        for _ in range(2):
            took_ns = (compute_ms + 1) * MS
            answer = Answer(took_ns, 0, took_ns, 0, compute_ms * MS, MS, 0)
            self.machine._asking.costs.learn(node, Demand(DIGEST, 1_000), answer, self.now)

    def ask(self, budget_ns: int = SECOND, hedge: bool = True, name: str = "plate") -> int:
        return self.machine.ask(name, IMAGE, (), budget_ns, hedge, self.now)

    def answer(self, node: NodeId, request: int, status: str = "done", **more: object) -> None:
        self.machine.receive(InferAnswer(request, status, IMAGE, **more), node, Role.RSU, self.now)  # type: ignore[arg-type]

    def at(self, instant_ns: int) -> None:
        self.now = instant_ns
        self.machine.handle_timer(instant_ns)
        assert self.machine.next_timer_at() > instant_ns

    def requests(self) -> list[tuple[NodeId, InferRequest]]:
        return [(node, frame) for node, frame in self.machine.messages() if type(frame) is InferRequest]

    def answered(self) -> Answered:
        events = self.machine.events()
        assert len(events) == 1
        return events[0]
