"""The gRPC endpoint as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.grpc.running import RunningGrpc

    return RunningGrpc(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.grpc.section import GrpcSection

    return (GrpcSection,)


GRPC: Final = Part("grpc", _start, _sections)
