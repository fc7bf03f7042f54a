"""The pipeline that is rectified."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rectified.flow import Field, pipelines
from rectified.flow.pipelines import Schedule
from rectified.training import choose_device


class Teacher:
    """A pipeline of diffusers, loaded when it is first asked for.

    Args:
        name: a folder, or a name on the hub.
        prompts: written out.
        file: of more prompts.
        schedule: of the student: keep, linear or flow.
        predict: by the student: keep, noise, v_prediction, target.
        device: auto, cpu or cuda.
    """

    def __init__(
        self,
        name: str,
        *,
        prompts: Sequence[str],
        file: str | None,
        schedule: str,
        predict: str,
        device: str,
    ) -> None:
        self.name, self._written, self._file = name, tuple(prompts), file
        self._changes, self._device = (schedule, predict), device

    @cached_property
    def device(self) -> torch.device:
        """The device of its networks."""
        return choose_device(self._device)

    @cached_property
    def pipeline(self) -> Any:
        """As diffusers knows it."""
        return pipelines.load_pipeline(self.name, self.device)

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """All prompts; none for a pipeline that takes none."""
        return (*self._written, *(pipelines.read_prompts(Path(self._file)) if self._file else ()))

    @cached_property
    def _read(self) -> tuple[Field, Schedule]:
        return pipelines.pipeline_field(self.pipeline, self.prompts)

    @property
    def field(self) -> Field:
        """Its network as a velocity field."""
        return self._read[0]

    @property
    def schedule(self) -> Schedule:
        """Its own."""
        return self._read[1]

    @cached_property
    def student_schedule(self) -> Schedule:
        """The schedule that students are trained on."""
        return pipelines.changed(self.schedule, *self._changes)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one sample of its network."""
        return pipelines.sample_shape(self.pipeline)
