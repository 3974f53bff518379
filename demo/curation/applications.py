"""The applications of the demonstration of curation: a dash camera in each vehicle, and one that gathers hotspots.

Patterns hold small readings, and no pictures. So the vehicles' rules say when somebody braked and the roadside unit's
rules that several did so near one another; what belongs to it is put together here.
"""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

import meshnode
from demo.curation.camera import RATE_HZ, found_in, pictures
from demo.curation.stage import Vehicle
from meshnode.models import plate

_LOOK_EVERY_S: Final = 0.4
"""Six detectors on one computer would otherwise leave no time for anything else."""
_KEPT: Final = 50
"""Pictures that the camera keeps, with what was found in them: those of twenty seconds."""
_SCENES: Final = 100
_CLUSTERS: Final = 10


class _Looked(NamedTuple):
    taken_ns: int
    content: bytes
    plates: list[dict[str, float]]


class DashCamera:
    """Takes pictures, has the plates found in two of them a second, and publishes the one of these that was taken when
    its vehicle braked."""

    def __init__(self, node: meshnode.Node, vehicle: Vehicle) -> None:
        self._node, self._vehicle = node, vehicle
        self._pictures = pictures(vehicle)
        self._kept: deque[_Looked] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self._newest, self._has_newest = 0, asyncio.Event()
        self.made_bytes = 0
        """All of its pictures."""
        self.looked = 0
        self.blind = 0
        """Pictures in which no plate was found."""
        node.subscribe(f"veh/{node.id}/braking", callback=self._braked, history=False)

    async def run(self) -> None:
        """Take pictures until it is cancelled. A camera goes by its own clock: it has taken those, too, that this task
        was too late for."""
        looking = asyncio.create_task(self._look())
        due_s = time.monotonic()
        try:
            while not looking.done():
                while due_s <= time.monotonic():
                    self._newest = (self._newest + 1) % len(self._pictures)
                    self.made_bytes += len(self._pictures[self._newest])
                    due_s += 1 / RATE_HZ
                self._has_newest.set()
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await looking
        finally:
            looking.cancel()

    async def _look(self) -> None:
        while True:
            await self._has_newest.wait()
            self._has_newest.clear()
            content, taken_ns = self._pictures[self._newest], time.time_ns()
            inputs = {plate.INPUT: np.frombuffer(content, np.uint8)}
            answer = await self._node.infer("plate", inputs, outputs=plate.OUTPUTS)
            looked = _Looked(taken_ns, content, found_in(content, answer.outputs))
            with self._lock:
                self._kept.append(looked)
            self.looked += 1
            self.blind += not looked.plates
            await asyncio.sleep(_LOOK_EVERY_S)

    def _braked(self, braking: meshnode.Reading) -> None:
        with self._lock:
            if not self._kept:
                return
            nearest = min(self._kept, key=lambda one: abs(one.taken_ns - braking.when.utc_ns))
        latitude_deg, longitude_deg = self._vehicle.home
        scene = {
            "braking": braking.sequence, "deceleration_mps2": braking.value["max"],
            "picture": nearest.content, "plates": nearest.plates,
            "vin": self._vehicle.vin, "home": {"latitude_deg": latitude_deg, "longitude_deg": longitude_deg},
        }  # fmt: skip
        self._node.publish(f"veh/{self._node.id}/scene", scene, sensor="dash camera", time_ns=nearest.taken_ns)


class Gathering:
    """Puts the scenes of vehicles beside what the rule ``cluster`` says of them, and publishes that as a hotspot."""

    def __init__(self, node: meshnode.Node) -> None:
        self._node = node
        self._scenes: OrderedDict[tuple[str, int], Any] = OrderedDict()
        """By vehicle, and the sequence of its reading of the braking."""
        self._waiting: deque[meshnode.Reading] = deque(maxlen=_CLUSTERS)
        """Clusters with a vehicle whose scene has not come yet."""
        self._lock = threading.Lock()
        node.subscribe("veh/*/scene", callback=self._with(self._keep))
        node.subscribe(f"rsu/{node.id}/cluster", callback=self._with(self._waiting.append), history=False)

    def _with(self, note: Callable[[meshnode.Reading], object]) -> Callable[[meshnode.Reading], None]:
        def heard(reading: meshnode.Reading) -> None:
            with self._lock:
                note(reading)
                complete = self._complete()
            for cluster, scenes in complete:
                self._publish(cluster, scenes)

        return heard

    def _keep(self, scene: meshnode.Reading) -> None:
        self._scenes[scene.origin, scene.value["braking"]] = scene.value
        if len(self._scenes) > _SCENES:
            self._scenes.popitem(last=False)

    def _complete(self) -> list[tuple[meshnode.Reading, list[Any]]]:
        """Clusters of which all scenes have come, with these."""
        complete = []
        for cluster in tuple(self._waiting):
            wanted = [(one["origin"], one["sequence"]) for one in cluster.value["readings"]]
            if all(each in self._scenes for each in wanted):
                self._waiting.remove(cluster)
                complete.append((cluster, [self._scenes[each] for each in wanted]))
        return complete

    def _publish(self, cluster: meshnode.Reading, scenes: list[Any]) -> None:
        value = {"count": len(scenes), "vehicles": scenes}
        self._node.publish(
            f"rsu/{self._node.id}/hotspot", value, where=cluster.where, time_ns=cluster.when.utc_ns, priority=6
        )
