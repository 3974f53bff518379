"""A model that is busy is given the newest sample when it is free, whatever the driver."""

import threading
from collections.abc import Generator, Mapping
from typing import Any, Self

import numpy as np
import pytest

import meshnode as mesh
from meshnode.sensors import DriverContext, InferenceSample, Sample, plugins
from protocols.base.limits import SECOND
from protocols.wire.readings import EventTime, Position, Reading
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.tiny_onnx import write_model

__all__ = ["given_house"]


class Held:
    """Gives six samples while its model is held at the first, and a seventh when it has computed two."""

    free = threading.Event()
    finished = threading.Event()
    prepared: list[int]

    def __init__(self, context: DriverContext) -> None:
        self.context = context
        Held.prepared = []
        Held.free.clear()
        Held.finished.clear()

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        return cls(context)

    def samples(self) -> Generator[Sample, None, None]:
        for number in range(7):
            if number == 6:
                Held.free.set()
                Held.finished.wait(60)
            yield self._sample(number)

    def _sample(self, number: int) -> Sample:
        def inputs() -> Mapping[str, Any]:
            Held.free.wait(60)
            Held.prepared.append(number)
            return {"x": np.full(2, number, np.float32)}

        infer = InferenceSample("double", inputs, key="veh/v/doubled", interpret=lambda outputs: float(outputs["y"][0]))
        return Sample(
            0.0, "veh/v/held", number, infer=infer, where=Position(48.7, 11.4, 2.0),
            when=EventTime((1_700_000_000 + number) * SECOND, 1),
        )  # fmt: skip


@pytest.mark.processes
async def test_busy_model_computes_the_newest_sample_next_and_the_others_are_never_prepared(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The samples 1 to 4 were of no use to anybody any more. A result has the time of its sample."""
    monkeypatch.setitem(plugins._BUILT_IN, "held", f"{__name__}:Held")
    model = write_model(house.folder / "double.onnx", [2], "Add")
    heard: list[Reading] = []
    tables = f'[models.double]\npath = "{model}"\n[sensors.camera]\ndriver = "held"\n'
    async with mesh.open(house.file("v", tables, mdns=False)) as node:
        node.subscribe("veh/v/doubled", callback=heard.append)
        await until(lambda: len(heard) == 2, "two are computed")
        Held.finished.set()
        await until(lambda: len(heard) == 3, "the last one is computed")
        assert node.statistics()["sensor_inferences_skipped"] == 4
    assert Held.prepared == [0, 5, 6]
    assert [reading.value for reading in heard] == [0.0, 10.0, 12.0]
    assert [reading.when.utc_ns // SECOND - 1_700_000_000 for reading in heard] == [0, 5, 6]
