"""Deliberate bugs in what nodes and the relay do with records, see :mod:`sims.world.bugs`."""

from collections.abc import Callable
from typing import Any

from protocols.records.curation import Curator
from protocols.records.ledger import BatchPlan, Ledger
from protocols.wire.readings import Reading
from protocols.wire.records import Acknowledgement, Batch
from sims.world.records.relay import Relay


def instead(owner: object, method: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Put ``make(the method)`` in the place of a method."""
    setattr(owner, method, make(getattr(owner, method)))


def acknowledgements_counted_twice(ledger: Ledger) -> None:
    """A record that the relay has taken counts as two."""

    def make(acknowledged: Any) -> Callable[[BatchPlan, Acknowledgement], int]:
        def twice(plan: BatchPlan, answer: Acknowledgement) -> int:
            ended: int = acknowledged(plan, answer)
            ledger._delivered += ended
            return ended

        return twice

    instead(ledger, "acknowledged", make)


def fates_untold(ledger: Ledger) -> None:
    """Records that ended undelivered are counted at the node, and the relay is never told."""

    def make(next_batch: Any) -> Callable[..., BatchPlan | None]:
        def records_only(*given: Any) -> BatchPlan | None:
            plan: BatchPlan | None = next_batch(*given)
            return plan and BatchPlan(plan.sequences, (), plan.next_sequence)

        return records_only

    instead(ledger, "next_batch", make)


def acknowledged_before_stored(relay: Relay) -> None:
    """The relay acknowledges records before they are on disk, so that they are lost when it stops."""
    behind: list[Batch] = []

    def make(take: Any) -> Callable[[Batch], Any]:
        def answer_first(batch: Batch) -> Any:
            while behind:
                take(behind.pop())
            if not batch.records:
                return take(batch)
            behind.append(batch)
            return Acknowledgement(tuple(record.sequence for record in batch.records))

        return answer_first

    def forget(stop: Any) -> Callable[[], None]:
        def and_lose() -> None:
            behind.clear()
            stop()

        return and_lose

    instead(relay, "take", make)
    instead(relay, "stop", forget)


def stored_again(relay: Relay) -> None:
    """The relay stores a record again that it has already."""

    def make(store: Any) -> Callable[..., bool]:
        def blindly(node: str, record: Any) -> bool:
            relay._origins[node].held.pop(record.sequence, None)
            return bool(store(node, record))

        return blindly

    instead(relay, "store", make)


def given_up_for_good(ledger: Ledger) -> None:
    """A batch that was not answered is never sent again."""
    given_up: list[bool] = []

    def make(abandoned: Any) -> Callable[[], None]:
        def and_give_up() -> None:
            given_up.append(True)
            abandoned()

        return and_give_up

    instead(ledger, "abandoned", make)
    instead(ledger, "next_batch", lambda next_batch: lambda *given: None if given_up else next_batch(*given))


def neighbours_unheard(curator: Curator) -> None:
    """Rules are not shown the readings of neighbours."""

    def make(receive: Any) -> Callable[..., Any]:
        def own_only(reading: Reading, is_own: bool, *clocks: int) -> Any:
            return receive(reading, is_own, *clocks) if is_own else ()

        return own_only

    instead(curator, "receive", make)
