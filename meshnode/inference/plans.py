"""The plans of this node and the stages that it runs for neighbours, as plain data for people and programs."""

from typing import Any

from protocols.engine import Engine
from protocols.inference.split.views import HelperView, HostedView, PlanView, SplitView, StageView


def plans_view(engine: Engine, now: int) -> dict[str, Any]:
    """``models``: those that this node splits, with their plans. ``hosted``: the stages that it runs for neighbours."""
    return {
        "models": [_model(each) for each in engine.inference.split.describe(now)],
        "hosted": [_hosted(each) for each in engine.inference.hosting.view(now)],
    }


def _model(view: SplitView) -> dict[str, Any]:
    return {
        "model": view.model,
        "digest": view.digest,
        "goal": view.goal,
        "private": view.private,
        "cuts": view.cuts,
        "here_ms": _ms(view.run_ns),
        "whole": None if view.whole_on is None else {"node": view.whole_on, "expected_ms": _ms(view.whole_ns)},
        "plans": [_plan(plan) for plan in view.plans],
        "neighbours": [_helper(helper) for helper in view.helpers],
    }


def _plan(view: PlanView) -> dict[str, Any]:
    return {
        "epoch": view.epoch,
        "state": view.state,
        "predicted_ms": _ms(view.predicted_ns),
        "timed_ms": _ms(view.timed_ns),
        "period_ms": _ms(view.period_ns),
        "why": view.why,
        "stages": [_stage(stage) for stage in view.stages],
    }


def _stage(view: StageView) -> dict[str, Any]:
    return {
        "node": view.node,
        "first_cut": view.first,
        "last_cut": view.last,
        "share": round(view.share, 4),
        "input_bytes": view.input_bytes,
        "output_bytes": view.output_bytes,
        "state": view.state,
        "detail": view.detail,
    }


def _helper(view: HelperView) -> dict[str, Any]:
    return {
        "node": view.node,
        "whole_ms": _ms(view.whole_ns),
        "round_trip_ms": _ms(view.round_trip_ns),
        "up_bytes_per_s": round(view.up_bytes_per_s),
        "down_bytes_per_s": round(view.down_bytes_per_s),
        "queue_ms": round(view.queue_ns / 1e6, 3),
        "overhead_ms": round(view.overhead_ns / 1e6, 3),
        "why_not": view.why_not,
        "refused": view.refused,
    }


def _hosted(view: HostedView) -> dict[str, Any]:
    return {
        "model": view.model,
        "digest": view.digest,
        "state": view.state,
        "asked_by": list(view.asked_by),
        "payer": view.payer,
        "size_bytes": view.size_bytes,
        "have_bytes": view.have_bytes,
        "compute_ms": _ms(view.compute_ns),
        "idle_s": round(view.idle_ns / 1e9, 1),
    }


def _ms(ns: int) -> float | None:
    """None: it is not known."""
    return round(ns / 1e6, 3) if ns else None
