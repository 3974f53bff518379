"""``python -m benchmarks.camera``: which frames of a video at 30 frames a second a detector computes that does five.

A node in this process reads a video whose frames carry their number, and gives each to a model that takes 200 ms, which
reads the number again. When the model is free it has to be given the newest frame that the node has published by then.
The memory of the process is sampled each second. The processor time is that of the sensor's thread, which decodes and
publishes; what a computed frame takes to be prepared is measured for itself.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import numpy as np
import psutil

import meshnode
from benchmarks import numbered_video
from benchmarks.can_bus import processor_s
from benchmarks.lone_node import write_lone_node
from benchmarks.model import bare_session
from meshnode.sensors import DriverContext, create_driver
from protocols.base.ids import node_id
from protocols.wire.readings import Reading

RATE_HZ: Final = 30
DETECTOR_S: Final = 0.2
BAR_BEHIND: Final = 1
"""Frames: one that is handed over at the very moment when the model becomes free may be taken for newer than it was."""
BAR_GROWTH_MIB: Final = 8.0
_MIB: Final = 2**20
_CAMERA: Final = """
[models.numbers]
path = "numbers.onnx"
[sensors.camera]
driver = "camera"
file = "video.{suffix}"
loop = true
model = "numbers"
preprocess = "rgb"
width = {width}
height = {height}
budget_ms = 10000
result = "number"
"""
_SUFFIXES: Final = {"libx264": "mp4", "mpeg4": "mp4", "mjpeg": "avi"}


def calibrated(path: Path, given: tuple[int, int]) -> float:
    """Write a detector that takes ``DETECTOR_S`` on this machine now; returns what it took."""
    picture = {"image": numbered_video.picture(1, *given)[None]}

    def took_s(rounds: int) -> float:
        numbered_video.write_detector(path, rounds, *given)
        session = bare_session(path)
        session.run(None, picture)
        begun_s = time.perf_counter()
        session.run(None, picture)
        return time.perf_counter() - begun_s

    once_s, more_s = took_s(1), took_s(21)
    return took_s(max(1, round((DETECTOR_S - once_s) / max((more_s - once_s) / 20, 1e-5))))


def prepare_s(folder: Path, suffix: str, given: tuple[int, int]) -> float:
    """How long one frame takes to become what the model is given, by the processor time of a thread."""
    context = DriverContext(node_id("veh-1"), folder, Random(1))
    options = {
        "file": f"video.{suffix}",
        "model": "numbers",
        "preprocess": "rgb",
        "width": given[0],
        "height": given[1],
    }
    samples = create_driver("camera", options, context).samples()
    took = []
    for sample, _ in zip(samples, range(60), strict=False):
        assert sample.infer is not None
        assert callable(sample.infer.inputs)
        begun_s = time.thread_time()
        sample.infer.inputs()
        took.append(time.thread_time() - begun_s)
    samples.close()
    return median(took)


def behind(frames: list[tuple[float, int]], results: list[tuple[float, int]], length: int) -> list[int]:
    """For each result but the first: how many newer frames were there when the model began with it.

    ``frames`` and ``results``: when each was published, and its number, which the results know modulo ``length``.
    """
    times = [at_s for at_s, _ in frames]
    older = []
    for (free_s, _), (_, number) in pairwise(results):
        newest = frames[bisect_right(times, free_s) - 1][1]
        late = (newest - number) % length
        older.append(late if late < length // 2 else 0)  # it came after the model was free, which waited for it
    return older


async def run(
    folder: Path, seconds: float, codec: str, size: tuple[int, int], given: tuple[int, int], length: int
) -> dict[str, Any]:
    """Watch a video of ``length`` frames for that long; returns the figures. ``given``: width and height of what the
    detector takes, to which frames are scaled."""
    width, height = size
    suffix = _SUFFIXES[codec]
    config = write_lone_node(folder, _CAMERA.format(suffix=suffix, width=given[0], height=given[1]))
    numbered_video.write_video(folder / "node" / f"video.{suffix}", length, codec, RATE_HZ, width, height)
    detector_s = calibrated(folder / "node" / "numbers.onnx", given)
    frames: list[tuple[float, int]] = []
    results: list[tuple[float, int]] = []

    def shown(reading: Reading) -> None:
        frames.append((time.monotonic(), reading.value["frame"]))

    def computed(reading: Reading) -> None:
        results.append((time.monotonic(), int(np.asarray(reading.value["number"])[0])))

    process, memory = psutil.Process(), []
    async with meshnode.open(config) as node:
        node.subscribe("veh/veh-1/camera", callback=shown)
        node.subscribe("veh/veh-1/number", callback=computed)
        sensing = next(thread for thread in threading.enumerate() if thread.name == "sensor-camera")
        before_s, begun_s, already = processor_s(sensing), time.monotonic(), len(frames)
        while time.monotonic() - begun_s < seconds:
            await asyncio.sleep(1.0)
            memory.append(process.memory_info().rss / _MIB)
        took_s, lasted_s, count = processor_s(sensing) - before_s, time.monotonic() - begun_s, len(frames) - already
        skipped = node.statistics()["sensor_inferences_skipped"]
    late = behind(frames, results, length)
    eighth = max(1, len(memory) // 8)
    memory_mib = [round(median(memory[at : at + eighth]), 1) for at in range(0, len(memory) - eighth + 1, eighth)]
    return {
        "codec": codec, "width": width, "height": height, "given": given, "seconds": round(lasted_s, 1),
        "detector_ms": round(1e3 * detector_s),
        "frames_per_s": round(count / lasted_s, 1), "computed_per_s": round(len(results) / lasted_s, 2),
        "computed": len(results), "newest": late.count(0), "one_behind": late.count(1),
        "most_behind": max(late, default=0), "skipped": skipped,
        "memory_mib": memory_mib,
        "processor_ms_per_frame": round(1e3 * took_s / max(count, 1), 3),
        "prepare_ms_per_computed_frame": round(1e3 * prepare_s(folder / "node", suffix, given), 3),
    }  # fmt: skip


def main() -> int:
    """Measure and print. Returns 1 when an older frame was computed or, with ``--check``, memory has grown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.camera", description="A video and a slow detector.")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--codec", choices=sorted(_SUFFIXES), nargs="+", default=["libx264"])
    parser.add_argument("--size", type=int, nargs=2, default=[1280, 720], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--given", type=int, nargs=2, default=[320, 180], metavar=("WIDTH", "HEIGHT"),
                        help="what the detector takes, to which frames are scaled; it makes it float32")  # fmt: skip
    parser.add_argument("--length", type=int, default=600, help="frames of the video, which begins again then")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    is_missed = False
    for codec in asked.codec:
        with tempfile.TemporaryDirectory() as folder:
            figures = asyncio.run(
                run(Path(folder), asked.seconds, codec, tuple(asked.size), tuple(asked.given), asked.length)
            )
        print(json.dumps(figures), flush=True)
        memory_mib = figures["memory_mib"]
        growth_mib = memory_mib[-1] - memory_mib[len(memory_mib) // 2]
        is_missed |= figures["most_behind"] > BAR_BEHIND or not figures["computed"]
        is_missed |= asked.check and growth_mib > BAR_GROWTH_MIB
    return 1 if is_missed else 0


if __name__ == "__main__":
    sys.exit(main())
