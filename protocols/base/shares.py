"""Shares: how much of a bounded table each payer holds, so that the largest holder gives way when the table is full.

A table that evicts its oldest row lets one peer push out what everybody else put there. A table that evicts a row of
its largest holder costs a peer that floods it only that peer's own rows: whoever holds less than an equal share of the
bound never loses a row to somebody else.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

PayerT = TypeVar("PayerT", bound=Hashable)
RowT = TypeVar("RowT", bound=Hashable)


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

    def of_others(self, payer: PayerT) -> list[int]:
        """What each of the others holds."""
        return [amount for other, amount in self._held.items() if other != payer]

    def held(self, payer: PayerT) -> int:
        """What ``payer`` holds; 0 when it is not known."""
        return self._held.get(payer, 0)

    def __len__(self) -> int:
        """The number of payers that hold something."""
        return len(self._held)

    def payers(self) -> list[PayerT]:
        """Everybody who holds something, in the order in which they came."""
        return list(self._held)

    def largest(self) -> PayerT:
        """The payer that holds most; of several, the one that came first. It looks at each payer once, so a table
        has few payers (neighbours, not keys). :raises ValueError: when nobody holds anything."""
        held = self._held
        return max(held, key=held.__getitem__)


class SharedRows(Generic[PayerT, RowT]):
    """The rows of a bounded table by payer, oldest first, and who gives way next."""

    __slots__ = ("_of", "_payers", "shares")

    def __init__(self) -> None:
        self._of: dict[PayerT, dict[RowT, int]] = {}
        self._payers: dict[RowT, PayerT] = {}
        self.shares: Shares[PayerT] = Shares()
        """What each payer holds."""

    def __len__(self) -> int:
        return len(self._payers)

    def __contains__(self, row: RowT) -> bool:
        return row in self._payers

    def add(self, payer: PayerT, row: RowT, amount: int = 1) -> None:
        """Add a row as the newest of ``payer``, which holds ``amount`` for it. A row that is there already is moved."""
        self.remove(row)
        self._payers[row] = payer
        self._of.setdefault(payer, {})[row] = amount
        self.shares.add(payer, amount)

    def remove(self, row: RowT) -> None:
        """Remove a row; nothing happens when it is not there."""
        payer = self._payers.pop(row, None)
        if payer is not None:
            rows = self._of[payer]
            self.shares.remove(payer, rows.pop(row))
            if not rows:
                del self._of[payer]

    def payer_of(self, row: RowT) -> PayerT | None:
        """Who holds a row; None when it is not there."""
        return self._payers.get(row)

    def move(self, row: RowT, payer: PayerT) -> None:
        """Let ``payer`` hold a row from now on; nothing happens when it is not there."""
        before = self._payers.get(row)
        if before is not None:
            self.add(payer, row, self._of[before][row])

    def move_all(self, payer: PayerT, heir: PayerT) -> list[RowT]:
        """Let ``heir`` hold all rows of ``payer``, and return them."""
        rows = list(self._of.get(payer, ()))
        for row in rows:
            self.move(row, heir)
        return rows

    def next_to_go(self) -> RowT:
        """The oldest row of the largest holder. :raises ValueError: when there are no rows."""
        return next(iter(self._of[self.shares.largest()]))
