"""Every frame that travels between nodes."""

from protocols.wire.gossip import GossipDigest, GossipEntries, GossipHave, GossipPull
from protocols.wire.inference import InferAnswer, InferCancel, InferRequest, Offers
from protocols.wire.membership import Goodbye, Heartbeat, Hello, Refusal
from protocols.wire.readings import Interest, Readings

NodeFrame = (
    Hello
    | Heartbeat
    | Goodbye
    | Refusal
    | Interest
    | Readings
    | Offers
    | InferRequest
    | InferAnswer
    | InferCancel
    | GossipDigest
    | GossipHave
    | GossipPull
    | GossipEntries
)
