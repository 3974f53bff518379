"""One process of the demonstration: how it ends."""

import asyncio

import pytest

from demo.participant import end_all


async def test_tasks_have_ended_when_a_participant_closes_its_node(caplog: pytest.LogCaptureFixture) -> None:
    """A task that was only told to end went on to ask a node that was being closed, and an error of one was lost."""
    begun, ended = asyncio.Event(), list[str]()

    async def works() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # whoever cleans up may have to wait
            ended.append("works")

    async def fails() -> None:
        raise ValueError("no picture")

    tasks = [asyncio.create_task(works(), name="works"), asyncio.create_task(fails(), name="fails")]
    await begun.wait()
    await end_all(tasks)
    assert ended == ["works"]
    assert all(task.done() for task in tasks)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == ["fails failed"]
