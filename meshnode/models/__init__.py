"""Models on this node: ONNX Runtime behind a small surface, and the threads that run it.

Of ``meshnode`` this package imports only how files of TOML are read: the relay may use it too. Importing it takes
hardly any memory, because NumPy and ONNX Runtime are imported when a model is loaded.
"""

from meshnode.models.elements import ELEMENTS, Element, element_of_onnx, element_of_open_inference, element_of_short
from meshnode.models.jobs import Callback, Failed, Job, Outcome, RunDone
from meshnode.models.manifest import Manifest, read_manifest
from meshnode.models.model import Cancellation, Inputs, LoadedModel, ModelSpec, load_model
from meshnode.models.runner import Runner
from protocols.inference.signature import TensorSignature

__all__ = [
    "ELEMENTS",
    "Callback",
    "Cancellation",
    "Element",
    "Failed",
    "Inputs",
    "Job",
    "LoadedModel",
    "Manifest",
    "ModelSpec",
    "Outcome",
    "RunDone",
    "Runner",
    "TensorSignature",
    "element_of_onnx",
    "element_of_open_inference",
    "element_of_short",
    "load_model",
    "read_manifest",
]
