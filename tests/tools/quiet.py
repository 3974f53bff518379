"""Bounds of processor time, for tests that search for the dearest input.

Other programs, and the tests that run beside, make everything look dearer than it is: caches are cold, and threads
share a core. So a bound is eight times as long, unless the variable ``MESH_QUIET`` is set, for a quiet computer:

    MESH_QUIET=1 make test ARGS="-n 0 -s -k 'worst_frame or relay_costs'"
"""

import os

IS_QUIET = "MESH_QUIET" in os.environ


def bound_ms(quiet_ms: float) -> float:
    """The bound in milliseconds for this run; ``quiet_ms`` on a quiet computer."""
    return quiet_ms if IS_QUIET else 8 * quiet_ms
