"""What the applications at one socket may do. At the node's own socket they may do all that the node may; at the socket
of an application that the node runs itself, only what was granted to it.

The table of access of the node holds beside them: nobody gets more rights than the node has.
"""

import time
from typing import Any

from msgspec import Struct

from meshnode.asking.question import relay_question_of_untrusted
from meshnode.history.query import query_of_untrusted
from protocols.access import AccessRule
from protocols.base.errors import NotPermitted
from protocols.base.ids import Role, UtcNs
from protocols.base.keys import includes, matches

_FREE = ("models", "position")
"""Questions that say nothing of others."""


class Rights(Struct, frozen=True):
    """Rights of one application. What is not granted is refused with ``NotPermitted``."""

    application: str
    reads: tuple[str, ...] = ()
    """Key expressions of the readings that it may have."""
    publishes: tuple[str, ...] = ()
    """Key expressions of the readings that it may publish."""
    infers: tuple[str, ...] = ()
    """Names of models, or expressions for them, that it may ask for."""

    def check_publish(self, key: str) -> None:
        """:raises NotPermitted: it may not publish on that key."""
        if not any(matches(granted, key) for granted in self.publishes):
            raise self._refusal(f"publish on {key!r}", "publishes", self.publishes)

    def check_subscribe(self, expression: str) -> None:
        """:raises NotPermitted: it may not have all readings that the expression matches."""
        if not any(includes(granted, expression) for granted in self.reads):
            raise self._refusal(f"read {expression!r}", "reads", self.reads)

    def check_infer(self, model: str) -> None:
        """:raises NotPermitted: it may not ask for that model."""
        if not any(matches(granted, model) for granted in self.infers):
            raise self._refusal(f"ask for the model {model!r}", "infers", self.infers)

    def check_question(self, subject: str, argument: Any) -> None:
        """:raises NotPermitted: it may not ask that. :raises LocalProtocolError: the question is malformed."""
        if subject == "history":
            self.check_subscribe(query_of_untrusted(argument, UtcNs(time.time_ns())).expression)
        elif subject == "query":
            self.check_subscribe(relay_question_of_untrusted(argument).frame.expression)
        elif subject not in _FREE:
            raise NotPermitted(f"the application {self.application!r} may not ask the node for {subject!r}")

    def check_locate(self) -> None:
        """:raises NotPermitted: always. Where the node is decides what neighbours make of its readings."""
        raise NotPermitted(f"the application {self.application!r} may not say where the node is")

    def publish_rules(self, role: Role) -> tuple[AccessRule, ...]:
        """What the application is told of its own rights when it connects."""
        return tuple(AccessRule(role, "publish", granted) for granted in self.publishes)

    def _refusal(self, what: str, key: str, granted: tuple[str, ...]) -> NotPermitted:
        return NotPermitted(
            f"the application {self.application!r} may not {what}: it is granted {key} = {list(granted)}, which the "
            "operator of the node can widen"
        )
