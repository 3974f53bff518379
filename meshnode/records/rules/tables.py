"""Files of rules: their tables.

A file has a list of tables ``[[rule]]``. Each rule takes readings, and derives others out of them, which this node
publishes and which become records for the relay.
"""

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from msgspec import Meta

from meshnode.config.kinds import Expression
from meshnode.config.parsing import Problem, Section, shown
from protocols.base import limits
from protocols.records.patterns.base import MAX_HELD
from protocols.records.patterns.repetition import MAX_TIMES
from protocols.records.predicting import MAX_AT_ONCE, MAX_DEADLINE_NS, MAX_WAITING
from protocols.records.recordings import MAX_AROUND_NS, MAX_KEYS, MAX_RECORDED
from protocols.records.windows.kinds import MAX_COUNT, MAX_SPAN_NS
from protocols.records.windows.rule import MAX_PARTITIONS

_MAX_SPAN_S: Final = MAX_SPAN_NS / limits.SECOND
_MAX_AROUND_S: Final = MAX_AROUND_NS / limits.SECOND
MAX_NAME: Final = 150
"""Characters of the name of a rule. Readings carry it in texts with a few words more, which have a bound too."""
_Text = Annotated[str, Meta(min_length=1, max_length=limits.MAX_TEXT_CHARS)]
_Cel = Annotated[str, Meta(min_length=1, max_length=1_000)]
_Seconds = Annotated[float, Meta(ge=0.01, le=_MAX_SPAN_S)]
_Metres = Annotated[float, Meta(gt=0, le=1e6)]
_Count = Annotated[int, Meta(ge=1, le=MAX_COUNT)]

_Source = Annotated[
    Literal["own", "any"], Meta(description="`own`: readings of this node; `any`: those of neighbours too.")
]
_Unit = Annotated[
    _Text | None, Meta(description="Readings in another unit are left out and counted.", extra={"default": "any"})
]
_Where = Annotated[
    _Cel | None, Meta(description="CEL: only readings for which it is true are taken.", extra={"default": "all"})
]
_Value = Annotated[_Cel | None, Meta(description="CEL: what is taken of a reading.", extra={"default": "its value"})]
_Late = Annotated[
    float, Meta(ge=0, le=_MAX_SPAN_S, description="How much longer is waited for readings that come late.")
]
_Certain = Annotated[bool, Meta(description="Whether all of it must hold for whatever the true times and places are.")]


class WindowTable(Section, frozen=True, kw_only=True):
    """Which readings are summarised together: by time (`size_s`), by pauses (`gap_s`) or by their number (`count`)."""

    size_s: Annotated[_Seconds | None, Meta(description="How long a window is.")] = None
    every_s: Annotated[
        _Seconds | None,
        Meta(description="How often one begins.", extra={"default": "`size_s`: windows follow one another"}),
    ] = None
    gap_s: Annotated[_Seconds | None, Meta(description="A window ends when nothing was sensed for so long.")] = None
    max_s: Annotated[
        _Seconds | None, Meta(description="The longest that such a window may be.", extra={"default": "60 × `gap_s`"})
    ] = None
    count: Annotated[_Count | None, Meta(description="How many readings make a window.")] = None
    every: Annotated[
        _Count | None,
        Meta(description="After how many readings one ends.", extra={"default": "`count`: windows follow one another"}),
    ] = None
    late_s: Annotated[
        float,
        Meta(
            ge=0, le=_MAX_SPAN_S,
            description="How much longer a window of time stays open for readings that come late.",
        ),
    ] = 1.0  # fmt: skip

    def conflicts(self) -> Iterator[Problem]:
        """More than one kind of window, or none."""
        kinds = [name for name in ("size_s", "gap_s", "count") if getattr(self, name) is not None]
        if len(kinds) != 1:
            yield Problem(
                "", None, f"{'no' if not kinds else ' and '.join(kinds)} window: give one of size_s, gap_s, count"
            )
            return
        for name, needs in (("every_s", "size_s"), ("max_s", "gap_s"), ("every", "count")):
            if getattr(self, name) is not None and kinds[0] != needs:
                yield Problem(name, shown(getattr(self, name)), f"goes with {needs} only: remove it")


class OtherTable(Section, frozen=True, kw_only=True):
    """The readings that follow, that should have followed, or that are joined, and how near they have to be."""

    keys: Annotated[Expression, Meta(description="Key expression of these readings.")]
    source: _Source = "own"
    unit: _Unit = None
    where: _Where = None
    value: _Value = None
    within_s: Annotated[_Seconds, Meta(description="The longest time between the two.")]
    within_m: Annotated[
        _Metres | None, Meta(description="The longest distance between the two.", extra={"default": "any"})
    ] = None
    late_s: _Late = 1.0
    certain: _Certain = False


class RepeatedTable(Section, frozen=True, kw_only=True):
    """How often readings have to come, and how near they have to be to one another."""

    times: Annotated[int, Meta(ge=2, le=MAX_TIMES, description="How many readings.")]
    within_s: Annotated[_Seconds, Meta(description="The longest time between any two of them.")]
    within_m: Annotated[
        _Metres | None, Meta(description="The longest distance between any two of them.", extra={"default": "any"})
    ] = None
    distinct_origins: Annotated[bool, Meta(description="Whether each must come from another node.")] = False
    late_s: _Late = 1.0
    certain: _Certain = False


class OutputTable(Section, frozen=True, kw_only=True):
    """The readings that a rule derives."""

    key: Annotated[
        _Text,
        Meta(description="Their key. `{node}` stands for this node, `{partition}` for the partition."),
    ]
    unit: Annotated[
        str, Meta(max_length=limits.MAX_TEXT_CHARS, description="Their unit, a UCUM symbol; `1` for a bare number.")
    ] = ""
    priority: Annotated[int, Meta(ge=0, le=7, description="7 is the most urgent.")] = 3
    lifespan_s: Annotated[
        int, Meta(ge=0, le=limits.MAX_LIFESPAN_MS // 1_000, description="They are worthless so long after; 0: never.")
    ] = 0
    record: Annotated[bool, Meta(description="Whether they become records for the relay.")] = True
    record_lifespan_s: Annotated[
        int,
        Meta(
            ge=1, le=limits.MAX_RECORD_LIFESPAN_S,
            description="A record not delivered by then is dropped and counted as expired.",
        ),
    ] = 86_400  # fmt: skip


class InferTable(Section, frozen=True, kw_only=True):
    """What a model computes of each reading."""

    model: Annotated[_Text, Meta(description="Its name, here or at a neighbour.")]
    input: Annotated[
        _Text | None,
        Meta(
            description="The name of the input that is given what is taken of a reading, as a number, a list, or an "
            "encoded picture.",
            extra={"default": "what is taken is a map by names"},
        ),
    ] = None
    outputs: Annotated[
        tuple[_Text, ...], Meta(max_length=limits.MAX_TENSORS, description="The outputs that are wanted; none: all.")
    ] = ()
    deadline_ms: Annotated[
        int,
        Meta(
            ge=1, le=MAX_DEADLINE_NS // limits.MS,
            description="How long after a reading has come its prediction is of use.",
        ),
    ] = 1_000  # fmt: skip
    max_waiting: Annotated[
        int, Meta(ge=1, le=MAX_WAITING, description="How many readings may wait for their turn; the oldest give way.")
    ] = 4
    at_once: Annotated[int, Meta(ge=1, le=MAX_AT_ONCE, description="How many are computed at one time.")] = 1


class RecordingTable(Section, frozen=True, kw_only=True):
    """Readings that become records because the rule has derived something: those around that moment."""

    keys: Annotated[
        tuple[Expression, ...],
        Meta(min_length=1, max_length=MAX_KEYS, description="Key expressions of these readings."),
    ]
    source: _Source = "own"
    before_s: Annotated[
        float,
        Meta(
            ge=0, le=_MAX_AROUND_S,
            description="How far it reaches back. It needs `[history]` with these keys.",
        ),
    ] = 0.0  # fmt: skip
    after_s: Annotated[
        float,
        Meta(ge=0, le=_MAX_AROUND_S, description="How long it goes on when the rule derives nothing more."),
    ] = 0.0  # fmt: skip
    max_records: Annotated[int, Meta(ge=1, le=MAX_RECORDED, description="The most records of one recording.")] = 1_000
    record_lifespan_s: Annotated[
        int,
        Meta(
            ge=1, le=limits.MAX_RECORD_LIFESPAN_S,
            description="A record not delivered by then is dropped and counted as expired.",
        ),
    ] = 86_400  # fmt: skip

    def conflicts(self) -> Iterator[Problem]:
        """A recording of nothing."""
        if not self.before_s and not self.after_s:
            yield Problem("after_s", None, "is missing, and before_s too: say how far it reaches")


class RuleTable(Section, frozen=True, kw_only=True):
    """A rule."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME, description="Its name, which its records carry.")]
    keys: Annotated[Expression, Meta(description="Key expression of the readings that it takes.")]
    source: _Source = "own"
    unit: _Unit = None
    where: _Where = None
    value: _Value = None
    by: Annotated[
        _Cel,
        Meta(
            description="What divides the readings into partitions, each with windows of its own: `key`, `origin`, "
            "`none`, or CEL."
        ),
    ] = "none"
    max_partitions: Annotated[
        int,
        Meta(ge=1, le=MAX_PARTITIONS, description="How many there may be at one time; the largest source gives way."),
    ] = 1_000
    window: Annotated[
        WindowTable | None,
        Meta(
            description="Which readings are summarised together.", extra={"default": "a reading is derived from each"}
        ),
    ] = None
    followed_by: Annotated[
        OtherTable | None,
        Meta(description="A reading is derived when one of these follows.", extra={"default": "not a pattern"}),
    ] = None
    not_followed_by: Annotated[
        OtherTable | None,
        Meta(description="A reading is derived when none of these has followed.", extra={"default": "not a pattern"}),
    ] = None
    joined_with: Annotated[
        OtherTable | None,
        Meta(
            description="A reading is derived from each and the nearest of these in time.",
            extra={"default": "not a pattern"},
        ),
    ] = None
    repeated: Annotated[
        RepeatedTable | None,
        Meta(description="A reading is derived when so many have come.", extra={"default": "not a pattern"}),
    ] = None
    infer: Annotated[
        InferTable | None,
        Meta(
            description="A reading is derived from what a model computes of each.", extra={"default": "no prediction"}
        ),
    ] = None
    max_held: Annotated[
        int, Meta(ge=1, le=MAX_HELD, description="How many readings of a partition a pattern holds at one time.")
    ] = 32
    compute: Annotated[
        tuple[_Text, ...],
        Meta(
            max_length=16,
            description="What is computed of a window: `count`, `min`, `max`, `sum`, `mean`, `first`, `last`, "
            "`distinct`, or a percentile such as `p95`.",
        ),
    ] = ()
    output: Annotated[OutputTable, Meta(description="What it publishes.")]
    recording: Annotated[
        RecordingTable | None,
        Meta(
            description="Readings around it that become records when it has derived something.",
            extra={"default": "nothing is recorded"},
        ),
    ] = None

    def conflicts(self) -> Iterator[Problem]:
        """More than one kind of rule, a window without functions, or functions without a window."""
        kinds = [name for name in KINDS if getattr(self, name) is not None]
        if len(kinds) > 1:
            yield Problem(kinds[1], None, f"can't be together with {kinds[0]}: make two rules of it")
        if self.window is not None and not self.compute:
            yield Problem("compute", None, 'is missing: say what is computed of a window, as in ["count", "mean"]')
        if self.window is None and self.compute:
            yield Problem("compute", shown(list(self.compute)), "needs a window: add window = { size_s = 10 }")
        if kinds and not self.output.unit:
            yield Problem("output.unit", None, "is missing: give the unit of what is derived, or '1'")


KINDS: Final = ("window", "followed_by", "not_followed_by", "joined_with", "repeated", "infer")
"""What a rule looks for; at most one of them. Without one it derives a reading from each that it takes."""


class RuleFile(Section, frozen=True, kw_only=True):
    """A file of rules."""

    rule: Annotated[tuple[RuleTable, ...], Meta(min_length=1, max_length=256, description="The rules.")]

    def conflicts(self) -> Iterator[Problem]:
        """Rules of the same name."""
        seen: set[str] = set()
        for index, rule in enumerate(self.rule):
            if rule.name in seen:
                yield Problem(f"rule[{index}].name", shown(rule.name), "is used twice: give each rule its own name")
            seen.add(rule.name)
