"""Which metadata counts as the newest, by what others say and by what was verified."""

from random import Random

from protocols.base.ids import NodeId
from protocols.base.limits import SECOND
from protocols.releases.catalogue import ReleaseCatalogue
from protocols.releases.news import NEWS_LIFETIME_S, News
from protocols.wire.releases import ReleaseNews


def said(root: int, timestamp: int, name: bytes) -> ReleaseNews:
    return ReleaseNews(root, timestamp, bytes(32), name * 32, 1_000)


def verified(root: int, timestamp: int) -> ReleaseCatalogue:
    return ReleaseCatalogue(root, timestamp, bytes(32), False, (), ())


def test_news_of_a_newer_root_counts_although_its_timestamp_is_lower() -> None:
    """A thief signed versions that are far too high. Once the keys are changed, the relay begins again below them, and
    gossip must bring that about."""
    news = News(NodeId("a"), Random(1))
    assert news.taken(b"f" * 32, 1_000, verified(1, 1_000_000), 0)
    news.told(NodeId("b"), said(1, 7, b"o"), 0, 0)
    assert list(news.bundles(0)) == []
    news.told(NodeId("c"), said(2, 9, b"n"), 0, 0)
    assert list(news.bundles(0)) == [b"n" * 32]
    assert news.taken(b"n" * 32, 1_000, verified(2, 9), 0)
    assert news.timestamp_version == 9
    news.told(NodeId("d"), said(1, 1_000_000, b"f"), 0, 0)
    assert list(news.bundles(0)) == []
    assert not news.taken(b"f" * 32, 1_000, verified(1, 1_000_000), 0)


def test_news_that_was_less_than_its_author_said_is_not_believed_again() -> None:
    """A liar that announces a root that does not exist gets nothing by it but distrust."""
    news = News(NodeId("a"), Random(1))
    news.told(NodeId("liar"), said(99, 1, b"x"), 0, 0)
    assert list(news.bundles(0)) == [b"x" * 32]
    assert news.taken(b"x" * 32, 1_000, verified(1, 3), 0)
    news.told(NodeId("liar"), said(98, 1, b"y"), 0, 0)
    assert list(news.bundles(0)) == []


def test_news_that_was_said_is_not_said_again_because_others_say_something_else() -> None:
    """Two nodes that disagreed signed an entry every two seconds, and every node of the mesh checked it."""
    news = News(NodeId("a"), Random(1))
    assert news.taken(b"n" * 32, 1_000, verified(1, 5), 0)
    wishes = 0
    for second in range(1, 600):
        news.told(NodeId(f"b-{second % 5}"), said(1, 1 + second % 7, b"x"), 0, second * SECOND)
        news.handle_timer(second * SECOND)
        wishes += len(news.wishes())
    assert wishes == 1
    news.handle_timer(NEWS_LIFETIME_S * SECOND)
    assert len(news.wishes()) == 1, "it is repeated before it is forgotten"


def test_news_is_said_again_once_something_newer_was_verified() -> None:
    """What was said before does not count for it."""
    news = News(NodeId("a"), Random(1))
    for version in (5, 6):
        news.taken(b"n" * 32, 1_000, verified(1, version), version * 10 * SECOND)
        news.handle_timer(version * 10 * SECOND + 3 * SECOND)
        assert len(news.wishes()) == 1
