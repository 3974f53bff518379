"""The section of the HTTP server."""

from typing import Annotated, ClassVar

from msgspec import Meta

from meshnode.config.kinds import Loopback
from meshnode.config.sections import PartSection


class HttpSection(PartSection, frozen=True, kw_only=True):
    """Health, metrics and inference for programs on the same host."""

    table: ClassVar[str] = "http"

    enabled: Annotated[bool, Meta(description="Run the HTTP server.")] = True
    host: Annotated[Loopback, Meta(description="Loopback address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="TCP port; 0 takes any free one.")] = 8470
