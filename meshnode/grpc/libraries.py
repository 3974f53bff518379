"""The libraries of the endpoint, which an installation has only with the extra ``grpc``."""

from importlib import import_module
from typing import Final

LIBRARIES: Final = ("grpc", "google.protobuf")


def why_not_there() -> str | None:
    """Why they can't be used, and what to do; None: they can, and are loaded now."""
    for library in LIBRARIES:
        try:
            import_module(library)
        except ImportError as error:
            return (
                f"[grpc] needs grpcio and protobuf, and {library} can't be imported ({error}): run "
                "pip install 'meshnode[grpc]', or remove [grpc]"
            )
    return None
