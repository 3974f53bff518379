"""The configuration of a node with all its parts."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from meshnode.config.loading import own_tables, read_config
from meshnode.config.sections import NodeConfig, PartSection
from meshnode.config.toml import read_toml
from meshnode.part import Part
from meshnode.parts import CAPABILITIES, DOORS, installed_part
from protocols.base.errors import ConfigError


def parts_with(more: Sequence[Part] = ()) -> tuple[Part, ...]:
    """All parts of a node that is given ``more``, in the order in which they open.

    :raises ConfigError: when two have the same name or table.
    """
    parts = (*CAPABILITIES, *more, *DOORS)
    names: set[str] = set()
    tables = set(own_tables())
    for part in parts:
        if part.name in names:
            raise ConfigError(f"two parts of the node are called {part.name!r}: hand over one, or rename the other")
        names.add(part.name)
        for section in part.sections():
            if section.table in tables:
                raise ConfigError(f"part {part.name!r} declares [{section.table}], which another part has: rename it")
            tables.add(section.table)
    return parts


def sections_of(parts: Iterable[Part]) -> tuple[type[PartSection], ...]:
    """The sections that parts declare."""
    return tuple(section for part in parts for section in part.sections())


def load(path: Path | str, more: Sequence[Part] = ()) -> NodeConfig:
    """Read and check a configuration file. Relative paths in it become relative to its folder. ``more``: parts that
    will be handed over when the node is opened.

    :raises ConfigError: when the file can't be read or has mistakes; the message names each mistake on a line of its
        own, with key, value and what to do.
    """
    path = Path(path)
    tables = read_toml(path)
    return read_config(tables, path, sections_of(_with_installed(more, tables)))


def parts_of(config: NodeConfig, more: Sequence[Part] = ()) -> tuple[Part, ...]:
    """All parts of a node with that configuration: ``more``, and installed ones that have a section in it.

    :raises ConfigError: when a section belongs to no part.
    """
    parts = _with_installed(more, [section.table for section in config.sections])
    declared = sections_of(parts)
    for section in config.sections:
        if not isinstance(section, declared):
            raise ConfigError(
                f"[{section.table}] is a {type(section).__name__}, which no part of this node declares: hand its part "
                "over when the node is opened, or remove the section"
            )
    return parts


def _with_installed(more: Sequence[Part], tables: Iterable[str]) -> tuple[Part, ...]:
    parts = parts_with(more)
    known = {*own_tables(), *(section.table for section in sections_of(parts))}
    found = [part for table in tables if table not in known and (part := installed_part(table)) is not None]
    return parts_with((*more, *found)) if found else parts
