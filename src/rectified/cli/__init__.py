"""The door: `rectified VERB [options]` -> a job, its run folder and its report."""

from rectified.cli.main import main

__all__ = ["main"]
