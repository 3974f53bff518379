"""Calls of Triton's extensions that a node does not have: each is answered with what to do instead."""

from typing import Final

from meshnode.inference.oip.absent import LOADING, LOGS, TRACES, absence

_SHARED_MEMORY: Final = absence("shared memory", "send tensors in raw_input_contents")
ABSENT: Final = {
    "RepositoryModelLoad": LOADING,
    "RepositoryModelUnload": LOADING,
    "SystemSharedMemoryStatus": _SHARED_MEMORY,
    "SystemSharedMemoryRegister": _SHARED_MEMORY,
    "SystemSharedMemoryUnregister": _SHARED_MEMORY,
    "CudaSharedMemoryStatus": _SHARED_MEMORY,
    "CudaSharedMemoryRegister": _SHARED_MEMORY,
    "CudaSharedMemoryUnregister": _SHARED_MEMORY,
    "TraceSetting": TRACES,
    "LogSettings": LOGS,
}
"""What is said, by method."""
