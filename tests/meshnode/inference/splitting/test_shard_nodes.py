"""A batch that real nodes divide: the bits of one node, also when a helper is killed while it computes."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import meshnode
from meshnode.inference.section import InferenceSection, ModelSection
from meshnode.local.section import socket_of
from protocols.base.errors import BudgetExhausted, InputInvalid, LocalProtocolError
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, Member, Open, given_house, given_opened
from tests.tools.tiny_onnx import write_model

__all__ = ["given_house", "given_opened"]
pytestmark = pytest.mark.processes
SIDE = 96
SLOW = InferenceSection(emulate_slowdown=100, deadline_ms=60_000)
"""A row takes some tens of milliseconds, so that something can happen meanwhile."""


@pytest.fixture(scope="module", name="models")
def given_models(house: House) -> dict[str, Path]:
    """``one`` squares a matrix four times, one at a time, and ``many`` as many as one gives to it."""
    return {
        "one": write_model(house.folder / "one.onnx", [1, SIDE, SIDE], "MatMul", repeat=4),
        "many": write_model(house.folder / "many.onnx", ["n", SIDE, SIDE], "MatMul", repeat=4),
    }


@pytest.fixture(name="helper")
def given_helper(house: House, models: dict[str, Path]) -> Iterator[Callable[[str], Member]]:
    """Start an RSU with the same models and speed, as a process."""
    with ExitStack() as stack:

        def start(node: str) -> Member:
            tables = (
                "[discovery]\nmdns = false\n[inference]\nemulate_slowdown = 100\n"
                + "".join(f'[models.{name}]\npath = "{path}"\n' for name, path in models.items())
            )  # fmt: skip
            member = stack.enter_context(Member(house.file(node, tables, role="rsu")))
            member.wait_for("up")
            return member

        yield start


def sections(models: dict[str, Path]) -> dict[str, ModelSection]:
    return {name: ModelSection(path=path) for name, path in models.items()}


def matrices(count: int) -> Any:
    return np.random.default_rng(3).standard_normal((count, SIDE, SIDE), dtype="f4") * 0.1


async def offered(node: meshnode.Node, count: int) -> None:
    def offers() -> int:
        return sum(offer.model == "one" and peer.met for peer in node.peers() for offer in peer.offers)

    await until(lambda: offers() == count, f"{count} offers")


async def test_batch_of_three_nodes_of_which_one_is_killed_has_the_bits_of_one_node(
    house: House, opened: Open, helper: Callable[[str], Member], models: dict[str, Path]
) -> None:
    """Each row once, in its place, and equal to the same shard here: what nobody notices of the mesh."""
    staying, dying = helper("rsu-1"), helper("rsu-2")
    node = await opened("veh-1", staying.port, dying.port, models=sections(models), inference=SLOW)
    await offered(node, 2)
    batch = matrices(48)
    task = asyncio.create_task(node.infer_batch("one", {"x": batch}))

    def under_way() -> list[str]:
        return list(node.driver.look(lambda engine, _: engine.inference.under_way()))

    await until(lambda: node.statistics()["inference_shards_joined"] >= 9 and "rsu-2" in under_way(), "some are done")
    dying.process.send_signal(signal.SIGKILL)
    result = await task
    assert result.outputs["y"].shape == batch.shape
    assert [(part.kind, part.index) for part in result.parts] == [("shard", at) for at in range(len(result.parts))]
    assert sum(part.size for part in result.parts) == 48
    nodes = [part.node for part in result.parts]
    assert set(nodes) >= {"veh-1", "rsu-1"}
    lost = {run.outcome for run in result.attempts if run.node == "rsu-2" and run.outcome != "done"}
    assert lost  # dead, or begun elsewhere and cancelled before its silence was noticed
    assert lost <= {"dead", "cancelled"}
    alone = [(await node.infer("one", {"x": row[None]})).outputs["y"] for row in batch]
    assert result.outputs["y"].tobytes() == np.concatenate(alone).tobytes()


async def test_shards_of_several_rows_have_the_bits_of_the_same_shards_here(
    house: House, opened: Open, helper: Callable[[str], Member], models: dict[str, Path]
) -> None:
    """A run of three rows may take another kernel than a run of all, so this is what can be promised."""
    node = await opened("veh-2", helper("rsu-3").port, models=sections(models), inference=SLOW)
    await offered(node, 1)
    batch = matrices(20)
    result = await node.infer_batch("many", {"x": batch}, shard=3)
    assert [part.size for part in result.parts] == [3] * 6 + [2]
    alone = [(await node.infer("many", {"x": batch[at : at + 3]}, hedge=False)).outputs["y"] for at in range(0, 20, 3)]
    assert result.outputs["y"].tobytes() == np.concatenate(alone).tobytes()


async def test_batch_has_errors_as_a_single_request_has(house: House, opened: Open, models: dict[str, Path]) -> None:
    """The message names the shape that a shard would have, and a deadline is kept."""
    node = await opened("veh-3", models=sections(models), inference=SLOW)
    with pytest.raises(InputInvalid, match=r"expected f4\[1, 96, 96\], given f4\[1, 96, 95\]"):
        await node.infer_batch("one", {"x": matrices(4)[:, :, :95]})
    with pytest.raises(InputInvalid, match="'one' takes 1 rows at a time"):
        await node.infer_batch("one", {"x": matrices(4)}, shard=2)
    with pytest.raises(InputInvalid, match="shards of 0 rows"):
        await node.infer_batch("one", {"x": matrices(4)}, shard=0)
    with pytest.raises(BudgetExhausted, match="of 200 rows of 'one' were done"):
        await node.infer_batch("one", {"x": matrices(200)}, deadline_ms=200)


async def test_batch_may_take_as_long_as_all_its_rows_by_default(
    house: House, opened: Open, models: dict[str, Path]
) -> None:
    """The deadline of the configuration is meant for one input."""
    how = InferenceSection(emulate_slowdown=100, deadline_ms=500)
    node = await opened("veh-5", models=sections(models), inference=how)
    result = await node.infer_batch("one", {"x": matrices(100)})
    assert sum(part.size for part in result.parts) == 100


async def test_application_has_its_batches_divided_too(house: House, models: dict[str, Path]) -> None:
    """Whatever a program in the node can do, one beside it can; cancelling ends the batch."""
    config = house.config("veh-4", models=sections(models), inference=SLOW)
    async with meshnode.open(config) as node, meshnode.connect(socket_of(config)) as app:
        batch = matrices(6)
        result = await app.infer_batch("many", {"x": batch}, shard=2)
        assert [part.size for part in result.parts] == [2, 2, 2]
        own = await node.infer_batch("many", {"x": batch}, shard=2)
        assert result.outputs["y"].tobytes() == own.outputs["y"].tobytes()
        task = asyncio.create_task(app.infer_batch("one", {"x": matrices(200)}))
        await until(lambda: node.statistics()["inference_sharded"] == 3, "it is under way")
        task.cancel()
        await until(lambda: not node.driver.look(lambda engine, _: engine.inference.under_way()), "it is gone")
        app._minor = 3
        with pytest.raises(LocalProtocolError, match="older version, which divides no batches"):
            await app.infer_batch("one", {"x": batch})
