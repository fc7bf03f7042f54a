"""The work of `rectified flow` and `rectified diffusion`: seed by seed, round by round.

Round 1 is the first flow. Each later round makes pairs with the last flow of its recipe and trains
on them; all recipes of round 2 have the same pairs, so that only the recipe differs. Every finished
round is kept with its weights and rows; an unfinished training is kept by `fit`, unfinished pairs
by their store. So a run that was stopped goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rectified import flow, models
from rectified.errors import UserError
from rectified.flow import Draws, Field, FlowMatching, PairStore, Term
from rectified.jobs import flow_settings as settings
from rectified.jobs.flow_data import (
    Distance,
    Transfer,
    image_distance,
    load_transfer,
    point_distance,
    train_features,
)
from rectified.jobs.flow_settings import FlowConfig
from rectified.jobs.options import seed_list
from rectified.runs import CHECKPOINT, Run
from rectified.training import Objective, accelerator, evaluating, fit

Row = dict[str, Any]

SHARD = 4096  # pairs a file; making so many takes seconds, and that is what a kill can cost
GEOMETRY = 1024  # samples whose trajectories are measured
HELD_OUT = 1000  # pairs that a reflow is not trained on, at most a tenth
SHOWN_PATHS, SHOWN_IMAGES, PATH_STEPS = 150, 10, 32
FIRST, PHASED = "1rf", "phased"
_PERCEPTUAL_WEIGHT = 1.0  # of each layer, as measured on digits
# the network of the distance, and that of rf++'s loss, which must not be of one kind with it
_JUDGE: dict[str, Any] = {"widths": (16, 32, 32, 64), "has_norms": False}
_EYE: dict[str, Any] = {"widths": (24, 24, 48, 96), "has_norms": True}


@dataclass(frozen=True)
class Key:
    """One network of a study."""

    seed: int
    recipe: str
    round: int

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.seed}-{self.recipe.replace('+', 'p')}-{self.round}"


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished round.

    Attributes:
        field: the flow.
        rows: what was measured.
        notes: what else is to be known: pairs, losses, gap.
        shown: trajectories (times, points, 2) or images (steps, images, ...), of the first seed.
    """

    field: Field
    rows: list[Row]
    notes: dict[str, Any]
    shown: Tensor | None


class FlowStudy:
    """The work of one run.

    Args:
        config: checked, not yet resolved.
        folder: of the run.
        progress: whether to show progress bars.
        first: what round 1 is called in rows.
        phases: of phased rectification, trained beside the rest from the first flow; 1 for none.
        beside: another study of the same data, whose feature networks are shared.

    Raises:
        UserError: if the data cannot be read, or does not fit the settings.
    """

    def __init__(
        self,
        config: FlowConfig,
        folder: Run,
        progress: bool,
        *,
        first: str = FIRST,
        phases: int = 1,
        beside: FlowStudy | None = None,
    ) -> None:
        settings.check(config)
        self.first, self.phases = first, phases
        self.seeds = seed_list(config.seeds, config.seed)
        many = config.samples or 5000
        transfer = load_transfer(
            config.data,
            config.source,
            seed=self.seeds[0],
            limit=config.limit,
            image_size=config.image_size,
            many=many,
        )
        self.config = settings.resolve(config, shape=transfer.target.shape)
        self.folder, self.progress = folder, progress
        self.process = accelerator(config.device)
        self._check(transfer)
        self.lookers: dict[int, tuple[Any, Any]] = beside.lookers if beside else {}
        self.distances: dict[int, Distance] = beside.distances if beside else {}

    def _check(self, transfer: Transfer) -> None:
        """Everything that can be known to fail, before anything is written."""
        is_image = transfer.target.is_image
        if self.config.conditional and not is_image:
            raise UserError("points have no class labels: leave out --conditional")
        if self.config.model == "mlp" and is_image:
            raise UserError("model mlp is for points: write --model resmlp, unet or dit for images")
        if self.config.model in ("unet", "dit") and not is_image:
            raise UserError(
                f"model {self.config.model} is for images: write --model mlp for points"
            )
        if self.config.source != "gaussian" and self.config.path != "straight":
            raise UserError(
                f"transfer between two sets is learnt on the straight path, got {self.config.path}"
            )
        if self.config.conditional and self.config.source != "gaussian":
            raise UserError("a conditional flow starts from noise: leave out --source")
        network = self.build(transfer, self.seeds[0])
        x = transfer.train[:2].to(next(network.parameters()).device)
        with torch.no_grad():
            network(x, x.new_zeros(len(x)))

    # --- networks ---

    def build(self, transfer: Transfer, seed: int) -> nn.Module:
        """A network with initial weights that `seed` decides."""
        return build_network(
            self.config.model,
            transfer.target.shape,
            transfer.target.classes if self.config.conditional else 0,
            seed=seed,
        )

    @cached_property
    def path(self) -> Any:
        """The path that flows are learnt on."""
        return settings.PATHS[self.config.path]

    def field(self, network: nn.Module) -> Field:
        """A network of this study as a velocity field."""
        predicts = flow.PREDICTIONS[self.config.predict]
        return Field(network.to(self.process.device).eval(), self.path, predicts)

    # --- the order of the work ---

    def keys(self, seed: int) -> Iterator[Key]:
        """The networks of one seed, in order."""
        yield Key(seed, self.first, 1)
        for number in range(2, self.config.rounds + 1):
            for recipe in settings.recipes(self.config):
                yield Key(seed, recipe, number)
        if self.phases > 1:
            yield Key(seed, PHASED, 2)
        if self.config.distil and self.config.rounds > 1:
            for recipe in settings.recipes(self.config):
                yield Key(seed, f"{recipe}+distil", self.config.rounds)

    def before(self, key: Key) -> Key:
        """The network that makes the pairs of this one, and whose weights it starts from."""
        if key.recipe.endswith("+distil"):
            return Key(key.seed, key.recipe.removesuffix("+distil"), key.round)
        return Key(key.seed, self.first if key.round == 2 else key.recipe, key.round - 1)

    def go_on(self) -> dict[Key, Trained]:
        """Do what is left to do; returns every network."""
        done: dict[Key, Trained] = {}
        for seed in self.seeds:
            transfer = self.transfer(seed)
            for key in self.keys(seed):
                done[key] = self.kept(key, transfer) or self.work(key, transfer, done)
        return done

    def transfer(self, seed: int) -> Transfer:
        """The data of one seed."""
        c = self.config
        assert c.samples is not None
        return load_transfer(
            c.data, c.source, seed=seed, limit=c.limit, image_size=c.image_size, many=c.samples
        )

    def kept(self, key: Key, transfer: Transfer) -> Trained | None:
        """A finished round of the run that is resumed."""
        saved = self.folder.store(f"round-{key.name}").load() if self.folder.resume else None
        if saved is None:
            return None
        network = self.build(transfer, key.seed)
        network.load_state_dict(saved["network"])
        return Trained(self.field(network), saved["rows"], saved["notes"], saved["shown"])

    def work(self, key: Key, transfer: Transfer, done: dict[Key, Trained]) -> Trained:
        """Train, measure and keep one round."""
        if key.round == 1:
            field, notes = self.train_first(key, transfer), dict[str, Any]()
        elif key.recipe == PHASED:
            field, notes = self.train_phased(key, transfer, done[self.before(key)].field)
        else:
            field, notes = self.train_on_pairs(key, transfer, done[self.before(key)].field)
        rows, measured = self.measure(key, field, transfer)
        shown = self.show(field, transfer) if key.seed == self.seeds[0] else None
        trained = Trained(field, rows, {**notes, **measured}, shown)
        state = field.network.state_dict()
        kept = {"network": state, "rows": rows, "notes": trained.notes, "shown": shown}
        self.folder.store(f"round-{key.name}").save(kept)
        for row in rows:
            self.folder.log({"event": "measured", **row})
        return trained

    # --- training ---

    def words(self, key: Key, what: str) -> str:
        """Before a progress bar."""
        return f"seed {key.seed} {key.recipe} {what}" if self.progress else ""

    def train_first(self, key: Key, transfer: Transfer) -> Field:
        """The first flow: source and target coupled as the settings say."""
        config = self.config
        source = transfer.coupling_source()
        coupling: Any = flow.Independent(source)
        if config.couple != "independent":
            kind = flow.Sinkhorn if config.couple == "sinkhorn" else flow.MinibatchOT
            coupling = kind(source)
        if config.couple == "class_ot":
            coupling = flow.WithinClass(coupling)
        objective = FlowMatching(
            coupling,
            self.path,
            flow.PREDICTIONS[config.predict],
            settings.TIMES[config.times],
            settings.LOSSES[config.loss](),
            config.label_drop if config.conditional else 0.0,
        )
        network = self.build(transfer, key.seed)
        self.fit(key, network, objective, self.data(transfer), is_first=True)
        return self.field(network)

    def data(self, transfer: Transfer) -> list[Tensor]:
        """What a batch of data holds: points, and classes for a conditional flow."""
        if not self.config.conditional:
            return [transfer.train]
        assert transfer.target.labels is not None
        return [transfer.train, transfer.target.labels]

    def fit(
        self,
        key: Key,
        network: nn.Module,
        objective: Objective,
        tensors: Sequence[Tensor],
        *,
        is_first: bool,
    ) -> None:
        """One training of this study."""
        config = settings.training(self.config, seed=key.seed, is_first=is_first)
        updates = self.config.updates if is_first else self.config.reflow_updates
        assert updates is not None
        assert self.config.batch_size is not None
        size = min(self.config.batch_size, len(tensors[0]))
        moved = [tensor.to(self.process.device) for tensor in tensors]
        part = settings.updates_an_epoch(updates)
        draws = Draws(moved, size=size, updates=part, seed=key.seed)
        store = self.folder.store(f"training-{key.name}")
        words = self.words(key, "training")
        fit(network, objective, draws, config, store=store, progress=words)

    def pairs(self, key: Key, transfer: Transfer, teacher: Field) -> tuple[Tensor, ...]:
        """What the last flow makes of its source."""
        config = self.config
        assert config.pairs is not None
        is_image = transfer.target.is_image
        name = "natural_euler" if is_image else "rk4"
        if not self.path.is_straight:
            name = "exponential2"  # of second order there, at one evaluation a step
        maker = self.before(key)
        assert isinstance(teacher.network, nn.Module)
        store = PairStore(
            self.folder.path / CHECKPOINT / f"pairs-{maker.name}",
            count=config.pairs,
            shard=SHARD,
            seed=1_000_000 * (key.seed + 1) + 1000 * key.round,
            identity={
                "model": flow.fingerprint(teacher.network),
                "steps": config.pair_steps,
                "solver": name,
            },
        )
        return flow.make_pairs(
            teacher,
            store,
            transfer.target.shape,
            steps=config.pair_steps,
            step=settings.SOLVERS[name],
            source=None if transfer.source is None else transfer.draw,
            classes=transfer.target.classes if config.conditional else 0,
            guidance=config.pair_guidance,
            device=self.process.device,
            progress=self.words(key, "pairs"),
        )

    def train_on_pairs(
        self, key: Key, transfer: Transfer, teacher: Field
    ) -> tuple[Field, dict[str, Any]]:
        """A reflow, or a distillation, from the last flow's weights."""
        is_distilled = key.recipe.endswith("+distil")
        pairs = self.pairs(key, transfer, teacher)
        held = min(HELD_OUT, len(pairs[0]) // 10)
        held_out, kept = [p[:held] for p in pairs], [p[held:] for p in pairs]
        if self.config.inverted and transfer.source is None:
            kept = self.with_inverted(kept, transfer, teacher)
        objective = self.objective(key, transfer)
        network = self.build(transfer, key.seed)
        network.load_state_dict(teacher.network.state_dict())
        self.fit(key, network, objective, kept, is_first=False)
        field = self.field(network)
        checked = flow.check_pairs(*pairs[:2])
        distance = self.distance(transfer, key.seed)
        notes = {
            "pairs": len(pairs[0]),
            "pairs_distance": distance.measure(pairs[1][: self.config.samples]),
            "source_mean": checked.mean,
            "source_deviation": checked.deviation,
            "duplicates": checked.duplicates,
            "oriented": checked.is_oriented if transfer.source is None else None,
            "loss": self.loss(field, objective, kept, key.seed),
            "held_out_loss": self.loss(field, objective, held_out, key.seed),
            "one_step_only": is_distilled,
        }
        return field, notes

    def train_phased(
        self, key: Key, transfer: Transfer, teacher: Field
    ) -> tuple[Field, dict[str, Any]]:
        """A flow that is first-order in each phase alone; it needs no pairs."""
        objective = flow.Phased(
            teacher,
            self.phases,
            guidance=self.config.pair_guidance,
            label_drop=self.config.label_drop if self.config.conditional else 0.0,
        )
        network = self.build(transfer, key.seed)
        network.load_state_dict(teacher.network.state_dict())
        self.fit(key, network, objective, self.data(transfer), is_first=False)
        return self.field(network), {"phases": self.phases}

    def with_inverted(
        self, pairs: Sequence[Tensor], transfer: Transfer, teacher: Field
    ) -> list[Tensor]:
        """The pairs, with real data and the noise that the last flow sends there."""
        share = self.config.inverted
        wanted = round(len(pairs[0]) * share / (1 - share))
        rows = torch.arange(wanted) % len(transfer.train)
        labels = transfer.target.labels
        found = transfer.train[: min(wanted, len(transfer.train))].to(self.process.device)
        known = teacher
        extra = []
        if self.config.conditional:
            assert labels is not None
            extra = [labels[rows]]
            parts = labels[: len(found)].to(self.process.device)
            known = teacher.given(parts)
        noise = torch.cat(
            [
                flow.invert(
                    known.given(known.labels[at : at + SHARD])
                    if known.labels is not None
                    else known,
                    found[at : at + SHARD],
                    steps=self.config.pair_steps,
                )
                for at in range(0, len(found), SHARD)
            ]
        ).cpu()
        added = [noise[rows], transfer.train[rows], *extra]
        return [torch.cat([old, new]) for old, new in zip(pairs, added, strict=True)]

    def objective(self, key: Key, transfer: Transfer) -> FlowMatching:
        """How a round on pairs is trained."""
        config = self.config
        if key.recipe.startswith("2rf++"):
            times = settings.TIMES[config.reflow_times or "u_shaped"]
            terms = self.rfpp_terms(key.seed, transfer)
        else:
            times = settings.TIMES[config.reflow_times or "uniform"]
            terms = settings.LOSSES[config.reflow_loss or config.loss]()
        if key.recipe.endswith("+distil"):
            times = flow.Discrete(1)
        drop = config.label_drop if config.conditional else 0.0
        predicts = flow.PREDICTIONS[config.predict]
        return FlowMatching(None, self.path, predicts, times, terms, drop)

    def rfpp_terms(self, seed: int, transfer: Transfer) -> tuple[Term, ...]:
        """rf++'s loss; perceptual where there are images to look at."""
        if not transfer.target.is_image:
            return flow.rfpp_terms(None)
        _, eye = self.look(seed, transfer)
        blocks = eye.network.to(self.process.device).blocks
        count = len(blocks(transfer.train[:1].to(self.process.device)))
        perceptual = flow.Perceptual(blocks, weights=[_PERCEPTUAL_WEIGHT] * count)
        return flow.rfpp_terms(perceptual)

    @torch.no_grad()
    def loss(
        self, field: Field, objective: FlowMatching, pairs: Sequence[Tensor], seed: int
    ) -> float:
        """The objective on some pairs, in evaluation mode."""
        rows = [p[:HELD_OUT].to(self.process.device) for p in pairs]
        assert isinstance(field.network, nn.Module)
        with torch.random.fork_rng(), evaluating(field.network):
            torch.manual_seed(seed)
            return float(objective(field.network, tuple(rows)))

    # --- measuring ---

    def look(self, seed: int, transfer: Transfer) -> tuple[Any, Any]:
        """The network of the distance, and another one, of other widths and seed, for the loss."""
        if seed not in self.lookers:
            words = f"seed {seed} features" if self.progress else ""
            self.lookers[seed] = tuple(  # type: ignore[assignment]
                train_features(
                    transfer.target,
                    **kind,
                    seed=seed + offset,
                    device=self.config.device,
                    progress=words,
                )
                for kind, offset in ((_JUDGE, 0), (_EYE, 1000))
            )
        return self.lookers[seed]

    def distance(self, transfer: Transfer, seed: int) -> Distance:
        """How samples are compared with the data."""
        count = self.config.samples
        assert count is not None
        if seed not in self.distances:
            self.distances[seed] = (
                image_distance(transfer, self.look(seed, transfer)[0], count)
                if transfer.target.is_image
                else point_distance(transfer, count, seed)
            )
        return self.distances[seed]

    def solvers(self, gap: float, number: int) -> Iterator[tuple[str, int]]:
        """The solvers and numbers of steps that a flow is measured with."""
        first = "euler" if self.path.is_straight else "natural_euler"
        chosen = first if self.config.solver == "auto" else self.config.solver
        for steps in self.config.steps:
            yield chosen, steps
            safe = gap < settings.RENOISE_GAP and steps in settings.RENOISE_STEPS
            if self.config.solver == "auto" and number > 1 and safe:
                yield "renoise", steps

    def measure(
        self, key: Key, field: Field, transfer: Transfer
    ) -> tuple[list[Row], dict[str, Any]]:
        """Geometry, and distance at each number of steps, of one flow."""
        config, device = self.config, self.process.device
        assert config.samples is not None
        distance = self.distance(transfer, key.seed)
        held = 900_000_000 + key.seed  # source points that no pair begins at
        x0 = transfer.draw(held, config.samples, held_out=True).to(device)
        labels = self.drawn_labels(transfer, config.samples, key.seed)
        few = x0[:GEOMETRY]
        known = field if labels is None else field.given(labels[:GEOMETRY], config.guidance)
        step: Any = flow.euler if self.path.is_straight else flow.natural_euler
        bent = flow.straightness(known, self.path.start(few), step=step)
        gap = flow.first_order_gap(known, few)
        cost = bent.total / bent.relative if bent.relative else float("nan")
        rows = []
        for solver, steps in self.solvers(gap, key.round):
            samples, evaluations = flow.generate(
                field,
                x0,
                steps=steps,
                step=settings.SOLVERS[solver],
                labels=labels,
                guidance=config.guidance,
            )
            rows.append(
                {
                    "seed": key.seed,
                    "round": key.round,
                    "recipe": key.recipe,
                    "solver": solver,
                    "steps": steps,
                    "distance": distance.measure(samples),
                    "distance_name": distance.name,
                    "straightness": bent.total,
                    "transport_cost": cost,
                    "first_order_gap": gap,
                    "evaluations": evaluations,
                }
            )
        notes = {
            "straightness_relative": bent.relative,
            "first_order_gap": gap,
            "has_diverged": not math.isfinite(bent.total),
            "terminal_gain": flow.terminal_gain(self.path, field.predicts),
            "floor": distance.floor,
            "protocol": distance.protocol,
        }
        if not transfer.target.is_image and key.round == 1:
            count = min(config.samples, len(transfer.reference))
            ends, reference = x0[:count].cpu(), transfer.reference[:count]
            notes["optimal_cost"] = flow.optimal_cost(ends, reference)
            notes["independent_cost"] = flow.transport_cost(ends, reference)
        return rows, notes

    def drawn_labels(self, transfer: Transfer, count: int, seed: int) -> Tensor | None:
        """Classes to generate, each alike; None for a flow without."""
        if not self.config.conditional:
            return None
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(transfer.target.classes, (count,), generator=generator)
        return drawn.to(self.process.device)

    def show(self, field: Field, transfer: Transfer) -> Tensor:
        """What the report draws: paths of points, or the same images in every number of steps."""
        device = self.process.device
        count = SHOWN_IMAGES if transfer.target.is_image else SHOWN_PATHS
        x0 = transfer.draw(900_000_000 + self.seeds[0], count, held_out=True).to(device)
        if not transfer.target.is_image:
            if transfer.target.shape != (2,):
                return torch.empty(0)
            step: Any = flow.euler if self.path.is_straight else flow.natural_euler
            times = flow.uniform_grid(PATH_STEPS).to(x0)
            with torch.no_grad():
                states = flow.integrate(field, self.path.start(x0), times, step)
            return torch.stack(list(states)).cpu()
        labels = self.drawn_labels(transfer, count, self.seeds[0])
        step = flow.euler if self.path.is_straight else flow.natural_euler
        rows = [
            flow.generate(
                field, x0, steps=n, step=step, labels=labels, guidance=self.config.guidance
            )[0]
            for n in self.config.steps
        ]
        return torch.stack([x0, *rows]).cpu()


def build_network(model: str, shape: tuple[int, ...], classes: int, *, seed: int) -> nn.Module:
    """A velocity network by name.

    Args:
        model: mlp, resmlp, unet or dit.
        shape: of one point or image.
        classes: for a conditional network; 0 for none.
        seed: of its initial weights.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if model == "mlp":
            return models.VelocityMLP(shape[0])
        if model == "resmlp":
            return models.VelocityResMLP(shape, classes=classes)
        if model == "dit":
            return models.DiT(shape, patch=2 if shape[-1] % 2 == 0 else 1, classes=classes)
        halvings = min(2, (shape[-1] & -shape[-1]).bit_length() - 1)
        widths = (64, 128, 128)[: halvings + 1]
        return models.UNet(shape[0], widths=widths, attention=(halvings,), classes=classes)
