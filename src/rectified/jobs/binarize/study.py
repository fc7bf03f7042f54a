"""The work of `rectified binarize`: every estimator with every seed; then the best one on bits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from rectified.errors import UserError
from rectified.jobs.binarize.packing import Packing, pack_and_measure
from rectified.jobs.binarize.report import summarise, verdicts
from rectified.jobs.binarize.settings import BinarizeConfig, Plan, resolve
from rectified.jobs.binarize.training import (
    Task,
    Trained,
    converted,
    make_network,
    train,
    train_alone,
)
from rectified.jobs.classifiers import check_outputs, load_weights, plain_batches
from rectified.jobs.job import Context, Findings, Results
from rectified.jobs.values import from_settings
from rectified.runs import WEIGHTS
from rectified.training import accelerator


@dataclass
class Progress:
    """The work that is done; kept in the checkpoint, arm by arm."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    best: dict[str, Any] | None = None


def check(plan: Plan) -> Plan:
    """Try a batch of the data through the network of every arm.

    Raises:
        UserError: if data or network cannot be used.
    """
    device, seed = accelerator(plan.config.device).device, plan.seeds[0]
    images = plan.data(seed)
    example = images.train.select(torch.arange(min(64, len(images.train))))
    inputs, _ = next(iter(plain_batches(example, images, device=device)))
    for estimator, arm in plan.arms.items():
        model = make_network(plan, images, estimator, seed).to(device)
        check_outputs(model, inputs, len(images.classes))
        if arm.weights is not None:
            plan = replace(plan, converted=converted(model))
    return plan


def run(plan: Plan, context: Context) -> Findings:
    """Train what is left, and keep each arm when it is done."""
    store = context.folder.store("study")
    saved = store.load() if context.folder.resume else None
    state = Progress(**(saved or {}))
    left = [task for task in tasks(plan, context) if task.key not in state.done]
    workers = min(workers_of(plan), len(left))
    for task, trained in _in_turn(left) if workers < 2 else _at_once(left, workers):
        keep(plan, state, task, trained, context)
        store.save(vars(state))
        if context.folder.writer:
            task.store.unlink(missing_ok=True)
        if context.progress:
            print(f"{task.key}: {trained.rows[-1]['accuracy']:.2%}", flush=True)
    return findings(plan, state, context)


def tasks(plan: Plan, context: Context) -> Iterator[Task]:
    """Seed by seed, so that an interrupted study compares whole seeds."""
    for seed in plan.seeds:
        for estimator in plan.arms:
            store = context.folder.store(f"{estimator}-{seed}")
            words = context.words(f"{estimator} seed {seed}")
            yield Task(
                plan.config,
                plan.source,
                estimator,
                seed,
                store.path,
                context.folder.writer,
                words,
            )


def workers_of(plan: Plan) -> int:
    """The number of trainings that run at a time."""
    process = accelerator(plan.config.device)
    if process.device.type != "cpu" or process.num_processes > 1:
        return 1  # the device is shared, or the processes are there already
    if plan.config.workers is not None:
        return plan.config.workers
    # a process takes seconds to start, which small networks do not pay for
    return (os.cpu_count() or 1) if plan.network.channels_last else 1


def keep(plan: Plan, state: Progress, task: Task, trained: Trained, context: Context) -> None:
    """Add a finished arm."""
    state.rows += trained.rows
    state.layers += trained.layers
    state.done.append(task.key)
    for row in trained.rows:
        context.folder.log({"event": "epoch", **row})
    is_binary = plan.arms[task.estimator].weights is not None
    if is_binary and not (state.best and state.best["validation"] >= trained.validation):
        state.best = {
            "estimator": task.estimator,
            "seed": task.seed,
            "validation": trained.validation,
            "state": trained.model,
        }


def findings(plan: Plan, state: Progress, context: Context) -> Findings:
    """Rows in the order of the arms; weights and bits of the best network."""
    names = list(plan.arms)

    def place(row: Mapping[str, Any]) -> tuple[int, ...]:
        return names.index(row["estimator"]), row["seed"], row["epoch"]

    rows = sorted(state.rows, key=place)
    more: dict[str, Any] = {}
    details: dict[str, Any] = {
        "layers": sorted(state.layers, key=place),
        "converted": plan.converted,
    }
    if state.best is not None:
        about = {key: str(value) for key, value in state.best.items() if key != "state"}
        details["saved"] = about
        context.folder.write_weights(state.best["state"], {"model": plan.config.model, **about})
        if plan.config.pack and context.folder.writer:
            packing = packed(plan, state.best, context)
            more["pack"], details["packing"] = packing.sizes, vars(packing)
    return Findings(rows, summarise(rows), verdicts(rows), more, details)


def packed(plan: Plan, best: Mapping[str, Any], context: Context) -> Packing:
    """The saved network on bits."""
    images = plan.data(best["seed"])
    model = make_network(plan, images, best["estimator"], best["seed"])
    model.load_state_dict(best["state"])
    inputs, _ = next(iter(plain_batches(images.test, images, device=torch.device("cpu"))))
    return pack_and_measure(model, inputs, context.folder)


def network(results: Results) -> nn.Module:
    """The best network of a run, in floating point.

    Raises:
        UserError: if the run trained none with 1-bit layers, or its data are gone.
    """
    if "saved" not in results.details:
        raise UserError(f"{results.folder} has no network with 1-bit layers")
    plan = resolve(from_settings(BinarizeConfig, results.settings, source=str(results.folder)))
    saved = results.details["saved"]
    seed = int(saved["seed"])
    model = make_network(plan, plan.data(seed), saved["estimator"], seed)
    load_weights(model, results.folder / WEIGHTS)
    return model.eval()


def _in_turn(tasks: Sequence[Task]) -> Iterator[tuple[Task, Trained]]:
    for task in tasks:
        yield task, train(task)


def _at_once(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Trained]]:
    """Several processes of one thread each: faster than the threads of one (docs/performance)."""
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        yield from Parallel(return_as="generator_unordered", batch_size=1)(
            delayed(train_alone)(task) for task in tasks
        )
