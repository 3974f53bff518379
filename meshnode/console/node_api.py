"""A running node, as commands reach it: its HTTP API on this host.

Every failure is raised as a ``MeshError`` with the node's own words, or with what to do when no node answers.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from protocols.base.errors import (
    BudgetExhausted,
    ConfigError,
    InferenceError,
    LocalProtocolError,
    MeshError,
    ModelUnknown,
    NeighbourFailed,
    NotPermitted,
    TransportError,
)

DEFAULT: Final = "127.0.0.1:8470"
TIMEOUT_S: Final = 10.0
_MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
_MAX_LINE_BYTES: Final = 32 * 1024 * 1024
_ERRORS: Final[Mapping[int, type[MeshError]]] = {
    HTTPStatus.BAD_REQUEST: LocalProtocolError,
    HTTPStatus.FORBIDDEN: NotPermitted,
    HTTPStatus.NOT_FOUND: ModelUnknown,
    HTTPStatus.INTERNAL_SERVER_ERROR: InferenceError,
    HTTPStatus.BAD_GATEWAY: NeighbourFailed,
    HTTPStatus.GATEWAY_TIMEOUT: BudgetExhausted,
}

if TYPE_CHECKING:
    from http.client import HTTPResponse

_F = TypeVar("_F", bound=Callable[..., Any])


class NodeAbsent(TransportError):
    """Nothing answers at the address, or nothing that is a node. Asking again can't help until somebody starts one."""


@dataclass(frozen=True, slots=True)
class NodeApi:
    """The API at one address."""

    host: str
    port: int
    named_by: str
    """How the user chose the node, for messages."""

    def get(self, path: str, timeout_s: float = TIMEOUT_S) -> Any:
        """The content of a path. :raises MeshError: the node refuses, or there is no node."""
        return json.loads(self.exchange("GET", path, timeout_s=timeout_s)[0])

    def exchange(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> tuple[bytes, Mapping[str, str]]:  # fmt: skip
        """One request and its answer: body, and headers in lower case. :raises MeshError: as :meth:`get`."""
        with self._response(method, path, body, headers or {}, timeout_s) as response:
            content = response.read(_MAX_ANSWER_BYTES)
            return content, {name.lower(): value for name, value in response.getheaders()}

    def lines(self, path: str) -> Iterator[dict[str, Any]]:
        """The JSON objects of a stream as they come, until the node ends it. :raises MeshError: as :meth:`get`."""
        with self._response("GET", path, None, {}, None) as response:
            while line := response.readline(_MAX_LINE_BYTES):
                yield json.loads(line)

    @contextmanager
    def _response(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float | None
    ) -> "Iterator[HTTPResponse]":
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection(self.host, self.port, timeout=timeout_s)
        where = f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            if response.status >= HTTPStatus.BAD_REQUEST:
                raise _error_of(response, where)
            yield response
        except ConnectionRefusedError as error:
            raise NodeAbsent(
                f"no node answers at {where} ({self.named_by}): start one with 'meshnode run CONFIG', or name the "
                "right one with --node CONFIG or --http HOST:PORT"
            ) from error
        except TimeoutError as error:
            raise NodeAbsent(
                f"{where} ({self.named_by}) did not answer within {timeout_s:g} s: is it a node, and is it stopped?"
            ) from error
        except (ConnectionResetError, BrokenPipeError) as error:
            raise NodeAbsent(
                f"{where} ({self.named_by}) hung up before it had answered: start the node again if it was stopped, or "
                "name the right one with --node CONFIG or --http HOST:PORT"
            ) from error
        except (OSError, HTTPException, ValueError) as error:
            what = str(error) or type(error).__name__
            raise NodeAbsent(
                f"{where} ({self.named_by}) does not answer like a node ({what}): name the right one with --node "
                "CONFIG or --http HOST:PORT"
            ) from error
        finally:
            connection.close()


def _error_of(response: "HTTPResponse", where: str) -> MeshError:
    try:
        message = str(json.loads(response.read(65_536))["error"])
    except (ValueError, KeyError, TypeError):
        return NodeAbsent(
            f"{where} answers {response.status} {response.reason}, but not like a node: name the right one with "
            "--node CONFIG or --http HOST:PORT"
        )
    return _ERRORS.get(response.status, TransportError)(message)


def on_a_node(command: _F) -> _F:
    """Add the options that choose the node a command talks to; it passes both to :func:`chosen_node`."""
    command = click.option(
        "--http", "http_address", metavar="HOST:PORT", help=f"The node's HTTP address.  [default: {DEFAULT}]"
    )(command)
    return click.option(
        "--node", "node_config", type=click.Path(path_type=Path), metavar="CONFIG.toml",
        help="The node's configuration file; its [http] address is used.",
    )(command)  # fmt: skip


def chosen_node(node_config: Path | None, http_address: str | None) -> NodeApi:
    """The node that the options name. :raises ConfigError: the configuration is wrong, or names no HTTP port."""
    if node_config is not None and http_address is not None:
        raise click.UsageError("--node and --http both name a node: give one of them")
    if node_config is None:
        host, separator, port = (http_address or DEFAULT).rpartition(":")
        if not separator or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536):
            raise click.UsageError(f"--http {http_address!r} is not HOST:PORT, as in {DEFAULT}")
        named_by = f"--http {http_address}" if http_address else "the default; see --http and --node"
        return NodeApi(host.strip("[]") or "127.0.0.1", int(port), named_by)
    from meshnode.config.loading import read_section
    from meshnode.http.section import HttpSection

    section = read_section(node_config, HttpSection)
    if not section.enabled:
        raise ConfigError(f"{node_config} has [http] enabled = false: set it to true, and start the node again")
    if section.port == 0:
        raise ConfigError(
            f"{node_config} has [http] port = 0, so the node takes any free one: read it in the node's ready line and "
            "give it as --http 127.0.0.1:PORT"
        )
    return NodeApi(section.host, section.port, f"[http] of {node_config}")
