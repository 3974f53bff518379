"""Judges one input: whether a target raises what it did not declare, or takes longer than it may."""

import time

from tests.fuzz.targets import Target

_REPEATS = 3
"""A slow input is run again, because the machine may have been busy with other things."""


class Broken(Exception):
    """An input that a target does not survive as it promises."""


def cpu_ms(target: Target, data: bytes) -> float:
    """The time of a processor in milliseconds that an input takes. :raises Broken: for an error that the target does
    not declare."""
    began_ns = time.thread_time_ns()
    try:
        target.run(data)
    except target.declared:
        pass
    except Exception as error:
        raise Broken(f"{target.name} raised {type(error).__name__}: {error!s:.200} for {data.hex()}") from error
    return (time.thread_time_ns() - began_ns) / 1e6


def judge(target: Target, data: bytes) -> float:
    """The time in milliseconds that an input takes. :raises Broken: when it breaks a promise."""
    took_ms = cpu_ms(target, data)
    if took_ms > target.max_cpu_ms:
        took_ms = min(took_ms, *(cpu_ms(target, data) for _ in range(_REPEATS)))
        if took_ms > target.max_cpu_ms:
            raise Broken(f"{target.name} took {took_ms:.1f} ms, more than {target.max_cpu_ms:g}, for {data.hex()}")
    return took_ms
