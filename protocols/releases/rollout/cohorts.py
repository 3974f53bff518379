"""Whether an order is for a node.

Labels and roles select, they never authorise: a node that lies about its labels in its own file brings a release upon
itself that the metadata lists anyway.
"""

from collections.abc import Callable, Collection

from protocols.base.ids import NodeId, Role
from protocols.base.keys import matches
from protocols.releases.catalogue import Order


def is_in_cohort(
    order: Order, node: NodeId, role: Role, labels: Collection[str], share_hash: Callable[[bytes], bytes]
) -> bool:
    """Whether ``node`` is to follow ``order``. Canaries are, whatever the conditions of the cohort say. ``share_hash``
    returns 8 bytes or more."""
    if node in order.canaries:
        return True
    cohort = order.cohort
    return (
        (not cohort.roles or role in cohort.roles)
        and all(label in labels for label in cohort.labels)
        and (not cohort.nodes or node in cohort.nodes)
        and (cohort.share >= 1 or place_in_share(order.path, order.counter, node, share_hash) < cohort.share)
    )


def place_in_share(path: str, counter: int, node: NodeId, share_hash: Callable[[bytes], bytes]) -> float:
    """The place of a node in the line for a release, from 0 up to 1. It depends on the release and not on the order, so
    that an order with a larger share reaches those who have the release already, and others beside them."""
    digest = share_hash(f"{path} {counter} {node}".encode())
    return int.from_bytes(digest[:6], "big") / 2**48


def follows_path(path: str, follows: Collection[str]) -> bool:
    """Whether a path matches one of the key expressions, as in ``models/plate``, ``models/*`` or ``**``."""
    return any(matches(expression, path) for expression in follows)
