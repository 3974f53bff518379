"""What happens to the computers of a wandering: a plan that follows from a seed alone.

A *disturbance* is one thing that happens, and consists of steps: an interface goes down, and comes up again later. The
steps of one computer's first interface never overlap. A plan is complete: when all of its steps are done, in order,
every computer has its first interface up with the address that :func:`addresses_after` tells, and every name leads
there.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

RELAY: Final = "relay"
"""The computer of the relay. Its address stays, its interface goes down now and then."""
FIRST, SECOND = "eth0", "eth1"
KINDS: Final = ("address", "down", "remade", "second", "names", "clock", "relay")
_WEIGHTS: Final = (5, 4, 3, 2, 3, 2, 0.5)
_EVERY_S: Final = 6.0
"""The mean time between two disturbances of one computer."""
_NOWHERE: Final = "10.50.255.254"
"""An address of the network that nobody has."""
_HOUR_S, _DAY_S = 3_600.0, 86_400.0
_CLOCKS_S: Final = (0.0, 0.5, -0.5, 5.0, -5.0, _HOUR_S, -_HOUR_S, _DAY_S, -_DAY_S, -20_000 * _DAY_S)
_AFTER_S: Final = 0.002
"""The least time between two things that are to happen in order."""

Do = Literal["add", "remove", "up", "down", "plug", "unplug", "resolve", "clock"]


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one computer."""

    at_s: float
    do: Do
    who: str
    interface: str = ""
    value: str = ""
    """An address; for ``resolve`` ``name=address``, for ``clock`` how wrong it is from now on, in seconds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will happen."""

    steps: tuple[Step, ...]
    counts: Mapping[str, int]
    """The number of disturbances of each kind."""


def first_address(number: int) -> str:
    """The address that a computer has at the beginning, by its number from 0."""
    return f"10.50.0.{number + 1}"


def plan(names: Sequence[str], seconds: float, seed: int) -> Plan:
    """A plan for the computers ``names`` and the relay's, whose disturbances begin within ``seconds``."""
    return _Planner(names, Random(f"{seed}/wandering")).plan(seconds)


def addresses_after(names: Sequence[str], steps: Sequence[Step]) -> dict[str, str]:
    """The address of each computer's first interface after these steps."""
    found = {name: first_address(number) for number, name in enumerate(names)}
    for step in steps:
        if step.do in ("add", "plug") and step.interface == FIRST and step.who in found:
            found[step.who] = step.value
    return found


class _Planner:
    def __init__(self, names: Sequence[str], random: Random) -> None:
        self._names, self._random = list(names), random
        self._steps: list[Step] = []
        self._address = {name: first_address(number) for number, name in enumerate(names)}
        self._free_s: Counter[tuple[str, str]] = Counter()
        self._given = 0
        self._told_s: dict[tuple[str, str], float] = {}
        """When each reader is told where another computer is now: an older address never comes after a newer one."""

    def plan(self, seconds: float) -> Plan:
        counts: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        at_s = 0.0
        while (at_s := at_s + self._random.expovariate(len(self._names) / _EVERY_S)) < seconds:
            (kind,) = self._random.choices(KINDS, _WEIGHTS)
            who = RELAY if kind == "relay" else self._random.choice(self._names)
            slot = (who, "first" if kind in ("address", "down", "remade", "relay") else kind)
            if self._free_s[slot] > at_s:  # what happened to it before is not over yet
                continue
            ends_s = self._disturb(kind, who, at_s)
            self._free_s[slot] = ends_s + 0.2  # type: ignore[assignment]  # a Counter of floats
            counts[kind] += 1
        return Plan(tuple(sorted(self._steps, key=lambda step: step.at_s)), counts)

    def _disturb(self, kind: str, who: str, at_s: float) -> float:
        """Enter the steps of one disturbance. Returns when it is over."""
        random = self._random
        match kind:
            case "address":
                return self._new_address(who, at_s)
            case "down" | "relay":
                ends_s = at_s + random.choice((random.uniform(0.01, 0.3), random.uniform(0.3, 4.0)))
                self._enter(at_s, "down", who, FIRST)
                self._enter(ends_s, "up", who, FIRST)
            case "remade":
                ends_s = at_s + random.choice((0.01, random.uniform(0.05, 3.0)))
                self._enter(at_s, "unplug", who, FIRST)
                same = random.random() < 0.5
                self._enter(ends_s, "plug", who, FIRST, self._address[who] if same else self._fresh(who, ends_s))
            case "second":
                ends_s = at_s + random.uniform(1.0, 8.0)
                self._given += 1
                self._enter(at_s, "plug", who, SECOND, f"10.60.{self._given // 250}.{self._given % 250 + 1}")
                self._enter(ends_s, "unplug", who, SECOND)
            case "names":
                ends_s = at_s + random.uniform(0.5, 4.0)
                for name in random.sample(self._names, min(3, len(self._names))):
                    self._enter(at_s, "resolve", who, value=f"{name}={_NOWHERE}")
                    self._enter(ends_s, "resolve", who, value=f"{name}=")
            case _:
                ends_s = at_s
                self._enter(at_s, "clock", who, value=str(random.choice(_CLOCKS_S)))
        return ends_s

    def _new_address(self, who: str, at_s: float) -> float:
        old, gap_s = self._address[who], self._random.choice((0.0, 0.02, self._random.uniform(0.1, 2.5)))
        if self._random.random() < 0.3:  # both for a while
            self._enter(at_s, "add", who, FIRST, self._fresh(who, at_s))
            self._enter(at_s + gap_s, "remove", who, FIRST, old)
        else:
            self._enter(at_s, "remove", who, FIRST, old)
            self._enter(at_s + gap_s, "add", who, FIRST, self._fresh(who, at_s + gap_s))
        return at_s + gap_s

    def _fresh(self, who: str, at_s: float) -> str:
        """Another address, which names lead to a little later, at each computer at another time. A third of the time
        somebody had it before."""
        used = set(self._address.values())
        while True:
            low = self._random.random() < 0.33
            found = f"10.50.{1 if low else self._random.randint(2, 200)}.{self._random.randint(1, 9 if low else 250)}"
            if found not in used:
                break
        self._address[who] = found
        for reader in self._names:
            later_s = max(at_s + self._random.uniform(0.0, 1.5), self._told_s.get((reader, who), 0.0) + _AFTER_S)
            self._told_s[reader, who] = later_s
            self._enter(later_s, "resolve", reader, value=f"{who}={found}")
        return found

    def _enter(self, at_s: float, do: Do, who: str, interface: str = "", value: str = "") -> None:
        self._steps.append(Step(round(at_s, 3), do, who, interface, value))
