"""The relay computes what it has released: the release that is out, and for a while the one before."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_relay.config import load_config
from cloud_relay.inference import released
from cloud_relay.inference.section import served_models
from cloud_relay.inference.serving import InferenceService
from cloud_relay.releases.shown import read_current
from protocols.access import AccessTable
from protocols.base.ids import MeshName, PeerIdentity, Role, node_id
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.inference import InferAnswer, InferRequest, OffersAsked, OffersTold
from protocols.wire.tensors import NamedTensor, tensor_of
from tests.tools.eventually import eventually
from tests.tools.release_fixture import Publisher, given_publisher
from tests.tools.tiny_onnx import model_bytes

__all__ = ["given_publisher"]
pytestmark = pytest.mark.processes
THREES = np.full((1, 4), 3, "f4")
DOUBLE, SQUARE = (model_bytes(["batch", 4], op) for op in ("Add", "Mul"))


class Follower:
    """A relay without a network that computes the release of ``plate``."""

    def __init__(self, publisher: Publisher, folder: Path) -> None:
        (folder / "relay.toml").write_text(
            f'[relay]\nid = "relay-1"\n[releases]\nfolder = "{publisher.folder}"\n[models.plate]\nrelease = true\n'
        )
        config = load_config(folder / "relay.toml")
        self.folder = config.state_dir / "computed"
        self.service = InferenceService(
            config.node, served_models(config), AccessTable(), config.releases, self.folder
        )  # fmt: skip
        self._number = 0

    def ask(self, frame: Frame) -> Any:
        peer = PeerIdentity(MeshName("demo"), Role.VEHICLE, node_id("v-1"))
        return decode_untrusted_relay_frame(self.service.answer(peer, encode_frame(frame)))

    def offered(self) -> str:
        """The digest that is offered; empty: none is."""
        told = self.ask(OffersAsked(False))
        assert isinstance(told, OffersTold)
        return "".join(offer.digest for offer in told.offers.offers)

    def other_than(self, digest: str) -> str:
        return eventually(lambda: now if (now := self.offered()) not in ("", digest) else "", "another one is offered")

    def computes(self, digest: str) -> float | str:
        """What comes of three; the status when nothing does."""
        self._number += 1
        inputs = (NamedTensor("x", tensor_of(THREES)),)
        answer = self.ask(InferRequest(self._number, "plate", digest, 20_000_000, inputs))
        assert isinstance(answer, InferAnswer)
        return float(np.asarray(answer.outputs[0].tensor)[0, 0]) if answer.status == "done" else answer.status


@pytest.fixture(name="follower")
def given_follower(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Follower]:
    monkeypatch.setattr(released, "LOOK_S", 0.05)
    monkeypatch.setattr(released, "RETRY_S", 0.1)
    follower = Follower(publisher, tmp_path)
    yield follower
    follower.service.close()


def test_release_that_is_out_is_computed_and_the_one_before_for_those_who_still_mean_it(
    publisher: Publisher, follower: Follower
) -> None:
    """Nodes change over a while. None of their requests may fail by that, and no file is copied by hand."""
    assert follower.offered() == ""
    publisher.release(1, content=DOUBLE)
    first = follower.other_than("")
    assert follower.computes(first) == 6.0
    publisher.release(2, content=SQUARE)
    second = follower.other_than(first)
    assert (follower.computes(second), follower.computes(first)) == (9.0, 6.0)
    eventually(lambda: {each.name for each in (follower.folder / "plate").iterdir()} == {"1", "2"}, "both are kept")


def test_release_whose_order_is_aborted_is_left_again(publisher: Publisher, follower: Follower) -> None:
    """The nodes go back, and so does the relay."""
    publisher.roll_out(1, 1, "plate", DOUBLE)
    first = follower.other_than("")
    publisher.roll_out(2, 2, "plate", SQUARE)
    second = follower.other_than(first)
    assert follower.computes(second) == 9.0
    publisher.roll_out(2, 2, "plate", SQUARE, state="aborted")
    assert follower.other_than(second) == first
    current = read_current(publisher.folder, "models/plate")
    assert current is not None
    assert current.counter == 1
    assert read_current(publisher.folder, "models/other") is None


def test_release_that_can_not_be_loaded_leaves_the_one_before(
    publisher: Publisher, follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named once, and the next one is taken."""
    publisher.release(1, content=DOUBLE)
    first = follower.other_than("")
    with caplog.at_level(logging.ERROR):
        publisher.release(2, content=b"no model")
        eventually(lambda: "does not compute what is released as plate" in caplog.text, "it is named")
    assert follower.computes(first) == 6.0
    publisher.release(3, content=SQUARE)
    assert follower.computes(follower.other_than(first)) == 9.0
    assert caplog.text.count("does not compute") == 1
