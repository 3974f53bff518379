"""The configuration of a node with all its parts."""

from pathlib import Path
from typing import Final

from meshnode.config.loading import read_config, read_toml
from meshnode.config.sections import NodeConfig, PartSection
from meshnode.http.section import HttpSection
from meshnode.inference.section import InferenceSection, ModelsSection
from meshnode.local.section import LocalSection
from meshnode.records.section import CurationRulesSection, OutboxSection, RelaySection
from meshnode.sensors.section import SensorsSection

SECTIONS: Final[tuple[type[PartSection], ...]] = (
    HttpSection, LocalSection, ModelsSection, InferenceSection, SensorsSection, CurationRulesSection, OutboxSection,
    RelaySection,
)  # fmt: skip


def load(path: Path | str) -> NodeConfig:
    """Read and check a configuration file. Relative paths in it become relative to its folder.

    :raises ConfigError: the file can't be read, or everything that is wrong in it, one line each with key, value and
        the way out.
    """
    path = Path(path)
    return read_config(read_toml(path), path, SECTIONS)
