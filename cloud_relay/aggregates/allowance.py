"""Which groups an aggregate may have: as many as it is allowed, and what becomes of the others.

When it is full, its oldest buckets are let go, and what is sensed in them is counted from then on and belongs to no
group. These groups are below the *floor*: nobody sees them any more. So each group that is there is whole, and which
buckets are there depends only on the records and not on their order: those from the lowest time on from which there are
few enough groups. There are two exceptions, in which a record is counted as *beyond* and its node and key are named:
when one bucket alone has more groups than the allowance, and when a node that opened more than half of all groups would
push out those of others.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final, Protocol

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.grouping import GroupName
from cloud_relay.aggregates.tallies import GroupTally

_MAX_NAMED_CHARS: Final = 300


class GroupAccounts(Protocol):
    """What an allowance asks of the store of one aggregate, and tells it, within one transaction."""

    def ends(self, floor_utc_ns: int) -> tuple[int, int]:
        """The oldest bucket that is not below the floor, and the newest one. There are some."""
        ...

    def has_of_others(self, bucket_utc_ns: int, origin: str) -> bool:
        """Whether a bucket has groups that another node has opened."""
        ...

    def opened_in(self, bucket_utc_ns: int, origins: Collection[str]) -> Iterable[tuple[str, int]]:
        """How many groups of a bucket each of these nodes has opened."""
        ...

    def raise_floor(self, floor_utc_ns: int) -> None:
        """Note the floor."""
        ...

    def count(self, *, let_go: int = 0, below: int = 0, beyond: int = 0, named: str = "") -> None:
        """Count groups that were let go, records that are below the floor, and records beyond the allowance, the last
        of which is named."""
        ...


class GroupAllowance:
    """Of one aggregate. After a transaction that did not happen, make it anew."""

    def __init__(
        self, accounts: GroupAccounts, definition: AggregateDefinition, floor_utc_ns: int, opened: Mapping[str, int]
    ) -> None:
        """``opened``: how many groups each node has opened that are not below the floor."""
        self._accounts, self._definition, self.floor_utc_ns = accounts, definition, floor_utc_ns
        self._opened = Counter(dict(opened))
        self._groups = self._opened.total()
        self._spared: tuple[str, int] | None = None
        """A node, and the oldest bucket, of which is known that others have groups in it: to find that out may mean to
        go through all groups of that node, and it stays true until the bucket is let go."""
        self.has_gone = True
        """Whether there may be groups below the floor that nobody has taken away."""

    def opens(self, name: GroupName, tally: GroupTally) -> bool:
        """Whether a group is opened, for the store to add. Else its records are counted."""
        if not self._has_room(name, tally):
            return False
        self._opened[tally.origin] += 1
        self._groups += 1
        return True

    def _has_room(self, name: GroupName, tally: GroupTally) -> bool:
        while name.bucket_utc_ns >= self.floor_utc_ns and self._groups >= self._definition.max_groups:
            oldest, newest = self._accounts.ends(self.floor_utc_ns)
            if name.bucket_utc_ns < oldest:
                self._raise_floor(oldest)
            elif name.bucket_utc_ns == newest == oldest or self._would_push_out_others(tally.origin, oldest):
                named = f"{tally.origin} {name.key}"[:_MAX_NAMED_CHARS]
                self._accounts.count(beyond=len(tally.readings), named=named)
                return False
            else:
                self._let_go(oldest)
        if name.bucket_utc_ns < self.floor_utc_ns:
            self._accounts.count(below=len(tally.readings))
            return False
        return True

    def _would_push_out_others(self, origin: str, bucket_utc_ns: int) -> bool:
        if self._opened[origin] * 2 <= self._definition.max_groups:
            return False
        if self._spared != (origin, bucket_utc_ns):
            self._spared = (origin, bucket_utc_ns) if self._accounts.has_of_others(bucket_utc_ns, origin) else None
        return self._spared is not None

    def _let_go(self, bucket_utc_ns: int) -> None:
        """Let the oldest bucket be below the floor."""
        for origin, count in self._accounts.opened_in(bucket_utc_ns, [*self._opened]):
            self._opened[origin] -= count
            self._groups -= count
            self._accounts.count(let_go=count)
        self._opened = +self._opened
        self._raise_floor(bucket_utc_ns + self._definition.bucket_ns)
        self.has_gone = True

    def _raise_floor(self, floor_utc_ns: int) -> None:
        self.floor_utc_ns = floor_utc_ns
        self._accounts.raise_floor(floor_utc_ns)
