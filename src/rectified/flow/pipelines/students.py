"""Students: a teacher's network to train further, whole or by low-rank updates (LoRA, `peft`)."""

from __future__ import annotations

from typing import Any

from torch import nn

from rectified.errors import UserError, choose, first_line
from rectified.flow import predictions
from rectified.flow.fields import Field
from rectified.flow.losses import Term, element_huber, squared
from rectified.flow.matching import FlowMatching
from rectified.flow.pipelines.library import needed
from rectified.flow.pipelines.network import DiffusersNetwork
from rectified.flow.pipelines.schedules import Schedule
from rectified.flow.times import Discrete

# every product and convolution of a UNet, as LCM-LoRA has them (Luo et al., 2023, arXiv 2311.05556)
LORA_LAYERS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "time_emb_proj",
)

LOSSES = ("auto", "prediction", "target")


def make_student(
    field: Field[DiffusersNetwork],
    schedule: Schedule,
    *,
    lora_rank: int = 0,
    gradient_checkpointing: bool = False,
) -> Field[DiffusersNetwork]:
    """A copy of a pipeline's field to train.

    Args:
        field: the teacher, with a `DiffusersNetwork`; it is left as it is.
        schedule: of the student.
        lora_rank: rank of the updates; 0 trains all weights.
        gradient_checkpointing: compute activations again on the way back: less memory, more time.

    Raises:
        UserError: for a negative rank, or without `peft`.
    """
    network = field.network.copy()
    if gradient_checkpointing:
        network.unet.enable_gradient_checkpointing()
    if lora_rank:
        network.unet = _with_lora(network.unet, lora_rank)
    return Field(network, schedule.path, schedule.predicts)


def _with_lora(unet: nn.Module, rank: int) -> Any:
    peft = needed("peft")
    if rank < 0:
        raise UserError(f"lora_rank must be at least 0, got {rank}")
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_LAYERS))
    try:
        return peft.get_peft_model(unet, config)
    except ValueError as error:  # none of the layers is there
        raise UserError(f"this UNet takes no LoRA ({first_line(error)}): train it whole") from error


def trained_unet(field: Field[DiffusersNetwork]) -> Any:
    """The UNet of a student as diffusers knows it: low-rank updates added to the weights."""
    unet: Any = field.network.unet
    if hasattr(unet, "merge_and_unload"):
        unet = unet.merge_and_unload()
        field.network.unet = unet
    if getattr(unet, "is_gradient_checkpointing", False):
        unet.disable_gradient_checkpointing()
    return unet


def rectification(
    schedule: Schedule, *, loss: str = "auto", text_drop: float = 0.0
) -> FlowMatching:
    """The objective on pairs: the paper's, for whatever the student predicts.

    Args:
        schedule: of the student; times are its levels, alike, as in the reference code.
        loss: `prediction`, the squared error of what is predicted (of noise: the paper's formula);
            `target`, pseudo-Huber of width 0.001 on every element of the implied target (the
            reference code); `auto`, `target` where noise is predicted, else `prediction`.
        text_drop: share of the prompts that are replaced by none, for guidance.

    Raises:
        UserError: for another loss.
    """
    choose("loss", loss, LOSSES)
    if loss == "auto":
        loss = "target" if schedule.predicts is predictions.noise else "prediction"
    term = Term(squared) if loss == "prediction" else Term(element_huber, "target")
    return FlowMatching(
        coupling=None,
        path=schedule.path,
        predicts=schedule.predicts,
        times=Discrete(schedule.levels),
        terms=(term,),
        label_drop=text_drop,
    )
