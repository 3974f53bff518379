"""A thread that is relieved when it hangs."""

import threading

import pytest

from meshnode.releases.relief import MAX_STUCK, RelievedThread
from tests.tools.eventually import LIMIT_S, eventually

PATH = "models/plate"


def test_thread_that_hangs_is_relieved_as_often_as_is_bearable() -> None:
    """A disk that does not answer must not cost the node a thread for each release that it tries."""
    thread, let_go, begun = RelievedThread("test"), threading.Event(), list[int]()
    thread.patience_s = 0

    def hang(number: int) -> None:
        begun.append(number)
        let_go.wait(LIMIT_S)

    for number in range(MAX_STUCK + 2):
        thread.submit((PATH, number), lambda number=number: hang(number))  # type: ignore[misc]
    for number in range(MAX_STUCK):
        eventually(lambda: begun == list(range(number + 1)))  # noqa: B023 - it is called at once
        assert thread.relieve() == (PATH, number)
        assert thread.is_stuck((PATH, number))
    eventually(lambda: len(begun) == MAX_STUCK + 1)
    assert thread.relieve() is None
    let_go.set()
    eventually(lambda: begun == list(range(MAX_STUCK + 2)), "those behind it have their turn")
    eventually(lambda: not any(thread.is_stuck((PATH, number)) for number in begun))
    thread.close()


def test_thread_with_nothing_behind_it_is_not_relieved_and_ends_when_it_is_closed() -> None:
    """Nobody waits, so it may take its time."""
    thread, done, let_go = RelievedThread("test"), list[str](), threading.Event()
    thread.patience_s = 0
    begun = threading.Event()

    def work() -> None:
        begun.set()
        let_go.wait(LIMIT_S)
        done.append("first")

    thread.submit((PATH, 1), work)
    assert begun.wait(LIMIT_S)
    assert thread.relieve() is None
    thread.submit((PATH, 2), lambda: done.append("second"))
    closing = threading.Thread(target=thread.close)
    closing.start()

    def is_closed() -> bool:
        try:
            thread.submit((PATH, 3), lambda: done.append("third"))
        except RuntimeError:
            return True
        return False

    eventually(is_closed)
    let_go.set()
    closing.join(LIMIT_S)
    assert not closing.is_alive()
    assert done == ["first"]
    with pytest.raises(RuntimeError):
        thread.submit((PATH, 4), lambda: None)
