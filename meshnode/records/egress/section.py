"""The section of egress: what of records may leave for the relay."""

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta

from meshnode.config.kinds import Expression
from meshnode.config.parsing import Problem, Section, shown
from meshnode.config.sections import NodeConfig, PartSection
from meshnode.records.section import RelaySection
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import NodeId
from protocols.base.keys import includes
from protocols.base.limits import MAX_TEXT_CHARS
from protocols.records.egress.area import Area
from protocols.records.egress.rules import (
    LEAST_CELL_M,
    MAX_BUCKET_S,
    MAX_CELL_M,
    MAX_COVERED,
    MAX_RULES,
    EgressPolicy,
    EgressRule,
)

_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,60}")
_PERIODS_S: Final = {"none": None, "hour": 3_600, "day": 86_400}


def _check_name(value: str) -> str | None:
    if _NAME.fullmatch(value):
        return None
    return "is no name of an egress rule: use up to 60 letters, digits and _, because counters are named after it"


class AreaSection(Section, frozen=True, kw_only=True):
    """A box in degrees, WGS 84."""

    south_deg: Annotated[float, Meta(ge=-90, le=90, description="Southern side.")]
    west_deg: Annotated[
        float, Meta(ge=-180, le=180, description="Western side; larger than the eastern one across the date line.")
    ]
    north_deg: Annotated[float, Meta(ge=-90, le=90, description="Northern side.")]
    east_deg: Annotated[float, Meta(ge=-180, le=180, description="Eastern side.")]

    def conflicts(self) -> Iterator[Problem]:
        """Sides that hold nothing between them."""
        try:
            self.area()
        except LocalProtocolError as error:
            yield Problem("", None, str(error))

    def area(self) -> Area:
        """The same box, as rules take it."""
        return Area(self.south_deg, self.west_deg, self.north_deg, self.east_deg)


class EgressSection(Section, frozen=True, kw_only=True):
    """What of a record may leave for the relay. The first rule whose `keys` match decides. Without any rule records
    leave whole; with one, a record that no rule matches does not leave."""

    name: Annotated[
        str, Meta(description="Unique name of the rule: letters, digits and `_`.", extra={"check": _check_name})
    ]
    keys: Annotated[Expression, Meta(description="Key expression of the readings.")]
    relays: Annotated[
        tuple[NodeId, ...],
        Meta(
            max_length=64,
            description="Ids of the relays for which the rule is. At a node with another `[relay] id` it is as if it "
            "were not there.",
            extra={"default": "all"},
        ),
    ] = ()
    drop: Annotated[bool, Meta(description="Nothing of them leaves.")] = False
    fields: Annotated[
        tuple[Annotated[str, Meta(max_length=MAX_TEXT_CHARS)], ...] | None,
        Meta(
            min_length=1,
            description="The fields of their values that leave; `a.b` is the field `b` of the map `a`, or of each map "
            "in the list `a`. A value without any of them, or that has no fields, does not leave.",
            extra={"default": "values leave whole"},
        ),
    ] = None
    cell_m: Annotated[
        int | None,
        Meta(
            ge=LEAST_CELL_M,
            le=MAX_CELL_M,
            description="Positions become the centre of a cell of this size, without altitude and heading.",
            extra={"default": "positions leave as they are"},
        ),
    ] = None
    time_s: Annotated[
        int | None,
        Meta(
            ge=1,
            le=MAX_BUCKET_S,
            description="Event times become the middle of a bucket of this length, and `start_ns` and `end_ns` of a "
            "summary the bounds of whole buckets.",
            extra={"default": "times leave as they are"},
        ),
    ] = None
    pseudonym: Annotated[
        Literal["none", "hour", "day"],
        Meta(
            description="How long the pseudonym lasts, in UTC, that takes the place of the origin and of each chunk of "
            "the key that `keys` does not spell out. Sensor, calibration and lineage are removed. `none`: names leave."
        ),
    ] = "none"
    drop_inside: Annotated[
        AreaSection | None,
        Meta(
            description="`{ south_deg, west_deg, north_deg, east_deg }`: what may have been sensed in this box does "
            "not leave."
        ),
    ] = None
    drop_outside: Annotated[
        AreaSection | None, Meta(description="What may have been sensed outside of this box does not leave.")
    ] = None
    min_count: Annotated[
        int | None,
        Meta(
            ge=2,
            le=1 << 53,
            description="Only summaries whose `count` is at least this leave.",
            extra={"default": "all values"},
        ),
    ] = None
    strip_pictures: Annotated[
        bool,
        Meta(
            description="Pictures (JPEG, PNG) are encoded anew, without their metadata. Other bytes and arrays do not "
            "leave."
        ),
    ] = False
    cover: Annotated[
        tuple[tuple[float, ...], ...],
        Meta(
            max_length=MAX_COVERED,
            description="Boxes `[left, top, right, bottom]` that are made black in them, as shares of width and height "
            "from the upper left corner of the upright picture.",
        ),
    ] = ()
    cover_field: Annotated[
        str | None,
        Meta(
            min_length=1,
            max_length=MAX_TEXT_CHARS,
            description="The field beside a picture, or further out, that lists what was found in it as maps with "
            "`left`, `top`, `right` and `bottom`, in pixels of the upright picture. That is made black, with a quarter "
            "of its size around it. A picture without such a field does not leave.",
        ),
    ] = None

    def conflicts(self) -> Iterator[Problem]:
        """What the rule would refuse, and what it would do nothing with."""
        for index, box in enumerate(self.cover):
            if len(box) != 4:
                yield Problem(f"cover[{index}]", shown(list(box)), "is no box: use [left, top, right, bottom]")
                return
        try:
            rule = self.rule()
        except LocalProtocolError as error:
            yield Problem("", None, str(error))
            return
        others = set(rule.plain()) - {"name", "keys", "drop"}
        if self.drop and others:
            yield Problem("drop", "true", f"takes whole readings, so the rule must have no {', '.join(sorted(others))}")

    def is_for_all_of(self, other: "EgressSection") -> bool:
        """Whether this rule is for each relay that another one is for."""
        return not self.relays or (bool(other.relays) and set(other.relays) <= set(self.relays))

    def rule(self) -> EgressRule:
        """The same rule, as the gate takes it."""
        return EgressRule(
            name=self.name, keys=self.keys, drop=self.drop, cell_m=self.cell_m, time_s=self.time_s,
            fields=None if self.fields is None else frozenset(self.fields), pseudonym_s=_PERIODS_S[self.pseudonym],
            drop_inside=None if self.drop_inside is None else self.drop_inside.area(),
            drop_outside=None if self.drop_outside is None else self.drop_outside.area(),
            min_count=self.min_count, strip_pictures=self.strip_pictures,
            cover=tuple((left, top, right, bottom) for left, top, right, bottom in self.cover),
            cover_field=self.cover_field or "",
        )  # fmt: skip


class EgressRulesSection(PartSection, frozen=True, kw_only=True):
    """The rules of egress."""

    table: ClassVar[str] = "egress"
    listed: ClassVar[str | None] = "rules"

    rules: Annotated[tuple[EgressSection, ...], Meta(max_length=MAX_RULES, description="The rules.")] = ()

    def conflicts(self) -> Iterator[Problem]:
        """Rules of the same name, and rules that never decide."""
        for index, rule in enumerate(self.rules):
            for earlier in self.rules[:index]:
                if earlier.name == rule.name:
                    yield Problem(f"[{index}].name", shown(rule.name), "is used twice: give each rule its own name")
                    break
                if includes(earlier.keys, rule.keys) and earlier.is_for_all_of(rule):
                    yield Problem(f"[{index}].keys", shown(rule.keys), f"never decides, because rule {earlier.name!r} "
                                  "before it matches all of them: put it before that one, or remove it")  # fmt: skip
                    break

    def conflicts_in(self, config: NodeConfig) -> Iterator[Problem]:
        """A rule for certain relays at a node that may send to any."""
        relay = config.given(RelaySection)
        for index, rule in enumerate(self.rules):
            if rule.relays and (relay is None or relay.id is None):
                yield Problem(
                    f"egress[{index}].relays", shown(list(rule.relays)),
                    "can't be told, because any relay of the mesh may get the records: set [relay] id",
                )  # fmt: skip


def rules_here(config: NodeConfig) -> tuple[EgressSection, ...]:
    """The rules of a configuration that are for the relay of the node."""
    relay = config.given(RelaySection)
    here = None if relay is None else relay.id
    return tuple(rule for rule in config.of(EgressRulesSection).rules if not rule.relays or here in rule.relays)


def policy_of(config: NodeConfig) -> EgressPolicy | None:
    """The policy of a configuration; None: it has none, and records leave whole. When all its rules are for other
    relays, nothing leaves."""
    if not config.of(EgressRulesSection).rules:
        return None
    rules = [rule.rule() for rule in rules_here(config)]
    return EgressPolicy(rules or [EgressRule(name="no_rule_is_for_this_relay", keys="**", drop=True)])
