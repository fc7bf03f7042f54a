"""Inference on bits: `pack` a trained network, `save_packed` it, `load_packed` it anywhere."""

from rectified.binary.packed.files import load_packed, save_packed
from rectified.binary.packed.packing import PackedLayer, PackedModel, pack

__all__ = ["PackedLayer", "PackedModel", "load_packed", "pack", "save_packed"]
