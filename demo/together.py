"""What was promised about requests that several nodes compute together: the stages of a private model, and the tiles of
a large picture.

Where a promise is only a matter of time, because the machine did not get so far, it is judged as a timing.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from demo import batch, private
from demo.promises import Promise, Span, about_mesh, percentile
from demo.stage import PRIVATE_SLOWDOWN, SLOWDOWN, UNITS, VEHICLES

PLAN_WITHIN_S = 20.0
"""The longest time until a vehicle has cut its model, made plans, had a roadside unit fetch and load a stage, and timed
them."""
PRIVATE = next(participant.name for participant in VEHICLES if participant.private)
WITH_TILES = next(participant.name for participant in VEHICLES if participant.tiles)


class Together:
    """Judges by the reports of both vehicles."""

    def __init__(
        self, reports: Mapping[str, dict[str, Any]], ready: Mapping[str, Sequence[float]], stopping_s: float,
        timing: Callable[[str, str, list[Span]], Promise],
    ) -> None:  # fmt: skip
        """``ready``: when each node was ready, for each of its lives. ``timing``: judges a timing that was missed in
        some spans."""
        self._private = reports.get(PRIVATE, {}).get("private", private.empty_notes())
        self._batch = reports.get(WITH_TILES, {}).get("batch", batch.empty_notes())
        self._ready_s = {name: max(ready.get(name, ()), default=0.0) for name in (PRIVATE, WITH_TILES)}
        self._stopping_s, self._timing = stopping_s, timing
        self._units = {unit.name for unit in UNITS}

    def promises(self) -> list[Promise]:
        """All of them. Without a plan or a batch, there is just one about that."""
        return [*self._stages(), *self._tiles()]

    def _stages(self) -> list[Promise]:
        name = f"a private model ran in parts within {PLAN_WITHIN_S:g} s of the ready line of its vehicle"
        ready_s, plan = self._ready_s[PRIVATE], self._private["plan"]
        if plan is None:
            return [self._timing(name, "there was no plan", [(ready_s, self._stopping_s)])]
        took_s = plan["at"] - ready_s
        chain = ", ".join(f"{share:.0%} on {node}" for node, share in plan["stages"])
        missed = [(ready_s, plan["at"])] if took_s > PLAN_WITHIN_S else []
        answers = self._private["split"]
        nodes = [[part["node"] for part in answer["parts"]] for answer in answers]
        at_home = all(first == PRIVATE for first, *_ in filter(None, nodes))
        helped = sum(bool(self._units.intersection(each)) for each in nodes)
        whole = {answer["frame"]: answer["answer"] for answer in self._private["alone"]}
        equal = sum(answer["answer"] == whole.get(answer["frame"]) for answer in answers)
        return [
            self._timing(name, f"after {took_s:.1f} s: {chain}", missed),
            about_mesh(
                "its pictures stayed in the vehicle, and a roadside unit computed the rest",
                at_home and helped > 0,
                f"{helped} of {len(answers)} answers with a unit",
            ),
            about_mesh(
                "its answers in parts are those of the whole, bit for bit",
                0 < equal == len(answers),
                f"{equal} of {len(answers)}",
            ),
        ]

    def _tiles(self) -> list[Promise]:
        name = "three nodes shared a batch of tiles"
        batches, failed = self._batch["batches"], self._batch["failed"]
        span = self._ready_s[WITH_TILES], self._stopping_s
        if not batches:
            return [self._timing(name, failed or "there was no batch", [span])]
        nodes = [{node for node, _, _ in each["parts"]} for each in batches]
        shared = any(self._units | {WITH_TILES} <= each for each in nodes)
        rows = all(sum(size for _, size, _ in each["parts"]) == self._batch["tiles"] for each in batches)
        compared, equal = self._batch["compared"], self._batch["equal"]
        return [
            self._timing(name, ", ".join(_shares(each) for each in batches), [] if shared else [span]),
            about_mesh(
                "every tile was looked at once, and equals a single request, bit for bit",
                rows and equal == compared and not failed,
                failed or f"{equal} of {compared} that were compared",
            ),
        ]

    # --- summary ---------------------------------------------------------------------------------------------------
    def summary(self) -> dict[str, Any]:
        """How both ran: alone, and with others."""
        return {"private": self._in_parts(), "batch": self._in_shards()}

    def _in_parts(self) -> dict[str, Any]:
        times: dict[tuple[int, str], list[float]] = defaultdict(list)
        for answer in self._private["split"]:
            for index, part in enumerate(answer["parts"]):
                times[index, part["node"]].append(part["took_ms"])
        return {
            "vehicle": PRIVATE,
            "emulated_slowdown": PRIVATE_SLOWDOWN,
            "deadline_ms": self._private["deadline_ms"],
            "alone_ms": percentile([answer["took_ms"] for answer in self._private["alone"]], 0.5),
            "in_parts_ms": percentile([answer["took_ms"] for answer in self._private["split"]], 0.5),
            "answers_in_parts": len(self._private["split"]),
            "plan": self._private["plan"],
            "stages": [
                {"stage": index + 1, "node": node, "answers": len(values), "median_ms": percentile(values, 0.5)}
                for (index, node), values in sorted(times.items())
            ],
        }

    def _in_shards(self) -> dict[str, Any]:
        """Of the batch that was done soonest. The tiles that the vehicle looked at itself tell what all of them would
        have taken alone."""
        none: dict[str, Any] = {"took_ms": None, "parts": []}
        best = min(self._batch["batches"], key=lambda each: float(each["took_ms"]), default=none)
        rows: Counter[str] = Counter()
        own_ms = []
        for node, size, compute_ms in best["parts"]:
            rows[node] += size
            own_ms += [compute_ms / size] if node == WITH_TILES else []
        tile_ms = percentile(own_ms, 0.5)
        return {
            "vehicle": WITH_TILES,
            "emulated_slowdown": SLOWDOWN,
            "tiles": self._batch["tiles"],
            "took_ms": best["took_ms"],
            "alone_ms": None if tile_ms is None else round(tile_ms * self._batch["tiles"], 1),
            "tiles_by_node": dict(sorted(rows.items())),
        }


def _shares(each: Mapping[str, Any]) -> str:
    rows: Counter[str] = Counter()
    for node, size, _ in each["parts"]:
        rows[node] += size
    return f"{each['took_ms']:.0f} ms (" + " ".join(f"{node} {count}" for node, count in sorted(rows.items())) + ")"
