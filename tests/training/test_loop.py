import copy
import gc
import math
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rectified.errors import UserError
from rectified.training import (
    FitConfig,
    Step,
    TrainingState,
    classification,
    fit,
    loop,
)
from tests.training.material import PLAIN, Noise, images_network, network, same


class Memory:
    """A store in memory, which may be told to save after every epoch."""

    saved = None

    def load(self):
        return copy.deepcopy(self.saved)

    def save(self, state, /):
        self.saved = copy.deepcopy(state)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_fit_is_the_loop_that_one_would_write(kind):
    config = FitConfig(epochs=3, optimizer=kind, learning_rate=0.01, device="cpu")
    ours, theirs = network(), network()
    losses = fit(ours, classification, Noise(), config)
    decay = {"weight_decay": 5e-4}
    optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, **decay),
        "adam": lambda p: torch.optim.Adam(p, 0.01, fused=True, **decay),
        "adamw": lambda p: torch.optim.AdamW(p, 0.01, fused=True, **decay),
    }[kind](theirs.parameters())
    found = []
    for epoch in range(3):
        total = 0.0
        for i, (x, y) in enumerate(Noise().epoch(epoch)):
            progress = (3 * epoch + i) / 9
            warm = min(1.0, progress / 0.05)
            optimizer.param_groups[0]["lr"] = (
                0.01 * warm * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
            )
            loss = F.cross_entropy(theirs(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        found.append(total / 3)
    assert same(ours, theirs)
    assert losses == pytest.approx(found, rel=1e-7)


def test_training_depends_on_the_seed_alone_and_leaves_the_global_state():
    def trained(seed):
        model = network(nn.Dropout(0.5))
        fit(model, classification, Noise(), FitConfig(epochs=2, seed=seed, device="cpu"))
        return model

    torch.manual_seed(5)
    first, before = trained(1), torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert same(first, trained(1))
    assert not same(first, trained(2))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_training_in_two_parts_is_one_training(kind):
    config = FitConfig(
        epochs=4, optimizer=kind, learning_rate=0.02, schedule="cosine", device="cpu"
    )
    whole, parts = network(nn.Dropout(0.3)), network(nn.Dropout(0.3))
    losses = fit(whole, classification, Noise(), config)
    state = TrainingState()
    first = fit(parts, classification, Noise(), config, stop=3, state=state)
    second = fit(parts, classification, Noise(), config, start=3, state=state)
    assert same(whole, parts)
    assert first + second == losses


def test_a_state_that_is_used_is_not_changed_for_others():
    state = TrainingState()
    fit(network(), classification, Noise(), PLAIN, stop=1, state=state)
    kept = copy.deepcopy(state.optimizer)
    other = TrainingState(state.optimizer)
    fit(network(), classification, Noise(), PLAIN, start=1, state=other)
    before, after = kept["state"][0], state.optimizer["state"][0]
    assert torch.equal(before["momentum_buffer"], after["momentum_buffer"])
    assert not torch.equal(other.optimizer["state"][0]["momentum_buffer"], after["momentum_buffer"])


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_training_that_was_killed_goes_on_to_the_same_end(
    monkeypatch, tmp_path, ema, killed_after
):
    from rectified.runs import FileStore

    monkeypatch.setattr(loop, "_SAVE_EVERY_SECONDS", -1.0)
    config = FitConfig(epochs=4, ema=ema, optimizer="adam", learning_rate=0.01, device="cpu")
    undisturbed, model = network(nn.Dropout(0.3)), network(nn.Dropout(0.3))
    losses = fit(undisturbed, classification, Noise(), config)
    store = FileStore(tmp_path / "training.safetensors")

    class Killed(Exception):
        pass

    def kill(step):
        if step.number == 3 * killed_after + 2:
            raise Killed

    with pytest.raises(Killed):
        fit(model, classification, Noise(), config, hooks=[kill], store=store)
    resumed = network(nn.Dropout(0.3))
    assert fit(resumed, classification, Noise(), config, store=store) == losses
    assert same(resumed, undisturbed)


def test_hooks_see_every_update_in_order_and_before_the_average():
    seen, model = [], network()
    first_average = None

    def look(step: Step):
        nonlocal first_average
        seen.append((step.number, step.total, step.loss.requires_grad))
        assert step.model is model
        if first_average is None:
            first_average = step.model[0].weight.detach().clone()
            step.model[0].weight.data.zero_()

    config = FitConfig(epochs=2, ema=0.5, schedule="constant", device="cpu")
    order = []
    hooks = [lambda step: order.append("a"), look, lambda step: order.append("b")]
    fit(model, classification, Noise(), config, hooks=hooks, stop=1)
    assert seen == [(1, 6, False), (2, 6, False), (3, 6, False)]
    assert order == ["a", "b"] * 3
    assert first_average is not None


def test_zero_epochs_train_nothing():
    model, untouched = network(), network()
    assert fit(model, classification, Noise(), FitConfig(epochs=0, device="cpu")) == []
    assert same(model, untouched)


def test_fit_keeps_no_network_alive():
    model = network()
    fit(model, classification, Noise(), FitConfig(epochs=1, device="cpu"))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(bad):
    def objective(model, batch):
        return classification(model, batch) * bad

    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch 1: lower learning_rate"):
        fit(network(), objective, Noise(), PLAIN)


def test_clipping_bounds_every_step():
    model, start = network(), network()
    config = FitConfig(epochs=1, clip=1e-3, momentum=0.0, weight_decay=0.0, warmup=0.0,
                       schedule="constant", learning_rate=1.0, device="cpu")  # fmt: skip
    fit(model, classification, Noise((8,)), config)
    moved = [a - b for a, b in zip(model.parameters(), start.parameters(), strict=True)]
    assert float(sum(m.detach().square().sum() for m in moved)) ** 0.5 == pytest.approx(
        1e-3, rel=1e-3
    )


def test_bf16_trains_float32_weights_to_nearly_the_same_place():
    whole, half = network(), network()
    losses = fit(whole, classification, Noise(), PLAIN)
    seen = []

    def objective(model, batch):
        seen.append(model(batch[0]).dtype)
        return classification(model, batch)

    halves = fit(half, objective, Noise(), FitConfig(epochs=4, precision="bf16", device="cpu"))
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert halves == pytest.approx(losses, rel=0.05)
    assert halves != losses


def test_channels_last_is_a_matter_of_memory_alone():
    plain, last = images_network(), images_network()
    data = Noise(shape=(3, 8, 8))
    seen = []

    def objective(model, batch):
        seen.append(batch[0].is_contiguous(memory_format=torch.channels_last))
        return classification(model, batch)

    losses = fit(plain, classification, data, FitConfig(epochs=2, device="cpu"))
    others = fit(last, objective, data, FitConfig(epochs=2, channels_last=True, device="cpu"))
    assert all(seen)
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert others == pytest.approx(losses, rel=1e-4)


def test_a_compiled_training_is_the_same_training(monkeypatch):
    # without a code generator behind it, which takes most of a minute
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = network(), network()
    losses = fit(plain, classification, Noise(), FitConfig(epochs=2, device="cpu"))
    others = fit(compiled, classification, Noise(), FitConfig(epochs=2, compile=True, device="cpu"))
    assert others == pytest.approx(losses, rel=1e-4)
    assert list(compiled.state_dict()) == list(plain.state_dict())
