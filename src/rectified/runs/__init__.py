"""The run folder: everything that one run was told and found, on disk.

    config.yaml        all settings, resolved; `--config` and `--resume` read it back
    environment.json   versions, machine, command
    metrics.jsonl      one JSON object per event, as they happen
    results.json       rows and summary; written last, so a folder that has it is finished
    model.safetensors  weights
    README.md          the model's card, in the Hub's format, where there are weights
    checkpoint/        what an unfinished run needs to go on; gone when it is done
    report.html        the page

Tensors are stored as safetensors, so reading a folder executes nothing in it.
"""

from rectified.files import atomic, to_json, write_text
from rectified.runs.checkpoint import FileStore, load_tree, save_tree
from rectified.runs.environment import environment
from rectified.runs.folder import (
    CHECKPOINT,
    METRICS,
    WEIGHTS,
    FolderInUse,
    Run,
    default_path,
    drop_checkpoint,
)
from rectified.runs.results import RESULTS, read_json, read_results
from rectified.runs.settings import CONFIG, read_config, write_config

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "METRICS",
    "RESULTS",
    "WEIGHTS",
    "FileStore",
    "FolderInUse",
    "Run",
    "atomic",
    "default_path",
    "drop_checkpoint",
    "environment",
    "load_tree",
    "read_config",
    "read_json",
    "read_results",
    "save_tree",
    "to_json",
    "write_config",
    "write_text",
]
