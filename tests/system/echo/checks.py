"""What the simulator checks of the capability ``echo``."""

from protocols.base.effects import Event
from sims.checks.contract import Check
from tests.system.echo.machine import Echoed


class EchoesComeBack(Check):
    """An echo needs at least two ways on the wire, and comes back from everybody."""

    name = "echoes_come_back"

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.pairs: set[tuple[str, str]] = set()

    def event(self, node: str, event: Event) -> None:
        if isinstance(event, Echoed):
            self.pairs.add((node, event.node))
            self.judge(event.took_ns > 0, f"{node} heard {event.node} before it could answer")

    def finished(self, now: int, faults_end_ns: int) -> None:
        self.judge(bool(self.pairs), "no echo came back")
