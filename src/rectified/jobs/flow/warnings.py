"""Warnings: doubts that a user should have before trusting the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rectified import flow
from rectified.jobs.flow.plan import RENOISE_GAP, RENOISE_STEPS, FlowPlan


def gain_warnings(plan: FlowPlan) -> list[str]:
    """Whether the first step of what is learnt is ill-conditioned."""
    gain = flow.gain_warning(plan.path, plan.predicts)
    return [f"Path {plan.config.path}, {gain}."] if gain else []


def warnings(plan: FlowPlan, notes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Everything that is doubtful.

    Args:
        plan: of the study.
        notes: of its networks, by name.
    """
    words = gain_warnings(plan)
    renoises = plan.solvers.plain == "renoise"
    for name, note in notes.items():
        words += _of_network(name, note, renoises=renoises)
    if renoises and max(plan.steps) > max(RENOISE_STEPS):
        words.append("renoise grows worse with more than 8 steps.")
    return words


def _of_network(name: str, note: Mapping[str, Any], *, renoises: bool) -> Iterator[str]:
    if renoises and note["first_order_gap"] > RENOISE_GAP:
        yield (
            f"renoise is no consistent solver on a flow that is not first-order: {name} has "
            f"gap {note['first_order_gap']:.3g}, above {RENOISE_GAP:g}."
        )
    if note.get("oriented") is False:
        yield f"The pairs of {name} look exchanged: x1 is nearer to noise than x0."
    if note["has_diverged"]:
        yield f"{name} has diverged: its samples grow without bound."
