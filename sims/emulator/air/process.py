"""The process that is the air: reads its job from standard input, and prints its report once that is closed.

    python -m sims.emulator.air.process < job

It runs before all other processes of the host where it may (``SCHED_RR``, set by the launcher): the air does not wait
for computers. The TAPs are inherited descriptors, named in the job.
"""

import gc
import os
import sys
from random import Random

import msgspec
from msgspec import Struct

from sims.emulator.air.disturbances import Disturbances
from sims.emulator.air.wire import Wire
from sims.emulator.namespaces import hardware_address_of
from sims.media.media import Media
from sims.roads.mobility import places
from sims.scenario.file import Fault, Scenario


class Job(Struct):
    """The job of the process, as one line of JSON."""

    scenario: Scenario
    seed: int
    tape: tuple[Fault, ...]
    taps: tuple[int, ...]
    zero_ns: int
    """The monotonic instant of the start of the run."""


def _main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    where = places(job.scenario, Random(f"{job.seed}/places"))
    media = Media(job.scenario, where, Random(f"{job.seed}/links"))
    disturbances = Disturbances(job.scenario.names, job.tape, media)
    macs = [hardware_address_of(node) for node in range(len(job.taps))]
    wire = Wire(
        job.taps,
        macs,
        media,
        where,
        disturbances,
        job.zero_ns,
        media if len(job.taps) > len(job.scenario.names) else None,
    )
    gc.freeze()
    gc.disable()  # nothing here has cycles, and a collection would hold up the air
    report = wire.run(sys.stdin.fileno())
    report.realtime = os.sched_getscheduler(0) == os.SCHED_RR
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    _main()
