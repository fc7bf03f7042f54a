"""`rectified scatter`: features, what is proved of them, what was measured, and a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.data import ImageData, Images, load_images
from rectified.errors import UserError, choose
from rectified.jobs import scatter_report
from rectified.jobs.options import Words, seed_list
from rectified.jobs.ridge import fit_ridge
from rectified.jobs.scatter_cases import (
    Row,
    Scene,
    energy_rows,
    network_rows,
    networks,
    row,
    signal_rows,
)
from rectified.runs import Run
from rectified.scattering import FilterBank, ScatteringTransformer
from rectified.training import choose_device

SMALL = 32  # pictures with a smaller side are enlarged to this
PICTURES = 4  # of the data, that the inequalities are checked on
HELD_OUT = 2000  # validation images that the classifier's penalty is chosen on, at most
NETWORKS = tuple(networks(torch.Generator().manual_seed(0)))


@dataclass(frozen=True)
class ScatterConfig:
    """Check every bound of scattering networks, and classify by scattering features.

    Attributes:
        data: digits (embedded), a parquet or image folder, or the name of a data set on the hub.
        limit: use at most this many training examples.
        networks: which of the networks are checked: all, none, or some of their names.
        scale: J of the classifier's features; by default 3 for pictures that were enlarged, else 2.
        orientations: L of the classifier's features.
        logarithm: whether the classifier sees logarithms.
        grid: side of the periodic grid on which the bounds are checked; a multiple of 16.
        steps: of the gradient ascent that looks for a pair against each constant.
        seeds: how many seeds, from 0; the bounds are checked with the first.
        seed: one seed alone.
        device: of the classifier's features: auto, cpu or cuda; the checks stay on the CPU.
    """

    data: str = "digits"
    limit: int | None = None
    networks: Words = ("all",)
    scale: int | None = None
    orientations: int = 8
    logarithm: bool = False
    grid: int = 64
    steps: int = 150
    seeds: int = 1
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


DEFAULT = ScatterConfig()


def resolve(config: ScatterConfig) -> ScatterConfig:
    """Check the settings and fill in the networks.

    Raises:
        UserError: for a name that is not known or a value that is impossible.

    Example:
        >>> len(resolve(DEFAULT).networks)
        9
    """
    seed_list(config.seeds, config.seed)
    minima = {"limit": 2, "scale": 1, "orientations": 1, "steps": 1}
    for name, smallest in minima.items():
        value = getattr(config, name)
        if value is not None and value < smallest:
            raise UserError(f"{name} must be at least {smallest}, got {value}")
    if config.grid < 32 or config.grid % 16:
        raise UserError(f"grid must be a multiple of 16 and at least 32, got {config.grid}")
    if config.networks == ("all",):
        return replace(config, networks=NETWORKS)
    if config.networks in ((), ("none",)):
        return replace(config, networks=())
    for name in config.networks:
        choose("network", name, NETWORKS)
    return config


def run(config: ScatterConfig, folder: Run, facts: Mapping[str, Any], progress: bool) -> str:
    """Do the study and write its folder.

    Args:
        config: the settings; what is left open is resolved.
        folder: where the results go; nothing is written before the settings prove possible.
        facts: the environment, for the record.
        progress: whether to show progress bars.

    Returns:
        A short text with what was found.
    """
    study = _Study(resolve(config), folder, progress)
    study.check()
    folder.begin("scatter", asdict(study.config), facts)
    study.go_on()
    return study.finish(facts)


@dataclass
class Found:
    """What the study has found so far; kept in the checkpoint, case by case."""

    rows: list[Row] = field(default_factory=list)
    done: list[str] = field(default_factory=list)


class _Study:
    """The work of one `run`, case by case."""

    def __init__(self, config: ScatterConfig, folder: Run, progress: bool) -> None:
        self.config = config
        self.folder = folder
        self.progress = progress
        self.seeds = seed_list(config.seeds, config.seed)
        self.store = folder.store("study")
        saved = self.store.load() if folder.resume else None
        self.found = Found(**saved) if saved else Found()

    def check(self) -> None:
        """Everything that can be known to fail, before anything is written."""
        choose_device(self.config.device)
        data, J = prepare(self.config, self.seeds[0])
        if min(data.height, data.width) < 2**J:
            raise UserError(
                f"scale must be at most log2 of the smaller side, got {J} for "
                f"{data.height}x{data.width} pictures"
            )
        if not len(data.validation):
            raise UserError(f"{data.name} leaves no validation images to choose a penalty on")

    def cases(self) -> Iterator[tuple[str, Any]]:
        """Names of all cases, and what gives their rows."""
        scene = self.scene()
        if self.config.networks:
            yield "signals", lambda: signal_rows(scene)
            yield "energy", lambda: energy_rows(scene)
        for name in self.config.networks:
            yield name, lambda name=name: network_rows(name, scene)
        for seed in self.seeds:
            yield f"classifier {seed}", lambda seed=seed: classifier_rows(self.config, seed)

    def go_on(self) -> None:
        """Work through the cases that are left, and keep each when it is done."""
        from tqdm import tqdm

        cases = list(self.cases())
        for name, rows in tqdm(cases, desc="scatter", disable=not self.progress):
            if name in self.found.done:
                continue
            for one in rows():
                self.found.rows.append(one)
                self.folder.log({"event": "measured", **one})
            self.found.done.append(name)
            self.store.save(vars(self.found))

    def scene(self) -> Scene:
        """What the networks are shown."""
        data, _ = prepare(self.config, self.seeds[0])
        pictures = _pixels(data.test.select(torch.arange(min(PICTURES, len(data.test)))))
        grey = pictures.mean(1, keepdim=True).double()
        side = self.config.grid
        enlarged = torch.nn.functional.interpolate(grey, (side, side), mode="bilinear")
        return Scene(enlarged, side, self.seeds[0], self.config.steps)

    def finish(self, facts: Mapping[str, Any]) -> str:
        """Write tables, page and results."""
        results: dict[str, Any] = {
            "verb": "scatter",
            "config": asdict(self.config),
            "environment": dict(facts),
            "rows": self.found.rows,
            "summary": summarise(self.found.rows),
        }
        banks = first_banks(asdict(self.config))
        self.folder.write_text("report.html", scatter_report.page(results, banks))
        self.folder.write_results(**results)
        return scatter_report.text(results)


def first_banks(config: Mapping[str, Any]) -> dict[str, FilterBank]:
    """The first bank of every network that a run with these settings checks."""
    generator = torch.Generator().manual_seed(config["seed"] or 0)
    return {
        name: layers[0].bank((SMALL, SMALL))
        for name, layers in networks(generator).items()
        if name in config["networks"]
    }


def classifier_rows(config: ScatterConfig, seed: int) -> Iterator[Row]:
    """Test accuracy of a ridge classifier on pixels, and on coefficients of order 1 and 2."""
    data, J = prepare(config, seed)
    held_out = data.validation.select(torch.arange(min(HELD_OUT, len(data.validation))))
    for order, name in enumerate(("pixels", "scattering order 1", "scattering order 2")):
        train, chosen_on, test = _features(config, J, order, (data.train, held_out, data.test))
        fitted = fit_ridge(train, data.train.labels, (chosen_on, held_out.labels))
        yield row(name, order, "accuracy", fitted.accuracy(test, data.test.labels), None)


def prepare(config: ScatterConfig, seed: int) -> tuple[ImageData, int]:
    """The data, small pictures enlarged, and the J of its features.

    Enlarged pictures hold coarser detail, so theirs is 3 where that of others is 2.
    """
    data = load_images(config.data, seed=seed, limit=config.limit)
    is_small = min(data.height, data.width) < SMALL
    if is_small:
        data = load_images(config.data, seed=seed, limit=config.limit, image_size=SMALL)
    return data, config.scale or (3 if is_small else 2)


def summarise(rows: list[Row]) -> list[dict[str, Any]]:
    """The worst ratio of measured to bound, a line a case and quantity.

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
    config: ScatterConfig, J: int, order: int, splits: tuple[Images, ...]
) -> list[Float[Tensor, "n features"]]:
    images = [_pixels(split) for split in splits]
    if order == 0:
        return [one.flatten(1) for one in images]
    device = str(choose_device(config.device))
    transformer = ScatteringTransformer(
        J, config.orientations, order, log=config.logarithm, device=device
    )
    transformer.fit(images[0].numpy())
    return [torch.from_numpy(transformer.transform(one.numpy())) for one in images]


def _pixels(images: Images) -> Float[Tensor, "n channels height width"]:
    return images.pixels.float() / images.peak
