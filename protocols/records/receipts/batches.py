"""The frame of a batch, whichever way it takes to the relay."""

from protocols.base.ids import Incarnation, NodeId
from protocols.records.ledger import BatchPlan
from protocols.records.receipts.sealing import BatchSealer
from protocols.wire.codec import encode_frame
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.records import Batch, Record


def encode_batch(
    node: NodeId, incarnation: Incarnation, plan: BatchPlan, records: tuple[Record, ...], sealer: BatchSealer | None
) -> bytes:
    """The frame of a batch with its receipt. ``records``: those of the plan, in its order."""
    assert len(records) == len(plan.sequences), "a plan names each of its records"
    receipt, certificate = None, b""
    if sealer is not None and records:
        receipt = sealer.sealed(records, plan.policy)
        certificate = sealer.certificate_to_send
    return encode_frame(Batch(
        MAJOR, MINOR, node, incarnation, plan.next_sequence, records, plan.fates, receipt, certificate,
    ))  # fmt: skip
