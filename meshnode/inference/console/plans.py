"""The plans of a running node in words and tables, from what it answers at ``/v1/plans``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from meshnode.console.node_api import NodeApi
from meshnode.console.printing import printable
from meshnode.inference.console.drawing import bytes_text
from protocols.base.errors import LocalProtocolError, ModelUnknown

_MAX_SHOWN: Final = 8
_MAX_WHY_CHARACTERS: Final = 200
_GOALS: Final = {"latency": "a short latency", "throughput": "many results a second"}


def known_plans(api: NodeApi) -> Mapping[str, Any]:
    """What the node answers at ``/v1/plans``; nothing when it is of an earlier version. :raises MeshError: it does not
    answer."""
    try:
        plans: Mapping[str, Any] = api.get("/v1/plans")
    except ModelUnknown:  # 404
        return {"models": [], "hosted": []}
    return plans


def summary(plans: Mapping[str, Any]) -> Iterator[str]:
    """A line for each model that the node splits, and for each stage that it runs for neighbours."""
    models, hosted = plans["models"], plans["hosted"]
    for model in models[:_MAX_SHOWN]:
        in_force = next((plan for plan in model["plans"] if plan["state"] == "in force"), None)
        name = printable(model["model"])
        if in_force is not None:
            chain = " > ".join(f"{printable(stage['node'])} {stage['share']:.0%}" for stage in in_force["stages"])
            yield f"plan       {name}: {chain}, {_times(in_force)}; {_whole(model)}"
        elif any(plan["state"] == "waiting" for plan in model["plans"]):
            yield f"plan       {name}: stages are being made ready; {_whole(model)}"
        else:
            yield f"plan       {name}: none; {_whole(model)}"
    if len(models) > _MAX_SHOWN:
        yield f"plan       and {len(models) - _MAX_SHOWN} models more"
    for stage in hosted[:_MAX_SHOWN]:
        yield f"stage      of {printable(stage['model'])} for {_askers(stage)}: {_standing(stage)}"
    if len(hosted) > _MAX_SHOWN:
        yield f"stage      and {len(hosted) - _MAX_SHOWN} more"


def description(plans: Mapping[str, Any], model: str, here: str) -> Iterator[str]:
    """All that the node ``here`` says about the plans of one model.

    :raises LocalProtocolError: it does not split that model.
    """
    found = next((each for each in plans["models"] if each["model"] == model), None)
    if found is None:
        known, name = ", ".join(printable(each["model"]) for each in plans["models"]) or "none", printable(model)
        raise LocalProtocolError(
            f"{here} does not split {name!r}, but {known}: set 'split' in [models.{name}] there; if it is set, the log "
            "of the node and 'meshnode doctor' say why the model is not cut"
        )
    private = f"; its inputs stay on {here}" if found["private"] else ""
    yield f"{printable(model)} on {here}, for {_GOALS.get(found['goal'], found['goal'])}: {found['cuts']} cuts{private}"
    here_ms = found["here_ms"]
    yield _whole(found) + (f"; a run of it takes {here_ms:.1f} ms here" if here_ms is not None else "")
    for plan in found["plans"]:
        yield ""
        why = f" ({printable(plan['why'], _MAX_WHY_CHARACTERS)})" if plan["why"] else ""
        period = f"a result each {plan['period_ms'] or 0:.1f} ms"
        yield f"plan {plan['epoch']}, {plan['state']}{why}: {_times(plan)}, {period}"
        yield from _table(("stage", "node", "time", "takes", "gives", "state"), [
            (
                str(number), printable(stage["node"]), f"{stage['share']:.1%}", bytes_text(stage["input_bytes"]),
                bytes_text(stage["output_bytes"]), _state(stage),
            )
            for number, stage in enumerate(plan["stages"], 1)
        ])  # fmt: skip
    if not found["plans"]:
        yield "there is no plan: no neighbour can get a stage, or the model has no cuts that plans may use"
    yield ""
    yield from _table(("neighbour", "whole", "round trip", "up MB/s", "down MB/s", "queue", "gets a stage"), [
        (
            printable(each["node"]), _ms(each["whole_ms"]), _ms(each["round_trip_ms"]),
            f"{each['up_bytes_per_s'] / 1e6:.1f}", f"{each['down_bytes_per_s'] / 1e6:.1f}", _ms(each["queue_ms"]),
            _help(each),
        )
        for each in found["neighbours"]
    ] or [("none", "-", "-", "-", "-", "-", "-")])  # fmt: skip


def _times(plan: Mapping[str, Any]) -> str:
    timed = f"{plan['timed_ms']:.1f} ms timed" if plan["timed_ms"] is not None else "not timed"
    return f"{timed}, {plan['predicted_ms'] or 0:.1f} ms predicted"


def _whole(model: Mapping[str, Any]) -> str:
    whole = model["whole"]
    if whole is None:
        return "nobody can run the whole now"
    return f"the whole takes {whole['expected_ms'] or 0:.1f} ms at {printable(whole['node'])}"


def _help(neighbour: Mapping[str, Any]) -> str:
    why_not, refused = (printable(neighbour[key], _MAX_WHY_CHARACTERS) for key in ("why_not", "refused"))
    if why_not:
        return f"no: {why_not}"
    return f"is asked again: {refused}" if refused else "yes"


def _state(stage: Mapping[str, Any]) -> str:
    detail = f": {printable(stage['detail'], _MAX_WHY_CHARACTERS)}" if stage["detail"] else ""
    return f"{stage['state']}{detail}"


def _askers(stage: Mapping[str, Any]) -> str:
    return ", ".join(map(printable, stage["asked_by"])) or f"{printable(stage['payer'])}, which has left"


def _standing(stage: Mapping[str, Any]) -> str:
    if stage["state"] == "ready":
        return f"ready, {_ms(stage['compute_ms'])} a run, idle for {stage['idle_s']:.0f} s"
    return f"{stage['state']}, {bytes_text(stage['have_bytes'])} of {bytes_text(stage['size_bytes'])}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned: the first two columns and the last to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        first, *middle, last = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(middle, widths[1:], strict=False))]
        yield "  " + "  ".join((*cells, last))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
