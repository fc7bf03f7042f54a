"""`rectified flow`: learn a flow between two sets, straighten it, generate in few steps."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rectified import flow
from rectified.errors import UserError
from rectified.files import check_shapes
from rectified.flow import Field
from rectified.jobs import flow_report, flow_settings
from rectified.jobs.flow_settings import DEFAULT as DEFAULT
from rectified.jobs.flow_settings import FlowConfig
from rectified.jobs.flow_study import FlowStudy, Key, Trained, build_network
from rectified.jobs.options import seed_list
from rectified.jobs.pictures import save_grid, save_points
from rectified.runs import Run, read_results

WEIGHTS, DISTILLED, FIRST_WEIGHTS = (
    "model.safetensors",
    "distilled.safetensors",
    "first.safetensors",
)


_FILLED = ("model", "steps")  # settings that are filled in though they are not None
_PICTURED = 256  # images in samples.png


def run(config: FlowConfig, folder: Run, facts: Mapping[str, Any], progress: bool) -> str:
    """Do the study and write its folder.

    Args:
        config: the settings; what is left open is resolved.
        folder: where the results go; nothing is written before the settings prove possible.
        facts: the environment, for the record.
        progress: whether to show progress bars.

    Returns:
        A short text with what was found.
    """
    return run_studies("flow", [FlowStudy(config, folder, progress)], asdict(config), facts)


def run_studies(
    verb: str, studies: Sequence[FlowStudy], settings: Mapping[str, Any], facts: Mapping[str, Any]
) -> str:
    """Begin, do and write studies that share a folder, for `flow` and `diffusion`.

    Args:
        verb: whose results these are.
        studies: not yet begun; the first is what the run is about, others are its controls.
        settings: of the verb, for config.yaml.
        facts: the environment.
    """
    study = studies[0]
    filled = {
        name: getattr(study.config, name, value) if value is None or name in _FILLED else value
        for name, value in settings.items()
    }
    study.folder.begin(verb, filled, facts)
    if study.progress:  # what is known at once, while it can be stopped at no cost
        for words in gain_warnings(study):
            print(f"rectified: {words}", file=sys.stderr)
    done: dict[Key, Trained] = {}
    for one in studies:
        done |= one.go_on()
    results = _results(verb, study, done, filled, facts)
    details = {"shown": _shown(study, done)}
    _write_networks(study, done)
    _write_samples(study, done)
    study.folder.write_json("details.json", details)
    study.folder.write_text("report.html", flow_report.page(results, details))
    study.folder.write_results(**results)
    return flow_report.text(results)


def _results(
    verb: str,
    study: FlowStudy,
    done: Mapping[Key, Trained],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    rows = [row for trained in done.values() for row in trained.rows]
    notes = {
        f"seed {key.seed}, {key.recipe}, round {key.round}": {
            "recipe": key.recipe,
            "round": key.round,
            "seed": key.seed,
            **trained.notes,
        }
        for key, trained in done.items()
    }
    return {
        "verb": verb,
        "config": dict(settings),
        "environment": dict(facts),
        "rows": rows,
        "summary": flow_report.summarise(rows),
        "notes": notes,
        "warnings": warnings(study, rows, notes),
    }


def warnings(
    study: FlowStudy, rows: list[dict[str, Any]], notes: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What a user should know before trusting the figures."""
    said = gain_warnings(study)
    solver = study.config.solver
    for name, note in notes.items():
        if solver == "renoise" and note["first_order_gap"] > flow_settings.RENOISE_GAP:
            said.append(
                f"renoise is no consistent solver on a flow that is not first-order: {name} has "
                f"gap {note['first_order_gap']:.3g}, above {flow_settings.RENOISE_GAP:g}."
            )
        if note.get("oriented") is False:
            said.append(f"The pairs of {name} look exchanged: x1 is nearer to noise than x0.")
        if note["has_diverged"]:
            said.append(f"{name} has diverged: its samples grow without bound.")
    if solver == "renoise" and max(study.config.steps) > max(flow_settings.RENOISE_STEPS):
        said.append("renoise grows worse with more than 8 steps.")
    return said


def gain_warnings(study: FlowStudy) -> list[str]:
    """Whether the first step of what is learnt is ill-conditioned."""
    gain = flow.gain_warning(study.path, flow.PREDICTIONS[study.config.predict])
    return [f"Path {study.config.path}, {gain}."] if gain else []


def _last(study: FlowStudy, suffix: str = "") -> Key:
    """The network that the run is about: of the first seed, the named recipe, the last round."""
    if study.config.rounds == 1:
        return Key(study.seeds[0], study.first, 1)
    return Key(study.seeds[0], study.config.recipe[0] + suffix, study.config.rounds)


def _write_networks(study: FlowStudy, done: Mapping[Key, Trained]) -> None:
    transfer = study.transfer(study.seeds[0])
    about = {
        "model": study.config.model,
        "shape": ",".join(map(str, transfer.target.shape)),
        "classes": str(transfer.target.classes if study.config.conditional else 0),
        "path": study.config.path,
        "predict": study.config.predict,
        "source": study.config.source,
        "mean": ",".join(repr(float(v)) for v in transfer.mean),
        "deviation": ",".join(repr(float(v)) for v in transfer.deviation),
    }
    files = {WEIGHTS: _last(study), FIRST_WEIGHTS: Key(study.seeds[0], study.first, 1)}
    if study.config.distil and study.config.rounds > 1:
        files[DISTILLED] = _last(study, "+distil")
    for name, key in files.items():
        state = done[key].field.network.state_dict()
        study.folder.write_weights(state, {**about, "recipe": key.recipe}, name)


def _write_samples(study: FlowStudy, done: Mapping[Key, Trained]) -> None:
    """samples.png: what the run's network makes of noise in the fewest steps that were asked."""
    if not study.folder.writer:
        return
    transfer = study.transfer(study.seeds[0])
    field = done[_last(study)].field
    count = 64 if transfer.target.is_image else 1000
    x0 = transfer.draw(950_000_000, count, held_out=True).to(study.process.device)
    labels = study.drawn_labels(transfer, count, 0)
    samples, _ = flow.generate(
        field,
        x0,
        steps=min(study.config.steps),
        step=_step(field),
        labels=labels,
        guidance=study.config.guidance,
    )
    _write(study.folder.path, transfer.unscaled(samples.cpu()))


def _write(folder: Path, samples: Tensor) -> None:
    save = save_grid if samples.ndim == 4 else save_points
    save(folder / "samples.png", samples)


def _step(field: Field) -> Any:
    return flow.euler if field.path.is_straight else flow.natural_euler


def _shown(study: FlowStudy, done: Mapping[Key, Trained]) -> dict[str, Any]:
    """Paths and images of the first seed, as plain lists, for the report."""
    shown: dict[str, Any] = {}
    for key, trained in done.items():
        if trained.shown is not None and trained.shown.numel():
            shown[flow_report.named(key.recipe, key.round)] = _rounded(trained.shown)
    transfer = study.transfer(study.seeds[0])
    if not transfer.target.is_image and transfer.target.shape == (2,):
        shown["reference"] = _rounded(transfer.reference[:1000])
    return shown


def _rounded(values: Tensor) -> Any:
    return torch.round(values.double() * 1000).div(1000).tolist()


def sample_run(
    folder: Path,
    *,
    count: int,
    steps: int,
    seed: int,
    out: Path,
    device: str,
    label: int | None = None,
    guidance: float = 1.0,
    distilled: bool = False,
) -> str:
    """Samples from a finished run, as a picture and as numbers.

    Args:
        folder: of the run.
        count: how many.
        steps: of the solver.
        seed: of the source points.
        out: folder for samples.png (of at most 256 images) and samples.npy (of all).
        device: auto, cpu or cuda.
        label: the class, for a conditional flow; all classes in turn by default.
        guidance: weight of guidance, for a conditional flow.
        distilled: use the one-step network.

    Raises:
        UserError: if the run cannot give such samples.
    """
    import numpy as np

    from rectified.runs import atomic
    from rectified.training import choose_device

    results = read_results(folder)
    field, about = load_field(folder / (DISTILLED if distilled else WEIGHTS))
    if distilled and steps != 1:
        raise UserError(f"a distilled network makes its samples in one step, got steps {steps}")
    config = results["config"]
    place = choose_device(device)
    field.network.to(place)
    classes = int(about["classes"])
    labels = _labels(count, classes, label, guidance)
    x0 = _source_points(config, about, count, seed).to(place)
    samples, evaluations = flow.generate(
        field,
        x0,
        steps=steps,
        step=_step(field),
        labels=None if labels is None else labels.to(place),
        guidance=guidance,
        progress="samples",
    )
    mean, deviation = (_numbers(about[name]) for name in ("mean", "deviation"))
    found = samples.cpu() * deviation + mean
    out.mkdir(parents=True, exist_ok=True)
    _write(out, found[:_PICTURED] if found.ndim == 4 else found)
    with atomic(out / "samples.npy") as temporary, temporary.open("wb") as file:
        np.save(file, found.numpy(), allow_pickle=False)
    return f"{count} samples, {evaluations} evaluations each: {out / 'samples.png'}"


def _labels(count: int, classes: int, label: int | None, guidance: float) -> Tensor | None:
    if not classes:
        if label is not None or guidance != 1:
            raise UserError("this flow has no classes: leave out --label and --guidance")
        return None
    if label is not None and not 0 <= label < classes:
        raise UserError(f"label must be in 0..{classes - 1}, got {label}")
    return torch.arange(count) % classes if label is None else torch.full((count,), label)


def _source_points(
    config: Mapping[str, Any], about: Mapping[str, str], count: int, seed: int
) -> Tensor:
    shape = tuple(int(side) for side in about["shape"].split(","))
    if about["source"] == "gaussian":
        return flow.noise_like((count, *shape), seed)
    from rectified.jobs.flow_data import load_transfer

    transfer = load_transfer(
        config["data"],
        config["source"],
        seed=seed_list(config["seeds"], config["seed"])[0],  # which points of a file are held out
        limit=config["limit"],
        image_size=config["image_size"],
        many=config["samples"] or 5000,
    )
    return transfer.draw(seed, count, held_out=True)


def _numbers(text: str) -> Tensor:
    return torch.tensor([float(word) for word in text.split(",")])


def load_field(path: Path) -> tuple[Field, dict[str, str]]:
    """The flow in a file that a run wrote, and what the file says about it.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        remedy = (
            "write --distil when it is run" if path.name == DISTILLED else "give a finished run"
        )
        raise UserError(f"no flow at {path}: {remedy} of flow or diffusion")
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shape = tuple(int(side) for side in about["shape"].split(","))
        classes = int(about["classes"])
        check_shapes(lambda: build_network(about["model"], shape, classes, seed=0), state)
        network = build_network(about["model"], shape, classes, seed=0)
        network.load_state_dict(state)
        path_, predicts = flow_settings.PATHS[about["path"]], flow.PREDICTIONS[about["predict"]]
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path} is damaged or no flow of ours ({reason})") from error
    return Field(network.eval(), path_, predicts), about
