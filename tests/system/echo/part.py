"""The capability ``echo`` as a part of a node: a section, a machine, a performer, a question, a route and a metric."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from meshnode.console.node_api import chosen_node, on_a_node
from meshnode.part import Part
from meshnode.running import Host, HttpService, RunningPart
from protocols.base.ids import NodeId
from protocols.base.limits import MS
from tests.system.echo.machine import Chime, Echo
from tests.system.echo.section import EchoSection

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class RunningEcho(RunningPart):
    """It counts the chimes of each neighbour."""

    gauges = frozenset({"echo_neighbours_heard"})

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.chimes: dict[NodeId, int] = {}

    def machines(self) -> Sequence[Echo]:
        return (Echo(self.host.config.of(EchoSection).interval_ms * MS),)

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        return {Chime: self._chime}

    def _chime(self, effect: Chime) -> None:
        self.chimes[effect.node] = self.chimes.get(effect.node, 0) + 1

    def ask(self, node: str) -> int:
        """Ask a neighbour once more; the number that it is to send back."""
        return self.host.driver.act(lambda engine, now: engine.machine(Echo).ask(NodeId(node), now))

    def statistics(self) -> Mapping[str, int]:
        return {"echo_neighbours_heard": len(self.chimes)}

    def questions(self) -> Mapping[str, Callable[[Any], Any]]:
        return {"echo.chimes": lambda _: dict(self.chimes), "echo.ask": self.ask}

    def routes(self, service: HttpService) -> Sequence[BaseRoute]:
        async def echo(_: Request) -> Response:
            return JSONResponse(self.chimes)

        return [Route("/v1/echo", echo)]

    def metrics(self) -> "Iterable[Metric]":
        from prometheus_client.core import CounterMetricFamily

        chimes = CounterMetricFamily("meshnode_echo_chimes", "Echoes that came back.", labels=["neighbour"])
        for node, count in self.chimes.items():
            chimes.add_metric([node], count)
        yield chimes


@click.command()
@on_a_node
def echo(node_config: Any, http_address: str | None) -> None:
    """Show how many echoes came back from each neighbour."""
    for node, count in chosen_node(node_config, http_address).get("/v1/echo").items():
        click.echo(f"{node} {count}")


ECHO = Part("echo", RunningEcho, sections=lambda: (EchoSection,), commands=lambda: (echo,))
