"""Signatures of readings with real keys: what a certificate proves, and what it doesn't."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meshnode.gossip.notary import Notary
from meshnode.identity import create_mesh, issue
from protocols.base import limits
from protocols.base.ids import MeshName, NodeId, Role
from protocols.wire.parcels import encode_alone, reading_statement
from tests.tools.strategies import reading

STATEMENT = reading_statement(encode_alone(reading("veh/veh-1/x", "veh-1")))
VEH, ONE_DAY = NodeId("veh-1"), timedelta(days=1)


def notary(folder: Path, node: str, role: Role = Role.VEHICLE, **options: Any) -> Notary:
    """With a fresh certificate of the authority in ``folder``."""
    if not (folder / "authority").exists():
        create_mesh(folder / "authority", "test", now=datetime.now(UTC) - 10 * ONE_DAY)
    return Notary(issue(folder / "authority", role, node, folder / node, **options).credentials, MeshName("test"))


def certificate(of: Notary) -> bytes:
    """The certificate that gossip spreads."""
    return of.sign(b"")[0]


def test_reading_is_proven_by_the_certificate_of_its_author(tmp_path: Path) -> None:
    """The role is the one that the authority gave."""
    checker = notary(tmp_path, "veh-2").reading_seal()
    for node, role in (("veh-1", Role.VEHICLE), ("rsu-1", Role.RSU)):
        by = notary(tmp_path, node, role)
        certificate_id, signature = by.sign_reading(STATEMENT)
        assert len(certificate_id) == limits.CERTIFICATE_ID_BYTES
        assert 0 < len(signature) <= limits.MAX_SIGNATURE_BYTES
        assert checker.role(certificate(by), NodeId(node), certificate_id) is role
        assert checker.signed(certificate(by), STATEMENT, signature)


def test_signature_of_something_else_or_by_somebody_else_proves_nothing(tmp_path: Path) -> None:
    """A signature of an entry, a cut one, one of another reading, or of another member."""
    by, other = notary(tmp_path, "veh-1"), notary(tmp_path, "veh-2")
    good = by.sign_reading(STATEMENT)[1]
    other_reading = reading_statement(encode_alone(reading("veh/veh-1/x", "veh-1", 2)))
    for signature in (other.sign_reading(STATEMENT)[1], good[:-1], b"", bytes(72), by.sign(STATEMENT[1:])[1]):
        assert not other.has_signed(certificate(by), STATEMENT, signature)
    assert not other.has_signed(certificate(by), other_reading, good)
    assert not other.has_signed(b"no certificate", STATEMENT, good)


@pytest.mark.parametrize("node", ["veh-1", "veh-3"])
def test_certificate_proves_the_role_of_its_owner_in_its_mesh_and_its_time_only(tmp_path: Path, node: str) -> None:
    """Whatever else it is, its readings are of an author that is not known."""
    here = notary(tmp_path / "here", "checker")

    def role(by: Notary, whose: str = node, certificate_id: bytes | None = None) -> Role | None:
        known_as = by.sign_reading(b"")[0] if certificate_id is None else certificate_id
        return here.role(certificate(by), NodeId(whose), known_as)

    good = notary(tmp_path / "here", node)
    assert role(good) is Role.VEHICLE
    assert role(good, "another") is None
    assert role(good, certificate_id=bytes(limits.CERTIFICATE_ID_BYTES)) is None
    assert role(notary(tmp_path / "there", node)) is None
    assert role(notary(tmp_path / "here", node, Role.RELAY)) is None, "a relay is nobody's neighbour"
    for days in (-3, 3):
        then = datetime.now(UTC) + days * ONE_DAY
        assert role(notary(tmp_path / "here", node, valid_days=1, now=then)) is None


def test_renewed_certificate_has_another_id(tmp_path: Path) -> None:
    """A node that still holds the old one must see that it lacks the new one, and not take readings for forged."""
    by = notary(tmp_path, "veh-1")
    before, old_id = certificate(by), by.sign_reading(STATEMENT)[0]
    by.renew(issue(tmp_path / "authority", "vehicle", "veh-1", tmp_path / "veh-1").credentials)
    checker = notary(tmp_path, "veh-2")
    new_id = by.sign_reading(STATEMENT)[0]
    assert new_id != old_id
    assert checker.role(before, VEH, new_id) is None
    assert checker.role(certificate(by), VEH, new_id) is Role.VEHICLE
