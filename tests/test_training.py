import copy
import gc
import math
import weakref
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rectified import training
from rectified.errors import UserError
from rectified.training import (
    EMA,
    FitConfig,
    Step,
    TrainingState,
    accelerator,
    choose_device,
    classification,
    classification_quality,
    evaluate,
    evaluating,
    fit,
    learning_rate_factor,
    logits_of,
    make_optimizer,
)

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


class Memory:
    """A store in memory, which may be told to save after every epoch."""

    saved = None

    def load(self):
        return copy.deepcopy(self.saved)

    def save(self, state, /):
        self.saved = copy.deepcopy(state)


# ---- the loop


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

    monkeypatch.setattr(training, "_SAVE_EVERY_SECONDS", -1.0)
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


# ---- settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; choose from sgd, adam, adamw"),
        ({"schedule": "x"}, "unknown schedule 'x'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive, got 0\.0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"warmup": 1.0}, "warmup must be in"),
        ({"drops": (0.5, 1.0)}, r"drops must be in \(0, 1\)"),
        ({"clip": -1.0}, "clip must be at least 0"),
        ({"ema": 1.0}, "ema must be in"),
    ],
)
def test_impossible_settings_are_named(values, message):
    config = copy.copy(PLAIN)
    for name, value in values.items():
        # past the type checker of the tests, which would refuse unknown words first
        object.__setattr__(config, name, value)
    with pytest.raises(UserError, match=message):
        config.__post_init__()


@pytest.mark.parametrize("schedule", ["steps", "cosine", "linear", "constant"])
def test_schedules_warm_up_and_never_exceed_the_peak(schedule):
    config = FitConfig(schedule=schedule, warmup=0.1)
    factors = [learning_rate_factor(config, p / 1000) for p in range(1000)]
    assert factors[0] == 0
    assert factors[50] == pytest.approx(0.5)
    assert max(factors) == 1
    after = factors[100:]
    assert all(a >= b for a, b in pairwise(after))


def test_schedules_end_where_they_say():
    ends = {"cosine": 0.0, "linear": 0.0, "constant": 1.0, "steps": 0.01}
    for schedule, end in ends.items():
        config = FitConfig(schedule=schedule)
        assert learning_rate_factor(config, 1 - 1e-9) == pytest.approx(end, abs=1e-8)
    middle = FitConfig(schedule="cosine", warmup=0.0)
    assert learning_rate_factor(middle, 1 / 3) == pytest.approx(0.75)


def test_frozen_parameters_are_left_alone():
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    assert len(make_optimizer(model, PLAIN).param_groups[0]["params"]) == 3
    fit(model, classification, Noise(), PLAIN)
    assert torch.equal(before, model[0].weight)


def test_clipping_bounds_every_step():
    model, start = network(), network()
    config = FitConfig(epochs=1, clip=1e-3, momentum=0.0, weight_decay=0.0, warmup=0.0,
                       schedule="constant", learning_rate=1.0, device="cpu")  # fmt: skip
    fit(model, classification, Noise((8,)), config)
    moved = [a - b for a, b in zip(model.parameters(), start.parameters(), strict=True)]
    assert float(sum(m.detach().square().sum() for m in moved)) ** 0.5 == pytest.approx(
        1e-3, rel=1e-3
    )


def test_nesterov_is_not_plain_momentum():
    plain, nesterov = network(), network()
    fit(plain, classification, Noise(), FitConfig(epochs=1, device="cpu"))
    fit(nesterov, classification, Noise(), FitConfig(epochs=1, nesterov=True, device="cpu"))
    assert not same(plain, nesterov)


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


def test_devices_are_chosen_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device cuda is not available here; write --device cpu"):
        choose_device("cuda")
    with pytest.raises(UserError, match="unknown device 'tpu'; choose from auto, cpu, cuda"):
        choose_device("tpu")


def test_one_process_is_one_process():
    assert accelerator("cpu") is accelerator("cpu")
    assert accelerator("cpu").num_processes == 1


# ---- the moving average


def test_the_average_is_the_recursion_that_it_says():
    model = nn.Linear(1, 1, bias=False).double()
    average = EMA(model, 0.5)
    expected = float(model.weight.detach())
    for number, value in enumerate([1.0, 4.0, -2.0] * 10, start=1):
        model.weight.data.fill_(value)
        average.update(model)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    assert float(average.state["weight"]) == pytest.approx(expected, rel=1e-12)


def test_fit_leaves_the_average_and_whole_number_buffers_are_copied():
    model = images_network()
    followed = []

    def follow(step):
        followed.append(step.model.state_dict()["0.weight"].clone())

    config = FitConfig(epochs=2, ema=0.9, device="cpu")
    fit(model, classification, Noise(shape=(3, 8, 8)), config, hooks=[follow])
    expected = images_network().state_dict()["0.weight"]
    for number, weight in enumerate(followed, start=1):
        expected = expected.lerp(weight, 1 - min(0.9, (1 + number) / (10 + number)))
    assert torch.allclose(model[0].weight, expected)
    assert int(model[1].num_batches_tracked) == 6


# ---- evaluation


def test_evaluation_is_exact_over_batches_of_any_size():
    model = network()
    batches = list(Noise((7, 1, 12, 3)).epoch(0))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    found = evaluate(model, classification_quality, batches, device="cpu")
    assert found["loss"] == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-6)
    assert found["accuracy"] == float((model(x).argmax(1) == y).double().mean())


def test_evaluation_needs_an_example():
    with pytest.raises(UserError, match="batches must hold at least one example"):
        evaluate(network(), classification_quality, [], device="cpu")


def test_evaluation_changes_nothing_and_puts_every_mode_back():
    model = images_network().train()
    model[1].eval()  # frozen statistics
    before = copy.deepcopy(model.state_dict())
    evaluate(model, classification_quality, Noise(shape=(3, 8, 8)).epoch(0), device="cpu")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not model[1].training


def test_modes_are_put_back_after_an_error():
    model = network().train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        1 // int(model.training)
    assert model.training


def test_logits_are_found_in_the_outputs_of_other_libraries():
    scores = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert logits_of(scores) is scores
    assert logits_of(SimpleNamespace(logits=scores)) is scores
    assert logits_of((SimpleNamespace(logits=scores), None)) is scores

    class Wrapped(nn.Module):
        def forward(self, x):
            return SimpleNamespace(logits=scores)

    labels = torch.tensor([0, 1])
    assert classification(Wrapped(), (scores, labels)) == F.cross_entropy(scores, labels)
