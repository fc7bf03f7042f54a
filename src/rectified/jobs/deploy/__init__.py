"""Deployment: a pruned network made small, stored small, run fast, and held against the original.

    lean.safetensors   weights without zeros, of the network without its empty channels
    lean.onnx          the same network for other engines, where the extra `onnx` is installed
    lean.json          what it takes to build the architecture again

`load_lean(folder)` gives the network back, in a process that knows nothing of the training.
"""

from rectified.jobs.classifiers import Architecture
from rectified.jobs.deploy.deployment import Deployment, deploy
from rectified.jobs.deploy.lean import load_lean

__all__ = ["Architecture", "Deployment", "deploy", "load_lean"]
