"""The acts of the demonstration of releases, and what has to be true after each."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from demo.processes import RELAY, Processes
from demo.promises import Outcome, Promise, about_mesh
from demo.update.stage import BAD, CANARIES, GOOD, HONEST, PLAYERS, Player, publish
from protocols.releases.rollout.adoption import SERVED

READY_S: Final = 120.0
ACT_S: Final = 180.0
"""How long an act may take. It takes seconds; a machine that needs longer can't show it."""
QUIET_S: Final = 3.0
"""How long the nodes are watched once more after the bad release was taken back."""
PARKED: Final = next(player for player in PLAYERS if player.parked)
LIAR: Final = next(player for player in PLAYERS if player.lies)
GUEST: Final = next(player for player in PLAYERS if player.forbidden)
SEED: Final = next(player for player in PLAYERS if player.relay)


class ActFailed(Exception):
    """Something that an act waits for does not come; says what."""


class Stage:
    """Starts and ends every process, and knows what all have told; no process outlives :meth:`close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        """Every line of every player but the figures, in order."""
        self.figures: dict[str, dict[str, Any]] = {}
        self.counted: dict[str, dict[str, int]] = {}
        """Answers and failures by player."""
        self.served: dict[str, set[int]] = {player.name: set() for player in PLAYERS}
        """Every release that has served at a player, by what the player told of each change, and by its figures."""
        self.most_peers: dict[str, int] = {}
        """The most neighbours that each player had."""
        self.processes = Processes(folder, self.take)
        self._lock = threading.Lock()
        self._began_s = time.time()

    def say(self, text: str) -> None:
        """Print a line of the story."""
        print(f"{time.time() - self._began_s:6.1f} s  {text}", flush=True)

    # --- processes -------------------------------------------------------------------------------------------------
    def start(self, player: Player) -> None:
        """Start a node."""
        home = self.folder / player.name
        arguments = ["-m", "demo.update.player", str(home / "node.toml"), *["--lie"] * player.lies]
        self.processes.start(player.name, arguments, (home / "log.txt").open("a"))

    def take(self, name: str, line: dict[str, Any]) -> None:
        """Take in a line that a player has printed."""
        with self._lock:
            if line["kind"] == "figures":
                self.figures[name] = line
                self.served[name].add(line["serving"])
                self.most_peers[name] = max(self.most_peers.get(name, 0), line["peers"])
                self.counted[name] = {"answers": line["answers"], "failures": line["failures"]}
            else:
                self.events.append(line)
                if line["kind"] == "ReleaseState" and line["state"] in SERVED:
                    self.served[name].add(line["counter"])

    def stop(self, name: str) -> None:
        """Tell a process to end, and wait for it."""
        self.processes.terminate(name)
        self.processes.wait(name)

    def close(self) -> None:
        """End all processes."""
        self.processes.close()

    # --- waiting ---------------------------------------------------------------------------------------------------
    def until(self, what: str, holds: Callable[[], bool], limit_s: float = ACT_S) -> float:
        """Wait until something holds. Returns how long that took, in seconds.

        :raises ActFailed: it does not, or a node ended.
        """
        began_s = time.monotonic()
        while not holds():
            for name, status in self.processes.ended().items():
                raise ActFailed(f"{name} has ended (status {status}) before {what}")
            if time.monotonic() - began_s > limit_s:
                raise ActFailed(f"{what}: not within {limit_s:g} s")
            time.sleep(0.05)
        return time.monotonic() - began_s

    def seen(self, name: str, field: str, default: Any = 0) -> Any:
        """A figure of a player."""
        return self.figures.get(name, {}).get(field, default)

    def has(self, kind: str, **fields: Any) -> bool:
        """Whether a player has reported such an event."""
        with self._lock:
            return any(
                line["kind"] == kind and all(line.get(name) == value for name, value in fields.items())
                for line in self.events
            )

    def decided(self, name: str, counter: int, decision: str) -> bool:
        """Whether a player has come to this conclusion about the order for a release."""
        orders = self.seen(name, "orders", [])
        return any(order["counter"] == counter and order["decision"] == decision for order in orders)


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """A stage whose processes end with the block."""
    made = Stage(folder)
    try:
        yield made
    finally:
        made.close()


def play(stage: Stage) -> dict[str, float]:
    """All acts. Returns how long each took, in seconds. :raises ActFailed, MeshError: it can't go on."""
    took: dict[str, float] = {}
    present = [player for player in PLAYERS if not player.parked]
    staying = [name for name in HONEST if name != PARKED.name]
    publish(stage.folder, GOOD)
    stage.say(f"the relay publishes release {GOOD}, which {', '.join(CANARIES)} are to try first")
    stage.processes.start_relay()
    for player in present:
        stage.start(player)
    stage.until("all nodes are ready", lambda: all(stage.has("ready", node=each.name) for each in present), READY_S)
    stage.until(
        f"{SEED.name} has all of release {GOOD}",
        lambda: any(
            stage.has("ReleaseState", node=SEED.name, counter=GOOD, state=state) for state in ("fetched", "staged")
        ),
    )
    stage.processes.kill(RELAY)
    stage.say(f"{SEED.name} has the release; the relay is killed")
    took["good_everywhere_s"] = stage.until(
        f"release {GOOD} serves at {', '.join(staying)}",
        lambda: all(stage.seen(name, "serving") == GOOD for name in staying),
    )
    stage.say(f"release {GOOD} serves at {', '.join(staying)}")

    stage.processes.start_relay()
    publish(stage.folder, BAD)
    stage.say(f"the relay is back and publishes release {BAD}, which is far too slow")
    stage.until(
        f"{SEED.name} has all of release {BAD}",
        lambda: any(
            stage.has("ReleaseState", node=SEED.name, counter=BAD, state=state) for state in ("fetched", "staged")
        ),
    )
    stage.processes.kill(RELAY)
    stage.say(f"{SEED.name} has it too; the relay is killed for good")
    took["bad_halted_s"] = stage.until(
        f"everybody halts release {BAD}", lambda: all(stage.decided(name, BAD, "halted") for name in staying)
    )
    took["bad_gone_s"] = stage.until(
        f"all canaries are back on release {GOOD}",
        lambda: all(stage.seen(name, "serving") == GOOD for name in staying),
    )
    stage.say(f"its canaries found out, everybody has halted it, and {', '.join(staying)} serve release {GOOD}")

    stage.start(PARKED)
    stage.say(f"{PARKED.name} returns after all that")
    stage.until(f"{PARKED.name} is ready", lambda: stage.has("ready", node=PARKED.name), READY_S)
    took["returned_s"] = stage.until(
        f"release {GOOD} serves at {PARKED.name}", lambda: stage.seen(PARKED.name, "serving") == GOOD
    )
    stage.say(f"it serves release {GOOD}, and never tried {BAD}")
    watched_s = time.monotonic() + QUIET_S
    stage.until("the nodes were watched a little longer", lambda: time.monotonic() > watched_s)
    return took


def judged(stage: Stage, took: dict[str, float], verified: dict[str, bool]) -> list[Promise]:
    """The promises, and what was seen. ``verified``: by player whether all that it holds is genuine."""
    good = [name for name in HONEST if stage.seen(name, "serving") == GOOD]
    served_bad = sorted(name for name in stage.served if BAD in stage.served[name])
    failures = sum(stage.counted.get(name, {}).get("failures", 0) for name in HONEST)
    answers = sum(stage.counted.get(name, {}).get("answers", 0) for name in HONEST)
    found_out = sorted({
        line["node"] for line in stage.events if line["kind"] == "ChunkForged" and line["source"] == LIAR.name
    })  # fmt: skip
    blamed = sorted({line["source"] for line in stage.events if line["kind"] == "ChunkForged"} - {LIAR.name})
    guest = stage.figures.get(GUEST.name, {})
    return [
        about_mesh(
            "the good release serves at every node that may have it",
            good == [*HONEST],
            f"{', '.join(good)}; {took.get('good_everywhere_s', 0):.1f} s after the relay was gone",
        ),
        about_mesh(
            "nobody but canaries ever served the bad release",
            set(served_bad) <= set(CANARIES),
            f"{', '.join(served_bad) or 'nobody'} served it",
        ),
        about_mesh(
            "the bad release was halted and taken back with the relay gone",
            "bad_gone_s" in took,
            f"halted {took.get('bad_halted_s', 0):.1f} s after the relay was gone",
        ),
        about_mesh(
            "no inference failed in all that time",
            failures == 0 and answers > 0,
            f"{answers} answers, {failures} failed",
        ),
        about_mesh(
            "who lies about chunks is found out, and nobody else is blamed",
            bool(found_out) and not blamed,
            f"{', '.join(found_out) or 'nobody'} found {LIAR.name} out" + (f"; blamed too: {blamed}" if blamed else ""),
        ),
        about_mesh(
            "everything that nodes hold is genuine",
            verified == {player.name: True for player in PLAYERS},
            ", ".join(f"{name}: {'yes' if fine else 'NO'}" for name, fine in verified.items()) or "nobody was asked",
        ),
        about_mesh(
            "a parked vehicle that returns serves the good release and never tries the bad one",
            stage.seen(PARKED.name, "serving") == GOOD and BAD not in stage.served[PARKED.name],
            f"after {took.get('returned_s', 0):.1f} s",
        ),
        about_mesh(
            "who may have no releases gets neither metadata nor chunks",
            bool(guest) and guest["metadata"] == 0 and guest["store_bytes"] == 0 and stage.most_peers[GUEST.name] > 0,
            f"{GUEST.name}, with {stage.most_peers.get(GUEST.name, 0)} neighbours: {guest.get('store_bytes', 0)} bytes",
        ),
    ]


def outcome_of(promises: list[Promise]) -> Outcome:
    """What became of all of them."""
    return Outcome.KEPT if all(promise.outcome is Outcome.KEPT for promise in promises) else Outcome.BROKEN
