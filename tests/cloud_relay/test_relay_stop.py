"""A relay is told to end by a signal, whatever it does at that moment."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from cloud_relay.server import _Stop


@pytest.fixture
def usual_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("usual_handler")
def test_signal_that_comes_as_the_wait_begins_ends_it() -> None:
    """A supervisor that stopped a relay as it became ready had to kill it."""
    for _ in range(500):
        stop = _Stop()
        signal.signal(signal.SIGUSR1, lambda *_, stop=stop: stop.tell())
        sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
        sender.start()
        assert stop.wait(60)
        sender.join()


def test_wait_for_a_time_says_whether_it_was_told() -> None:
    """A relay that waits for its clock looks at it again and again."""
    stop = _Stop()
    assert not stop.wait(0.01)
    stop.tell()
    assert stop.wait(0.01)
