"""A request to compute, whatever carried it here, and the rules that hold for every carrier.

Parameters of requests are looked at by name. Those that a node does not know are skipped, because extensions of the
protocol add some.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meshnode.http.guard import BadRequest
from protocols.base import limits
from protocols.base.errors import InputInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

Parameters = dict[str, Any]
"""Texts, numbers and bools by name."""


@dataclass(frozen=True, slots=True)
class InferenceCall:
    """A parsed request."""

    id: str
    inputs: "Mapping[str, NDArray[Any] | list[memoryview]]"
    """A list has encoded pictures, of a batch."""
    outputs: tuple[str, ...]
    """The names of the wanted outputs; empty: all."""
    deadline_ms: int | None
    """None: the deadline in the node's configuration."""
    shard: int | None = field(default=None, kw_only=True)
    """The request is a batch, with so many rows in a shard; 0: the node chooses. None: it is not divided."""


def check_input_is_new(name: str, known: Mapping[str, Any]) -> None:
    """:raises InputInvalid: ``known`` has an input of that name already."""
    if name in known:
        raise InputInvalid(f"input {name!r} is given twice: give it once")


def check_input_is_sent(name: str, parameters: Parameters) -> None:
    """:raises InputInvalid: the input lies in shared memory."""
    if "shared_memory_region" in parameters:
        raise InputInvalid(f"input {name!r} lies in shared memory, which is not supported: send its data")


def check_output(name: str, parameters: Parameters, known: Mapping[str, Any]) -> None:
    """:raises BadRequest: the output is among ``known`` already, or wanted in a form that a node does not have."""
    where = f"output {name!r}"
    if name in known:
        raise BadRequest(f"{where} is asked for twice: ask once")
    for parameter in ("classification", "shared_memory_region"):
        if parameter in parameters:
            raise BadRequest(
                f"{where} has the parameter {parameter!r} ({str(parameters[parameter])[:40]!r}), which is not "
                "supported: leave it out, and the output comes in the answer"
            )


def shard_of(parameters: Parameters) -> int | None:
    """The rows of a shard that the parameter ``shard`` asks for; None: the request is not a batch.

    :raises BadRequest: it is no number of rows.
    """
    rows = parameters.get("shard")
    if rows is not None and (type(rows) is not int or not 0 <= rows <= limits.MAX_FRAME_BYTES):
        raise BadRequest(f"parameter 'shard' is {str(rows)[:40]!r}: use a number of rows, or 0 to have it chosen")
    return rows


def deadline_of(parameters: Parameters) -> int | None:
    """The deadline that the parameter ``timeout`` asks for, in milliseconds; None: it asks for none.

    :raises BadRequest: it is no number of microseconds in range.
    """
    timeout_us = parameters.get("timeout")
    if timeout_us is None or timeout_us == 0:
        return None
    most_us = limits.MAX_BUDGET_MS * 1_000
    if type(timeout_us) is not int or not 0 < timeout_us <= most_us:
        raise BadRequest(f"parameter 'timeout' is {str(timeout_us)[:40]!r}: use microseconds from 1 to {most_us}")
    return -(-timeout_us // 1_000)
