"""A scheduler for flows on the straight path, which pipelines of diffusers load and sample with.

`FlowMatchEulerDiscreteScheduler` cannot drive Stable Diffusion's pipelines (they ask for
`init_noise_sigma` and `scale_model_input`), and its network predicts noise minus data. Here a
network predicts the velocity x1 - x0, and a step is Euler's.

A pipeline that was saved with this scheduler names this module. diffusers loads it where the module
has been imported before, and says so where it has not: `import rectified.flow.pipelines.scheduler`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rectified.errors import UserError
from rectified.flow.pipelines.library import needed

needed("diffusers")  # whose absence is told in our words
# by these names: diffusers, when it loads a class of another package, looks for them beside it
from diffusers import ConfigMixin, SchedulerMixin  # noqa: E402
from diffusers.configuration_utils import register_to_config  # noqa: E402
from diffusers.schedulers.scheduling_utils import SchedulerOutput  # noqa: E402


class RectifiedFlowScheduler(SchedulerMixin, ConfigMixin):
    """Euler's method in equal steps, from noise at level N - 1 to data at level -1.

    Args:
        num_train_timesteps: N; what the network is told at time t is the level N (1 - t) - 1.

    Example:
        >>> scheduler = RectifiedFlowScheduler()
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps.tolist()
        [999.0, 749.0, 499.0, 249.0]
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000) -> None:
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1, dtype=torch.float32)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the number of steps.

        Raises:
            UserError: if it is below 1.
        """
        if num_inference_steps < 1:
            raise UserError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        self.num_inference_steps = num_inference_steps
        levels = self.config.num_train_timesteps
        places = torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps
        self.timesteps = (levels * (1 - places) - 1).float().to(device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network sees the sample as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """One Euler step along the predicted velocity.

        Raises:
            UserError: before the number of steps is set.
        """
        if self.num_inference_steps is None:
            raise UserError("set_timesteps must be called before step")
        moved = sample + model_output / self.num_inference_steps
        if not return_dict:
            return (moved,)
        return SchedulerOutput(prev_sample=moved)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The point at a level between data and noise."""
        t = 1 - (timesteps.to(original_samples) + 1) / self.config.num_train_timesteps
        t = t.reshape(-1, *(1,) * (original_samples.ndim - 1))
        return t * original_samples + (1 - t) * noise

    def __len__(self) -> int:
        return self.config.num_train_timesteps
