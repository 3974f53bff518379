"""Orders: which release nodes are to serve, signed like everything else.

A new order has a new serial, and a pause or an abort is written into the order that it is about: a new serial would
begin a new count of canaries. Older orders stay, because a node whose newest order was halted follows the one before.
An order that a damaged disk has changed is passed over, and can be taken out; its serial stays used.
"""

import logging
import re
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from cloud_relay.releases.publishing import description_of
from cloud_relay.releases.repository import ReleaseRepository
from cloud_relay.releases.shown import ORDERS_ROLE
from protocols.base.errors import ReleaseInvalid
from protocols.base.ids import NodeId
from protocols.releases.catalogue import MAX_DESCRIPTION_BYTES, MAX_ORDERS, ORDERS, Cohort, Gates, Order

State = Literal["running", "paused", "aborted", "promoted"]
EVERYBODY: Final = Cohort()
USUAL_GATES: Final = Gates()
_MAX_SERIAL: Final = 2**31 - 1
_TARGET: Final = re.compile(rf"{ORDERS_ROLE}/([1-9][0-9]*)\.json")

_log = logging.getLogger(__name__)


def quorums(canaries: int) -> tuple[int, int]:
    """How many of so many canaries promote, and how many halt.

    More than half promote, and as many halt as keep the others from promoting. From three canaries on both are at least
    two, so that one liar can do neither.
    """
    if canaries == 0:
        return 0, 0
    promote = canaries // 2 + 1
    halt = canaries - promote + 1
    return (max(promote, 2), max(halt, 2)) if canaries >= 3 else (promote, halt)


def orders_in(repository: ReleaseRepository) -> list[Order]:
    """The orders that are listed and can be read, the newest last. The log names those that are damaged."""
    found = []
    for serial in serials_in(repository):
        try:
            found.append(_order(repository, serial))
        except ReleaseInvalid as error:
            _log.warning("%s", error)
    return found


def serials_in(repository: ReleaseRepository) -> list[int]:
    """The serials of all orders that are listed, damaged ones too, the newest last."""
    return sorted(int(match[1]) for path in repository.paths() if (match := _TARGET.fullmatch(path)) is not None)


def order_for(repository: ReleaseRepository, path: str, serial: int | None = None) -> Order:
    """An order for a path. ``serial``: None: the newest. :raises ReleaseInvalid: there is none."""
    found = [order for order in orders_in(repository) if order.path == path]
    for order in reversed(found):
        if serial is None or order.serial == serial:
            return order
    known = ", ".join(str(order.serial) for order in found)
    raise ReleaseInvalid(
        f"there is no order {serial} for {path}: there are {known}"
        if known
        else f"there is no order for {path}: give one with 'cloud-relay rollout start'"
    )


def start(
    repository: ReleaseRepository,
    path: str,
    counter: int,
    *,
    cohort: Cohort = EVERYBODY,
    canaries: Sequence[NodeId] = (),
    promote_quorum: int | None = None,
    halt_quorum: int | None = None,
    soak_s: int = 600,
    silence_s: int = 86_400,
    gates: Gates = USUAL_GATES,
) -> Order:
    """List the order to serve a release; the caller commits.

    :raises ReleaseInvalid: there is no such release, or the order contradicts itself.
    """
    released = description_of(repository, path, counter)
    if path.startswith("rules/") and gates.min_agreement:
        raise ReleaseInvalid(
            "rules do not run beside those before them, so nothing is compared: leave --min-agreement out"
        )
    if released.breaks_signature and gates.min_agreement:
        raise ReleaseInvalid(
            f"release {counter} of {path} takes or gives something else than the one before, so no canary can compare "
            "them: leave --min-agreement out"
        )
    if len(set(canaries)) != len(canaries):
        raise ReleaseInvalid("a canary is named twice: name each once")
    promote, halt = quorums(len(canaries))
    promote = promote if promote_quorum is None else promote_quorum
    halt = halt if halt_quorum is None else halt_quorum
    for name, quorum in (("promote", promote), ("halt", halt)):
        if not (1 if canaries else 0) <= quorum <= len(canaries):
            raise ReleaseInvalid(
                f"--{name}-quorum is {quorum}, and there are {len(canaries)} canaries: choose 1 to {len(canaries)}"
                if canaries else f"--{name}-quorum is {quorum}, and there are no canaries: name some with --canary"
            )  # fmt: skip
    if canaries and silence_s <= soak_s:
        raise ReleaseInvalid(
            f"canaries soak for {soak_s} s, and count as failed when silent for {silence_s} s: raise --silence"
        )
    listed = serials_in(repository)
    serial = max([repository.state.serial, *listed]) + 1
    if serial > _MAX_SERIAL:
        raise ReleaseInvalid(f"the serial {serial} is above {_MAX_SERIAL}: make a new repository")
    for each in listed[: max(0, len(listed) + 1 - MAX_ORDERS)]:
        repository.remove(_target(each))  # no node looks at so many
    order = Order(
        serial=serial, path=path, counter=counter, cohort=cohort, canaries=tuple(canaries), promote_quorum=promote,
        halt_quorum=halt, soak_s=soak_s, silence_s=silence_s, gates=gates,
    )  # fmt: skip
    _list(repository, order)
    repository.state.serial = serial
    return order


def change(repository: ReleaseRepository, order: Order, state: State) -> Order:
    """Give an order another state; the caller commits.

    :raises ReleaseInvalid: it has that state already, or was aborted.
    """
    if order.state == state:
        raise ReleaseInvalid(f"the order {order.serial} for {order.path} {order.counter} is {state} already")
    if order.state == "aborted":
        raise ReleaseInvalid(
            f"the order {order.serial} for {order.path} {order.counter} was aborted: start a new one with "
            "'cloud-relay rollout start'"
        )
    order = replace(order, state=state)
    _list(repository, order)
    return order


def remove_damaged(repository: ReleaseRepository, serial: int) -> None:
    """List a damaged order no more; the caller commits. Nodes then follow the order before it.

    :raises ReleaseInvalid: it is not listed, or it is not damaged.
    """
    if serial not in serials_in(repository):
        raise ReleaseInvalid(f"there is no order {serial}: see 'cloud-relay rollout status'")
    try:
        order = _order(repository, serial)
    except ReleaseInvalid:
        repository.remove(_target(serial))
    else:
        raise ReleaseInvalid(
            f"the order {serial} for {order.path} {order.counter} is not damaged: end it with 'cloud-relay rollout "
            "abort'"
        )


def _list(repository: ReleaseRepository, order: Order) -> None:
    content = msgspec.json.encode(order)
    if len(content) > MAX_DESCRIPTION_BYTES:
        raise ReleaseInvalid(
            f"the order takes {len(content)} bytes, and {MAX_DESCRIPTION_BYTES} can travel: name fewer"
        )
    try:
        ORDERS.decode(content)  # what a node will do with it
    except msgspec.ValidationError as error:
        raise ReleaseInvalid(f"no node would take this order: {error}") from error
    repository.put(_target(order.serial), content)


def _target(serial: int) -> str:
    return f"{ORDERS_ROLE}/{serial}.json"


def _order(repository: ReleaseRepository, serial: int) -> Order:
    target = repository.target(_target(serial))
    content = None if target is None else repository.shelf.find(bytes.fromhex(target.hashes["sha256"]))
    try:
        return ORDERS.decode(content or b"")
    except msgspec.DecodeError as error:
        raise ReleaseInvalid(
            f"the order {serial} is damaged: restore a copy of {repository.folder / 'chunks'}, or take the order out "
            f"with 'cloud-relay rollout remove {serial}' and start it again"
        ) from error
