"""``meshnode infer``: have a model computed by the mesh, from files.

It speaks the Open Inference Protocol with binary tensors, as any other client of a node would.
"""

import json
import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from meshnode.console.node_api import TIMEOUT_S, NodeApi, chosen_node, on_a_node
from meshnode.console.printing import print_json
from protocols.base.errors import InputInvalid, LocalProtocolError
from protocols.base.limits import MAX_BUDGET_MS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IMAGES: Final = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"))
_MAX_FILE_BYTES: Final = 64 * 1024 * 1024
_SHOWN = 6


@click.command()
@click.argument("model")
@on_a_node
@click.option("--input", "inputs", multiple=True, required=True, metavar="NAME[:TYPE]=VALUE",
              help="A .npy file, an image, a .json file, or JSON itself. Repeat it for each input.")  # fmt: skip
@click.option("--output", "outputs", multiple=True, metavar="NAME[=FILE.npy]",
              help="Return only this output; with a file, save it there.")  # fmt: skip
@click.option("--deadline-ms", type=click.IntRange(1, MAX_BUDGET_MS),
              help="Deadline of the request.  [default: that of the node's configuration]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def infer(model: str, node_config: Path | None, http_address: str | None, inputs: tuple[str, ...],
          outputs: tuple[str, ...], deadline_ms: int | None, as_json: bool) -> None:  # fmt: skip
    """Have MODEL computed by a node, or by a neighbour when that is faster.

    JSON takes its type and shape from the model. A node does not know them for a model that only neighbours have, so
    give the type then: --input x:f4=[[1,2]]. An image is fitted to an input with three colours, of type UINT8, or of
    type FP32 with values from 0 to 1; for other preparations, give a .npy file.
    """
    api = chosen_node(node_config, http_address)
    signatures = {each["name"]: each for each in api.get(f"/v2/models/{quote(model, safe='')}")["inputs"]}
    arrays = {}
    for text in inputs:
        name, separator, value = text.partition("=")
        if not separator or not name or not value:
            raise click.UsageError(f"--input {text!r} is not NAME=VALUE, as in --input x=frame.npy")
        name, datatype = _split_type(name)
        signature = signatures.get(name)
        if datatype is not None:
            signature = {"datatype": datatype, "shape": signature["shape"] if signature is not None else None}
        arrays[name] = _array(name, value, signature)
    wanted = dict(text.partition("=")[::2] for text in outputs)
    results, parameters = _ask(api, model, arrays, tuple(wanted), deadline_ms)
    _save(results, wanted)
    if as_json:
        print_json({
            "model": model,
            "parameters": parameters,
            "outputs": {
                name: {"dtype": array.dtype.str.lstrip("<|"), "shape": list(array.shape), "data": array.tolist()}
                for name, array in results.items()
            },
        })  # fmt: skip
        return
    for name, array in results.items():
        values = ", ".join(f"{value:g}" for value in array.ravel()[:_SHOWN].tolist())
        more = ", …" if array.size > _SHOWN else ""
        click.echo(f"{name}  {array.dtype.str.lstrip('<|')}{list(array.shape)}  {values}{more}")
    compute_ms, took_ms = parameters["compute_ms"], parameters["took_ms"]
    click.echo(f"computed by {parameters['ran_on']} in {compute_ms:.1f} ms, {took_ms:.1f} ms in all", err=True)


def _ask(
    api: NodeApi, model: str, arrays: "Mapping[str, NDArray[Any]]", outputs: tuple[str, ...], deadline_ms: int | None
) -> "tuple[dict[str, NDArray[Any]], dict[str, Any]]":
    import numpy as np

    from meshnode.models import element_of_open_inference, element_of_short

    forms, parts = [], []
    for name, array in arrays.items():
        parts.append(np.ascontiguousarray(array).tobytes())
        forms.append({
            "name": name, "shape": list(array.shape), "parameters": {"binary_data_size": len(parts[-1])},
            "datatype": element_of_short(array.dtype.str[1:]).open_inference,
        })  # fmt: skip
    parameters: dict[str, Any] = {"binary_data_output": True}
    if deadline_ms is not None:
        parameters["timeout"] = deadline_ms * 1_000
    head = json.dumps({
        "parameters": parameters, "inputs": forms, "outputs": [{"name": name} for name in outputs]
    }).encode()  # fmt: skip
    content, headers = api.exchange(
        "POST", f"/v2/models/{quote(model, safe='')}/infer", b"".join((head, *parts)),
        {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))},
        (deadline_ms / 1e3 if deadline_ms is not None else MAX_BUDGET_MS / 1e3) + TIMEOUT_S,
    )  # fmt: skip
    split = int(headers.get("inference-header-content-length", len(content)))
    answer = json.loads(content[:split])
    results: dict[str, NDArray[Any]] = {}
    for form in answer["outputs"]:
        short = element_of_open_inference(form["datatype"]).short
        size_bytes = form["parameters"]["binary_data_size"]
        results[form["name"]] = np.frombuffer(content[split : split + size_bytes], short).reshape(form["shape"])
        split += size_bytes
    return results, answer["parameters"]


def _save(results: "Mapping[str, NDArray[Any]]", wanted: Mapping[str, str]) -> None:
    import numpy as np

    for name, file in wanted.items():
        if file:
            try:
                with Path(file).open("wb") as out:
                    np.save(out, results[name], allow_pickle=False)
            except OSError as error:
                raise LocalProtocolError(f"{file} can't be written ({error.strerror}): choose another place") from error


def _split_type(name: str) -> tuple[str, str | None]:
    """``x:f4`` is the input ``x`` given as ``f4``; other colons belong to the name."""
    from meshnode.models import ELEMENTS

    before, _, last = name.rpartition(":")
    datatype = next((element.open_inference for element in ELEMENTS if element.short == last), None)
    return (before, datatype) if before and datatype is not None else (name, None)


# --- inputs ----------------------------------------------------------------------------------------------------------
def _array(name: str, value: str, signature: Mapping[str, Any] | None) -> "NDArray[Any]":
    """What ``--input`` named. :raises InputInvalid: it can't be read, or doesn't fit."""
    path = Path(value)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _from_npy(name, path)
    if suffix in _IMAGES:
        return _from_image(name, path, signature)
    if suffix == ".json" and not value.lstrip().startswith(("[", "{")):
        return _from_json(name, _read(name, path).decode("utf-8", "replace"), signature)
    return _from_json(name, value, signature)


def _read(name: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputInvalid(f"input {name!r}: {path} can't be read ({error.strerror}): correct the path") from error
    if len(content) > _MAX_FILE_BYTES:
        raise InputInvalid(f"input {name!r}: {path} is larger than {_MAX_FILE_BYTES} bytes: give a smaller one")
    return content


def _from_npy(name: str, path: Path) -> "NDArray[Any]":
    import io

    import numpy as np

    try:
        array = np.load(io.BytesIO(_read(name, path)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputInvalid(f"input {name!r}: {path} is not a .npy file of numbers ({error}): save it again") from error
    if array.dtype.kind not in "biuf":
        raise InputInvalid(f"input {name!r}: {path} has elements of type {array.dtype}: convert them to numbers")
    little: NDArray[Any] = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little


def _from_json(name: str, text: str, signature: Mapping[str, Any] | None) -> "NDArray[Any]":
    import numpy as np

    from meshnode.models import element_of_open_inference

    try:
        array = np.array(json.loads(text))
    except ValueError as error:
        raise InputInvalid(
            f"input {name!r}: {text[:40]!r} is neither a .npy, .json or image file nor JSON of an array ({error})"
        ) from error
    if array.dtype.kind not in "biuf":
        raise InputInvalid(f"input {name!r}: the JSON has elements that are not numbers, or rows of different lengths")
    if signature is None:
        return array.astype("f4") if array.dtype.kind == "f" else array
    array = array.astype(element_of_open_inference(signature["datatype"]).short)
    if signature["shape"] is None:
        return array
    shape = tuple(signature["shape"])
    if array.ndim != len(shape) and shape.count(-1) <= 1:
        fixed = prod(size for size in shape if size >= 0)
        if array.size == fixed or (-1 in shape and fixed and array.size % fixed == 0):
            return array.reshape(shape)
    return array


def _from_image(name: str, path: Path, signature: Mapping[str, Any] | None) -> "NDArray[Any]":
    """Fit an image to ``[1, 3, H, W]``, ``[1, H, W, 3]`` or either without the batch."""
    import io

    import numpy as np
    from PIL import Image

    known = signature is not None and signature["shape"] is not None
    shape = tuple(signature["shape"]) if signature is not None and known else (1, -1, -1, 3)
    datatype = signature["datatype"] if signature is not None else "UINT8"
    inner = shape[-3:]
    planar = len(inner) == 3 and inner[0] == 3
    if datatype not in ("UINT8", "FP32") or len(shape) not in (3, 4) or not (planar or inner[2] == 3):
        raise InputInvalid(
            f"input {name!r} takes {datatype} {list(shape)}, and an image can only become UINT8 or FP32 with three "
            "colours: prepare it yourself and give a .npy file"
        )
    height, width = inner[1:] if planar else inner[:2]
    content = io.BytesIO(_read(name, path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(content).convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever they like
        raise InputInvalid(f"input {name!r}: {path} can't be read as an image ({error})") from error
    size = (width if width > 0 else image.width, height if height > 0 else image.height)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    array: NDArray[Any] = np.asarray(image)
    if datatype == "FP32":
        array = array.astype("f4") / np.float32(255)
    if planar:
        array = array.transpose(2, 0, 1)
    click.echo(f"input {name}: {path.name} as {datatype} {[*array.shape]}", err=True)
    return array[None] if len(shape) == 4 else array
