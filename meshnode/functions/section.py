"""The section of functions: which programs a node runs, for which readings, and within which limits."""

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from meshnode.config.kinds import Expression
from meshnode.config.parsing import Problem, Section, shown
from meshnode.config.sections import PartSection

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,60}")


def _check_name(value: str) -> str | None:
    if _NAME.fullmatch(value):
        return None
    return "is no name of a function: use up to 60 letters, digits, _ and -"


class FunctionSection(Section, frozen=True, kw_only=True):
    """Programs that the node runs when a reading comes: once for each, with the reading as JSON on standard input.
    Each line of JSON that it writes is published. It has the rights of the node's user."""

    name: Annotated[str, Meta(description="Unique name of the function.", extra={"check": _check_name})]
    keys: Annotated[Expression, Meta(description="Key expression of the readings that it is called for.")]
    run: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=4_000)], ...],
        Meta(
            min_length=1, max_length=64,
            description="The program and its arguments. A program with a `/` in its name is found from the folder of "
            "the configuration file, others on the search path.",
        ),
    ]  # fmt: skip
    publishes: Annotated[
        Expression | None,
        Meta(description="Key expression of what it may publish.", extra={"default": "nothing"}),
    ] = None
    timeout_s: Annotated[
        float, Meta(ge=0.05, le=3_600, description="A call that takes longer is killed, with all that it started.")
    ] = 10.0
    memory_mib: Annotated[
        int, Meta(ge=16, le=1_048_576, description="The most memory that each process of a call may take.")
    ] = 256
    min_interval_ms: Annotated[
        int, Meta(ge=0, le=86_400_000, description="The shortest time between the beginnings of two calls.")
    ] = 0
    at_once: Annotated[int, Meta(ge=1, le=64, description="How many calls may run at one time.")] = 1
    max_waiting: Annotated[
        int, Meta(ge=1, le=10_000, description="How many readings may wait for a call; the oldest give way.")
    ] = 64


class FunctionsSection(PartSection, frozen=True, kw_only=True):
    """The functions of a node."""

    table: ClassVar[str] = "function"
    listed: ClassVar[str | None] = "functions"

    functions: Annotated[tuple[FunctionSection, ...], Meta(max_length=64, description="The functions.")] = ()

    def conflicts(self) -> Iterator[Problem]:
        """Functions of the same name."""
        seen: set[str] = set()
        for index, function in enumerate(self.functions):
            if function.name in seen:
                yield Problem(f"[{index}].name", shown(function.name), "is used twice: give each function its own name")
            seen.add(function.name)
