"""Pipelines of diffusers: read from a folder or the hub, wrapped as a field, and written back.

A folder may come from anybody. Its index names Python modules that the parts are of, and diffusers
imports what it names: only its own and those of transformers are let through, and no code beside
the weights.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError, first_line
from rectified.files import atomic_folder, read_json
from rectified.flow.fields import Field
from rectified.flow.paths import DDPM
from rectified.flow.pipelines.library import needed
from rectified.flow.pipelines.network import DiffusersNetwork
from rectified.flow.pipelines.prompts import Prompts, encoder
from rectified.flow.pipelines.schedules import Schedule, few_step_scheduler, read_schedule

_INDEX = "model_index.json"
_SCHEDULERS = ("rectified.flow.pipelines.scheduler", "rectified.flow.diffusers.scheduler")
_LIBRARIES = ("diffusers", "transformers", *_SCHEDULERS)


def load_pipeline(source: str, device: torch.device | str = "cpu") -> Any:
    """A pipeline with a UNet: Stable Diffusion 1.5, XL, DDPM and their like.

    Args:
        source: a folder that diffusers wrote, or a name on the Hugging Face hub.
        device: where it goes.

    Raises:
        UserError: if a part is missing or damaged, would run code, the hub is out of reach, or it
            has no UNet.
    """
    library, folder = needed("diffusers"), Path(source)
    for module in _SCHEDULERS:  # diffusers finds that of a flow only where it is imported
        needed(module)
    try:
        with _without_bars(library):
            place = folder if folder.exists() else library.DiffusionPipeline.download(source)
            _check_parts(Path(place))
            pipeline = library.DiffusionPipeline.from_pretrained(place)
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


@contextlib.contextmanager
def _without_bars(library: Any) -> Iterator[None]:
    """Its bars would show in a quiet run; they are as they were afterwards."""
    logging = library.utils.logging
    shows = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows:
            logging.enable_progress_bar()


def _check_parts(folder: Path) -> None:
    """See that all that the index names is there: diffusers' own words for it are many."""
    index = folder / _INDEX
    if not index.is_file():
        raise UserError(f"{folder} has no {_INDEX}: it is not the folder of a pipeline")
    named = read_json(index, remedy="copy it anew")
    if not isinstance(named, dict) or not isinstance(named.get("_class_name"), str):
        raise UserError(f"{index} names no pipeline of diffusers: copy it anew")
    code = next(folder.rglob("*.py"), None)
    if code is not None:
        raise UserError(f"{code} is code, which a pipeline from a folder may not bring: remove it")
    for name, kind in named.items():
        is_part = isinstance(kind, list) and kind and isinstance(kind[0], str)
        if not is_part or name.startswith("_"):
            continue
        if kind[0] not in (*_LIBRARIES, *dir(needed("diffusers.pipelines"))):
            raise UserError(
                f"{index} takes {name} from {kind[0][:80]!r}: only parts of diffusers and "
                "transformers are loaded"
            )
        if not any((folder / name).glob("*")):
            raise UserError(f"{folder} lacks {name}/, which its {_INDEX} names: copy it anew")


def takes_prompts(pipeline: Any) -> bool:
    """Whether pictures are made from texts."""
    return getattr(pipeline, "text_encoder", None) is not None


def pipeline_field(
    pipeline: Any, prompts: Sequence[str] = ()
) -> tuple[Field[DiffusersNetwork], Schedule]:
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
        raise UserError("this pipeline makes pictures from texts: give it prompts, one per line")
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
    with atomic_folder(folder) as temporary, _told_by_number():
        student.save_pretrained(temporary)
    return student


@contextlib.contextmanager
def _told_by_number() -> Iterator[None]:
    """Turn safetensors' error into the OSError whose number its message names."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
