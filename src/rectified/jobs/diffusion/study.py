"""The work of `rectified diffusion` on a data set: a study of flows on a diffusion's path.

A diffusion model is trained on its path and rectified on its own (noise, sample) pairs in its own
form; a straight flow and its reflow stand beside it, at equal budget.
"""

from rectified.jobs.diffusion.settings import DiffusionPlan
from rectified.jobs.flow import study as flows
from rectified.jobs.job import Context, Findings


def check(plan: DiffusionPlan) -> DiffusionPlan:
    """Read the data, fill in what they decide, and try two of them in a network.

    Raises:
        UserError: if the data cannot be read, or do not fit the settings.
    """
    return plan.filled(tuple(flows.check(one) for one in plan.flows))


def study(plan: DiffusionPlan, context: Context) -> Findings:
    """Train and measure every network that is not done."""
    return flows.study_all(plan.flows, context)
