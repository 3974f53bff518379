"""Prints the reference pages that are made from declarations: ``python -m meshnode.cli.reference [manifest|rules]``."""

from typing import Final, Literal

import click

from meshnode.config.reference import described_table, reference_page
from meshnode.loading import parts_with, sections_of
from meshnode.models.manifest import DeclaredInput, DeclaredOutput, Fallback, Golden, Manifest, SplitRules
from meshnode.models.preprocessing import Preprocessing
from meshnode.records.rules.expressions import MAX_CHARS, MAX_DEPTH, MAX_ELEMENTS, MAX_LOOPS, MAX_TEXT, VARIABLES
from meshnode.records.rules.tables import (
    InferTable,
    OtherTable,
    OutputTable,
    RecordingTable,
    RepeatedTable,
    RuleTable,
    WindowTable,
)
from meshnode.records.rules.trying import Case, ExpectedReading, ExpectedRecord, GivenPrediction, GivenReading
from protocols.base.limits import SECOND
from protocols.records.windows.kinds import FUTURE_NS
from protocols.records.windows.summary import EXACT

_OPENING: Final = """\
# Manifests of models

<!-- Made from the declarations by `python -m meshnode.cli.reference manifest`; edit those. -->

A model `plate.onnx` may have a manifest, `plate.toml`, beside it. It is read with the model. A manifest with mistakes,
or one that describes another model, keeps the model out, and the message names file, key and value. How to write one is
told in [describe a model](../howto/describe-a-model.md).
"""
_TABLES: Final = (
    ("## Keys without a table", Manifest), ("## `[[inputs]]`", DeclaredInput), ("## `[[outputs]]`", DeclaredOutput),
    ("## `[preprocessing.<input>]`", Preprocessing), ("## `[[golden]]`", Golden), ("## `[fallback]`", Fallback),
    ("## `[split]`", SplitRules),
)  # fmt: skip
_CLOSING: Final = """\
## Digest

Nodes ask one another for a model by its digest, and those that share it must compute the same. So it covers `inputs`,
`outputs` and `preprocessing`, and nothing else of a manifest: a better description, a label or a golden vector leaves
it as it is. The digest is the SHA-256 of

1. the 32 bytes of the digest that the model has [without a manifest](configuration.md), and
2. a JSON text with the keys `inputs`, `outputs` and `preprocessing`: for each an object by name of the input or output,
   and in it an object with the keys of its table and their values. Keys whose value is the default are left out, and so
   is what is empty then. Keys are sorted, there are no spaces, and values of the type *number* have a decimal point.

When there is nothing in 2, the digest is that of 1. `GET /v1/models` tells it.
"""


FUTURE_S: Final = FUTURE_NS / SECOND
_RULES_OPENING: Final = """\
# Rules

<!-- Made from the declarations by `python -m meshnode.cli.reference rules`; edit those. -->

`[rules] files` in the configuration of a node names TOML files with tables `[[rule]]`. A rule takes readings, and
derives others out of them. The node publishes these, and they become records for the relay. `meshnode rules check`,
`test` and `explain` need no node. How to write rules is told in [summarise readings](../howto/summarise-readings.md).
"""
_RULES_TABLES: Final = (
    ("## `[[rule]]`", RuleTable), ("## `window`", WindowTable),
    ("## `followed_by`, `not_followed_by`, `joined_with`", OtherTable), ("## `repeated`", RepeatedTable),
    ("## `output`", OutputTable), ("## `infer`", InferTable),
    ("## `recording`", RecordingTable),
)  # fmt: skip
_RULES_MIDDLE: Final = f"""\
## Expressions

`where`, `value` and `by` are written in the [Common Expression Language](https://cel.dev). They may use
{", ".join(f"`{name}`" for name in VARIABLES)}. All numbers in `value` are decimal ones (`double`): write `value > 3.0`,
and `int(value) % 2` for whole ones. A reading for which an expression has no value (a missing field, a text where a
number is needed, more than {MAX_ELEMENTS:,} elements, or texts of more than {MAX_TEXT:,} characters together) is left
out and counted as `failed`. So is one whose result is larger than that, or can't be published: a map whose keys are not
texts, a type, a duration.

An expression has at most {MAX_CHARS:,} characters, is nested at most {MAX_DEPTH} deep, and has at most {MAX_LOOPS} loop
(`all`, `exists`, `exists_one`, `map`, `filter`).

## What a summary is

The value of a reading that is derived from a window is a map: `start_ns` and `end_ns` of the window in UTC, and what
was computed. Percentiles (nearest rank) and `distinct` are exact to {EXACT:,} readings or values; beyond, they come
from sketches: the rank of a percentile is wrong by at most 1.65 % (99 % confidence), the number of distinct values by
1.6 % (one standard error). The reading was sensed in the middle of the window, with half of the window and the largest
uncertainty of a reading as its uncertainty; its position is the middle of the rectangle that holds those of its
readings, with the way to the corner and the largest error as accuracy; its quality is that of the worst; its lineage
names the rule, and what readings of this node were derived from. A rule is not shown what has its own name in its
lineage. So what neighbours say of theirs is not taken over: by claiming that name, one of them could silence the rule.

Open windows survive a restart: they are saved every second in which they changed. After a kill, those of them that were
derived since are given up, so that no record comes twice; readings that were in no saved window are counted as lost
(`rules_lost` in the statistics of the node), and so are those in windows of rules that a release has changed. Windows
of counts are given up after a kill, windows of a rule that was changed after every end, and so are the readings that
patterns hold.

## What a pattern is

The value of a reading that is derived by a pattern is a map that names its readings, each with `key`, `origin`,
`sequence`, `utc_ns` and `value`: `first` and `then`; `after` and `until_ns` where nothing followed; `left` and `right`;
or `count` and a list `readings`. Order is by the time of sensing. With `certain` it must hold over the whole intervals
that the uncertainties leave, and distances with the errors of both positions added.

## What a prediction is

A rule with a table `infer` gives what it takes of each reading to a model, as any inference of the node does: it runs
here or at a neighbour. What it takes is one input, named by `input`, or a map of inputs by name: numbers and lists,
whose type is that of the model, or without a `value` the value of the reading itself, such as an encoded picture, which
the [manifest](manifest.md) of the model prepares. The value of the derived reading is a map of the outputs by name, as
lists of lists, with at most 1,024 numbers. It was sensed where, when and as well as the reading, and further rules may
take it.

A reading that is larger than 8 MiB is `unfit`. The newest reading that waits goes first. Rules of simulated nodes get
no predictions.

## What a recording is

A rule with a table `recording` has readings of other keys become records, too, with its name: those that come until it
has derived nothing for `after_s`, and those that were sensed in the `before_s` before it began. The latter are looked
up in the [history](../howto/look-into-the-past.md) of the node two seconds later, and a node without `[history]`
refuses such a rule. A reading becomes a record of one recording once, and not at all if another rule has made it one as
it came. Two recordings of one rule don't overlap: the second one reaches back to the end of the first. Recordings end
with the node. Simulated nodes keep no history.

## Rules on rules

A rule may take what others derive, and never takes what was derived through itself. Rules that derive from each reading
at once (without a window or a pattern, or by a join) may not take one another's output in a circle: they would be tried
in every order. Such files are refused, and the rules of the circle named.

## What becomes of readings

| counter | a reading was |
|---|---|
| `taken` | taken |
| `derived` | derived from others (windows, or single readings) |
| `filtered` | left out by `where` |
| `failed` | left out, because an expression had no value for it |
| `unit_mismatch` | in another unit than `unit` |
| `unfit` | not what is computed needs (a number, or a text of at most 200 characters), or its lineage is full |
| `late` | sensed in windows that were closed when it came, or without a prediction by the deadline |
| `future` | sensed more than {FUTURE_S:g} s and its uncertainty from now |
| `doubled` | taken already |
| `evicted` | taken, and lost because there were too many partitions or readings: the source with most gives way |
| `gave_up` | not compared with all others, because there were too many (`repeated`) |
| `gave_way` | lost because too many waited for a model |
| `not_predicted` | without a prediction: the model failed, or nobody has it |
| `recorded` | made a record by a recording |
| `not_recorded` | beyond `max_records` of its recording |
| `lineage_full` | not put together with others, because together they come from too many rules (`repeated`) |

`recordings` counts recordings that have begun, and `not_recalled` those before which nothing was looked up in time.

`GET /v1/node` has them for each rule under `rules`, and the statistics of the node have their sums, as in `rules_late`.
"""
_CASES_OPENING: Final = """\
## Files of cases

`meshnode rules test FILE` tries rules on readings: it compares what they derive, in order, with what is expected.
Seconds count from the start of a day in UTC. In an expected value, `start_s` and `end_s` are those of the window.

| key | type | default | meaning |
|---|---|---|---|
| `rules` | text | **required** | The file of rules, from the folder of this file. |
| `case` | list of tables | **required** | See below. |
"""
_CASES_TABLES: Final = (
    ("## `[[case]]`", Case), ("## `reading`", GivenReading), ("## `expected`", ExpectedReading),
    ("## `prediction`", GivenPrediction), ("## `recorded`", ExpectedRecord),
)  # fmt: skip


def rules_page() -> str:
    """The page about rules, as Markdown."""
    return "\n".join([
        _RULES_OPENING, *(described_table(heading, rows) for heading, rows in _RULES_TABLES), _RULES_MIDDLE,
        _CASES_OPENING, *(described_table(heading, rows) for heading, rows in _CASES_TABLES),
    ]).rstrip() + "\n"  # fmt: skip


def manifest_page() -> str:
    """The page about manifests, as Markdown."""
    return "\n".join([_OPENING, *(described_table(heading, rows) for heading, rows in _TABLES), _CLOSING])


@click.command()
@click.argument("page", type=click.Choice(["configuration", "manifest", "rules"]), default="configuration")
def main(page: Literal["configuration", "manifest", "rules"]) -> None:
    """Print a page."""
    match page:
        case "configuration":
            text = reference_page(sections_of(parts_with()))
        case "manifest":
            text = manifest_page()
        case _:
            text = rules_page()
    click.echo(text, nl=False)


if __name__ == "__main__":
    main()
