"""A UNet of diffusers as a network of ours: (points, times, labels) to a prediction."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.flow.pipelines.prompts import Prompts
from rectified.flow.pipelines.schedules import level

_SIZES = ("text_embeds", "time_ids")  # what Stable Diffusion XL calls its added conditions


class DiffusersNetwork(nn.Module):
    """A `UNet2DModel` or `UNet2DConditionModel` that is called as `network(x, t)`.

    Its weights are the UNet's alone; prompts are looked up, not held.

    Args:
        unet: of diffusers.
        levels: noise levels that it was trained with.
        prompts: what labels stand for, for a text-conditional network.

    Raises:
        UserError: if the UNet's output is not shaped as its input, or it has classes.
    """

    def __init__(self, unet: Any, levels: int, prompts: Prompts | None = None) -> None:
        super().__init__()
        inputs, outputs = unet.config["in_channels"], unet.config["out_channels"]
        if inputs != outputs:
            raise UserError(
                f"the UNet must predict what it is given, got {inputs} channels in and {outputs} "
                "out: inpainting models and learnt variances are not supported"
            )
        if unet.config.get("class_embed_type") or unet.config.get("num_class_embeds"):
            raise UserError("a UNet with class embeddings is not supported: take one without")
        self.unet = unet
        self.levels = levels
        self.prompts = prompts

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        labels: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The prediction at points x and times t, for prompts `labels`.

        Raises:
            UserError: for labels where there are no prompts, or the other way round.
        """
        if (labels is None) != (self.prompts is None):
            raise UserError(
                "this network needs labels, the numbers of its prompts"
                if labels is None
                else "this network has no prompts: give it no labels"
            )
        conditions: dict[str, Any] = {}
        if self.prompts is not None and labels is not None:
            conditions = {name: v.to(x.device) for name, v in self.prompts(labels).items()}
            added = {name: conditions.pop(name) for name in _SIZES if name in conditions}
            if added:
                conditions["added_cond_kwargs"] = added
        return self.unet(x, level(t, self.levels), return_dict=False, **conditions)[0]

    def copy(self) -> DiffusersNetwork:
        """The same with weights of its own; the prompts are shared."""
        return DiffusersNetwork(deepcopy(self.unet), self.levels, self.prompts)
