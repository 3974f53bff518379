"""A certificate is renewed under a running node."""

import pytest

import meshnode.identity.renewal
from meshnode.identity import issue
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, Open, given_house, given_opened, wanted

__all__ = ["given_house", "given_opened"]


async def test_certificate_issued_anew_is_taken_up_without_losing_a_neighbour(
    opened: Open, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vehicle that had to restart every month would lose its neighbours every month."""
    monkeypatch.setattr(meshnode.identity.renewal, "CHECK_S", 0.05)
    here = await opened("renewed-1")
    there = await opened("renewed-2", here.port)
    await there.wait_for_peers(1)
    before = there.certificate_ends
    issue(house.folder / "authority", "vehicle", "renewed-2", house.home("renewed-2"), valid_days=60)
    await until(lambda: there.certificate_ends > before, "the new certificate is in use")
    sub = here.subscribe("veh/renewed-2/*")
    await wanted(there, "veh/renewed-2/a")
    there.publish("veh/renewed-2/a", 1)
    assert (await sub.next(5)).value == 1
    assert [peer.state.value for peer in here.peers()] == ["alive"]
    third = await opened("renewed-3", there.port)
    assert [peer.node for peer in await third.wait_for_peers(1)] == ["renewed-2"], "new links use the new certificate"


async def test_certificate_of_another_node_is_not_taken_up(
    opened: Open, house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file copied to the wrong vehicle must not make it speak in another's name."""
    monkeypatch.setattr(meshnode.identity.renewal, "CHECK_S", 0.05)
    node = await opened("renewed-4")
    before = node.certificate_ends
    other, home = house.home("renewed-5"), house.home("renewed-4")
    (home / "renewed-4.key").write_bytes((other / "renewed-5.key").read_bytes())
    (home / "renewed-4.crt").write_bytes((other / "renewed-5.crt").read_bytes())
    await until(lambda: "now belongs to vehicle renewed-5" in caplog.text, "the node says so")
    assert node.certificate_ends == before
