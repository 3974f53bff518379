"""Compares two results and says what got worse, for CI, where no person looks at a chart.

Checks are judged: any failure that was not there before, and a check that is no longer judged. Figures whose direction
is known are judged too: times and loss, by a share that is tolerated and a least difference below which nobody would
notice. Single ``figures`` of a harness have no known direction, so they are not judged.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from sims.errors import ResultError
from sims.results.result import CheckTally, Distribution, Result

DEFAULT_TOLERANCE = 0.1
"""Quantiles are right within 3 % each, and other seeds of one scenario differ by some percent more."""
GROUPS = ("latency", "urgent", "age", "discovery", "inference", "dissemination", "delivery", "load", "drops")
_LEAST = {"ms": 0.1, "s": 0.05, "share": 0.005, "per reading": 0.001}
"""By unit: a difference that nobody would notice."""
_MAX_TOLERANCE = 100.0

Tolerances = Mapping[str, float]


class Trend(StrEnum):
    """How one thing changed."""

    WORSE = "worse"
    BETTER = "better"
    SAME = "same"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was compared. ``before`` and ``after`` are words with units."""

    what: str
    before: str
    after: str
    verdict: Trend

    def line(self) -> str:
        """The change as a line for people."""
        word = self.verdict.value.upper() if self.verdict is Trend.WORSE else self.verdict.value
        return f"{word:<6} {self.what}: {self.before} → {self.after}"

    def as_dict(self) -> dict[str, str]:
        """The change for programs."""
        return {name: str(value) for name, value in asdict(self).items()}


def parse_tolerances(texts: Iterable[str]) -> dict[str, float]:
    """Parse ``0.2`` for everything, or ``latency=0.2`` for a group; later texts win. :raises ResultError: names the
    text."""
    found = dict.fromkeys(GROUPS, DEFAULT_TOLERANCE)
    for text in texts:
        group, sign, share = text.rpartition("=")
        if sign and group not in GROUPS:
            raise ResultError(f"nothing is called {group!r} in --tolerance {text}: known are {', '.join(GROUPS)}")
        try:
            value = float(share)
        except ValueError as error:
            raise ResultError(f"--tolerance {text}: {share!r} is not a number like 0.1") from error
        if not 0 <= value <= _MAX_TOLERANCE:
            raise ResultError(f"--tolerance {text}: a share is from 0 to {_MAX_TOLERANCE:g}, 0.1 means 10 %")
        for name in [group] if sign else GROUPS:
            found[name] = value
    return found


def compare(before: Result, after: Result, tolerances: Tolerances, across_scenarios: bool = False) -> list[Change]:
    """All changes, the worst first.

    :raises ResultError: when one of the results proves nothing, or they are of different scenarios and that was not
    asked for.
    """
    for name, result in (("the first", before), ("the second", after)):
        if not result.valid:
            raise ResultError(f"{name} result is of a run that is not valid: {result.why_invalid or 'no reason given'}")
    if before.scenario != after.scenario and not across_scenarios:
        raise ResultError(
            f"these are of different scenarios, {before.scenario!r} and {after.scenario!r}: "
            "--across-scenarios compares them all the same"
        )
    changes = [*_notes(before, after), *_checks(before, after), *_figures(before, after, tolerances)]
    order = (Trend.WORSE, Trend.NOTE, Trend.BETTER, Trend.SAME)
    return sorted(changes, key=lambda change: order.index(change.verdict))


def _notes(before: Result, after: Result) -> Iterator[Change]:
    for what, one, other in (
        ("harness", before.harness, after.harness),
        ("scenario", before.scenario, after.scenario),
        ("nodes", str(before.nodes), str(after.nodes)),
        ("seed", str(before.seed), str(after.seed)),
        ("duration", f"{before.virtual_s:g} s", f"{after.virtual_s:g} s"),
    ):
        if one != other:
            yield Change(f"not alike: {what}", one, other, Trend.NOTE)
    for what, number in before.sometimes.items():
        if number and not after.sometimes.get(what):
            yield Change(f"did not occur again: {what}", f"{number} times", "never", Trend.NOTE)


# --- checks ----------------------------------------------------------------------------------------------------------
def _checks(before: Result, after: Result) -> Iterator[Change]:
    for name in sorted(before.checks.keys() | after.checks.keys()):
        one, other = before.checks.get(name, CheckTally()), after.checks.get(name, CheckTally())
        yield Change(f"check {name}", _judged(one), _judged(other), _check_verdict(one, other))


def _check_verdict(before: CheckTally, after: CheckTally) -> Trend:
    """A check that failed before may fail as often again. That is no news, but it is no pass either."""
    judged_before, judged_after = before.passed + before.failed, after.passed + after.failed
    share_before = before.failed / judged_before if judged_before else 0.0
    share_after = after.failed / judged_after if judged_after else 0.0
    if share_after > share_before or (judged_before and not judged_after):
        return Trend.WORSE
    if share_after < share_before:
        return Trend.BETTER
    return Trend.NOTE if after.failed else Trend.SAME


def _judged(check: CheckTally) -> str:
    judged = check.passed + check.failed
    if not judged:
        return "never judged"
    return f"{check.failed} of {judged} failed" if check.failed else f"kept {judged} times"


# --- figures ---------------------------------------------------------------------------------------------------------
def _figures(before: Result, after: Result, tolerances: Tolerances) -> Iterator[Change]:
    for group, one, other, names in (
        ("latency", before.latency, after.latency, ("p50", "p95", "p99")),
        ("urgent", before.urgent, after.urgent, ("p50", "p99")),
        ("age", before.age, after.age, ("p50", "p95")),
        ("discovery", before.discovery, after.discovery, ("p50", "p95")),
        ("inference", before.inference, after.inference, ("p50", "p95")),
    ):
        yield from _spreads(group, one, other, names, tolerances[group])
    yield from _disseminations(before, after, tolerances["dissemination"])
    for what, group, parts in (
        ("readings that did not come", "delivery", _lost),
        ("urgent readings that did not come in time", "urgent", _missed),
        ("neighbours in range not known", "delivery", _unknown),
        ("inferences that failed", "inference", _failures),
    ):
        yield from _shares(what, parts(before), parts(after), tolerances[group])
    what = "readings offered that were not useful"
    yield from _amounts(what, _useless(before), _useless(after), "share", tolerances["delivery"])
    yield from _amounts("mean channel load", _load(before), _load(after), "share", tolerances["load"])
    yield from _amounts("readings dropped", _drops(before), _drops(after), "per reading", tolerances["drops"])


def _spreads(
    group: str, before: Distribution, after: Distribution, names: Iterable[str], tolerance: float
) -> Iterator[Change]:
    if before.count and not after.count:
        yield Change(group, f"{before.count} values", "none", Trend.WORSE)
    for name in names:
        yield from _amounts(
            f"{group} {name}", before.quantiles.get(name), after.quantiles.get(name), before.unit, tolerance
        )


@dataclass(frozen=True, slots=True)
class _Cases:
    bad: int
    number: int

    @property
    def share(self) -> float:
        return self.bad / self.number


def _shares(what: str, before: _Cases | None, after: _Cases | None, tolerance: float) -> Iterator[Change]:
    """A share of few cases says little: a difference within two standard errors is chance."""
    if before is None or after is None:
        return
    both = (before.bad + after.bad) / (before.number + after.number)
    error = math.sqrt(both * (1 - both) * (1 / before.number + 1 / after.number))
    yield from _amounts(what, before.share, after.share, "share", tolerance, 2 * error)


def _amounts(
    what: str, before: float | None, after: float | None, unit: str, tolerance: float, least: float = 0.0
) -> Iterator[Change]:
    """More is worse. A figure that only one of the two has is not compared."""
    if before is None or after is None:
        return
    difference, least = after - before, max(least, _LEAST[unit])
    if difference > max(tolerance * before, least):
        verdict = Trend.WORSE
    elif -difference > max(tolerance * before, least):
        verdict = Trend.BETTER
    else:
        verdict = Trend.SAME
    yield Change(what, _shown(before, unit), f"{_shown(after, unit)}{_percent(before, after)}", verdict)


def _shown(value: float, unit: str) -> str:
    return f"{value * 100:.3g} %" if unit == "share" else f"{value:.4g} {unit}"


def _percent(before: float, after: float) -> str:
    return f" ({(after / before - 1) * 100:+.0f} %)" if before else ""


def _disseminations(before: Result, after: Result, tolerance: float) -> Iterator[Change]:
    """Compare entry by entry, because each may start somewhere else. The entries of a scenario have the same author in
    both."""
    entries = {(entry.author, entry.version): entry for entry in after.dissemination}
    authors = [entry.author for entry in before.dissemination]
    for entry in before.dissemination:
        other = entries.get((entry.author, entry.version))
        name = f"entry {entry.author}" + (f" v{entry.version}" if authors.count(entry.author) > 1 else "")
        if other is None:
            yield Change(name, f"{entry.holders} nodes had it", "not there", Trend.NOTE)
            continue
        for what, one_s, other_s in (
            ("t50", entry.t50_s, other.t50_s),
            ("t90", entry.t90_s, other.t90_s),
            ("t100", entry.t100_s, other.t100_s),
        ):
            if one_s is not None and other_s is None:
                yield Change(f"{name} {what}", f"{one_s:.3g} s", "never", Trend.WORSE)
            elif one_s is None and other_s is not None:
                yield Change(f"{name} {what}", "never", f"{other_s:.3g} s", Trend.BETTER)
            else:
                yield from _amounts(f"{name} {what}", one_s, other_s, "s", tolerance)


def _cases(good: int, number: int) -> _Cases | None:
    return _Cases(number - good, number) if number else None


def _lost(result: Result) -> _Cases | None:
    return _cases(sum(result.distances.delivered), sum(result.distances.wanted))


def _missed(result: Result) -> _Cases | None:
    return _cases(result.urgent_wanted - result.urgent_missed, result.urgent_wanted)


def _useless(result: Result) -> float | None:
    """The share; more may be useful than is offered."""
    if not result.offered_per_s or result.useful_per_s is None:
        return None
    return max(0.0, 1 - result.useful_per_s / result.offered_per_s)


def _unknown(result: Result) -> _Cases | None:
    return _cases(sum(result.distances.known), sum(result.distances.in_range))


def _failures(result: Result) -> _Cases | None:
    answered = sum(count for by, count in result.inference_by.items() if not by.startswith("failed"))
    return _cases(answered, sum(result.inference_by.values()))


def _load(result: Result) -> float | None:
    measured = [share for share in result.load if share >= 0]
    return sum(measured) / len(measured) if measured else None


def _drops(result: Result) -> float | None:
    delivered = result.counters.get("delivered", result.latency.count)
    return sum(result.drops.values()) / delivered if delivered else None
