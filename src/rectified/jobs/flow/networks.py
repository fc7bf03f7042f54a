"""Networks of flows: made by name, written into a run's folder, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from rectified import flow, models
from rectified.errors import UserError, first_line
from rectified.files import check_shapes
from rectified.flow import Field
from rectified.flow.paths import PATHS
from rectified.jobs.flow.plan import FlowPlan
from rectified.jobs.flow.recipes import Stage
from rectified.jobs.flow.trial import Trial
from rectified.jobs.job import Results
from rectified.runs import Run
from rectified.seeds import seeded

WEIGHTS, DISTILLED, FIRST_WEIGHTS = (
    "model.safetensors",
    "distilled.safetensors",
    "first.safetensors",
)


def build_network(model: str, shape: tuple[int, ...], classes: int, *, seed: int) -> nn.Module:
    """A velocity network by name.

    Args:
        model: mlp, resmlp, unet or dit.
        shape: of one point or image.
        classes: for a conditional network; 0 for none.
        seed: of its initial weights.
    """
    with seeded(seed, "network"):
        if model == "mlp":
            return models.VelocityMLP(shape[0])
        if model == "resmlp":
            return models.VelocityResMLP(shape, classes=classes)
        if model == "dit":
            return models.DiT(shape, patch=2 if shape[-1] % 2 == 0 else 1, classes=classes)
        halvings = min(2, (shape[-1] & -shape[-1]).bit_length() - 1)
        widths = (64, 128, 128)[: halvings + 1]
        return models.UNet(shape[0], widths=widths, attention=(halvings,), classes=classes)


def new_network(plan: FlowPlan, trial: Trial) -> nn.Module:
    """A network of a study, with initial weights that the seed decides."""
    return build_network(
        plan.budget.model, trial.transfer.target.shape, trial.classes, seed=trial.seed
    )


def as_field(plan: FlowPlan, trial: Trial, network: nn.Module) -> Field:
    """A network of a study as a velocity field."""
    return Field(network.to(trial.place).eval(), plan.path, plan.predicts)


def write_networks(
    plan: FlowPlan, trial: Trial, fields: Mapping[Stage, Field], folder: Run
) -> None:
    """Write what a study is about: the last flow, the first one, and the last as one step.

    Args:
        plan: of the study.
        trial: its first seed.
        fields: the networks of that seed.
        folder: of the run.
    """
    target = trial.transfer.target
    about = {
        "model": plan.budget.model,
        "shape": ",".join(map(str, target.shape)),
        "classes": str(trial.classes),
        "path": plan.config.path,
        "predict": plan.config.predict,
        "source": plan.config.source,
        "mean": _text(trial.transfer.mean),
        "deviation": _text(trial.transfer.deviation),
    }
    files = {WEIGHTS: plan.last, FIRST_WEIGHTS: plan.stages[0]}
    for stage in fields:
        if stage.recipe.is_distilled and stage.start == plan.last:
            files[DISTILLED] = stage
    for name, stage in files.items():
        state = fields[stage].network.state_dict()
        folder.write_weights(state, {**about, "recipe": stage.recipe.name}, name)


def _text(numbers: Tensor) -> str:
    return ",".join(repr(float(v)) for v in numbers)


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
        return Field(
            _loaded(about, state), PATHS[about["path"]], flow.PREDICTIONS[about["predict"]]
        ), about
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or no flow of ours ({first_line(error)})") from error


def _loaded(about: Mapping[str, str], state: dict[str, Tensor]) -> nn.Module:
    shape = tuple(int(side) for side in about["shape"].split(","))
    classes = int(about["classes"])
    check_shapes(lambda: build_network(about["model"], shape, classes, seed=0), state)
    network = build_network(about["model"], shape, classes, seed=0)
    network.load_state_dict(state)
    return network.eval()


def network_of(results: Results) -> nn.Module:
    """The network that a finished run is about."""
    return load_field(results.folder / WEIGHTS)[0].network
