"""Small networks and batches that the tests of training share."""

import torch
from torch import nn

from rectified.training import FitConfig

PLAIN = FitConfig(epochs=4, device="cpu")


class Noise:
    """A few random batches; the epoch's number decides them."""

    def __init__(self, sizes=(8, 8, 8), shape=(6,), classes=3):
        self.sizes, self.shape, self.classes = sizes, shape, classes

    def __len__(self):
        return len(self.sizes)

    def epoch(self, number):
        generator = torch.Generator().manual_seed(1000 + number)
        for size in self.sizes:
            yield (
                torch.randn(size, *self.shape, generator=generator),
                torch.randint(self.classes, (size,), generator=generator),
            )


def network(*extra):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *extra, nn.Linear(16, 3))


def images_network():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)]
        return nn.Sequential(*layers)


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)
