"""The network that a finished run of `rectified prune` saved."""

from __future__ import annotations

from torch import nn

from rectified.data import load_images
from rectified.errors import UserError
from rectified.jobs.classifiers import Architecture, load_weights
from rectified.jobs.job import DETAILS, Results
from rectified.runs import WEIGHTS


def network(results: Results) -> nn.Module:
    """The network, in evaluation mode; pruned weights are zeros.

    Args:
        results: of a finished run. One of version 0.1 does not say for what images its network
            is: then the data are read again.

    Raises:
        UserError: if the weights or the data are not there or damaged, or the model is somebody's
            own, whose code a file must not run.
    """
    weights = results.folder / WEIGHTS
    architecture = _architecture(results)
    if not architecture.is_ours:
        raise UserError(
            f"model {architecture.model!r} is not ours, and a file must not run its code: build "
            f"it, and give it its weights: rectified.jobs.classifiers.load_weights(it, {weights})"
        )
    made = architecture.build()
    load_weights(made, weights)
    return made.eval()


def _architecture(results: Results) -> Architecture:
    settings, details = results.settings, results.details
    if "architecture" not in details:
        images = load_images(settings["data"])
        return Architecture.of(settings["model"], images, norm=settings["norm"] == "batch")
    try:
        return Architecture.read(details["architecture"])
    except ValueError as error:
        raise UserError(f"{results.folder / DETAILS} is damaged ({error})") from error
