"""Classifiers for the jobs: from the words of the command line to a network and its batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rectified import models
from rectified.data import Augment, Batches, ImageData, Images
from rectified.errors import UserError, choose, first_line
from rectified.files import check_archive
from rectified.foreign import imported
from rectified.networks import evaluating
from rectified.seeds import seeded
from rectified.training import logits_of


@dataclass(frozen=True)
class Recipe:
    """The usual training of a network.

    Attributes:
        build: makes it from `num_classes`, `in_channels`, `image_size` and `norm`.
        epochs: of the whole schedule.
        batch_size: examples per step.
        learning_rate: at its peak.
        weight_decay: of SGD or AdamW.
        optimizer: sgd or adamw.
        norm: whether it has batch norms unless told otherwise.
        channels_last: whether that memory format is faster for it.
        together: how many of them to train as one module.
    """

    build: Callable[..., nn.Module]
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    norm: bool = True
    channels_last: bool = False
    together: int = 1


def _vit(**given: Any) -> nn.Module:
    given.pop("norm")
    return models.vit(**given)


def _mlp(**given: Any) -> nn.Module:
    norm = nn.BatchNorm1d if given.pop("norm") else None
    return models.mlp(norm=norm, **given)


def _with_norm2d(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def make(**given: Any) -> nn.Module:
        norm = nn.BatchNorm2d if given.pop("norm") else None
        return build(norm=norm, **given)

    return make


RECIPES: dict[str, Recipe] = {
    "mlp": Recipe(_mlp, 8, 64, 0.1, norm=False, together=256),
    "cnn": Recipe(_with_norm2d(models.cnn), 8, 64, 0.1),
    "resnet20": Recipe(_with_norm2d(models.resnet20), 50, 128, 0.1, channels_last=True),
    "resnet32": Recipe(_with_norm2d(models.resnet32), 50, 128, 0.1, channels_last=True),
    "resnet56": Recipe(_with_norm2d(models.resnet56), 50, 128, 0.1, channels_last=True),
    "vgg16": Recipe(_with_norm2d(models.vgg16), 50, 128, 0.05, channels_last=True),
    "vgg19": Recipe(_with_norm2d(models.vgg19), 50, 128, 0.05, channels_last=True),
    "vit": Recipe(_vit, 50, 128, 1e-3, weight_decay=0.05, optimizer="adamw"),
}


LARGEST = 100_000  # number of classes, channels or pixels along a side, that a file may ask for


def recipe(model: str) -> Recipe:
    """The recipe of a named model, or of anybody's `module:factory`.

    Raises:
        UserError: if there is no such model, or the factory cannot be imported.
    """
    if ":" in model:
        return Recipe(_factory(model), 50, 128, 0.05)
    choose("model", model, [*RECIPES, "module:factory"])
    return RECIPES[model]


def _factory(text: str) -> Callable[..., nn.Module]:
    factory = imported(text, kind="model")
    accepted = inspect.signature(factory)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.parameters.values())

    def make(**given: Any) -> nn.Module:
        taken = {k: v for k, v in given.items() if takes_all or k in accepted.parameters}
        try:
            accepted.bind(**taken)
        except TypeError as error:
            raise UserError(
                f"model {text!r} cannot be called ({error}): give other parameters than "
                "num_classes, in_channels, image_size and norm a default"
            ) from error
        made = factory(**taken)
        if not isinstance(made, nn.Module):
            raise UserError(f"model {text!r} must return an nn.Module, got {type(made).__name__}")
        return made

    return make


@dataclass(frozen=True)
class Architecture:
    """Everything that a network is built from.

    Attributes:
        model: a recipe's name, or `module:factory`.
        num_classes: classes that it tells apart.
        in_channels: channels of its images.
        image_size: their height and width.
        norm: whether it has batch norms.
    """

    model: str
    num_classes: int
    in_channels: int
    image_size: tuple[int, int]
    norm: bool

    @classmethod
    def of(cls, model: str, data: ImageData, *, norm: bool) -> Architecture:
        """That of a model for some images."""
        return cls(model, len(data.classes), data.channels, (data.height, data.width), norm)

    @classmethod
    def read(cls, fields: Any) -> Architecture:
        """The architecture that a file describes.

        Raises:
            ValueError: if a field is missing, of another type or out of bounds.
        """
        try:
            height, width = fields["image_size"]
            sizes = (fields["num_classes"], fields["in_channels"], height, width)
            model, norm = fields["model"], fields["norm"]
        except (TypeError, LookupError, ValueError) as error:
            raise ValueError("a field is missing or of another type") from error
        if not isinstance(model, str) or not isinstance(norm, bool):
            raise ValueError("a field is of another type")
        if not all(type(size) is int and 0 < size <= LARGEST for size in sizes):
            raise ValueError(f"sizes must be in 1..{LARGEST}")
        return cls(model, sizes[0], sizes[1], (height, width), norm)

    @property
    def is_ours(self) -> bool:
        """Whether building it runs no code but ours."""
        return ":" not in self.model

    def build(self, by: Recipe | None = None, *, seed: int = 0) -> nn.Module:
        """The network with initial weights that `seed` decides, by the model's recipe or another.

        Example:
            >>> network = Architecture("mlp", 10, 1, (8, 8), norm=False).build()
            >>> network(torch.zeros(2, 1, 8, 8)).shape
            torch.Size([2, 10])
        """
        made = recipe(self.model) if by is None else by
        with seeded(seed, "network"):
            return made.build(
                num_classes=self.num_classes,
                in_channels=self.in_channels,
                image_size=self.image_size,
                norm=self.norm,
            )


def build(
    model: str,
    data: ImageData,
    *,
    seed: int,
    norm: bool | None = None,
    weights: str | None = None,
    by: Recipe | None = None,
) -> nn.Module:
    """A network for `data`, with initial weights that `seed` decides, or those of a file.

    Args:
        model: a name in `RECIPES`, or `module:factory`; a factory gets those of `num_classes`,
            `in_channels`, `image_size` and `norm` that it has parameters for.
        data: what it is to classify.
        seed: of the initial weights.
        norm: whether it has batch norms; the recipe's choice by default.
        weights: a checkpoint to start from.
        by: how to build it; the recipe of `model` by default.

    Raises:
        UserError: if the model cannot be made, or the weights do not fit.
    """
    made = recipe(model) if by is None else by
    architecture = Architecture.of(model, data, norm=made.norm if norm is None else norm)
    network = architecture.build(made, seed=seed)
    if weights is not None:
        load_weights(network, Path(weights))
    return network


def check_outputs(network: nn.Module, inputs: Tensor, classes: int) -> None:
    """See that a network reads such images and returns a score for every class.

    Raises:
        UserError: if it does not.
    """
    try:
        with torch.no_grad(), evaluating(network):
            logits = logits_of(network(inputs))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"the model cannot read images of shape {tuple(inputs.shape[1:])} "
            f"({first_line(error)}): take another model or other data"
        ) from error
    if logits.shape != (len(inputs), classes):
        raise UserError(
            f"the model must return {classes} class scores an image, one for each class of the "
            f"data; got {tuple(logits.shape[1:])}"
        )


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a checkpoint, executing nothing in it.

    Args:
        network: takes the weights.
        path: a safetensors file, or one of `torch.save` with a state_dict, alone or under
            `state_dict` or `model`.

    Raises:
        UserError: if there is no such file, it is damaged or would run code, or names or shapes
            do not fit.
    """
    state = _strip(_read_weights(path))
    own = network.state_dict()
    for name in [*own, *state]:
        if name not in state:
            raise UserError(f"weights {path} lack {name!r}, which the model has")
        if name not in own:
            raise UserError(f"weights {path} have {name!r}, which the model lacks")
        if own[name].shape != state[name].shape:
            raise UserError(
                f"weights {path}: {name!r} has shape {tuple(state[name].shape)}, "
                f"the model has {tuple(own[name].shape)}"
            )
    network.load_state_dict(state)


def _read_weights(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        check_archive(path, stored=True)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own exceptions for a damaged file
        raise UserError(
            f"weights {path} cannot be read safely ({first_line(error)}): give a safetensors "
            "file, or a plain state_dict"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise UserError(f"weights {path} are not a state_dict of tensors")
    return found


def _strip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefixes = ("module.", "_orig_mod.")
    while state and all(name.startswith(prefixes) for name in state):
        state = {name.split(".", 1)[1]: value for name, value in state.items()}
    return dict(state)


def training_batches(
    data: ImageData, size: int, *, seed: int, augment: bool, device: torch.device
) -> Batches:
    """Shuffled, standardised batches of the training split."""
    return Batches(
        data.train,
        size,
        seed=seed,
        augment=Augment() if augment else None,
        mean=data.mean,
        std=data.std,
        device=device,
    )


def plain_batches(
    images: Images, data: ImageData, *, size: int | None = None, device: torch.device
) -> Batches:
    """Every example of a split once, in order, standardised as the training split is.

    Args:
        images: the split.
        data: the set that it is of.
        size: examples per batch; by default what a CPU's cache, or a GPU, does fastest.
        device: where they are looked at.
    """
    size = size or (500 if device.type == "cpu" else 2500)
    return Batches(images, size, shuffle=False, mean=data.mean, std=data.std, device=device)
