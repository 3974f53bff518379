"""Types that several threads give to msgspec for the first time at the same moment."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DECODING = """
import sys, threading, msgspec
from meshnode.typed import prepared

sys.setswitchinterval(1e-6)
for _ in range(1_500):
    class Inner(msgspec.Struct):
        z: int = 0

    class Outer(msgspec.Struct):
        a: Inner
        b: tuple[Inner, ...]

    begin, seen = threading.Barrier(3), []

    def decode():
        begin.wait()
        seen.append(msgspec.convert({"a": {"z": 1}, "b": [{"z": 2}]}, prepared(Outer)))

    threads = [threading.Thread(target=decode) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [Outer(Inner(1), (Inner(2),))] * 3
"""


@pytest.mark.processes
def test_type_that_three_threads_use_first_at_the_same_moment_does_not_end_the_process() -> None:
    """Two applications in one process heard their first event together: msgspec read from address 0."""
    done = subprocess.run(
        [sys.executable, "-c", DECODING], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
