"""One update, forward pass or sampling step of every system: `... updates --device D --out FILE`.

Inputs and first weights are drawn on the CPU, so that both devices compute the same numbers. The
file holds what came of every one, or the failure; `apart` compares two files. A device has a
process of its own, since `fit` keeps to the first one of a process.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rectified import binary, flow, models, pruning, scattering
from rectified.data import Augment, Batches, Images
from rectified.pruning import scores
from rectified.training import (
    FitConfig,
    TrainingState,
    classification,
    classification_quality,
    evaluate,
    fit,
)
from rectified.training.capture import Branch, fit_branches

Device = str
IMAGES = {"num_classes": 10, "in_channels": 3, "image_size": (16, 16)}


def seeded(seed: int = 0) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def network(make: Callable[..., nn.Module], device: Device, *args: Any, **given: Any) -> nn.Module:
    """A network whose weights are drawn on the CPU."""
    torch.manual_seed(0)
    return make(*args, **given).to(device)


def batches(device: Device, count: int = 32) -> Batches:
    """Two batches of random pictures."""
    pixels = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=seeded())
    labels = torch.randint(10, (count,), generator=seeded(1))
    half = torch.full((3,), 0.5)
    return Batches(
        Images(pixels, labels), count // 2, augment=Augment(2), mean=half, std=half, device=device
    )


def parameters(model: nn.Module) -> Tensor:
    """All of them, in a row."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """The loss, and its gradient in a row."""
    loss.backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([loss.detach()[None], *found])


def _config(device: Device, **given: Any) -> FitConfig:
    return FitConfig(epochs=1, learning_rate=0.01, warmup=0, device=device, **given)  # type: ignore[arg-type]


def _classifier(make: Callable[..., nn.Module], **given: Any) -> Callable[[Device], Tensor]:
    def update(device: Device) -> Tensor:
        model = network(make, device, **IMAGES, **given)
        before = parameters(model)
        hold = pruning.hold(model, _half(model))
        fit(model, classification, batches(device), _config(device), hooks=[hold])
        return parameters(model) - before

    return update


def _half(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: (torch.rand(mask.shape, generator=seeded()) < 0.5).to(mask.device)
        for name, mask in pruning.full_masks(model).items()
    }


def branches(device: Device) -> Tensor:
    """Two networks as branches of one graph; on a CPU in turn."""
    models_ = [network(models.resnet20, device, **IMAGES) for _ in range(2)]
    before, data = parameters(models_[0]), batches(device)
    config = _config(device, channels_last=True)
    made = [Branch(m, data, pruning.hold(m, _half(m)), TrainingState()) for m in models_]
    is_real = device == "cuda" and "GPU_PRETEND" not in os.environ
    fit_branches(made, classification, config, capture=None if is_real else lambda steps: steps)
    return parameters(models_[1]) - before


def quality(device: Device) -> Tensor:
    """Accuracy and loss; dead neuron rates."""
    model = network(models.resnet20, device, **IMAGES)
    found = evaluate(model, classification_quality, batches(device), device=device)
    dead = pruning.dead_neuron_rate(model, batches(device), masks=_half(model))
    return torch.tensor([found["loss"], found["accuracy"], dead.dynamic(), dead.static()])


def _score(score: Any) -> Callable[[Device], Tensor]:
    def kept(device: Device) -> Tensor:
        model = network(models.cnn, device, **IMAGES, norm=nn.BatchNorm2d)
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        masks = pruning.full_masks(model)
        snapshot = pruning.Snapshot(
            model, state, state, masks, list(batches(device)), classification
        )
        found = score(snapshot)
        pruned = pruning.prune(masks, found, 0.7)
        # kept or not is decided at a bound, where rounding tells: the scores are what is compared
        return torch.cat([(found[name] * pruned[name]).flatten() for name in masks])

    return kept


def binarized(device: Device) -> Tensor:
    """Outputs of a network with 1-bit weights and activations."""
    layers = [
        binary.BinaryConv2d(3, 8, 3, estimator=binary.ReSTE),
        nn.BatchNorm2d(8),
        binary.BinaryConv2d(8, 8, 3, estimator=binary.estimators.EDE),
        nn.Flatten(),
        nn.Linear(8 * 144, 10),
    ]
    torch.manual_seed(0)
    for layer in layers:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    model = nn.Sequential(*layers).to(device)
    x, y = torch.randn(4, 3, 16, 16, generator=seeded()), torch.arange(4)
    loss = classification(model, (x.to(device), y.to(device)))
    return gradient(model, loss)


def _velocity(device: Device) -> tuple[nn.Module, Callable[..., Tensor]]:
    net = network(lambda: nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2)), device)
    return net, lambda x, t, *_: net(torch.cat([x, t[:, None]], 1))


def _points(device: Device) -> Tensor:
    return torch.randn(32, 2, generator=seeded(3)).to(device)


def _matching(path: Any, prediction: str, coupling: Any) -> Callable[[Device], Tensor]:
    def update(device: Device) -> Tensor:
        net, model = _velocity(device)
        objective = flow.FlowMatching(
            coupling, path, flow.PREDICTIONS[prediction], generator=seeded(5)
        )
        return gradient(net, objective(model, (_points(device),)))

    return update


def _sampling(step: Any, path: Any, prediction: str) -> Callable[[Device], Tensor]:
    def sample(device: Device) -> Tensor:
        _, model = _velocity(device)
        field = flow.Field(model, path, flow.PREDICTIONS[prediction])
        with torch.no_grad():
            return flow.generate(field, _points(device), steps=4, step=step)[0]

    return sample


def _pictures(
    make: Callable[..., nn.Module], *args: Any, **given: Any
) -> Callable[[Device], Tensor]:
    def update(device: Device) -> Tensor:
        net = network(make, device, *args, **given)
        x = torch.randn(2, 3, 16, 16, generator=seeded()).to(device)
        t, y = torch.tensor([0.2, 0.7]).to(device), torch.tensor([-1, 1]).to(device)
        return gradient(net, net(x, t, y).square().mean())

    return update


def protein_loss(device: Device) -> Tensor:
    """One update's gradient of frames."""
    from rectified.protein import chains, se3_flow

    model = _protein(device)
    atoms = [torch.randn(24, 4, 3, generator=seeded(i)).cumsum(0) * 2 for i in range(4)]
    data = [
        chains.Chain(f"c{i}", one, torch.arange(1, 25), "A" * 24) for i, one in enumerate(atoms)
    ]
    (batch, *_) = chains.ChainBatches(data, 2, crop=16, seed=0).epoch(0)
    loss = se3_flow.FrameLoss(bonds=1.0)(model, tuple(value.to(device) for value in batch))
    return gradient(model, loss)


def protein_sample(device: Device) -> Tensor:
    """A few steps of sampling."""
    from rectified.protein import sampling, se3_flow

    noise = se3_flow.prior(2, 16, generator=seeded())
    made = sampling.sample(_protein(device).eval(), 2, 16, steps=3, noise=noise.to(device))
    return made.frames.atoms()


def protein_draws(device: Device) -> Tensor:
    """Draws of a CPU generator for frames on the device."""
    from rectified.protein import se3_flow

    frames = se3_flow.prior(2, 8, generator=seeded(), device=device)
    noise = se3_flow.training_noise(frames, generator=seeded(1))
    return torch.cat([noise.translations.flatten(), noise.quaternions.flatten()])


def _protein(device: Device) -> nn.Module:
    from rectified.protein.model import FlowModel, ModelSizes

    sizes = ModelSizes(
        node=32,
        pair=16,
        position=8,
        time=8,
        feature=8,
        hidden=8,
        heads=2,
        query_points=2,
        value_points=2,
        sequence_heads=2,
        sequence_layers=1,
        blocks=2,
    )
    return network(FlowModel, device, sizes)


def scattered(device: Device) -> Tensor:
    """Features of two layers."""
    x = torch.randn(2, 1, 32, 32, generator=seeded()).to(device)
    return scattering.Scattering2D(2, (32, 32), 4).to(device)(x)


UPDATES: dict[str, Callable[[Device], Tensor]] = {
    "cnn": _classifier(models.cnn, norm=nn.BatchNorm2d),
    "resnet20": _classifier(models.resnet20),
    "resnet20, no norm": _classifier(models.resnet20, norm=None),
    "vit": _classifier(models.vit),
    "branches": branches,
    "quality": quality,
    **{
        f"score {name}": _score(score)
        for name, score in {
            "magnitude": scores.magnitude,
            "lamp": scores.lamp,
            "snip": scores.SNIP(),
            "grasp": scores.GraSP(),
            "synflow": scores.SynFlow(),
            "lookahead": scores.LookAhead(),
        }.items()
    },
    "score random": lambda device: _score(scores.Random(seeded()))(device),
    "binary": binarized,
    "flow": _matching(flow.straight, "velocity", flow.independent),
    "flow, transport": _matching(flow.straight, "velocity", flow.minibatch_ot),
    "diffusion": _matching(flow.vp_linear, "noise", flow.independent),
    "euler": _sampling(flow.euler, flow.straight, "velocity"),
    "heun": _sampling(flow.heun, flow.straight, "velocity"),
    "exponential": _sampling(flow.exponential2, flow.vp_linear, "noise"),
    "unet": _pictures(models.UNet, 3, widths=(16, 32), attention=(1,), classes=3),
    "dit": _pictures(models.DiT, (3, 16, 16), classes=3),
    "protein": protein_loss,
    "protein sample": protein_sample,
    "protein draws": protein_draws,
    "scattering": scattered,
}


def apart(here: Path, there: Path) -> dict[str, tuple[float, str]]:
    """|here - there| / |here| of every update; NaN and the failure where there is one."""
    one, two = torch.load(here), torch.load(there)
    found = {}
    for name in UPDATES:
        failure = next((x for x in (one[name], two[name]) if isinstance(x, str)), "")
        if failure:
            found[name] = (float("nan"), failure)
            continue
        gap = (one[name] - two[name]).norm() / one[name].norm().clamp(min=1e-30)
        found[name] = (float(gap), "")
    return found


def main() -> int:
    """Make all updates on one device; returns the exit code."""
    from tests.gpu.pretend import Pretend

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    is_pretended = given.device == "cuda" and "GPU_PRETEND" in os.environ
    found: dict[str, Tensor | str] = {}
    with Pretend() if is_pretended else nullcontext():
        for name, update in UPDATES.items():
            try:
                found[name] = update(given.device).detach().cpu().double()
            except Exception:  # one that fails must not cost the others
                found[name] = " | ".join(traceback.format_exc().splitlines()[-3:])[-400:]
    torch.save(found, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
