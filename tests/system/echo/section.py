"""The section ``[echo]`` of a node's configuration."""

from typing import Annotated, ClassVar

from msgspec import Meta

from meshnode.config.sections import PartSection


class EchoSection(PartSection, frozen=True, kw_only=True):
    """How often neighbours are asked."""

    table: ClassVar[str] = "echo"

    interval_ms: Annotated[int, Meta(ge=10, le=60_000, description="Pause between two questions.")] = 200
