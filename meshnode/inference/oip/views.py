"""What clients are told about the server and its models: metadata, and Triton's configuration of a model."""

from typing import Any, Final

from meshnode.inference.oip.catalogue import VERSION, IndexEntry, ModelInReach
from meshnode.models import TensorSignature, element_of_short
from protocols.inference.signature import ModelSignature

_PLATFORM: Final = "onnxruntime_onnx"
EXTENSIONS: Final = ("binary_tensor_data", "parameters", "model_configuration", "statistics")
"""Of the protocol, by Triton's names, as far as a node has them whole."""


def metadata(model: ModelInReach, signature: ModelSignature | None, digest: str | None) -> dict[str, Any]:
    """The inputs and outputs of a model, and who has the file that this node means by its name.

    ``signature``: None when only neighbours have it, and none of them says what it takes.
    """
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": _PLATFORM,
        "inputs": [_tensor(each) for each in signature.inputs] if signature is not None else [],
        "outputs": [_tensor(each) for each in signature.outputs] if signature is not None else [],
        "parameters": {
            "digest": digest,
            "loaded": model.loaded is not None,
            "offered_by": ",".join(node for node, offer in model.offers if offer.digest == digest),
        },
    }


def configuration(
    model: ModelInReach, signature: ModelSignature | None, digest: str | None, workers: int
) -> dict[str, Any]:
    """The same in the layout of Triton's model configuration. ``workers``: how many runs go on at the same time."""
    loaded = model.loaded
    instances = [{"name": model.name, "kind": "KIND_CPU", "count": workers}] if loaded is not None else []
    return {
        "name": model.name,
        "platform": _PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [int(VERSION)]}},
        "max_batch_size": 0,
        "input": [_configured(each) for each in signature.inputs] if signature is not None else [],
        "output": [_configured(each) for each in signature.outputs] if signature is not None else [],
        "instance_group": instances,
        "default_model_filename": loaded.spec.path.name if loaded is not None else "",
        "parameters": {"digest": {"string_value": digest or ""}},
    }


def index_line(entry: IndexEntry) -> dict[str, str]:
    """One line of the list of models."""
    return {"name": entry.name, "version": VERSION, "state": entry.state, "reason": entry.reason}


def listing(model: ModelInReach) -> dict[str, Any]:
    """One line of ``GET /v1/models``."""
    return {
        "name": model.name,
        "loaded": model.loaded is not None,
        "digest": model.loaded.digest if model.loaded is not None else None,
        "in_parts": model.in_parts,
        "offered_by": [
            {"node": node, "digest": offer.digest, "compute_us": offer.compute_us, "waiting": offer.waiting}
            for node, offer in model.offers
        ],
    }


def _tensor(tensor: TensorSignature) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": element_of_short(tensor.dtype).open_inference,
        "shape": [-1 if size is None else size for size in tensor.shape],
    }


def _configured(tensor: TensorSignature) -> dict[str, Any]:
    form = _tensor(tensor)
    return {"name": tensor.name, "data_type": f"TYPE_{form['datatype']}", "dims": form["shape"]}
