"""What a node says of the releases that it follows, and what a canary must have measured before it says it."""

from typing import Final

import msgspec

from protocols.base.errors import RemoteProtocolError
from protocols.releases.catalogue import Gates
from protocols.releases.events import Measures
from protocols.wire.codec import decode_untrusted, encode
from protocols.wire.releases import RolloutHealth

STATES: Final = (
    "", "fetching", "fetched", "staged", "shadowing", "soaking", "healthy", "serving", "failed", "rolled_back",
    "starting",
)  # fmt: skip
"""States by their number on the wire. New ones are added at the end."""
REASONS: Final = (
    "", "other", "no_room", "runtime", "digest", "golden", "signature", "load", "crashed", "hung", "memory",
    "not_finite", "forbidden", "errors", "latency", "agreement", "halted", "silent", "aborted",
    "pinned",
)  # fmt: skip
"""Reasons by their number on the wire. New ones are added at the end."""
GATE_REASONS: Final = frozenset({"errors", "latency", "agreement"})
FEW_RUNS: Final = 20
"""With fewer runs than this, a gate is not judged before the end of the time: one error in three runs says little."""

_decoder = msgspec.msgpack.Decoder(RolloutHealth)


def encode_health(health: RolloutHealth) -> bytes:
    """Encode the body of an entry of kind ``rollout``."""
    return encode(health)


def decode_untrusted_health(body: bytes) -> RolloutHealth:
    """Parse the body of an entry of kind ``rollout``. :raises RemoteProtocolError: for anything that is not one."""
    return decode_untrusted(_decoder, body)


def readable_health(body: bytes) -> RolloutHealth | None:
    """The body of an entry of kind ``rollout``; None when it is not one."""
    try:
        return decode_untrusted_health(body)
    except RemoteProtocolError:
        return None


def reason_of(failure: str) -> str:
    """The reason that a failure begins with, as in ``no_room: 12 MB are free and 80 needed``; ``other`` when it begins
    with none, and nothing when there is no failure."""
    if not failure:
        return ""
    word = failure.partition(":")[0].strip()
    return word if word in REASONS and word else "other"


def broken_gate(gates: Gates, measures: Measures) -> str:
    """The first gate that the measures break: ``errors``, ``latency`` or ``agreement``; nothing when they break none.
    A gate on what was not measured is not broken."""
    if measures.runs and measures.errors > gates.max_errors * measures.runs:
        return "errors"
    compares_latency = gates.max_latency and measures.p95_ns and measures.before_p95_ns
    if compares_latency and measures.p95_ns > gates.max_latency * measures.before_p95_ns:
        return "latency"
    if measures.compared and measures.agreed < gates.min_agreement * measures.compared:
        return "agreement"
    return ""


def has_run_enough(gates: Gates, measures: Measures | None) -> bool:
    """Whether there was something to judge: it was measured at all, and has had the runs that the gates ask for."""
    return measures is not None and measures.runs >= gates.min_runs


def has_compared_enough(gates: Gates, measures: Measures | None) -> bool:
    """Whether it was measured beside the release before, on as many inputs as the gates ask for."""
    if measures is None:
        return False
    return not gates.min_agreement or measures.compared >= max(gates.min_runs, 1)


def is_early_to_judge(gates: Gates, measures: Measures) -> bool:
    """Whether a broken gate may still be a chance of the first few runs."""
    return max(measures.runs, measures.compared) < max(gates.min_runs, FEW_RUNS)
