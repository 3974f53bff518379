"""A relay is told to end by a signal, whatever it does at that moment."""

import os
import signal
import threading

from cloud_relay.server import _Stop


def test_signal_that_comes_as_the_wait_begins_ends_it() -> None:
    """A supervisor that stopped a relay as it became ready had to kill it."""
    for _ in range(500):
        with _Stop(signal.SIGUSR1) as stop:
            sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
            sender.start()
            assert stop.wait(60)
            sender.join()


def test_signal_that_came_before_the_wait_ends_it_too() -> None:
    """A relay is often told to end while it opens its store."""
    with _Stop(signal.SIGUSR1) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.wait(60)
        assert stop.wait(0)


def test_wait_for_a_time_goes_on_at_other_signals_and_says_whether_it_was_told() -> None:
    """A relay that waits for its clock looks at it again and again."""
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with _Stop(signal.SIGUSR1) as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert not stop.wait(0.01)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.wait(60)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_handlers_are_those_of_before_when_the_relay_has_ended() -> None:
    """A program that serves a relay within itself keeps its own."""
    before = signal.getsignal(signal.SIGUSR1)
    with _Stop(signal.SIGUSR1):
        assert signal.getsignal(signal.SIGUSR1) is not before
    assert signal.getsignal(signal.SIGUSR1) is before
