"""What lying nodes say, and to whom: false adverts and knocks by the liar of their host, and gossip over their own
links.

The lies are those of the simulator (:mod:`sims.virtual.discovery`, :mod:`sims.world.authors`), each once a second:

- adverts of nodes that don't exist and of other nodes, at the liar's own address, and strangers with a certificate that
  knock at the others' inboxes (:mod:`sims.emulator.liar`);
- entries of others that were changed after their authors signed them, a version higher than the newest;
- genuine entries that newer ones have superseded.

Entries go over the lying node's own authenticated links (``send`` of ``meshnode.trial.control``). The node is told to
write the entries that it holds into its journal (``entries``).
"""

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from protocols.base import limits
from protocols.wire.codec import encode_frame
from protocols.wire.entries import decode_untrusted_entry, encode_entry
from protocols.wire.gossip import Carried, Entry, GossipEntries
from sims.emulator.namespaces import address_of
from sims.emulator.nodes import ELSEWHERE, GHOST, INBOX_PORT, MESH, RealNode, end_process, ghost_of, last_words, launch
from sims.errors import EmulatorError

LIAR_LOG: Final = "liar.log"
"""The log that says how the knocks from the host of a node ended."""
EVERY_NS: Final = limits.SECOND
_GHOSTS: Final = 1_000

After = Callable[[int, Callable[[], None]], None]


class _Repeated:
    """Something that is done once a second while it is on."""

    def __init__(self, what: Callable[[], None], after: After) -> None:
        self._what, self._after = what, after
        self._on = self._due = False

    def set(self, on: bool) -> None:
        """Begin at once, or end."""
        self._on = on
        if on and not self._due:
            self._turn()

    def _turn(self) -> None:
        self._due = self._on
        if self._on:
            self._what()
            self._after(EVERY_NS, self._turn)


class Adverts:
    """The liar of one node's host, which is a process."""

    def __init__(self, node: RealNode, names: list[str], random: Random, after: After) -> None:
        self._node, self._names, self._random = node, names, random
        command = [sys.executable, "-m", "sims.emulator.liar"]
        self._process: subprocess.Popen[bytes] = launch(command, node.network, errors=node.folder / LIAR_LOG)
        self.lie = _Repeated(self._lie, after).set
        """Tell lies from now on, or no more."""

    def _lie(self) -> None:
        node, random = self._node, self._random
        other = random.choice(self._names)
        self._advertise(f"ghost-{random.randrange(_GHOSTS)}", 1)
        if other != node.name:
            self._advertise(other, random.randrange(1, 1 << 31))

    def _advertise(self, name: str, incarnation: int) -> None:
        self._order("advert", address_of(self._node.number), MESH, name, incarnation, INBOX_PORT)

    def knock(self, target: int, mesh: str, frames: Sequence[bytes]) -> None:
        """A stranger of ``mesh`` opens a link to a node, by its number, and sends frames."""
        folder = self._node.folder / (GHOST if mesh == MESH else ELSEWHERE)
        files = [str(folder / f"{ghost_of(self._node.name)}.{ending}") for ending in ("crt", "key")]
        raw = [base64.b64encode(frame).decode() for frame in frames]
        self._order("knock", address_of(target), INBOX_PORT, *files, raw)

    def _order(self, *order: Any) -> None:
        assert self._process.stdin is not None, "launch() gives it a pipe"
        with suppress(OSError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def check(self) -> None:
        """:raises EmulatorError: when the liar has ended."""
        if self._process.poll() is not None:
            words = last_words(self._node.folder / LIAR_LOG) or "no word"
            raise EmulatorError(f"the liar on the host of {self._node.name} ended: {words}")

    def end(self) -> None:
        """End the liar at once."""
        end_process(self._process, 0.0)


class Gossip:
    """The entries that one node holds, and the lies that it tells of others."""

    def __init__(self, node: RealNode, random: Random, after: After) -> None:
        self._node, self._random = node, random
        self._read_bytes = 0
        self._oldest: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._newest: dict[tuple[str, str], Entry] = {}
        self.gather = _Repeated(self._gather, after).set
        """Learn from now on which entries the node holds."""
        self.forge = _Repeated(self._forge, after).set
        """Send entries that others never made, or no more."""
        self.repeat_old = _Repeated(self._repeat, after).set
        """Send entries that newer ones have superseded, or no more."""
        node.set("entries")

    def _gather(self) -> None:
        for data in self._fresh(self._node.journal):
            entry = decode_untrusted_entry(data)
            key = (str(entry.author), entry.kind)
            if key not in self._oldest or entry.version < self._oldest[key][0]:
                self._oldest[key] = entry.version, data
            if key not in self._newest or entry.version > self._newest[key].version:
                self._newest[key] = entry

    def _forge(self) -> None:
        victims = [entry for (author, _), entry in self._newest.items() if author != self._node.name]
        if victims:
            genuine = self._random.choice(victims)
            self._send(encode_entry(replace(genuine, version=genuine.version + 1, body=b"forged")))

    def _repeat(self) -> None:
        oldest = self._oldest.items()
        superseded = [data for key, (version, data) in oldest if version < self._newest[key].version]
        if superseded:
            self._send(self._random.choice(superseded))

    def _send(self, entry: bytes) -> None:
        self._node.tell("send", encode_frame(GossipEntries((Carried(0, entry),))))

    def _fresh(self, journal: Path) -> Iterator[bytes]:
        """The entries in whole lines that were written since the last look."""
        if not journal.exists():
            return
        with journal.open("rb") as lines:
            lines.seek(self._read_bytes)
            written = lines.read()
        whole = written[: written.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            if line.startswith(b'["entries"'):
                with suppress(msgspec.DecodeError):  # it is the last line of a life that was killed
                    yield from (base64.b64decode(data) for data in msgspec.json.decode(line)[2])
