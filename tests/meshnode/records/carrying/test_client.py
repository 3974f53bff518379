"""The way of a carrier to the relay."""

import queue

import pytest

from meshnode.links.transport import Address
from meshnode.records import way as ways
from meshnode.records.carrying.client import CarrierClient
from meshnode.records.way import Way
from protocols.base.errors import TransportError
from protocols.base.ids import NodeId
from protocols.records.carrying.events import UploadSealed


class Unreachable:
    """A relay that takes connections and answers nothing."""

    def __init__(self) -> None:
        self.asked = 0

    def request(self, frame: bytes, timeout_s: float) -> bytes:
        del frame, timeout_s
        self.asked += 1
        raise TransportError("no answer")

    def close(self) -> None:
        """It has nothing to close."""


def test_nothing_of_others_is_brought_over_an_interface_that_costs_money(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vehicle that carries for others must not pay for them either, however urgent their records are."""
    monkeypatch.setattr(ways, "LOOK_S", 0.0)
    leads_over, relay = ["wwan0"], Unreachable()
    way = Way(Address("relay.example", 7_500), ("wlan*",), None, lambda _: leads_over[0])
    ended: queue.Queue[str] = queue.Queue()
    client = CarrierClient(lambda: relay, lambda _: None, lambda sealed, reply, code: ended.put(code), way)
    client.start()
    try:
        client.upload(UploadSealed(b"s" * 32, NodeId("veh-2"), b"k" * 32), b"sealed")
        assert ended.get(timeout=30) == ""
        assert relay.asked == 0
        leads_over[0] = "wlan0"
        client.upload(UploadSealed(b"s" * 32, NodeId("veh-2"), b"k" * 32), b"sealed")
        assert ended.get(timeout=30) == ""
        assert relay.asked >= 1
    finally:
        client.close()
