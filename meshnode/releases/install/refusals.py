"""Why a release was not installed, in one word for others and in words for people."""

from typing import Final

from meshnode.models.worker.losses import WorkerLost
from protocols.base.errors import InferenceError, MeshError, ModelInvalid, StorageError

_BY_LOSS: Final = {"crashed": "crashed", "hung": "hung", "grew": "memory"}


class InstallRefused(ModelInvalid):
    """A release can't be staged or served."""

    def __init__(self, code: str, why: str) -> None:
        """``code``: one of those that health reports know, such as ``golden``."""
        super().__init__(why)
        self.code = code

    @property
    def told(self) -> str:
        """As machines take it: the code, then words."""
        return f"{self.code}: {self}"


class ReleaseIncomplete(InstallRefused):
    """Chunks of a release are missing, or were found to be damaged: nothing is wrong with the release."""

    def __init__(self, why: str) -> None:
        super().__init__("digest", why)


def refusal_of(error: Exception) -> InstallRefused:
    """What any error that ends an installation is to others."""
    match error:
        case InstallRefused():
            return error
        case StorageError() | OSError():
            return InstallRefused("no_room", str(error))
        case ModelInvalid() if isinstance(error.__cause__, WorkerLost):
            return InstallRefused(_BY_LOSS.get(error.__cause__.loss, "load"), str(error))
        case InferenceError() if "'memory_limit_mib' allows" in str(error):
            return InstallRefused("memory", str(error))
        case InferenceError() if "its worker process" in str(error):
            return InstallRefused("crashed", str(error))
        case ModelInvalid() if ": golden[" in str(error):
            return InstallRefused("golden", str(error))
        case InferenceError() | MeshError():
            return InstallRefused("load", str(error))
        case _:
            return InstallRefused("other", repr(error))
