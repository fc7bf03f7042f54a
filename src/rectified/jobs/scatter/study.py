"""The work of `rectified scatter`: case by case, each kept when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.data import Images, ImageSource
from rectified.errors import UserError
from rectified.jobs.job import Context, Findings
from rectified.jobs.scatter.cases import (
    Row,
    Scene,
    energy_rows,
    network_rows,
    row,
    signal_rows,
)
from rectified.jobs.scatter.ridge import fit_ridge
from rectified.jobs.scatter.settings import Plan
from rectified.scattering import ScatteringTransformer
from rectified.training import choose_device

SMALL = 32  # pictures with a smaller side are enlarged to this
PICTURES = 4  # of the data, that the inequalities are checked on
HELD_OUT = 2000  # validation images that the classifier's penalty is chosen on, at most


def check(plan: Plan) -> Plan:
    """See that there is a device, and that the pictures are large and many enough.

    Returns:
        The plan, with small pictures enlarged. These hold coarser detail, so their J is 3 by
        default.

    Raises:
        UserError: if the data cannot be used.
    """
    choose_device(plan.config.device)
    data = plan.data(plan.seeds[0])
    if min(data.height, data.width) < SMALL:
        enlarged = ImageSource(plan.config.data, SMALL)
        plan = replace(plan, source=enlarged, scale=plan.config.scale or 3)
        data = plan.data(plan.seeds[0])
    if min(data.height, data.width) < 2**plan.scale:
        raise UserError(
            f"scale must be at most log2 of the smaller side, got {plan.scale} for "
            f"{data.height}x{data.width} pictures"
        )
    if not len(data.validation):
        raise UserError(f"{data.name} leaves no validation images to choose a penalty on")
    return plan


def run(plan: Plan, context: Context) -> Findings:
    """Work through the cases that are left."""
    from tqdm import tqdm

    store = context.folder.store("study")
    saved = (store.load() if context.folder.resume else None) or {"rows": [], "done": []}
    rows, done = saved["rows"], saved["done"]
    for name, measure in tqdm(cases(plan), desc="scatter", disable=not context.progress):
        if name in done:
            continue
        for one in measure():
            rows.append(one)
            context.folder.log({"event": "measured", **one})
        done.append(name)
        store.save({"rows": rows, "done": done})
    return Findings(rows, summarise(rows))


def cases(plan: Plan) -> list[tuple[str, Callable[[], Iterator[Row]]]]:
    """Names of all cases, and what gives their rows."""
    shown = scene(plan)
    named: list[tuple[str, Callable[[], Iterator[Row]]]] = []
    if plan.config.networks:
        named += [("signals", partial(signal_rows, shown)), ("energy", partial(energy_rows, shown))]
    named += [(name, partial(network_rows, name, shown)) for name in plan.config.networks]
    named += [(f"classifier {seed}", partial(classifier_rows, plan, seed)) for seed in plan.seeds]
    return named


def scene(plan: Plan) -> Scene:
    """The signals that the networks are shown."""
    test = plan.data(plan.seeds[0]).test
    pictures = _pixels(test.select(torch.arange(min(PICTURES, len(test)))))
    grey = pictures.mean(1, keepdim=True).double()
    side = plan.config.grid
    enlarged = torch.nn.functional.interpolate(grey, (side, side), mode="bilinear")
    return Scene(enlarged, side, plan.seeds[0], plan.config.steps)


def classifier_rows(plan: Plan, seed: int) -> Iterator[Row]:
    """Test accuracy of a ridge classifier on pixels, and on coefficients of order 1 and 2."""
    data = plan.data(seed)
    held_out = data.validation.select(torch.arange(min(HELD_OUT, len(data.validation))))
    splits = data.train, held_out, data.test
    for order, name in enumerate(("pixels", "scattering order 1", "scattering order 2")):
        train, chosen_on, test = _features(plan, order, splits)
        fitted = fit_ridge(train, data.train.labels, (chosen_on, held_out.labels))
        yield row(name, order, "accuracy", fitted.accuracy(test, data.test.labels), None)


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The worst ratio of measured to bound, a row per case and quantity.

    Example:
        >>> summarise([row("a", 0, "x", 1.0, 2.0), row("a", 1, "x", 3.0, 4.0)])
        [{'case': 'a', 'quantity': 'x', 'worst_ratio': 0.75}]
    """
    worst: dict[tuple[str, str], float | None] = {}
    for one in rows:
        key = one["case"], one["quantity"]
        if one["bound"] is None:
            worst.setdefault(key, None)
        else:
            worst[key] = max(worst.get(key) or 0.0, one["measured"] / one["bound"])
    return [{"case": c, "quantity": q, "worst_ratio": ratio} for (c, q), ratio in worst.items()]


def _features(
    plan: Plan, order: int, splits: tuple[Images, ...]
) -> list[Float[Tensor, "n features"]]:
    images = [_pixels(split) for split in splits]
    if order == 0:
        return [one.flatten(1) for one in images]
    config = plan.config
    device = str(choose_device(config.device))
    transformer = ScatteringTransformer(
        plan.scale, config.orientations, order, log=config.logarithm, device=device
    )
    transformer.fit(images[0].numpy())
    return [torch.from_numpy(transformer.transform(one.numpy())) for one in images]


def _pixels(images: Images) -> Float[Tensor, "n channels height width"]:
    return images.pixels.float() / images.peak
