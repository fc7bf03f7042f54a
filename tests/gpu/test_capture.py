"""Several networks as branches of one step train as each of them alone does, to the last digit.

What only a GPU can do, the graph itself, is tested where there is one; everywhere else the same
step is called from Python, on the CPU and under the stand-in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rectified import models
from rectified.data import Augment, Batches, Images
from rectified.errors import UserError
from rectified.pruning import full_masks, hold
from rectified.training import FitConfig, TrainingState, classification, fit, loop
from rectified.training.capture import Branch, CannotCapture, Steps, as_graph, fit_branches
from tests.gpu.pretend import Pretend

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
CONFIG = FitConfig(epochs=2, learning_rate=0.02, channels_last=True, device="cpu")


@pytest.fixture(params=["cpu", "pretended"])
def device(request: Any) -> Iterator[str]:
    """The CPU, and the stand-in for a GPU."""
    if request.param == "cpu" or HAS_GPU:
        yield "cpu"
    else:
        with Pretend():
            yield "cuda"


def data(seed: int, device: str, count: int = 8, size: int = 4) -> Batches:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    half = torch.full((3,), 0.5)
    images = Images(pixels, labels)
    return Batches(images, size, seed=seed, augment=Augment(), mean=half, std=half, device=device)


def network(kind: str, seed: int, device: str, **given: Any) -> nn.Module:
    torch.manual_seed(seed)
    return getattr(models, kind)(num_classes=10, in_channels=3, image_size=(8, 8), **given).to(
        device
    )


def branch(model: nn.Module, batches: Batches, seed: int = 0) -> Branch:
    masks = {
        name: (torch.rand(p.shape, generator=torch.Generator().manual_seed(seed)) < 0.5).to(
            p.device
        )
        for name, p in full_masks(model).items()
    }
    return Branch(model, batches, hold(model, masks), TrainingState())


def both(kind: str, device: str, **given: Any) -> tuple[list[Branch], list[Branch]]:
    """Three networks twice; the first two share their data."""
    shared, own = data(0, device), data(1, device)
    ours = [network(kind, seed, device, **given) for seed in range(3)]
    theirs = [deepcopy(model) for model in ours]
    return tuple(  # type: ignore[return-value]
        [branch(m, b, i) for i, (m, b) in enumerate(zip(some, (shared, shared, own), strict=True))]
        for some in (ours, theirs)
    )


def rehearsed(steps: Steps) -> Callable[[], None]:
    """Warm up as for a graph, and then call the step itself."""
    with steps.unchanged():
        for _ in range(2):
            steps.at.zero_()
            steps()
    return steps


def alone(branches: list[Branch], config: FitConfig, **where: Any) -> list[list[float]]:
    return [
        fit(b.model, classification, b.batches, config, hooks=[_hook(b)], state=b.state, **where)
        for b in branches
    ]


def _hook(branch: Branch) -> Callable[[Any], None]:
    return lambda _step: branch.keep() and None


def weights(branches: list[Branch]) -> list[Tensor]:
    return [value.cpu() for b in branches for value in b.model.state_dict().values()]


def memories(branches: list[Branch]) -> list[Tensor]:
    found = []
    for one in branches:
        assert one.state.optimizer is not None
        states = one.state.optimizer["state"].values()
        found += [value.cpu() for memory in states for value in memory.values()]
    return found


def assert_same(one: list[Branch], other: list[Branch]) -> None:
    for tensors in (weights, memories):
        pairs = list(zip(tensors(one), tensors(other), strict=True))
        assert pairs
        assert all(torch.equal(a, b) for a, b in pairs)


# ---- the step that a graph holds, called from Python


@pytest.mark.parametrize(
    ("kind", "given", "how"),
    [
        ("cnn", {"norm": nn.BatchNorm2d}, {}),
        ("resnet20", {}, {"precision": "bf16"}),
        ("resnet20", {"norm": None}, {"schedule": "cosine", "clip": 1.0, "nesterov": True}),
    ],
)
def test_branches_train_as_each_network_alone(kind, given, how, device):
    config = FitConfig(**{**vars(CONFIG), **how, "device": device})
    ours, theirs = both(kind, device, **given)
    losses = fit_branches(ours, classification, config, capture=rehearsed)
    assert losses == alone(theirs, config)
    assert_same(ours, theirs)


def test_branches_go_on_from_an_epoch_and_an_optimizers_state(device):
    config = FitConfig(**{**vars(CONFIG), "epochs": 3, "device": device})
    ours, theirs = both("cnn", device)
    for some in (ours, theirs):
        alone(some, config, stop=1)
    for one in ours:  # as a checkpoint gives it back
        one.state.optimizer = _stored(one.state.optimizer)
    fit_branches(ours, classification, config, start=1, capture=rehearsed)
    alone(theirs, config, start=1)
    assert_same(ours, theirs)


def _stored(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.cpu().contiguous().clone()
    if isinstance(tree, dict):
        return {key: _stored(value) for key, value in tree.items()}
    return [_stored(value) for value in tree] if isinstance(tree, list | tuple) else tree


class Kept:
    """A store in memory."""

    def __init__(self) -> None:
        self.state: Any = None

    def load(self) -> Any:
        return self.state

    def save(self, state: Any, /) -> None:
        self.state = deepcopy(state)


def test_stopped_branches_go_on_to_the_same(monkeypatch, device):
    monkeypatch.setattr(loop, "_SAVE_EVERY_SECONDS", -1.0)
    config = FitConfig(**{**vars(CONFIG), "epochs": 3, "device": device})
    ours, theirs = both("cnn", device)
    whole = fit_branches(theirs, classification, config, capture=rehearsed)
    store = Kept()
    started = [branch(deepcopy(b.model), b.batches, i) for i, b in enumerate(ours)]
    fit_branches(started, classification, config, stop=2, store=store, capture=rehearsed)
    assert fit_branches(ours, classification, config, store=store, capture=rehearsed) == whole
    assert_same(ours, theirs)
    # a training that was kept whole is not made again
    assert fit_branches(ours, classification, config, store=store, capture=rehearsed) == whole


@pytest.mark.skipif(HAS_GPU, reason="the stand-in is for where there is none")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_host_waits_for_nothing_in_a_step(optimizer):
    with Pretend() as gpu:
        config = FitConfig(optimizer=optimizer, precision="bf16", clip=1.0, device="cuda")
        steps = Steps(both("cnn", "cuda")[0], classification, config)
        steps.begin(steps.draw(0), 0)
        steps()
        gpu.waits.clear()
        steps()
        assert not gpu.waits
        steps.losses()
        assert sum(gpu.waits.values()) == 1


def test_a_loss_that_is_not_finite_says_what_fit_says():
    config = FitConfig(**{**vars(CONFIG), "learning_rate": 1e30})
    some = [branch(network("cnn", 0, "cpu"), data(0, "cpu"))]
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch \d: lower learning_rate"):
        fit_branches(some, classification, config, capture=rehearsed)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"ema": 0.9}, "trained alone"), ({"compile": True}, "trained alone")],
)
def test_what_a_graph_cannot_hold_is_refused(changed, reason):
    config = FitConfig(**{**vars(CONFIG), **changed})
    with pytest.raises(CannotCapture, match=reason):
        fit_branches([branch(network("cnn", 0, "cpu"), data(0, "cpu"))], classification, config)


@pytest.mark.usefixtures("unchecked")
def test_batches_that_differ_are_refused():
    model = network("cnn", 0, "cpu")
    uneven = data(0, "cpu")
    uneven.shuffle, uneven.size = False, 3
    for batches, reason in (
        ([uneven], "differ in size"),
        ([data(0, "cpu"), data(0, "cpu", size=2)], "number of batches"),
        ([[1, 2, 3]], "batch by batch"),
    ):
        some = [Branch(model, b, lambda: None, TrainingState()) for b in batches]
        with pytest.raises(CannotCapture, match=reason):
            fit_branches(some, classification, CONFIG, capture=rehearsed)


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_a_graph_that_cannot_be_captured_leaves_the_networks_as_they_were():
    steps = Steps([branch(network("cnn", 0, "cpu"), data(0, "cpu"))], classification, CONFIG)
    before = weights(list(steps.branches))
    steps.begin(steps.draw(0), 0)
    with pytest.raises(CannotCapture, match=r"\w"):
        as_graph(steps)
    assert all(map(torch.equal, before, weights(list(steps.branches))))


# ---- the graph


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, None])
def test_a_graph_trains_as_each_network_alone(norm, precision):
    with _deterministic():
        config = FitConfig(**{**vars(CONFIG), "precision": precision, "device": "cuda"})
        ours, theirs = both("resnet20", "cuda", norm=norm)
        losses = fit_branches(ours, classification, config)
        assert losses == alone(theirs, config)
        assert_same(ours, theirs)


@needs_gpu
def test_a_network_with_dropout_is_refused_and_left_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 10)).cuda()
    config = FitConfig(**{**vars(CONFIG), "device": "cuda", "channels_last": False})
    some = [branch(model, data(0, "cuda"))]
    before = weights(some)
    with pytest.raises(CannotCapture, match="draws at random"):
        fit_branches(some, classification, config)
    assert all(map(torch.equal, before, weights(some)))


@needs_gpu
def test_a_network_for_which_the_host_waits_is_refused_and_left_as_it_was():
    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1)) * float(x.mean() * 0 + 1)

    config = FitConfig(**{**vars(CONFIG), "device": "cuda", "channels_last": False})
    some = [branch(Waits().cuda(), data(0, "cuda"))]
    before = weights(some)
    with pytest.raises(CannotCapture, match=r"\w"):
        fit_branches(some, classification, config)
    assert all(map(torch.equal, before, weights(some)))
    torch.cuda.synchronize()
    fit(some[0].model, classification, data(0, "cuda"), config)


def _deterministic() -> Any:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not HAS_GPU:
        return nullcontext()
    return torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False)
