"""How often a node asks the relay for news."""

import statistics
import time
from itertools import pairwise

import pytest

from meshnode.releases import relay
from meshnode.releases.relay import RelayClient
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.releases import ReleaseNews, ReleasesAsked, ReleasesTold
from tests.tools.eventually import eventually

WAIT_MS = 200


class BusyRelay:
    """It lets nobody wait, and tells the same to everybody."""

    def __init__(self, news: ReleaseNews | None) -> None:
        self.news = news
        self.asked: list[tuple[float, ReleasesAsked]] = []

    def request(self, frame: bytes, timeout_s: float) -> bytes:
        asked = decode_untrusted_relay_frame(frame)
        assert isinstance(asked, ReleasesAsked)
        self.asked.append((time.monotonic(), asked))
        return encode_frame(ReleasesTold(self.news))

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    "news", [None, ReleaseNews(1, 5, bytes(32), bytes(32), 10), ReleaseNews(1, 6, bytes(32), bytes(32), 10)]
)
def test_client_answered_early_without_news_asks_again_after_its_time(
    news: ReleaseNews | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand nodes that ask again at once would keep a relay from its records. News that this node does not take,
    because its signatures do not hold, is none the second time."""
    monkeypatch.setattr(relay, "WAIT_MS", WAIT_MS)
    monkeypatch.setattr(relay, "_FIRST_PAUSE_S", 0.01)
    busy = BusyRelay(news)
    client = RelayClient(lambda: busy, lambda: 5, lambda told: None, lambda connected: None, lambda digest, data: None)
    client.start()
    eventually(lambda: len(busy.asked) >= 7)
    client.close()
    asked_s = [at_s for at_s, asked in busy.asked if asked.wait_ms]
    assert [asked.wait_ms for _, asked in busy.asked[:2]] == [0, WAIT_MS]
    pauses_s = [later - earlier for earlier, later in pairwise(asked_s)]
    # One may look shorter: its beginning was noted late. A client that asks again at once does so each time.
    assert statistics.median(pauses_s) >= 0.9 * WAIT_MS / 1_000
