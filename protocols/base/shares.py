"""Shares: how much of a bounded table each payer holds, so that the largest holder gives way when the table is full.

A table that evicts its oldest row lets one peer push out what everybody else put there. A table that evicts a row of
its largest holder costs a peer that floods it only that peer's own rows: whoever holds less than an equal share of the
bound never loses a row to somebody else.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

PayerT = TypeVar("PayerT", bound=Hashable)


class Shares(Generic[PayerT]):
    """What each payer holds, in rows or bytes."""

    __slots__ = ("_held", "total")

    def __init__(self) -> None:
        self._held: dict[PayerT, int] = {}
        self.total = 0
        """What all payers hold together."""

    def add(self, payer: PayerT, amount: int = 1) -> None:
        """Note that ``payer`` holds ``amount`` more."""
        self._held[payer] = self._held.get(payer, 0) + amount
        self.total += amount

    def remove(self, payer: PayerT, amount: int = 1) -> None:
        """Note that ``payer`` holds ``amount`` less; who holds nothing is forgotten."""
        left = self._held.get(payer, 0) - amount
        self.total -= amount
        if left > 0:
            self._held[payer] = left
        else:
            self._held.pop(payer, None)

    def held(self, payer: PayerT) -> int:
        """What ``payer`` holds; 0 when it is not known."""
        return self._held.get(payer, 0)

    def payers(self) -> list[PayerT]:
        """Everybody who holds something, in the order in which they came."""
        return list(self._held)

    def largest(self) -> PayerT:
        """The payer that holds most; of several, the one that came first. It looks at each payer once, so a table
        has few payers (neighbours, not keys). :raises ValueError: when nobody holds anything."""
        held = self._held
        return max(held, key=held.__getitem__)
