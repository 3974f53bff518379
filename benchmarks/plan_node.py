"""A process of ``benchmarks.wired_plans``: a vehicle that splits a model, or a roadside unit that runs stages for it.

It reads one JSON object a line from its standard input, and answers each with one on its standard output. The first is
a :class:`PlanSetting`, and its answer comes when the node listens. Then each :class:`PlanOrder` has the vehicle ask for
inferences, after a plan of its own or by the one that it is told.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

if TYPE_CHECKING:
    from meshnode.config.sections import NodeConfig
    from meshnode.node import Node
    from protocols.inference.split.plan import Plan

MODEL: Final = "plate"
INPUT: Final = "x"
DEADLINE_MS: Final = 30_000
_IN_FORCE_S: Final = 90.0


class PlanSetting(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is."""

    folder: str
    """Has the model ``plate.onnx`` and certificates by name."""
    name: str
    host: str
    slowdown: float
    seeds: tuple[tuple[str, int], ...] = ()
    shape: tuple[int, ...] = ()
    """Of the input of the model; empty: it has no model, and takes stages."""


class PlanOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for inferences, one after the other."""

    requests: int
    stages: tuple[tuple[int, int, str], ...] = ()
    """The plan to follow: first cut, last cut and node of each stage. None: the node's own, if it wants one."""
    learning_s: float = 0.0
    """How long to ask before the requests whose times count."""
    whole: bool = False
    """Whether all is computed at home."""


class Listening(msgspec.Struct, frozen=True):
    """The node can be given orders."""

    port: int
    cuts: int = 0
    """Where its model can be cut."""


class Answers(msgspec.Struct, frozen=True):
    """What came of an order."""

    took_ms: tuple[float, ...]
    nodes: tuple[str, ...]
    """Who ran the stages of the last request, in their order."""
    why: str = ""
    """Why there are no times."""


def _config(setting: PlanSetting) -> "NodeConfig":
    from meshnode.config.sections import DiscoverySection, IdentitySection, ListenSection, NodeConfig, NodeSection
    from meshnode.http.section import HttpSection
    from meshnode.inference.section import InferenceSection, ModelSection, ModelsSection
    from meshnode.links.transport import Address
    from protocols.base.ids import node_id
    from protocols.wire.readings import Position

    home, owns = Path(setting.folder) / setting.name, bool(setting.shape)
    model = ModelSection(path=Path(setting.folder) / "plate.onnx", warm_up={INPUT: setting.shape}, split="latency")
    how = InferenceSection(emulate_slowdown=setting.slowdown, accept_stages=not owns, deadline_ms=DEADLINE_MS)
    return NodeConfig(
        node=NodeSection(id=node_id(setting.name), state_dir=home / "state", position=Position(48.7657, 11.4237, 1.0)),
        identity=IdentitySection.in_folder(home, setting.name),
        listen=ListenSection(host=setting.host),
        discovery=DiscoverySection(mdns=False, seeds=tuple(Address(*seed) for seed in setting.seeds)),
        sections=(HttpSection(enabled=False), ModelsSection(models={MODEL: model} if owns else {}), how),
    )


class _Vehicle:
    """The node that owns the model."""

    def __init__(self, node: "Node", setting: PlanSetting) -> None:
        self._node = node
        self._inputs = {INPUT: np.random.default_rng(3).random(setting.shape, np.float32)}

    def _split(self) -> Any:
        """What the engine knows of the model; None: it is not cut yet."""
        return self._node.driver.look(lambda engine, _: engine.inference.split._splits.get(MODEL))

    async def cuts(self) -> int:
        """Wait until the model is cut; the number of its cuts."""
        while (split := self._split()) is None:  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.05)
        return len(split.model.profile.cuts)

    async def follow(self, order: PlanOrder) -> Answers:
        """Do what an order says."""
        self._obey(order)
        model = self._split().model
        self._node.driver.act(lambda engine, now: engine.inference.split.set_model(model, now))  # plans begin afresh
        if order.stages and not await self._in_force(order.stages):
            return Answers((), (), f"the plan {order.stages} is not in force after {_IN_FORCE_S:g} s")
        until_s = time.monotonic() + order.learning_s
        while time.monotonic() < until_s:
            await self._node.infer(MODEL, self._inputs)
        took_ms: list[float] = []
        ran: tuple[str, ...] = ()
        for _ in range(order.requests):
            began_s = time.perf_counter()
            result = await self._node.infer(MODEL, self._inputs)
            took_ms.append((time.perf_counter() - began_s) * 1e3)
            ran = tuple(part.node for part in result.parts) or (result.ran_on,)
            wanted = tuple(node for _, _, node in order.stages)
            if order.stages and ran != wanted:
                return Answers((), ran, f"the plan {order.stages} was not followed")
        return Answers(tuple(took_ms), ran)

    def _obey(self, order: PlanOrder) -> None:
        """Put the order in the place of the node's own plans and of its choice."""
        from meshnode.inference.splitting import owner
        from protocols.base.ids import NodeId
        from protocols.inference.split import splitting
        from protocols.inference.split.choosing import is_faster
        from protocols.inference.split.plan import PlacedStage, price
        from protocols.inference.split.planner import plans

        stages = tuple(PlacedStage(first, last, NodeId(node)) for first, last, node in order.stages)

        def forced(profile: Any, home: Any, neighbours: Any, goal: Any, *, first_at_home: bool) -> "Sequence[Plan]":
            if order.whole:
                return []
            if not stages:
                return plans(profile, home, neighbours, goal, first_at_home=first_at_home)
            plan = price(profile, home, neighbours, stages)
            return [plan] if plan is not None else []

        vars(owner)["plans"] = forced
        vars(splitting)["is_faster"] = (lambda *_: True) if stages else is_faster

    async def _in_force(self, stages: Sequence[tuple[int, int, str]]) -> bool:
        until_s = time.monotonic() + _IN_FORCE_S
        while time.monotonic() < until_s:
            force = self._split().force
            if force is not None and [tuple(msgspec.structs.astuple(each)) for each in force.plan.stages] == [*stages]:
                return True
            await asyncio.sleep(0.02)
        return False


async def _serve(setting: PlanSetting) -> None:
    import meshnode

    async with meshnode.open(_config(setting)) as node:
        vehicle = _Vehicle(node, setting) if setting.shape else None
        _tell(Listening(node.port, await vehicle.cuts() if vehicle is not None else 0))
        while line := await asyncio.to_thread(sys.stdin.readline):
            assert vehicle is not None, "a roadside unit takes no orders"
            _tell(await vehicle.follow(msgspec.json.decode(line, type=PlanOrder)))


def _tell(answer: Listening | Answers) -> None:
    print(msgspec.json.encode(answer).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(msgspec.json.decode(sys.stdin.readline(), type=PlanSetting)))
