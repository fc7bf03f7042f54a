"""Labelled images and batches of them; points in the plane.

    data = load_images("digits", seed=0)              # or a folder, a parquet file, a hub name
    batches = Batches(data.train, 128, seed=0, mean=data.mean, std=data.std)
    for epoch in range(10):
        for images, labels in batches.epoch(epoch):
            ...

Files and memory hold 8-bit pixels; a batch is floating point in [0, 1], standardised if asked.
"""

from rectified.data.augment import Augment
from rectified.data.batches import Batches
from rectified.data.images import ImageData, Images
from rectified.data.points import DISTRIBUTIONS, draw_points, read_points
from rectified.data.readers import ImageSource, load_images

__all__ = [
    "DISTRIBUTIONS",
    "Augment",
    "Batches",
    "ImageData",
    "ImageSource",
    "Images",
    "draw_points",
    "load_images",
    "read_points",
]
