"""What the relay computes for nodes: tables ``[models.<name>]`` and ``[inference]`` of its configuration.

    [models.plate]              # without such a table the relay computes nothing
    path = "plate.onnx"         # with its manifest, plate.toml, beside it
    threads = 2                 # of one run; default: 1

    [models.hotspot]
    release = true              # in place of path: the release of that name that is out, see cloud_relay.releases

    [inference]
    workers = 2                 # runs at the same time, for all nodes together; default: 1

The keys mean what they mean in the configuration of a node, and those are left out that make no sense here.
"""

from dataclasses import dataclass
from typing import Any, Final

from cloud_relay.config import RelayConfig
from meshnode.config.kinds import Name
from meshnode.config.parsing import TableReader, problem_report
from meshnode.inference.section import InferenceSection, ModelSection
from meshnode.models import read_manifest
from protocols.base.errors import ConfigError, ModelInvalid
from protocols.base.limits import MAX_OFFERS

_RUN_KEYS: Final = ("threads", "warm_up", "optimisation", "memory_limit_mib")
_FILE_KEYS: Final = ("path", "digest", *_RUN_KEYS)
_RELEASE_KEYS: Final = ("release", *_RUN_KEYS)
_INFERENCE_KEYS: Final = ("workers", "providers", "emulate_slowdown")


@dataclass(frozen=True, slots=True)
class ServedModels:
    """The models of a relay, by name, and how they are computed."""

    models: dict[str, ModelSection]
    """Those of files."""
    released: dict[str, ModelSection]
    """Those of releases: how they are run, whichever file that is."""
    how: InferenceSection


def served_models(config: RelayConfig) -> ServedModels | None:
    """What the relay computes; None: nothing. :raises ConfigError: names every key that is wrong."""
    reader = TableReader(config.path.parent)
    if len(config.models) > MAX_OFFERS:
        raise ConfigError(f"{config.path}: {len(config.models)} tables [models.<name>]: use at most {MAX_OFFERS}")
    models: dict[str, Any] = {}
    released: dict[str, Any] = {}
    for given, table in config.models.items():
        key = f"models.{given}"
        name = reader.read(Name, given, key)
        if isinstance(table, dict) and "release" in table:
            if table["release"] is not True:
                reader.report(f"{key}.release", table["release"], "can only be true: remove it, and give path")
            elif _has_only(reader, table, _RELEASE_KEYS, key):
                rest = {other: value for other, value in table.items() if other != "release"}
                released[name] = reader.read_table(ModelSection, {**rest, "path": f"{given}.onnx"}, key)
        elif isinstance(table, dict) and "path" not in table:
            reader.report(f"{key}.path", "", "is missing: name the ONNX file, or write release = true")
        elif _has_only(reader, table, _FILE_KEYS, key):
            models[name] = model = reader.read_table(ModelSection, table, key)
            if isinstance(model, ModelSection) and stays_at_home(model):
                reader.report(
                    f"{key}.path", model.path, "has a manifest with first_cut_at_home: nodes compute it alone"
                )
    how: Any = InferenceSection()
    if _has_only(reader, config.inference, _INFERENCE_KEYS, "inference"):
        how = reader.read_table(InferenceSection, config.inference, "inference")
    if reader.problems:
        raise ConfigError(problem_report(str(config.path), tuple(reader.problems)))
    return ServedModels(models, released, how) if models or released else None


def stays_at_home(model: ModelSection) -> bool:
    """Whether the manifest says that inputs must not leave the node. One that can't be read keeps the model out later,
    with a better message."""
    assert model.path is not None, "it was missed otherwise"
    try:
        return read_manifest(model.path).split.first_cut_at_home
    except ModelInvalid:
        return False


def _has_only(reader: TableReader, table: object, keys: tuple[str, ...], key: str) -> bool:
    """Whether a table has no other keys, which are reported."""
    if not isinstance(table, dict):
        return True  # whoever reads it reports that
    unknown = [name for name in table if name not in keys]
    for name in unknown:
        reader.report_unknown(name, table[name], f"{key}.", list(keys))
    return not unknown
