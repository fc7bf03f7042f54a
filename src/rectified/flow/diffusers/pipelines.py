"""Pipelines of diffusers: read from a folder or the hub, wrapped as a field, and written back."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.flow.diffusers.library import first_line, needed
from rectified.flow.diffusers.network import DiffusersNetwork
from rectified.flow.diffusers.prompts import Prompts, encoder
from rectified.flow.diffusers.schedules import Schedule, few_step_scheduler, read_schedule
from rectified.flow.fields import Field
from rectified.flow.paths import DDPM

_INDEX = "model_index.json"


def load_pipeline(source: str, device: torch.device | str = "cpu") -> Any:
    """A pipeline with a UNet: Stable Diffusion 1.5, XL, DDPM and their like.

    Args:
        source: a folder that diffusers wrote, or a name on the Hugging Face hub.
        device: where it goes.

    Raises:
        UserError: if a part is missing or damaged, the hub is out of reach, or it has no UNet.
    """
    library, folder = needed("diffusers"), Path(source)
    if folder.exists():
        _check_parts(folder)
    # diffusers finds the scheduler of a flow that was saved here only where it is imported
    needed("rectified.flow.diffusers.scheduler")
    try:
        pipeline = library.DiffusionPipeline.from_pretrained(source)
    except UserError:
        raise
    except Exception as error:  # a dozen kinds, of four libraries
        where = "" if folder.exists() else " is not a folder, and"
        remedy = "copy it anew" if folder.exists() else "check the name and the network"
        raise UserError(
            f"pipeline {source}{where} cannot be loaded ({first_line(error)}): {remedy}"
        ) from error
    for part in ("unet", "scheduler"):
        if getattr(pipeline, part, None) is None:
            raise UserError(
                f"pipeline {source} ({type(pipeline).__name__}) has no {part}: take a Stable "
                "Diffusion, Stable Diffusion XL or DDPM pipeline"
            )
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and any(value.is_meta for value in part.parameters()):
            raise UserError(
                f"pipeline {source}: the weights of {name} are incomplete: copy it anew"
            )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _check_parts(folder: Path) -> None:
    """See that all that the index names is there: diffusers' own words for it are many."""
    index = folder / _INDEX
    if not index.is_file():
        raise UserError(f"{folder} has no {_INDEX}: it is not the folder of a pipeline")
    try:
        named = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{index} is damaged ({first_line(error)}): copy it anew") from error
    for name, kind in named.items():
        is_part = isinstance(kind, list) and all(isinstance(word, str) for word in kind)
        if is_part and not any((folder / name).glob("*")):
            raise UserError(f"{folder} lacks {name}/, which its {_INDEX} names: copy it anew")


def takes_prompts(pipeline: Any) -> bool:
    """Whether pictures are made from texts."""
    return getattr(pipeline, "text_encoder", None) is not None


def pipeline_field(pipeline: Any, prompts: Sequence[str] = ()) -> tuple[Field, Schedule]:
    """The pipeline's UNet as a field on its scheduler's path, with the schedule.

    Args:
        pipeline: of diffusers.
        prompts: label i of the field is prompt i; none for a pipeline without texts.

    Raises:
        UserError: if prompts are missing or have no use, the scheduler's schedule cannot be read,
            or the UNet is of an unsupported kind.
    """
    schedule = read_schedule(pipeline.scheduler)
    if takes_prompts(pipeline) and not prompts:
        raise UserError("this pipeline makes pictures from texts: give it prompts, one a line")
    if prompts and not takes_prompts(pipeline):
        raise UserError("this pipeline has no text encoder: leave out the prompts")
    texts = Prompts(prompts, encoder(pipeline)) if prompts else None
    network = DiffusersNetwork(pipeline.unet, schedule.levels, texts)
    return Field(network.eval(), schedule.path, schedule.predicts), schedule


def sample_shape(pipeline: Any) -> tuple[int, int, int]:
    """Channels, height and width of what the UNet works on.

    Raises:
        UserError: if its config does not say.
    """
    config = pipeline.unet.config
    sample = config["sample_size"]
    if sample is None:
        raise UserError("the UNet's config has no sample_size: write it there")
    height, width = (sample, sample) if isinstance(sample, int) else sample
    return config["in_channels"], height, width


@torch.no_grad()
def decode(
    pipeline: Any, samples: Float[Tensor, "n channels height width"]
) -> Float[Tensor, "n colours rows columns"]:
    """Pictures, about in [-1, 1], of what the UNet works on."""
    autoencoder = getattr(pipeline, "vae", None)
    if autoencoder is None:
        return samples
    return autoencoder.decode(samples / autoencoder.config["scaling_factor"], return_dict=False)[0]


def save_pipeline(pipeline: Any, unet: Any, schedule: Schedule, folder: Path) -> Any:
    """Write a pipeline with another UNet and schedule, for `DiffusionPipeline.from_pretrained`.

    Args:
        pipeline: that the other parts come from; it is left as it is.
        unet: of the student.
        schedule: of the student.
        folder: to write, whole or not at all.

    Returns:
        The pipeline as written.
    """
    library = needed("diffusers")
    parts = {
        **pipeline.components,
        "unet": unet,
        "scheduler": few_step_scheduler(schedule),
    }
    kind = type(pipeline)
    if not takes_prompts(pipeline):  # DDIM's scheduler has a pipeline of its own
        is_ddpm = isinstance(schedule.path, DDPM)
        kind = library.DDIMPipeline if is_ddpm else library.DDPMPipeline
    taken = inspect.signature(kind).parameters
    # such as force_zeros_for_empty_prompt of Stable Diffusion XL
    options = {n: v for n, v in pipeline.config.items() if n in taken and n not in parts}
    student = kind(**{n: v for n, v in parts.items() if n in taken}, **options)
    student.set_progress_bar_config(disable=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    student.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that is gone on with
    temporary.replace(folder)
    return student
