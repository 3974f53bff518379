"""Which release a candidate is compared with."""

from collections.abc import Callable

import pytest

from cloud_relay.learning.launching import release_to_beat, serving_release
from cloud_relay.releases.ordering import change, orders_in, start
from cloud_relay.releases.publishing import revoke
from cloud_relay.releases.repository import ReleaseRepository
from tests.tools.release_fixture import Publisher, given_publisher, list_file

__all__ = ["given_publisher"]
PATH = "models/hotspot"
Step = Callable[[ReleaseRepository], object]


def publish(counter: int) -> Step:
    return lambda repository: list_file(repository, counter, "hotspot", f"{counter}".encode())


def order(counter: int) -> Step:
    return lambda repository: start(repository, PATH, counter)


def abort(repository: ReleaseRepository) -> None:
    change(repository, orders_in(repository)[-1], "aborted")


def take_out_two(repository: ReleaseRepository) -> None:
    revoke(repository, PATH, 2)


@pytest.mark.parametrize(
    ("steps", "serving", "to_beat"),
    [
        ([], None, None),
        ([publish(1)], 1, 1),
        ([publish(1), publish(2)], 2, 2),
        ([publish(1), order(1), publish(2)], 1, 2),
        ([publish(1), order(1), publish(2), order(2)], 2, 2),
        ([publish(1), order(1), publish(2), order(2), abort], 1, 1),
        ([publish(1), order(1), publish(2), order(2), order(1)], 1, 1),
        ([publish(1), order(1), publish(2), take_out_two], 1, 1),
        ([publish(1), order(1), publish(2), publish(3)], 1, 3),
    ],
)
def test_release_to_beat_is_what_serves_or_what_waits_for_its_order(
    publisher: Publisher, steps: list[Step], serving: int | None, to_beat: int | None
) -> None:
    """A relay that trains every hour published the same improvement every hour, until somebody rolled it out."""
    for step in steps:
        with publisher.changing() as repository:
            step(repository)
    repository = ReleaseRepository(publisher.folder).load()
    found = [each(repository, PATH) for each in (serving_release, release_to_beat)]
    assert [None if each is None else each.counter for each in found] == [serving, to_beat]
