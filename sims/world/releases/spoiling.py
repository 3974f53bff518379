"""Deliberate bugs in what a node does with releases, see :mod:`sims.world.bugs`."""

from collections.abc import Collection
from typing import Any

from protocols.engine import Engine
from protocols.releases.catalogue import Order
from protocols.releases.machine import Releases
from protocols.releases.rollout.tally import Quorums


def promoted_by_one(engine: Engine) -> None:
    """One canary that calls a release healthy is enough to serve it."""
    rollouts = engine.machine(Releases).rollouts
    orders = rollouts.orders

    def with_one(read: Collection[Order], now: int, listed: Collection[int] | None = None) -> None:
        orders(read, now, listed)
        for tally in rollouts._tallies.values():  # noqa: SLF001 - bugs replace what is inside
            tally._quorums = Quorums(1, 64)  # noqa: SLF001

    setattr(rollouts, "orders", with_one)  # noqa: B010 - mypy forbids to assign to a method


def releases_staged_in_part(engine: Engine) -> None:
    """A release counts as complete as soon as its description is there."""
    fetching = engine.machine(Releases).fetching
    needs_of = fetching._needs_of  # noqa: SLF001

    def nothing(*given: Any) -> bool:
        needs_of(*given)
        return False

    setattr(fetching, "_needs_of", nothing)  # noqa: B010


def releases_for_anybody(engine: Engine) -> None:
    """Nobody asks the table of access who may have a release."""
    machine = engine.machine(Releases)
    machine.rollouts._may_install = lambda path: True  # noqa: SLF001
    setattr(machine.shelf, "_permits_path", lambda *given: True)  # noqa: B010
