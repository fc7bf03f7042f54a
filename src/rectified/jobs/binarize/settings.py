"""Settings of `rectified binarize`, and what the words mean: arms and networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

from torch import nn

from rectified import models
from rectified.binary.estimators import ESTIMATORS, Scheme
from rectified.data import ImageData, ImageSource
from rectified.errors import UserError, choose
from rectified.jobs.classifiers import RECIPES, Recipe, recipe
from rectified.jobs.options import Words, check_minima, filled, given, seed_list
from rectified.jobs.values import Listing
from rectified.training import FitConfig

_METHODS = [name for name, scheme in ESTIMATORS.items() if not scheme.is_control]
_CONTROLS = [name for name, scheme in ESTIMATORS.items() if scheme.is_control]


def _with_own_norms(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """These networks have their norms in any case."""

    def make(*, norm: bool, **given: object) -> nn.Module:
        return build(**given)

    return make


# norm of a gradient, at most, in every arm: under the plain STE, whose slope is 1 everywhere, the
# gradients of a deep network grow until its loss is NaN
CLIP = 5.0

_RESNET = _with_own_norms(models.one_bit_resnet20)
_BI_REAL = _with_own_norms(partial(models.one_bit_resnet20, bi_real=True))

NETWORKS: dict[str, Recipe] = {
    "mlp": replace(RECIPES["mlp"], epochs=30, norm=True, weight_decay=1e-4),
    "cnn": replace(RECIPES["cnn"], epochs=30, weight_decay=1e-4),
    "resnet20": Recipe(_RESNET, 100, 128, 0.1, weight_decay=1e-4, channels_last=True),
    "resnet20_bi_real": Recipe(_BI_REAL, 100, 128, 0.1, weight_decay=1e-4, channels_last=True),
    "vgg_small": Recipe(
        _with_own_norms(models.vgg_small), 100, 128, 0.1, weight_decay=1e-4, channels_last=True
    ),
}


@dataclass(frozen=True)
class BinarizeConfig:
    """Train networks with 1-bit weights, estimator beside estimator, and run one on bits.

    Attributes:
        data: digits (embedded), a parquet or image folder, or the name of a data set on the hub.
        limit: use at most this many training examples.
        model: mlp, cnn, resnet20, resnet20_bi_real, vgg_small, or module:factory; first layer,
            last layer and 1x1 convolutions stay in full precision.
        weights: checkpoint to start from (safetensors, or a plain state_dict).
        weight_bits: 1.
        activation_bits: 1, or 32 for inputs as they are.
        scale: of the integer products: channel, layer or none.
        epochs: of training.
        batch_size: examples per step.
        learning_rate: at its peak; it falls to 0 by a cosine.
        warmup: share of the training over which it rises.
        weight_decay: of the optimiser.
        optimizer: sgd, adam or adamw.
        augment: random crops and flips of the training images; by default for colour images.
        precision: float32 or bf16.
        pack: also store the best network on bits, and measure its size, speed and equality.
        workers: trainings at a time, each on one thread of a CPU; by default one per core for
            larger networks, else one.
        seeds: how many seeds, from 0.
        seed: one seed alone.
        device: auto, cpu or cuda.
    """

    data: str = "digits"
    limit: int | None = None
    model: str = "cnn"
    weights: str | None = None
    estimator: Annotated[Words, Listing(f"arms: {', '.join(_METHODS)}; controls: ", _CONTROLS)] = (
        "ste",
        "ede",
        "reste",
    )
    weight_bits: int = 1
    activation_bits: int = 1
    scale: Literal["channel", "layer", "none"] = "channel"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float | None = None
    optimizer: Literal["sgd", "adam", "adamw"] | None = None
    augment: bool | None = None
    precision: Literal["float32", "bf16"] = "float32"
    pack: bool = False
    workers: int | None = None
    seeds: int = 3
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


def network(model: str) -> Recipe:
    """The recipe of a network, named or anybody's `module:factory`.

    Raises:
        UserError: if there is none.
    """
    if ":" in model:
        return recipe(model)
    choose("model", model, [*NETWORKS, "module:factory"])
    return NETWORKS[model]


@dataclass(frozen=True, eq=False)
class Plan:
    """The plan of a run.

    Attributes:
        config: the settings, with what the network's recipe decides.
        seeds: of the trainings.
        network: how the network is made and usually trained.
        arms: by name, in the order in which they were asked for.
        fit: how networks are trained, but for the seed.
        batch_size: examples per step.
        source: of the pictures.
        converted: what became of every layer with weights; `check` fills it in.
    """

    config: BinarizeConfig
    seeds: tuple[int, ...]
    network: Recipe
    arms: Mapping[str, Scheme]
    fit: FitConfig
    batch_size: int
    source: ImageSource
    converted: Sequence[Mapping[str, Any]] = ()

    def data(self, seed: int) -> ImageData:
        """The splits of a seed, which its arms share."""
        return self.source.load(seed=seed, limit=self.config.limit)


def resolve(config: BinarizeConfig) -> Plan:
    """Check the settings and fill in what the network's recipe decides.

    Raises:
        UserError: for a name that is not known or a value that is impossible.

    Example:
        >>> resolve(BinarizeConfig()).config.epochs
        30
    """
    recipe = network(config.model)
    arms = _arms(config.estimator)
    seeds = seed_list(config.seeds, config.seed)
    _check_bits(config)
    check_minima(config, {"limit": 2, "batch_size": 2, "epochs": 1, "workers": 1})
    decided = ("epochs", "batch_size", "learning_rate", "weight_decay", "optimizer")
    config = filled(config, {name: getattr(recipe, name) for name in decided})
    fit = FitConfig(
        **given(config, "epochs", "optimizer", "learning_rate", "weight_decay", "warmup"),
        **given(config, "precision", "device"),
        schedule="cosine",
        clip=CLIP,
        channels_last=recipe.channels_last,
    )
    size = config.batch_size or recipe.batch_size
    return Plan(config, seeds, recipe, arms, fit, size, ImageSource(config.data))


def _arms(names: Sequence[str]) -> dict[str, Scheme]:
    if not names:
        raise UserError(f"estimator must name at least one; choose from {', '.join(ESTIMATORS)}")
    for name in names:
        choose("estimator", name, list(ESTIMATORS))
    if len(set(names)) < len(names):
        raise UserError(f"estimator must name each once, got {', '.join(names)}")
    return {name: ESTIMATORS[name] for name in names}


def _check_bits(config: BinarizeConfig) -> None:
    if config.weight_bits != 1:
        raise UserError(
            f"weight_bits must be 1, got {config.weight_bits}; the estimator `float` trains the "
            "network in full precision"
        )
    if config.activation_bits not in (1, 32):
        raise UserError(f"activation_bits must be 1 or 32, got {config.activation_bits}")
    if config.pack and set(config.estimator) == {"float"}:
        raise UserError("pack needs a network with 1-bit layers: add one to --estimator")
