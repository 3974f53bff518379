"""Fuzzes targets in a process of its own: ``python -m tests.fuzz.worker TARGET FOLDER [options of libFuzzer]``.

Atheris (libFuzzer for Python) mutates the inputs in the folder, and keeps there those that reach new code. Half of the
mutations of MessagePack change a value instead of bytes. Each line on standard output is the time in milliseconds of an
input that took longer than all before it.

``python -m tests.fuzz.worker together SECONDS FOLDER [options of libFuzzer]`` fuzzes all targets, because a process
takes five seconds until its code is instrumented. The first byte of an input is the number of its target. A quarter of
the mutations are of the target that has had the fewest, so that each has its share. After so many seconds of processor
time it prints a line for each target: its name, how many inputs it had, and the milliseconds of the slowest one.
"""

import os
import sys
import time
from random import Random
from typing import NoReturn

import atheris

with atheris.instrument_imports(include=["protocols", "meshnode", "cloud_relay"]):
    from tests.fuzz.judge import judge
    from tests.fuzz.targets import TARGETS, Form, Target

from tests.fuzz import corpus
from tests.fuzz.mutator import mutated


def main() -> None:
    """Run until libFuzzer ends, which ends the process. An input that breaks a promise ends it with status 77."""
    if sys.argv[1] == "together":
        _together(float(sys.argv[2]), sys.argv[3:])
    target = TARGETS[sys.argv[1]]
    slowest_ms = 0.0

    def one_input(data: bytes) -> None:
        nonlocal slowest_ms
        took_ms = judge(target, data)
        if took_ms > slowest_ms:
            slowest_ms = took_ms
            print(f"{took_ms:.3f}", flush=True)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return _mutated(target, data, max_size, seed)

    mutators = {} if target.form is Form.TEXT else {"custom_mutator": mutate}
    atheris.Setup([sys.argv[0], *sys.argv[2:]], one_input, **mutators)
    atheris.Fuzz()


def _together(seconds: float, options: list[str]) -> NoReturn:
    targets = list(TARGETS.values())
    inputs, slowest_ms, all_ms = [0] * len(targets), [0.0] * len(targets), [0.0] * len(targets)
    until_s = time.process_time() + seconds
    most_ms = 2_000 * seconds / len(targets)

    def one_input(data: bytes) -> None:
        number = data[0] % len(targets) if data else 0
        if data and all_ms[number] < most_ms:  # or conversations would take most of the time
            took_ms = judge(targets[number], data[1:])
            inputs[number] += 1
            slowest_ms[number] = max(slowest_ms[number], took_ms)
            all_ms[number] += took_ms
        if time.process_time() > until_s:
            for target, count, slowest in zip(targets, inputs, slowest_ms, strict=True):
                print(target.name, count, f"{slowest:.3f}")
            sys.stdout.flush()
            os._exit(0)  # libFuzzer takes an exception for a finding, and ends without clean-up too

    kept = [corpus.read(target) for target in targets]

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        number = data[0] if data else 0
        if not data or random.randrange(4) == 0:  # libFuzzer goes where new code is found, which may leave a target out
            number = min(range(len(targets)), key=lambda number: (all_ms[number] >= most_ms, inputs[number]))
            data = b"." + random.choice(kept[number])
        return bytes((number,)) + _mutated(targets[number % len(targets)], data[1:], max_size - 1, seed)

    atheris.Setup([sys.argv[0], *options], one_input, custom_mutator=mutate)
    atheris.Fuzz()
    raise AssertionError("libFuzzer ends the process")


def _mutated(target: Target, data: bytes, max_size: int, seed: int) -> bytes:
    changed = mutated(data, target.form, Random(seed)) if seed % 2 else None
    if changed is None or len(changed) > max_size:
        changed = atheris.Mutate(data, max_size)
    return bytes(changed)


if __name__ == "__main__":
    main()
