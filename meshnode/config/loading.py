"""Turns a TOML file into a ``NodeConfig``, which is checked once and completely.

Paths in the file become relative to its folder. All mistakes are reported at once, one line each.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from meshnode.config.parsing import UNREADABLE, Section, TableReader, hints_of, problem_report
from meshnode.config.sections import NodeConfig, PartSection, identity_names
from meshnode.config.toml import read_toml
from protocols.base.errors import ConfigError, InvalidName
from protocols.base.ids import node_id

_S = TypeVar("_S", bound=Section)


def own_tables() -> dict[str, type[Section]]:
    """The tables of the node itself, by name; those of its parts are not among them."""
    return {name: hint for name, hint in hints_of(NodeConfig).items() if name != "sections"}


def read_config(tables: dict[str, Any], path: Path, kinds: Iterable[type[PartSection]]) -> NodeConfig:
    """Check what :func:`read_toml` gave of the file ``path``. ``kinds``: the sections of all parts of the node.

    :raises ConfigError: names every mistake on a line of its own, with key, value and what to do.
    """
    own, parts = own_tables(), {kind.table: kind for kind in kinds}
    reader = TableReader(folder=path.absolute().parent, tables={**own, **parts})
    values: dict[str, Any] = {}
    sections: list[Any] = []
    for name, content in _with_defaults(tables).items():
        if name in own:
            values[name] = reader.read_table(own[name], content, name)
        elif name in parts:
            sections.append(reader.read_table(parts[name], content, name))
        else:
            reader.report_unknown(name, content, "", [*own, *parts])
    for field in msgspec.structs.fields(NodeConfig):
        if field.required and field.name not in tables and field.name not in values:
            reader.report_missing(field.name, own[field.name], "")
    if not reader.problems:
        config = reader.build(NodeConfig, {**values, "sections": tuple(sections)}, "", "")
        if isinstance(config, NodeConfig):
            return config
    assert reader.problems, "tables without problems are readable"
    raise ConfigError(problem_report(str(path), tuple(reader.problems)))


def read_section(path: Path | str, kind: type[_S]) -> _S:
    """One section of a file, or its defaults. Nothing else in the file is checked, because the caller may be another
    user than the node and know fewer parts.

    :raises ConfigError: the file can't be read, or the table has mistakes; names all of them.
    """
    path = Path(path)
    reader = TableReader(folder=path.absolute().parent)
    section = reader.read_table(kind, _with_defaults(read_toml(path)).get(kind.table, {}), kind.table)
    if not isinstance(section, kind):
        raise ConfigError(problem_report(str(path), tuple(reader.problems)))
    return section


def _with_defaults(table: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults that are not constants: paths beside the file, named after ``[node] id``."""
    node, identity = table.get("node"), table.get("identity", {})
    files: dict[str, Any] = identity_names("")
    try:
        files = identity_names(node_id(node["id"]))  # type: ignore[index]
    except (KeyError, TypeError, InvalidName):
        files = dict.fromkeys(files, UNREADABLE)  # the id's own problem is enough
    completed = dict(table)
    if isinstance(node, dict):
        completed["node"] = {"state_dir": "state", **node}
    if isinstance(identity, dict):
        completed["identity"] = {**files, **identity}
    return completed
