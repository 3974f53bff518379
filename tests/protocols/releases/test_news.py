"""Which metadata counts as the newest, by what others say and by what was verified."""

from random import Random

from protocols.base.ids import NodeId
from protocols.base.limits import SECOND
from protocols.releases.catalogue import ReleaseCatalogue
from protocols.releases.news import MAX_BUNDLES, NEWS_LIFETIME_S, RELAY, News
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


def test_bundle_that_was_chosen_among_those_of_many_liars_stays_chosen() -> None:
    """Each entry that was heard drew anew, and dropped what was half fetched: 50 liars hid the truth from most."""
    news = News(NodeId("a"), Random(1))
    for number in range(50):
        news.told(NodeId(f"liar-{number}"), said(9, 10**6, bytes([number])), 0, 0)
    chosen = list(news.bundles(0))
    assert len(chosen) == MAX_BUNDLES
    for second in range(1, 9):
        news.told(NodeId("b"), said(1, 5, b"t"), 0, second * SECOND)
        assert list(news.bundles(second * SECOND)) == chosen
    seen: set[bytes] = set()
    for second in range(10, 2_000, 10):
        news.handle_timer(second * SECOND)
        seen |= news.bundles(second * SECOND).keys()
    assert b"t" * 32 in seen, "each has its turn"


def test_author_that_lied_silences_nobody_by_saying_the_truth_first() -> None:
    """Whoever has the relay said nothing, because somebody had; and nobody listened to that one."""
    near = News(NodeId("near"), Random(1))
    near.told(NodeId("liar"), said(1, 50, b"j"), 0, 0)
    assert near.refuse(b"j" * 32, SECOND) == ["liar"]
    near.told(NodeId("liar"), said(1, 6, b"t"), 0, 2 * SECOND)
    assert near.taken(b"t" * 32, 1_000, verified(1, 6), 3 * SECOND)
    near.handle_timer(6 * SECOND)
    assert len(near.wishes()) == 1


def test_inflated_version_of_a_true_bundle_makes_its_other_authors_no_liars() -> None:
    """An author is blamed only for what it signed."""
    news = News(NodeId("a"), Random(1))
    news.told(NodeId("honest"), said(1, 5, b"t"), 0, 0)
    news.told(NodeId("liar"), said(99, 5, b"t"), 0, 0)
    assert news.taken(b"t" * 32, 1_000, verified(1, 5), SECOND)
    news.told(NodeId("honest"), said(1, 6, b"n"), 0, 2 * SECOND)
    assert list(news.bundles(2 * SECOND)) == [b"n" * 32]
    news.told(NodeId("liar"), said(1, 7, b"m"), 0, 2 * SECOND)
    assert list(news.bundles(2 * SECOND)) == [b"n" * 32]


def test_size_that_does_not_fit_gives_way_to_what_others_said() -> None:
    """The same bundle is asked for as others describe it."""
    news = News(NodeId("a"), Random(1))
    news.told(NodeId("liar"), ReleaseNews(1, 5, bytes(32), b"t" * 32, 100), 0, 0)
    news.told(NodeId("honest"), said(1, 5, b"t"), 0, 0)
    assert news.bundles(0)[b"t" * 32].bundle_bytes == 100
    news.misfit(b"t" * 32, 100, SECOND)
    assert news.bundles(SECOND)[b"t" * 32].bundle_bytes == 1_000


def test_bundle_that_could_not_be_checked_is_tried_again_and_blames_nobody() -> None:
    """The clock of this node may be years off, and its disk full."""
    news = News(NodeId("a"), Random(1))
    news.told(NodeId("b"), said(1, 5, b"t"), 0, 0)
    news.postpone(b"t" * 32, 0)
    assert not news.may_check(b"t" * 32, SECOND)
    due_ns = news.next_timer_at()
    news.handle_timer(due_ns)
    assert news.is_changed
    assert news.may_check(b"t" * 32, due_ns)
    assert list(news.bundles(due_ns)) == [b"t" * 32]


def test_news_of_what_was_verified_changes_nothing_that_is_asked_for() -> None:
    """Each such entry had a node look through all releases again, for a third of a second with 64 of 1,024 wanted."""
    news = News(NodeId("a"), Random(1))
    assert news.taken(b"n" * 32, 1_000, verified(1, 5), 0)
    news.bundles(0)
    news.told(NodeId("b"), said(1, 5, b"n"), 0, 0)
    news.told(NodeId("c"), said(1, 4, b"o"), 0, 0)
    assert not news.is_changed
    news.told(NodeId("b"), said(1, 6, b"p"), 0, 0)
    assert news.is_changed
    assert list(news.bundles(0)) == [b"p" * 32]
    news.told(NodeId("b"), said(1, 5, b"n"), 0, 0)
    assert news.is_changed, "it takes back what it said"
    assert list(news.bundles(0)) == []


def test_refused_bundle_that_nobody_announced_is_blamed_on_nobody() -> None:
    """It came from a stick, and the log named the relay."""
    news = News(NodeId("a"), Random(1))
    news.told(RELAY, said(1, 5, b"t"), 0, 0)
    assert news.refuse(b"s" * 32, 0) == []
