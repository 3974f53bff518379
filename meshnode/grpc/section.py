"""The section of the gRPC endpoint."""

from typing import Annotated, ClassVar

from msgspec import Meta

from meshnode.config.kinds import Loopback
from meshnode.config.sections import PartSection


class GrpcSection(PartSection, frozen=True, kw_only=True):
    """The [Open Inference Protocol over gRPC](grpc.md) for programs on the same host. A node serves it if its file has
    this table, which may be empty. It needs the extra `grpc`: `pip install 'meshnode[grpc]'`."""

    table: ClassVar[str] = "grpc"

    host: Annotated[Loopback, Meta(description="Loopback address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="TCP port; 0 takes any free one.")] = 8471
