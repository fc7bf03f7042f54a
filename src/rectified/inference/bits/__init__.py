"""Inference on bits: `pack` a trained network, `save_packed` it, `load_packed` it anywhere."""

from rectified.inference.bits.files import load_packed, save_packed
from rectified.inference.bits.packing import PackedLayer, PackedModel, pack

__all__ = ["PackedLayer", "PackedModel", "load_packed", "pack", "save_packed"]
