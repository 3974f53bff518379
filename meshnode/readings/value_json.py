"""Values of readings as JSON. Types that JSON lacks are objects with one key, see :mod:`meshnode.http.reading_json`."""

import base64
import math
from datetime import datetime
from typing import Any

from protocols.wire.tensors import Tensor, tensor_of


def value_form(value: Any) -> Any:
    """The value with each part in a form that JSON has. :raises ValueUnsupported: there is none."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"$float": str(value)}
        case bytes() | bytearray() | memoryview():
            return {"$bytes": base64.b64encode(value).decode()}
        case list() | tuple():
            return [value_form(item) for item in value]
        case dict():
            return {f"${key}" if key.startswith("$") else key: value_form(item) for key, item in value.items()}
        case datetime():
            return {"$time": value.isoformat().replace("+00:00", "Z")}
    tensor = value if isinstance(value, Tensor) else tensor_of(value)  # what this node itself published may be an array
    data = base64.b64encode(tensor.data).decode()
    return {"$tensor": {"dtype": tensor.dtype, "shape": list(tensor.shape), "data": data}}
