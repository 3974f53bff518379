"""What one publisher lists never decides about releases of another."""

from hashlib import sha256
from random import Random

from protocols.access import AccessTable
from protocols.base.ids import NodeId, Role
from protocols.releases.catalogue import Content, Description, Listed, ReleaseCatalogue, ReleasedFile
from protocols.releases.events import ReadDescription
from protocols.releases.machine import Releases
from protocols.releases.rollout.rollouts import Rollouts
from protocols.releases.settings import ReleaseSettings

DESCRIPTION, OTHER = bytes([1]) * 32, bytes([2]) * 32
INDEX = bytes([3]) * 32
GOOD = Listed("models/b", 7, DESCRIPTION, 50)


def machine() -> Releases:
    rollouts = Rollouts(NodeId("me"), Role.VEHICLE, (), ("models/*",), lambda data: sha256(data).digest())
    made = Releases(NodeId("me"), AccessTable(), ReleaseSettings(), Random(1), rollouts)
    made.holding({DESCRIPTION: 50, OTHER: 50}, 0)
    return made


def trust(made: Releases, version: int, *listed: Listed) -> list[bytes]:
    """The descriptions that are read because of that metadata."""
    catalogue = ReleaseCatalogue(1, version, bytes(32), False, listed, ())
    made.bundle_verified(bytes([100 + version]) * 32, catalogue, version)
    return [effect.digest for effect in made.outgoing() if isinstance(effect, ReadDescription)]


def described(path: str, counter: int, size_bytes: int, chunk_bytes: int) -> Description:
    content = Content(sha256="0" * 64, size_bytes=size_bytes, chunk_bytes=chunk_bytes, index=INDEX.hex())
    return Description(path=path, counter=counter, model="m", files=(ReleasedFile(name="m", content=content),))


REAL = described("models/b", 7, 131_072, 65_536)


def test_description_that_another_publisher_lists_too_is_good_for_the_release_it_names() -> None:
    """It was refused as that of another release, also after the other one was gone."""
    made = machine()
    assert trust(made, 1, GOOD, Listed("models/z", 1, DESCRIPTION, 50)) == [DESCRIPTION]
    made.described(DESCRIPTION, REAL, 2)
    assert made.fetching.descriptions == {("models/b", 7): REAL}


def test_other_sizes_of_a_shared_index_are_refused_and_forgotten_with_their_publisher() -> None:
    """Pieces of honest neighbours would have another length than was said."""
    made = machine()
    trust(made, 1, GOOD, Listed("models/a", 1, OTHER, 50))
    made.described(OTHER, described("models/a", 1, 524_283, 262_144), 2)
    made.described(DESCRIPTION, REAL, 3)
    assert ("models/b", 7) not in made.fetching.descriptions
    assert trust(made, 2, GOOD) == [DESCRIPTION]
    made.described(DESCRIPTION, REAL, 4)
    assert made.fetching.descriptions == {("models/b", 7): REAL}
    assert made.shelf.known[INDEX].size_bytes == 131_072
