"""The objective of a classifier, and its quality, for networks of whichever library."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rectified.training.protocols import Batch


def logits_of(output: Any) -> Tensor:
    """The class scores in a classifier's output, of whichever library.

    A tensor is returned as it is; `transformers` puts them in `.logits`; a tuple's first entry
    counts.

    Example:
        >>> import torch
        >>> logits_of((torch.zeros(1, 2), None)).shape
        torch.Size([1, 2])
    """
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    return logits_of(output[0])


def classification(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """The objective of a classifier: mean cross-entropy.

    Args:
        model: images (or features) to class scores.
        batch: inputs, and the classes' numbers (int64).
    """
    inputs, labels = batch
    return F.cross_entropy(logits_of(model(inputs)).float(), labels)


def classification_quality(model: nn.Module, batch: Batch) -> dict[str, Float[Tensor, " batch"]]:
    """Loss and accuracy of every example, for `evaluate`."""
    inputs, labels = batch
    logits = logits_of(model(inputs)).float()
    return {
        "loss": F.cross_entropy(logits, labels, reduction="none"),
        "accuracy": (logits.argmax(-1) == labels).float(),
    }
