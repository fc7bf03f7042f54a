"""The scheduler under the name that pipelines written by version 0.1 give it."""

# diffusers looks for its own bases beside a class of another package
from rectified.flow.pipelines.scheduler import ConfigMixin, RectifiedFlowScheduler, SchedulerMixin

__all__ = ["ConfigMixin", "RectifiedFlowScheduler", "SchedulerMixin"]
