"""A certificate is renewed under a running node."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import meshnode.identity.renewal
from meshnode.identity import issue
from meshnode.identity.authority import CLOCK_TOLERANCE
from meshnode.links.transport import CredentialFiles
from meshnode.part import Part
from meshnode.running import RunningPart
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
    assert (await sub.next(30)).value == 1
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
    assert "now belongs to vehicle renewed-5" in why(node)


def why(node: Any) -> str:
    """Why its new certificate is not in use; empty when it is, or when there is none."""
    return "; ".join(trouble.why for trouble in node.troubles.current() if trouble.part == "certificate")


async def test_certificate_that_is_not_valid_yet_is_taken_up_once_it_is(
    opened: Open, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An authority whose clock is ahead issued it; it was looked at once and never again."""
    monkeypatch.setattr(meshnode.identity.renewal, "CHECK_S", 0.05)
    node = await opened("renewed-6")
    before = node.certificate_ends
    begins = datetime.now(UTC) + timedelta(seconds=4)
    issue(house.folder / "authority", "vehicle", "renewed-6", house.home("renewed-6"), valid_days=60,
          now=begins + CLOCK_TOLERANCE)  # fmt: skip
    await until(lambda: "not valid before" in why(node), "the node says so")
    assert node.certificate_ends == before
    await until(lambda: node.certificate_ends > before, "it is in use")
    assert datetime.now(UTC) >= begins.replace(microsecond=0)
    await until(lambda: why(node) == "", "and no trouble any more")


async def test_certificate_that_one_part_could_not_use_is_given_to_it_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the node would go on to sign with a certificate that ends."""
    monkeypatch.setattr(meshnode.identity.renewal, "CHECK_S", 0.05)
    asked: list[str] = []

    class Slow(RunningPart):
        def renewed(self, credentials: CredentialFiles, ends: datetime) -> None:
            asked.append("slow")
            if asked.count("slow") < 3:
                raise OSError(5, "Input/output error")

    class Quick(RunningPart):
        def renewed(self, credentials: CredentialFiles, ends: datetime) -> None:
            asked.append("quick")

    parts = (Part("slow", Slow), Part("quick", Quick))
    async with meshnode.open(house.config("renewed-7"), parts) as node:
        before = node.certificate_ends
        issue(house.folder / "authority", "vehicle", "renewed-7", house.home("renewed-7"), valid_days=60)
        await until(lambda: "Input/output error" in why(node), "the node says so")
        assert node.certificate_ends > before, "the links use it"
        await until(lambda: why(node) == "", "it is tried until it works")
        assert (asked.count("slow"), asked.count("quick")) == (3, 1)


async def test_certificate_that_is_damaged_is_a_trouble_until_it_is_copied_again(
    opened: Open, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever copied it looks at the doctor, not at the log of a week ago."""
    monkeypatch.setattr(meshnode.identity.renewal, "CHECK_S", 0.05)
    node = await opened("renewed-8")
    file = house.home("renewed-8") / "renewed-8.crt"
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    await until(lambda: "holds no valid certificate" in why(node), "the node says so")
    file.write_bytes(good)
    await until(lambda: why(node) == "", "it is in use again")
