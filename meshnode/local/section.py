"""The section of local applications, and where they connect."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from meshnode.config.parsing import Problem, TableReader, problem_report, shown
from meshnode.config.sections import NodeConfig, NodeSection, PartSection
from meshnode.config.toml import read_toml
from protocols.base import limits
from protocols.base.errors import ConfigError


class LocalSection(PartSection, frozen=True, kw_only=True):
    """Other programs on this computer that publish, subscribe and infer through the node (`meshnode.connect`)."""

    table: ClassVar[str] = "local"

    enabled: Annotated[bool, Meta(description="Let local applications connect.")] = True
    socket: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=1_000,
            description="Path of the Unix socket, in `[node] state_dir` unless it is absolute; at most "
            f"{limits.MAX_SOCKET_PATH_BYTES} bytes in all.",
        ),
    ] = "local.sock"
    mode: Annotated[
        Literal["0600", "0660"],
        Meta(
            description="Who may connect: `0600` the user that the node runs as, `0660` the socket's group too (that "
            "of the node's process, or of a folder with the set-group-ID bit)."
        ),
    ] = "0600"

    def conflicts_in(self, config: NodeConfig) -> Iterator[Problem]:
        """A path too long for a socket. If the default is too long, the node warns and opens no socket."""
        path = socket_of(config)
        chosen = self.enabled and self.socket != LocalSection().socket
        if chosen and (length := len(os.fsencode(path))) > limits.MAX_SOCKET_PATH_BYTES:
            yield Problem(
                "local.socket",
                shown(str(path)),
                f"is a path of {length} bytes, and Linux allows a socket {limits.MAX_SOCKET_PATH_BYTES}: set a shorter "
                "one, as in '/run/mesh/node.sock', or [local] enabled = false",
            )


def socket_of(config: NodeConfig) -> Path:
    """Where applications connect to the node of ``config``."""
    return config.node.state_dir / config.of(LocalSection).socket


def load_local_socket(path: Path | str) -> Path:
    """Where the node of a configuration file lets applications connect. Nothing else in the file is checked, and its
    keys need not be readable: the application may be another user than the node.

    :raises ConfigError: the file can't be read, or it lets no application connect.
    """
    path = Path(path)
    table = read_toml(path)
    reader = TableReader(folder=path.absolute().parent)
    node, local = table.get("node"), reader.read_table(LocalSection, table.get("local", {}), "local")
    raw = node.get("state_dir", "state") if isinstance(node, dict) else "state"
    state_dir = reader.read(NodeSection.__annotations__["state_dir"], raw, "node.state_dir")
    if reader.problems:
        raise ConfigError(problem_report(str(path), tuple(reader.problems)))
    if not local.enabled:
        raise ConfigError(f"{path} has [local] enabled = false, so no application can connect: set it to true")
    socket: Path = state_dir / local.socket
    return socket
