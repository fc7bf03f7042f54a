"""The work of `rectified prune`: all arms of all seeds, trained together where that is faster.

Arms of a seed share its dense network. Each arm is a plan (`rectified.pruning.cycle.plan`) that
asks for its trainings; plans run in step, so that their networks can be trained as one module.
After every step the checkpoint holds the rows found and each arm's last cycle, to go on from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from rectified.data import Batches, ImageData, load_images
from rectified.jobs import prune_report
from rectified.jobs.classifiers import (
    build,
    check_outputs,
    plain_batches,
    training_batches,
)
from rectified.jobs.deploy import Architecture, Deployment, deploy
from rectified.jobs.options import seed_list
from rectified.jobs.prune_settings import PruneConfig, fit_config, score_of, stages_of
from rectified.jobs.prune_training import Request, train_all
from rectified.pruning.activate import activation_scope, norms_before_relu
from rectified.pruning.cycle import Cycle, Training, plan
from rectified.pruning.dead_neurons import DeadNeurons, dead_neuron_rate
from rectified.pruning.masks import full_masks
from rectified.runs import Run
from rectified.statistics import interval
from rectified.training import (
    accelerator,
    classification,
    classification_quality,
    evaluate,
    everyone,
)

SCORE_BATCHES = 10  # that gradient scores may look at


@dataclass(frozen=True, order=True)
class Arm:
    """One line of the study."""

    seed: int
    score: str
    ap: str

    @property
    def key(self) -> str:
        """Its name in a checkpoint."""
        return f"{self.seed}/{self.score}/{self.ap}"


@dataclass(frozen=True)
class SeedData:
    """What the arms of one seed share."""

    images: ImageData
    training: Batches
    validation: Batches
    test: Batches
    neurons: Batches


@dataclass
class Found:
    """What the study has found so far; kept in the checkpoint."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shortfalls: list[dict[str, Any]] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    cycles: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: dict[str, Any] | None = None


class Study:
    """The work of one `run`, group of seeds by group of seeds."""

    def __init__(self, config: PruneConfig, folder: Run, progress: bool) -> None:
        self.config = config
        self.folder = folder
        self.progress = progress
        self.device = accelerator(config.device).device
        self.layers: Sequence[str] | None = None
        self.dense_of: dict[Arm, Arm] = {}
        self.store = folder.store("study")
        saved = self.store.load() if folder.resume else None
        self.found = Found(**saved) if saved else Found()

    def check(self) -> None:
        """Everything that can be known to fail, before anything is written."""
        seed = seed_list(self.config.seeds, self.config.seed)[0]
        data = self.data(seed)
        model = self.model(data, seed)
        masks = full_masks(model)
        example = data.images.train.select(torch.arange(min(64, len(data.images.train))))
        inputs, _ = next(iter(plain_batches(example, data.images, device=self.device)))
        check_outputs(model, inputs, len(data.images.classes))
        dead_neuron_rate(model, [(inputs,)], threshold=self.config.dead_threshold)
        if set(self.config.ap) - {"off", "off_pro"} and self.config.fidelity == "exact":
            if self.config.ap_scope == "relu":
                self.layers = activation_scope(model, inputs, masks)
            self.warn_about_norms(norms_before_relu(model, inputs), len(masks))

    def warn_about_norms(self, normed: Sequence[str], count: int) -> None:
        """AP's argument fails where a norm removes the shift again; say so once."""
        note = (
            f"a norm stands between weight and ReLU in {len(normed)} of {count} layers: it removes "
            "the shift that AP relies on, and AP can raise the dead neuron rate there"
        )
        if normed and note not in self.found.notes:
            self.found.notes.append(note)

    def groups(self, seeds: Sequence[int]) -> Iterator[list[int]]:
        """Seeds whose networks are trained together."""
        arms = len(self.config.score) * len(self.config.ap)
        assert self.config.together is not None
        size = max(1, self.config.together // arms)
        left = [seed for seed in seeds if seed not in self.found.done]
        for first in range(0, len(left), size):
            yield left[first : first + size]

    def data(self, seed: int) -> SeedData:
        """The split, order and augmentation that a seed decides."""
        config = self.config
        images = load_images(config.data, seed=seed, limit=config.limit)
        augment = images.channels == 3 if config.augment is None else config.augment
        assert config.batch_size is not None
        seen = images.train.select(torch.arange(min(config.dead_examples, len(images.train))))
        plain = {"data": images, "device": self.device}
        return SeedData(
            images,
            training_batches(
                images, config.batch_size, seed=seed, augment=augment, device=self.device
            ),
            plain_batches(images.validation, **plain),
            plain_batches(images.test, **plain),
            plain_batches(seen, **plain),
        )

    def model(self, data: SeedData, seed: int) -> nn.Module:
        """The network with the initial weights that a seed decides."""
        norm = self.config.norm == "batch"
        made = build(
            self.config.model, data.images, seed=seed, norm=norm, weights=self.config.weights
        )
        return made.to(self.device)

    def run_group(self, seeds: Sequence[int]) -> None:
        """All arms of these seeds: first the dense trainings that they share, then the cycles."""
        config = self.config
        data = {seed: self.data(seed) for seed in seeds}
        arms = [Arm(s, score, ap) for s in seeds for score in config.score for ap in config.ap]
        self.dense_of = {arm: self.dense(arm) for arm in arms}
        for part in self.parts(list(dict.fromkeys(self.dense_of.values()))):
            self.advance({arm: self.plan(arm, data[arm.seed]) for arm in part}, data)
        for part in self.parts([arm for arm in arms if arm.key not in self.found.finished]):
            self.advance({arm: self.plan_after(arm, data[arm.seed]) for arm in part}, data)
        self.found.done += seeds
        self.found.cycles, self.found.finished = {}, []
        self.store.save(vars(self.found))

    def parts(self, arms: Sequence[Arm]) -> Iterator[Sequence[Arm]]:
        """Arms that run in step."""
        size = self.config.together
        assert size is not None
        for first in range(0, len(arms), size):
            yield arms[first : first + size]

    def dense(self, arm: Arm) -> Arm:
        """Whom `arm` shares the training of the dense network with; it is not pruned."""
        watches = score_of(arm.score, arm.seed).watches
        return Arm(arm.seed, arm.score if watches else self.config.score[0], "dense")

    def plan(self, arm: Arm, data: SeedData) -> Plan:
        """The plan of a dense network: cycle 0, unless the checkpoint has it."""
        if arm.key in self.found.cycles:
            return iter(())
        return self.start(arm, data, cycles=0)

    def plan_after(self, arm: Arm, data: SeedData) -> Plan:
        """The plan of an arm, from where the checkpoint has it."""
        dense = self.dense_of[arm]
        key = arm.key if arm.key in self.found.cycles else dense.key
        after = _to(self.found.cycles[key], self.device)
        if key == dense.key and dense.score != arm.score:
            after["memory"] = ()  # it is another score's
        return self.start(arm, data, cycles=self.config.cycles, after=Cycle(**after))

    def start(self, arm: Arm, data: SeedData, **where: Any) -> Plan:
        """A plan for this arm's network."""
        config = self.config
        ap = "off" if arm.ap == "dense" else arm.ap
        seen = [batch for _, batch in zip(range(SCORE_BATCHES), data.training, strict=False)]
        return plan(
            self.model(data, arm.seed),
            stages_of(config, arm.score, ap, arm.seed, self.layers),
            rewind=config.rewind,
            batches=seen,
            objective=classification,
            pretrained=config.weights is not None,
            group=everyone(config.device),
            **where,
        )

    def advance(self, plans: Mapping[Arm, Plan], data: Mapping[int, SeedData]) -> None:
        """Run plans in step: train what they ask for, measure what they give, keep both."""
        waiting = self.step(plans, data, seconds=0.0)
        while waiting:
            started = time.perf_counter()
            self.train(waiting, data)
            plans = {arm: plans[arm] for arm in waiting}
            waiting = self.step(plans, data, (time.perf_counter() - started) / len(waiting))
            self.store.save(vars(self.found))

    def step(
        self, plans: Mapping[Arm, Plan], data: Mapping[int, SeedData], seconds: float
    ) -> dict[Arm, Training]:
        """Take every plan to its next training; `seconds` is what its last one took."""
        waiting = {}
        for arm, events in plans.items():
            for event in events:
                if isinstance(event, Training):
                    waiting[arm] = event
                    break
                self.record(arm, event, data[arm.seed], seconds)
        return waiting

    def train(self, waiting: Mapping[Arm, Training], data: Mapping[int, SeedData]) -> None:
        """Do the trainings that plans wait for."""
        first = next(iter(waiting))
        words = f"{first.score} {first.ap}"
        words += f" seed {first.seed}" if len(waiting) == 1 else f", {len(waiting)} networks"
        # several processes share every batch along its first axis, which several networks need
        alone = accelerator(self.config.device).num_processes > 1
        train_all(
            [Request(asked, data[arm.seed].training, arm.seed) for arm, asked in waiting.items()],
            fit_config(self.config),
            together=1 if alone else self.config.together or 1,
            store=self.folder.store("training"),
            progress=words if self.progress else "",
        )

    def record(self, arm: Arm, cycle: Cycle, data: SeedData, seconds: float) -> None:
        """Measure a network at the end of a cycle; a dense one counts for all arms it is for."""
        begin = time.perf_counter()
        model = self.model(data, arm.seed)
        model.load_state_dict(cycle.trained)
        dead = dead_neuron_rate(
            model, data.neurons, masks=cycle.masks, threshold=self.config.dead_threshold
        )
        measured = {
            "cycle": cycle.number,
            "density": cycle.density,
            **self.quality(model, data.test),
            "dynamic_dnr": dead.dynamic(),
            "static_dnr": dead.static(),
        }
        last = cycle.number == self.config.cycles
        validation = self.quality(model, data.validation)["accuracy"] if last else None
        seconds += time.perf_counter() - begin
        for one in [arm] if arm.ap != "dense" else self.dense_for(arm):
            row = {"seed": one.seed, "score": one.score, "ap": one.ap}
            self.found.rows.append({**row, **measured, "seconds": seconds})
            self.folder.log({"event": "cycle", **row, **measured, "validation": validation})
            if validation is not None:
                self.found.layers += layer_rows(one, cycle, dead)
                self.keep_best(one, cycle, validation)
        self.note_shortfall(arm, cycle)
        self.found.cycles[arm.key] = {f.name: getattr(cycle, f.name) for f in fields(cycle)}
        if last and arm.ap != "dense":
            self.found.finished.append(arm.key)
            del self.found.cycles[arm.key]

    def dense_for(self, dense: Arm) -> list[Arm]:
        """The arms that share this dense network."""
        return [arm for arm, its in self.dense_of.items() if its == dense]

    def quality(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Accuracy and loss on a split."""
        found = evaluate(model, classification_quality, batches, device=self.config.device)
        return {"accuracy": found["accuracy"], "loss": found["loss"]}

    def keep_best(self, arm: Arm, cycle: Cycle, validation: float) -> None:
        """Keep the sparsest networks' best, by validation accuracy: it is what is saved."""
        if self.found.best is None or validation > self.found.best["validation"]:
            about = {"seed": arm.seed, "score": arm.score, "ap": arm.ap}
            self.found.best = {
                **about,
                "validation": validation,
                "density": cycle.density,
                "state": cycle.trained,
            }

    def note_shortfall(self, arm: Arm, cycle: Cycle) -> None:
        """Say when AP (or a control) had too few candidates left."""
        missing = sum(cycle.missing)
        if missing:
            self.found.shortfalls.append(
                {"score": arm.score, "ap": arm.ap, "cycle": cycle.number, "missing": missing}
            )

    def place(self, row: Mapping[str, Any]) -> tuple[int, ...]:
        """Where a row stands: scores and arms in the order in which they were asked for."""
        config = self.config
        score, ap = config.score.index(row["score"]), config.ap.index(row["ap"])
        return score, ap, row["seed"], row["cycle"]

    def finish(self, facts: Mapping[str, Any]) -> str:
        """Write weights, tables, page and results."""
        config, found = asdict(self.config), self.found
        rows = sorted(found.rows, key=self.place)
        summary = summarise(rows)
        assert found.best is not None
        about = {k: str(v) for k, v in found.best.items() if k != "state"}
        self.folder.write_weights(found.best["state"], {"model": self.config.model, **about})
        details: dict[str, Any] = {
            "layers": found.layers,
            "notes": found.notes,
            "shortfalls": found.shortfalls,
            "saved": about,
        }
        results: dict[str, Any] = {
            "verb": "prune",
            "config": config,
            "environment": dict(facts),
            "rows": rows,
            "summary": summary,
        }
        if self.config.deploy and self.folder.writer:
            deployment = self.deploy(found.best)
            results["deploy"] = deployment.sizes
            details["deployment"] = vars(deployment)
        self.folder.write_json("details.json", details)
        self.folder.write_text("report.html", prune_report.page(results, details))
        self.folder.write_results(**results)
        return prune_report.text(results, details)

    def deploy(self, best: Mapping[str, Any]) -> Deployment:
        """Make the saved network lean."""
        data = self.data(best["seed"])
        network = self.model(data, best["seed"])
        network.load_state_dict(best["state"])
        inputs, _ = next(iter(data.test))
        never_fires = None
        if self.config.drop_never_fires:
            dead = dead_neuron_rate(network, data.neurons)
            never_fires = {site.name: site.never_fires for site in dead.sites}
            inputs, _ = next(iter(data.neurons))  # the claim is about these
        images = data.images
        architecture = Architecture(
            self.config.model,
            len(images.classes),
            images.channels,
            (images.height, images.width),
            self.config.norm == "batch",
        )
        found = deploy(network, architecture, inputs, self.folder, never_fires=never_fires)
        if never_fires is not None:
            found.notes.append(
                f"neurons that never fired on {dead.examples} training examples were removed: on "
                "other data they might have fired"
            )
        return found


Plan = Iterator[Training | Cycle]


def _to(tree: Any, device: torch.device) -> Any:
    """The same tree with its tensors on `device`, and lists as tuples."""
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, Mapping):
        return {key: _to(value, device) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return tuple(_to(value, device) for value in tree)
    return tree


def layer_rows(arm: Arm, cycle: Cycle, dead: DeadNeurons) -> list[dict[str, Any]]:
    """What is kept in every layer, and how dead every site is, at the end of an arm."""
    about = {"seed": arm.seed, "score": arm.score, "ap": arm.ap}
    kept = [
        {
            **about,
            "kind": "layer",
            "name": name,
            "weights": mask.numel(),
            "kept": int(mask.sum()),
        }
        for name, mask in cycle.masks.items()
    ]
    sites = [
        {
            **about,
            "kind": "site",
            "name": name,
            "neurons": one.neurons,
            "dynamic": one.dynamic(),
            "never_fires": one.static(),
            "masked": one.static("masked"),
            "constant": one.constant,
        }
        for name, one in dead.by_site().items()
    ]
    return kept + sites


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, a line an arm and cycle."""
    points: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        points.setdefault((row["score"], row["ap"], row["cycle"]), []).append(row)
    summary = []
    for (score, ap, cycle), members in points.items():
        accuracy = interval(row["accuracy"] for row in members)
        summary.append(
            {
                "score": score,
                "ap": ap,
                "cycle": cycle,
                "density": interval(row["density"] for row in members).mean,
                "accuracy_mean": accuracy.mean,
                "accuracy_ci95": accuracy.half_width,
                "dynamic_dnr_mean": interval(row["dynamic_dnr"] for row in members).mean,
                "n": len(members),
            }
        )
    return summary
