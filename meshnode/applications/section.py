"""The section of applications: which ones a node runs, and what it grants to each."""

from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from meshnode.config.parsing import Section
from meshnode.config.sections import PartSection
from protocols.base.errors import InvalidKey
from protocols.base.keys import checked_expression

PLACE = "{id}"
"""Stands for the id of the node in what an application may read and publish, since its author does not know it."""


def check_granted(value: str) -> str | None:
    """The complaint about a key expression that may contain ``{id}``."""
    try:
        checked_expression(value.replace(PLACE, "x"))
    except InvalidKey as error:
        return str(error)
    return None


Granted = Annotated[str, Meta(min_length=1, max_length=1_000, extra={"check": check_granted})]
GrantedList = Annotated[tuple[Granted, ...], Meta(max_length=64)]


class ApplicationSection(Section, frozen=True, kw_only=True):
    """An application that the node runs as a process of its own, and starts again when it ends. It connects to the node
    by a socket of its own and has the rights that this table grants, as far as its manifest asks for them. See [run an
    application](../howto/run-an-application.md)."""

    manifest: Annotated[
        Path, Meta(description="Its manifest, a TOML file.", extra={"file": "get the application, or correct the path"})
    ]
    reads: Annotated[
        GrantedList,
        Meta(description="Key expressions of the readings that it may have; `{id}` stands for the id of this node."),
    ] = ()
    publishes: Annotated[
        GrantedList, Meta(description="Key expressions of the readings that it may publish; `{id}` as above.")
    ] = ()
    infers: Annotated[
        GrantedList, Meta(description="Names of the models that it may use, or expressions for them.")
    ] = ()
    memory_mib: Annotated[
        int, Meta(ge=16, le=1_048_576, description="The most memory that each of its processes may take.")
    ] = 256
    niceness: Annotated[
        int, Meta(ge=0, le=19, description="How far it stands back for the node when the processor is busy.")
    ] = 5
    connects_within_s: Annotated[
        float, Meta(ge=1, le=3_600, description="It is started again when it has not connected by then.")
    ] = 30.0
    silent_s: Annotated[
        float,
        Meta(ge=0, le=86_400, description="It is started again when nothing came from it for so long; 0: never."),
    ] = 0.0


class ApplicationsSection(PartSection, frozen=True, kw_only=True):
    """The applications of a node."""

    table: ClassVar[str] = "application"
    listed: ClassVar[str | None] = "applications"

    applications: Annotated[tuple[ApplicationSection, ...], Meta(max_length=32, description="The applications.")] = ()
