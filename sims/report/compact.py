"""A result as the page carries it: names once, places as 16-bit numbers, everything else as short as JSON can be.

Layouts, which the scripts beside this file read:

- ``texts``: all names and words; elsewhere they go by their index.
- ``places``: little-endian ``int16`` pairs (x, y), node after node, frame after frame, base64; ``ABSENT`` means that
  the node was not on the map; metres are ``x0 + value * scale``.
- ``messages``: [published_s, origin, key, sequence, [node, milliseconds later, node, …]].
- ``happenings``: [at_s, kind, node, other, detail].
- ``parts``: the fields of :class:`~sims.results.result.PartRuns`, in their order.
"""

import base64
from collections import Counter
from typing import Any

import numpy as np
from msgspec import to_builtins

from sims.results.result import Distribution, Happening, Message, PartRuns, Result
from sims.scenario.file import Fault

ABSENT = -32768
_MOST = 32_000
MAX_LOAD_POINTS = 1_300
MAX_HAPPENINGS = 8_000
MAX_DETAIL_CHARS = 120
"""With both, the timeline takes at most half of the three megabytes that a report may have."""


class _Texts:
    """Gives each text one number."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._index: dict[str, int] = {}

    def index(self, text: str) -> int:
        found = self._index.get(text)
        if found is None:
            found = self._index[text] = len(self.all)
            self.all.append(text)
        return found


def compact(result: Result) -> dict[str, Any]:
    """Everything that the page shows, as plain data."""
    texts = _Texts()
    happenings, cut = _happenings(result)
    names = [info.name for info in result.node_infos]
    for name in names:  # the first texts are the names of the nodes, in the order of ``nodes``
        texts.index(name)
    page = {
        "harness": result.harness, "scenario": result.scenario, "seed": result.seed, "nodes": result.nodes,
        "virtual_s": result.virtual_s, "wall_s": result.wall_s, "digest": result.digest, "valid": result.valid,
        "why_invalid": result.why_invalid, "versions": result.versions,
        "infos": [[info.role, info.group, info.device] for info in result.node_infos],
        "checks": [[name, check.passed, check.failed, check.details] for name, check in result.checks.items()],
        "sometimes": result.sometimes,
        "figures": {name: _short(value) for name, value in result.figures.items()},
        "rules": [[name, rule.records, rule.size_bytes] for name, rule in result.rules.items()],
        "counters": result.counters, "drops": result.drops, "left_out": result.left_out + cut,
        "latency": _spread(result.latency), "urgent": _spread(result.urgent),
        "goodput": {
            name: None if value is None else _short(value)
            for name, value in (
                ("offered_per_s", result.offered_per_s), ("useful_per_s", result.useful_per_s),
                ("urgent_wanted", result.urgent_wanted), ("urgent_missed", result.urgent_missed),
            )
        },
        "age": _spread(result.age), "discovery": _spread(result.discovery),
        "inference": _spread(result.inference), "inference_by": result.inference_by,
        "parts": [_part(runs) for runs in result.parts],
        "distances": to_builtins(result.distances),
        "dissemination": [to_builtins(entry) for entry in result.dissemination],
        "load_every_s": result.load_every_s, "load": [round(value, 4) for value in result.load[:MAX_LOAD_POINTS]],
        "meetings_every_s": result.meetings_every_s, "meetings": result.meetings[:MAX_LOAD_POINTS],
        "faults": [_fault(fault, result.virtual_s, names, result, texts) for fault in result.faults],
        "happenings": [
            [round(h.at_s, 3), *(texts.index(text) for text in (h.kind, h.node, h.other, h.detail[:MAX_DETAIL_CHARS]))]
            for h in happenings
        ],
        "messages": [_message(message, texts) for message in result.messages],
        "places": _places(result, texts),
    }  # fmt: skip
    page["texts"] = texts.all
    return page


def _happenings(result: Result) -> tuple[list[Happening], list[str]]:
    """As many happenings as the page may hold, the newest of each kind, and a word on what is missing. Rare kinds stay
    whole."""
    numbers = Counter(happening.kind for happening in result.happenings)
    most = max(numbers.values(), default=0)
    while sum(min(number, most) for number in numbers.values()) > MAX_HAPPENINGS and most > 1:
        most = most * 3 // 4
    left, kept = {kind: number - most for kind, number in numbers.items()}, []
    for happening in result.happenings:
        left[happening.kind] -= 1
        if left[happening.kind] < 0:
            kept.append(happening)
    if len(kept) == len(result.happenings):
        return kept, []
    return kept, [f"timeline: {len(kept)} of {len(result.happenings)}; all are in happenings.csv"]


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _spread(spread: Distribution) -> dict[str, Any]:
    return {
        "unit": spread.unit, "count": spread.count, "mean": _short(spread.mean),
        "quantiles": {name: _short(value) for name, value in spread.quantiles.items()},
        "edges": [_short(edge) for edge in spread.edges], "counts": spread.counts,
    }  # fmt: skip


def _part(runs: PartRuns) -> list[Any]:
    return [
        runs.model, runs.kind, runs.index, runs.of, runs.between, runs.by, runs.device, runs.runs, runs.replays,
        _short(runs.took_p50_ms), _short(runs.compute_p50_ms), runs.input_bytes, runs.output_bytes,
    ]  # fmt: skip


def _fault(fault: Fault, virtual_s: float, names: list[str], result: Result, texts: _Texts) -> dict[str, Any]:
    def indices(whom: tuple[str, ...]) -> list[int]:
        found = []
        for name in whom:
            members = [info.name for info in result.node_infos if info.group == name] if name not in names else [name]
            found += [texts.index(member) for member in members]
        return found

    return {
        "kind": fault.kind, "at": fault.at_s, "until": fault.at_s + fault.for_s if fault.for_s else virtual_s,
        "forever": not fault.for_s, "nodes": indices(fault.nodes), "others": indices(fault.others),
    }  # fmt: skip


def _message(message: Message, texts: _Texts) -> list[Any]:
    arrivals: list[float] = []
    for node, at_s in message.arrivals:
        arrivals += [texts.index(node), round((at_s - message.published_s) * 1000, 2)]
    origin, key = texts.index(message.origin), texts.index(message.key)
    return [round(message.published_s, 3), origin, key, message.sequence, arrivals]


def _places(result: Result, texts: _Texts) -> dict[str, Any]:
    frames = max((len(track) for track in result.places.values()), default=0)
    points = [point for track in result.places.values() for point in track if point is not None]
    if not points:
        return {"frames": 0, "every_s": result.places_every_s, "nodes": [], "data": ""}
    places = np.array(points, dtype=np.float64)
    corner, far = places.min(axis=0), places.max(axis=0)
    scale = max(float((far - corner).max()) / _MOST, 0.01)
    packed = np.full((len(result.places), frames, 2), ABSENT, dtype="<i2")
    for row, track in enumerate(result.places.values()):
        for frame, point in enumerate(track):
            if point is not None:
                packed[row, frame] = np.rint((np.asarray(point) - corner) / scale)
    return {
        "frames": frames, "every_s": result.places_every_s, "nodes": [texts.index(name) for name in result.places],
        "x0": float(corner[0]), "y0": float(corner[1]), "scale": scale,
        "data": base64.b64encode(packed.tobytes()).decode("ascii"),
    }  # fmt: skip
