"""The work of `rectified toy`; `TROUBLE` and `CHECKED` are for those who test the doors."""

import math
from dataclasses import replace
from pathlib import Path

import torch

from rectified.errors import UserError
from rectified.jobs.job import Findings

TROUBLE = {}  # seed -> what to raise, in turn
CHECKED = []  # settings of every `check`


def check(plan):
    """Read the data."""
    CHECKED.append(plan.config)
    if plan.config.data == "digits":
        return plan
    try:
        return replace(plan, start=float(Path(plan.config.data).read_text()))
    except (OSError, ValueError):
        raise UserError(f"no number in {plan.config.data}: give digits, or a file of one") from None


def study(plan, context):
    """Rows of known distances."""
    config, times = plan.config, getattr(plan.config, "twice", 1)
    rows = []
    for seed in plan.seeds:
        if TROUBLE.get(seed):
            raise TROUBLE[seed].pop(0)
        distances = {step: plan.start + times * config.rate * step + seed for step in config.steps}
        rows += [
            {"seed": seed, "step": step, "distance": distance, "half": math.nan}
            for step, distance in distances.items()
        ]
        context.folder.log({"event": "toy", "seed": seed})
    context.folder.write_weights(torch.nn.Linear(2, 1).state_dict(), {"toy": "yes"})
    summary = [{"names": ",".join(config.names), "distance_mean": rows[-1]["distance"], "n": 1}]
    return Findings(
        rows, summary, more={"times": times}, details={"shown": [row["step"] for row in rows]}
    )


def network(results):
    """The network that it saved."""
    from safetensors.torch import load_file

    made = torch.nn.Linear(2, 1)
    made.load_state_dict(load_file(results.folder / "model.safetensors"))
    return made


def sample(results, options):
    """A file of numbers."""
    options.out.mkdir(parents=True, exist_ok=True)
    made = [options.count, options.steps, options.seed, options.label]
    (options.out / "samples.txt").write_text(f"{made}")
    return f"{options.count} samples: {options.out / 'samples.txt'}"
