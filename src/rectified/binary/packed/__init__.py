"""Inference on bits: `pack` a trained network, `save_packed` it, `load_packed` it anywhere."""

from rectified.binary.packed.packing import PackedLayer, PackedModel, pack


def save_packed(p, path):
    raise NotImplementedError


def load_packed(path):
    raise NotImplementedError
