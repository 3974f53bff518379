"""Fuzzes one target in a process of its own: ``python -m tests.fuzz.worker TARGET FOLDER [options of libFuzzer]``.

Atheris (libFuzzer for Python) mutates the inputs in the folder, and keeps there those that reach new code. Half of the
mutations of MessagePack change a value instead of bytes. Each line on standard output is the time in milliseconds of an
input that took longer than all before it.
"""

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["protocols", "meshnode", "cloud_relay"]):
    from tests.fuzz.judge import judge
    from tests.fuzz.targets import TARGETS, Form

from tests.fuzz.mutator import mutated


def main() -> None:
    """Run until libFuzzer ends, which ends the process. An input that breaks a promise ends it with status 77."""
    target = TARGETS[sys.argv[1]]
    slowest_ms = 0.0

    def one_input(data: bytes) -> None:
        nonlocal slowest_ms
        took_ms = judge(target, data)
        if took_ms > slowest_ms:
            slowest_ms = took_ms
            print(f"{took_ms:.3f}", flush=True)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        changed = mutated(data, target.form, Random(seed)) if seed % 2 else None
        if changed is None or len(changed) > max_size:
            changed = atheris.Mutate(data, max_size)
        return bytes(changed)

    mutators = {} if target.form is Form.TEXT else {"custom_mutator": mutate}
    atheris.Setup([sys.argv[0], *sys.argv[2:]], one_input, **mutators)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
