"""The corpus: inputs by which the fuzzer reached new code, one file a target, one input a line in hexadecimal."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.targets import Target

FOLDER = Path(__file__).parent / "corpus"
_PRODUCT = tuple(str(Path(__file__).parents[2] / name) for name in ("protocols", "meshnode", "cloud_relay"))
_Step = tuple[str, int, int]
"""A file, and the lines that a step goes from and to."""


def read(target: Target) -> list[bytes]:
    """The kept inputs of a target, and those that it begins with."""
    path = FOLDER / f"{target.name}.hex"
    kept = [bytes.fromhex(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list(dict.fromkeys([*target.seeds(), *kept]))


def keep(target: Target, found: list[bytes]) -> None:
    """Write those inputs that reach something which neither the seeds nor a smaller input reaches."""
    reached: set[_Step] = set()
    for data in target.seeds():
        reached |= _steps(target, data)
    kept = []
    for data in sorted(set(found), key=lambda data: (len(data), data)):
        steps = _steps(target, data)
        if data and not steps <= reached:
            reached |= steps
            kept.append(data)
    (FOLDER / f"{target.name}.hex").write_text("".join(f"{data.hex()}\n" for data in kept))


def _steps(target: Target, data: bytes) -> set[_Step]:
    """The steps from line to line that an input makes in the product."""
    steps: set[_Step] = set()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_PRODUCT):
            return None
        last = frame.f_lineno

        def trace_line(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal last
            steps.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return trace_line

        return trace_line

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        target.run(data)
    except target.declared:
        pass
    finally:
        sys.settrace(before)
    return steps
