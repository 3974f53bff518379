"""Execution providers of ONNX Runtime: by which of them a model is computed.

The configuration names them in short, in the order in which they are tried. The default is the processor alone, and not
the best that there is. Answers are equal bit for bit only when the same provider computes them, and nodes offer a model
by the digest of its file, which does not tell the provider.
"""

from collections.abc import Sequence
from typing import Final

PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "acl": "ACLExecutionProvider",
    "armnn": "ArmNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
}
"""Those that compute on this computer. The key is the short name."""
_SHORT: Final = {name: short for short, name in PROVIDERS.items()}


def chosen_providers(wanted: Sequence[str], available: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """What ONNX Runtime is told to use for a model, in order, and what is to be said about the others.

    ``wanted``: short names. ``available``: what this ONNX Runtime has, by its own names. The processor comes last in
    any case, because it computes the operators that other providers don't have.
    """
    chosen, notes = [], []
    have = ", ".join(sorted(_SHORT[name] for name in available if name in _SHORT))
    for short in wanted:
        name = PROVIDERS.get(short)
        if name is None:
            notes.append(f"provider {short!r} is unknown: use some of {', '.join(PROVIDERS)}")
        elif name not in available:
            notes.append(
                f"provider {short!r} is not in the installed onnxruntime, which has {have}: install the onnxruntime "
                "package that has it, or take it out of 'providers'"
            )
        elif name not in chosen:
            chosen.append(name)
    if PROVIDERS["cpu"] not in chosen:
        chosen.append(PROVIDERS["cpu"])
    return chosen, tuple(notes)


def provider_notes(told: Sequence[str], used: Sequence[str]) -> tuple[str, ...]:
    """What is to be said when a session does not use what it was told to: a driver is missing, say."""
    unused = [_SHORT[name] for name in told if name not in used]
    if not unused:
        return ()
    by = _SHORT.get(used[0], used[0])
    return (f"provider {', '.join(unused)} can't be used and {by} computes the model: check its driver and libraries",)
