"""Checks of releases: nobody keeps what was forged, or what it may not have, nobody stages what is not whole, and only
canaries ever serve what is bad."""

import hashlib

from sims.checks.contract import Check, WorldView, register
from sims.results.result import Recorder


@register
class KeptChunksAreGenuine(Check):
    """Every chunk that a node keeps has its digest. What it keeps beside what the publisher made are bundles of
    metadata that somebody announced, which it refuses before it believes anything in them."""

    name = "kept_chunks_are_genuine"

    def chunk_kept(self, node: str, digest: bytes, data: bytes, is_genuine: bool) -> None:
        """See :class:`Check`."""
        kept = hashlib.sha256(data).digest() == digest
        self.judge(kept, "" if kept else f"{node} keeps a chunk that is not {digest.hex()[:12]}")

    def release_staged(self, node: str, path: str, counter: int, is_whole: bool) -> None:
        """See :class:`Check`."""
        self.judge(is_whole, "" if is_whole else f"{node} stages release {counter} of {path} without all of its chunks")


@register
class ForbiddenNodesGetNothing(Check):
    """A node whose role may have no release keeps no chunk of one."""

    name = "forbidden_nodes_get_nothing"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._forbidden = set(world.scenario.names).difference(world.scenario.may_have_release)

    def chunk_kept(self, node: str, digest: bytes, data: bytes, is_genuine: bool) -> None:
        """See :class:`Check`."""
        if node in self._forbidden:
            self.judge(not is_genuine, f"{node} may have no release, and keeps the chunk {digest.hex()[:12]}")

    def finished(self, now: int, faults_end_ns: int) -> None:
        """See :class:`Check`."""
        if self._forbidden:
            self.judge(True)


@register
class BadReleaseStaysWithCanaries(Check):
    """No node but a canary ever serves a release whose runs fail, where there are canaries, and fewer of them lie than
    promote or halt a release."""

    name = "bad_release_stays_with_canaries"

    def release_served(self, node: str, path: str, counter: int, is_canary: bool, liars_decide: bool) -> None:
        """See :class:`Check`."""
        release = self.world.scenario.releases
        if release is not None and release.is_bad and release.canaries and not liars_decide:
            self.judge(is_canary, "" if is_canary else f"{node} serves the bad release {counter} of {path}")
