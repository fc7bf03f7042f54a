"""Every score through one list of properties, then each by an independent route."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.pruning.look_ahead import IDENTITY, LookAhead, Neighbours
from rectified.pruning.scores import (
    ERK,
    SNIP,
    Gradient,
    GraSP,
    Movement,
    Random,
    Score,
    Snapshot,
    SynFlow,
    lamp,
    magnitude,
    reduce_across_processes,
)
from rectified.pruning.threshold import drop_smallest
from tests.leaving import leave

ORACLE = Path(__file__).parents[2] / "../shared/oracles/pruning_small.npz"


class Residual(nn.Module):
    """Convolutions, norms, a skip connection and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.inner, self.inner_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.inner_norm(self.inner(x)))
        return self.head(self.dropout(x.flatten(1)))


def perceptron(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def classify(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def snapshot_of(model: nn.Module, *input_shape: int, share: float = 0.8) -> Snapshot:
    """A random start, end and mask of `model`, with three batches of three classes."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)

    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    masks = {
        name: torch.rand(weight.shape, generator=generator) < share
        for name, weight in weights.items()
    }
    dtype = next(model.parameters()).dtype
    ends = [
        {
            name: noise(value) * masks.get(name, 1) if name in weights else value
            for name, value in state(model).items()
        }
        for _ in range(2)
    ]
    batches = [
        (
            torch.randn(5, *input_shape, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(3, (5,), generator=generator),
        )
        for _ in range(3)
    ]
    return Snapshot(model, ends[0], ends[1], masks, batches, classify)


def residual() -> Snapshot:
    return snapshot_of(Residual(), 3, 3, 3)


def watched(snapshot: Snapshot) -> Movement:
    """Movement over a short training of a copy of the model."""
    model = copy.deepcopy(snapshot.model).eval()
    model.load_state_dict(snapshot.initial)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    score = Movement()
    with score.watch(model):
        for batch in snapshot.batches:
            optimizer.zero_grad()
            classify(model, batch).backward()
            optimizer.step()
    return score


SCORES: dict[str, Callable[[Snapshot], Score]] = {
    "magnitude": lambda _: magnitude,
    "random": lambda _: Random(torch.Generator().manual_seed(3)),
    "gradient": lambda _: Gradient(),
    "gradient over batches": lambda _: Gradient(batches=3),
    "snip": lambda _: SNIP(batches=2),
    "grasp": lambda _: GraSP(batches=2),
    "synflow": lambda _: SynFlow(),
    "lamp": lambda _: lamp,
    "movement": watched,
    "look-ahead": lambda _: LookAhead(),
    "erk": lambda _: ERK(),
}
OF_WEIGHTS = {name: make for name, make in SCORES.items() if name != "random"}


@pytest.fixture(params=SCORES, ids=SCORES)
def make(request: pytest.FixtureRequest) -> Callable[[Snapshot], Score]:
    return SCORES[request.param]


def test_every_masked_weight_gets_a_finite_score_of_its_shape(make) -> None:
    snapshot = residual()
    scores = make(snapshot)(snapshot)
    assert scores.keys() == snapshot.masks.keys()
    for name, mask in snapshot.masks.items():
        assert scores[name].shape == mask.shape
        assert scores[name].isfinite()[mask].all()
        assert not scores[name].requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_state_are_left_alone(make, training: bool) -> None:
    snapshot = residual()
    snapshot.model.train(training)
    snapshot.model.norm.eval()
    score = make(snapshot)
    before = copy.deepcopy([state(snapshot.model), snapshot.trained, snapshot.initial])
    modes = [module.training for module in snapshot.model.modules()]
    random_state = torch.get_rng_state()
    score(snapshot)
    after = [state(snapshot.model), snapshot.trained, snapshot.initial]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert [module.training for module in snapshot.model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in snapshot.model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_equal_snapshots_get_equal_scores(make) -> None:
    first, second = (make(s)(s) for s in (residual_with_fixed_model(), residual_with_fixed_model()))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def residual_with_fixed_model() -> Snapshot:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return residual()


@pytest.mark.parametrize("make", OF_WEIGHTS.values(), ids=OF_WEIGHTS)
def test_pruned_weights_count_as_zero(make) -> None:
    snapshot = snapshot_of(perceptron(5, 6, 4, 3), 5)
    score = make(snapshot)

    def revived(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        masks = snapshot.masks
        return {n: torch.where(masks[n], w, 9.0) if n in masks else w for n, w in weights.items()}

    other = replace(snapshot, trained=revived(snapshot.trained), initial=revived(snapshot.initial))
    clean, spoiled = score(snapshot), score(other)
    for name, mask in snapshot.masks.items():
        torch.testing.assert_close(clean[name][mask], spoiled[name][mask], rtol=0, atol=0)


@pytest.mark.parametrize("make", OF_WEIGHTS.values(), ids=OF_WEIGHTS)
def test_permuting_hidden_units_permutes_the_scores(make) -> None:
    snapshot = snapshot_of(perceptron(5, 6, 3), 5)
    order = torch.tensor([3, 0, 5, 1, 2, 4])

    def permuted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {"0.weight": lambda v: v[order], "0.bias": lambda v: v[order]}
        moved["2.weight"] = lambda v: v[:, order]
        return {name: moved.get(name, lambda v: v)(value) for name, value in tensors.items()}

    other = replace(
        snapshot,
        trained=permuted(snapshot.trained),
        initial=permuted(snapshot.initial),
        masks=permuted(snapshot.masks),
    )
    expected = permuted(make(snapshot)(snapshot))
    actual = make(other)(other)
    for name, mask in other.masks.items():
        torch.testing.assert_close(actual[name][mask], expected[name][mask])


def loss_at(snapshot: Snapshot, weights: dict[str, Tensor], batches: int) -> Tensor:
    losses = [
        F.cross_entropy(torch.func.functional_call(snapshot.model, weights, batch[0]), batch[1])
        for batch in list(snapshot.batches)[:batches]
    ]
    return torch.stack(losses).mean()


def central_difference(loss: Callable[[Tensor], Tensor], at: Tensor, step: float) -> Tensor:
    slope = torch.zeros_like(at)
    for i in range(at.numel()):
        shift = torch.zeros_like(at).view(-1).index_fill(0, torch.tensor(i), step).view_as(at)
        slope.view(-1)[i] = (loss(at + shift) - loss(at - shift)) / (2 * step)
    return slope


def test_gradient_is_the_loss_slope_by_finite_differences_times_the_weight() -> None:
    snapshot = snapshot_of(perceptron(3, 4, 3), 3)
    scores = Gradient(batches=2)(snapshot)
    for name, mask in snapshot.masks.items():
        weight = snapshot.trained[name]
        slope = central_difference(
            lambda w, name=name: loss_at(snapshot, {**snapshot.trained, name: w}, 2), weight, 1e-5
        )
        expected = (weight * slope).abs()
        torch.testing.assert_close(scores[name][mask], expected[mask], rtol=1e-6, atol=1e-8)


def test_snip_is_the_loss_slope_in_the_mask_at_the_start() -> None:
    snapshot = snapshot_of(perceptron(3, 4, 3), 3, share=1.1)
    scores = SNIP()(snapshot)
    for name, mask in snapshot.masks.items():
        start = snapshot.initial

        def loss(m: Tensor, name: str = name, start: dict[str, Tensor] = start) -> Tensor:
            return loss_at(snapshot, {**start, name: m * start[name]}, 1)

        slope = central_difference(loss, mask.double(), 1e-5)
        torch.testing.assert_close(scores[name], slope.abs(), rtol=1e-6, atol=1e-8)


def test_grasp_is_the_weight_times_the_full_hessian_times_the_gradient() -> None:
    snapshot = snapshot_of(perceptron(2, 3, 3), 2)
    kept = {name: mask.nonzero(as_tuple=True) for name, mask in snapshot.masks.items()}
    sizes = [len(indices[0]) for indices in kept.values()]

    def cooled_loss(flat: Tensor) -> Tensor:
        weights = dict(snapshot.initial)
        for (name, indices), part in zip(kept.items(), flat.split(sizes), strict=True):
            weights[name] = torch.zeros_like(weights[name]).index_put(indices, part)
        logits = [
            torch.func.functional_call(snapshot.model, weights, batch[0]) / 200
            for batch in snapshot.batches
        ]
        losses = [F.cross_entropy(z, b[1]) for z, b in zip(logits, snapshot.batches, strict=True)]
        return torch.stack(losses).mean()

    flat = torch.cat([snapshot.initial[name][indices] for name, indices in kept.items()])
    gradient = torch.autograd.functional.jacobian(cooled_loss, flat)
    hessian = torch.autograd.functional.hessian(cooled_loss, flat)
    scores = GraSP(batches=3)(snapshot)
    actual = torch.cat([scores[name][indices] for name, indices in kept.items()])
    torch.testing.assert_close(actual, flat * (hessian @ gradient), rtol=1e-9, atol=0)


def test_synflow_of_a_chain_is_the_strength_of_all_paths_through_a_weight() -> None:
    model = nn.Sequential(*[nn.Linear(a, b, bias=False) for a, b in [(2, 3), (3, 4), (4, 2)]])
    snapshot = snapshot_of(model, 2)
    a, b, c = (snapshot.initial[name].double().abs() for name in snapshot.masks)
    ones = torch.ones(2, dtype=torch.float64)
    expected = [
        torch.outer(ones @ c @ b, ones) * a,
        torch.outer(ones @ c, a @ ones) * b,
        torch.outer(ones, b @ a @ ones) * c,
    ]
    torch.testing.assert_close(list(SynFlow()(snapshot).values()), expected)


def test_synflow_is_conserved_from_layer_to_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3, bias=False)
    )
    first, last = (s.sum() for s in SynFlow()(snapshot_of(model, 3, 3, 3)).values())
    torch.testing.assert_close(first, last)


def test_synflow_of_a_deep_network_does_not_overflow() -> None:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(40)])
    scores = SynFlow()(snapshot_of(model, 64))
    assert all(score.isfinite().all() for score in scores.values())
    assert max(float(score.max()) for score in scores.values()) > torch.finfo(torch.float32).max


def test_synflow_passes_buffers_that_have_no_sign() -> None:
    model = nn.Linear(2, 3)
    model.register_buffer("flags", torch.tensor([True, False]))
    assert SynFlow()(snapshot_of(model, 2))["weight"].isfinite().all()


def test_lamp_is_its_definition_term_by_term() -> None:
    snapshot = residual()
    scores = lamp(snapshot)
    for name, mask in snapshot.masks.items():
        kept = snapshot.trained[name][mask].double() ** 2
        expected = torch.stack([w / kept[kept >= w].sum() for w in kept])
        torch.testing.assert_close(scores[name][mask], expected)


def test_lamp_keeps_one_weight_in_every_layer() -> None:
    snapshot = residual()
    count = sum(int(mask.sum()) for mask in snapshot.masks.values()) - len(snapshot.masks)
    masks = drop_smallest(lamp(snapshot), snapshot.masks, count)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1]


def lamp_of(weights: list[float], mask: list[int]) -> list[float]:
    trained = {"w": torch.tensor(weights)}
    masks = {"w": torch.tensor(mask, dtype=torch.bool)}
    return lamp(Snapshot(nn.Identity(), trained, trained, masks))["w"].tolist()


def test_lamp_of_equal_weights_grows_with_position_to_one() -> None:
    assert lamp_of([2.0, -2.0, 2.0, 2.0], [1, 1, 1, 1]) == [1 / 4, 1 / 3, 1 / 2, 1.0]


def test_lamp_of_zeros_is_one_for_the_last_kept_weight() -> None:
    assert lamp_of([0.0, 0.0, 0.0], [1, 1, 0]) == [0.0, 1.0, 0.0]


def test_lamp_of_a_long_layer_ends_at_exactly_one() -> None:
    weight = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    masks = {"w": torch.ones(10**6, dtype=torch.bool)}
    assert lamp(Snapshot(nn.Identity(), {"w": weight}, {}, masks))["w"].max() == 1.0


def test_movement_is_the_weight_times_its_change_over_the_rate_under_plain_descent() -> None:
    snapshot = snapshot_of(perceptron(3, 4, 3), 3)
    model = copy.deepcopy(snapshot.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    expected = {name: torch.zeros_like(snapshot.trained[name]) for name in snapshot.masks}
    score = Movement()
    with score.watch(nn.DataParallel(model)):
        for batch in snapshot.batches:
            before = state(model)
            optimizer.zero_grad()
            classify(model, batch).backward()
            optimizer.step()
            for name in expected:
                expected[name] += before[name] * (state(model)[name] - before[name]) / 0.25
    torch.testing.assert_close(score(snapshot), expected)


def test_movement_counts_accumulated_gradients_once() -> None:
    snapshot = snapshot_of(perceptron(3, 3), 3)
    model = copy.deepcopy(snapshot.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start, score = state(model), Movement()
    with score.watch(model):
        for batch in snapshot.batches:
            classify(model, batch).backward()
        optimizer.step()
    expected = -start["0.weight"] * model[0].weight.grad
    torch.testing.assert_close(score(snapshot)["0.weight"], expected)


def test_movement_starts_anew_and_stops_with_its_context() -> None:
    snapshot = snapshot_of(perceptron(3, 3), 3)
    score = watched(snapshot)
    once = score(snapshot)
    other = copy.deepcopy(snapshot.model)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    classify(other, snapshot.batches[0]).backward()
    optimizer.step()
    torch.testing.assert_close(score(snapshot), once, rtol=0, atol=0)
    with score.watch(snapshot.model):
        assert score.state == {}


def test_movement_sums_bfloat16_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    score = Movement()
    with score.watch(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(1000):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
    assert score.state["weight"].item() == -1000  # bfloat16 stops at -256


def test_movement_that_watched_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"watch a training first, it saw no update of '0.weight'"):
        Movement()(snapshot_of(perceptron(3, 3), 3))


def chain(*names: str) -> dict[str, Neighbours]:
    padded = [(), *[(name,) for name in names], ()]
    return {n: Neighbours(padded[i], padded[i + 2]) for i, n in enumerate(names)}


def jacobian_changes(weights: list[Tensor], layer: int) -> Tensor:
    """Squared norm of the change of W3 W2 W1 when each weight of one layer is removed."""
    full = torch.linalg.multi_dot(weights[::-1])
    changes = torch.zeros_like(weights[layer])
    for i in range(changes.numel()):
        removed = [w.clone() for w in weights]
        removed[layer].view(-1)[i] = 0
        changes.view(-1)[i] = (full - torch.linalg.multi_dot(removed[::-1])).square().sum()
    return changes


def test_look_ahead_is_the_distortion_of_a_three_layer_block() -> None:
    snapshot = snapshot_of(perceptron(4, 5, 3, 2), 4)
    scores = LookAhead(lambda _: chain(*snapshot.masks))(snapshot)
    weights = [snapshot.trained[name] for name in snapshot.masks]
    torch.testing.assert_close(scores["2.weight"], jacobian_changes(weights, 1))


def test_look_ahead_at_the_ends_is_the_distortion_of_two_layers() -> None:
    snapshot = snapshot_of(perceptron(4, 5, 3), 4)
    scores = LookAhead(lambda _: chain(*snapshot.masks))(snapshot)
    weights = [snapshot.trained[name] for name in snapshot.masks]
    for layer, score in enumerate(scores.values()):
        torch.testing.assert_close(score, jacobian_changes(weights, layer))


def test_look_ahead_counts_a_batch_norm_as_part_of_its_layer() -> None:
    model = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
    ).double()
    snapshot = snapshot_of(model, 4)
    trained = dict(snapshot.trained)
    for norm, channels in (("1", 5), ("3", 3)):
        trained[f"{norm}.weight"] = torch.linspace(-2.0, 1.0, channels, dtype=torch.float64)
        trained[f"{norm}.running_var"] = torch.linspace(0.1, 3.0, channels, dtype=torch.float64)

    def folded(*pairs: tuple[str, str]) -> dict[str, Tensor]:
        weights = dict(trained)
        for layer, norm in pairs:
            gain = trained[f"{norm}.weight"] / (trained[f"{norm}.running_var"] + 1e-5).sqrt()
            weights[f"{layer}.weight"] = gain[:, None] * trained[f"{layer}.weight"]
        return weights

    plain = chain("0.weight", "2.weight", "4.weight")
    normed = dict(plain)
    for name, norm in (("0.weight", "1"), ("2.weight", "3")):
        normed[name] = replace(plain[name], norm=norm)
    snapshot = replace(snapshot, masks={name: snapshot.masks[name] for name in plain})
    scores = LookAhead(lambda _: normed)(replace(snapshot, trained=trained))
    # A block ends with the weights of its third layer, before the norm behind them.
    for name, pairs in (
        ("0.weight", [("0", "1")]),
        ("2.weight", [("0", "1"), ("2", "3")]),
        ("4.weight", [("0", "1"), ("2", "3")]),
    ):
        expected = LookAhead(lambda _: plain)(replace(snapshot, trained=folded(*pairs)))
        torch.testing.assert_close(scores[name], expected[name])


def test_look_ahead_takes_norms_that_scale_by_their_input_as_one() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    snapshot = snapshot_of(model, 4)
    snapshot = replace(snapshot, masks={n: m for n, m in snapshot.masks.items() if m.ndim == 2})
    around = chain("0.weight", "2.weight")
    plain = LookAhead(lambda _: around)(snapshot)
    normed = LookAhead(lambda _: {**around, "0.weight": replace(around["0.weight"], norm="1")})(
        snapshot
    )
    torch.testing.assert_close(normed, plain)


def test_look_ahead_through_flatten_sums_over_each_channels_block() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 4, 5)).double()
    snapshot = snapshot_of(model, 2, 4, 4)
    scores = LookAhead(lambda _: chain(*snapshot.masks))(snapshot)
    conv, linear = (snapshot.trained[name] for name in snapshot.masks)
    for channel in range(3):
        block = slice(4 * channel, 4 * channel + 4)
        after, before = linear[:, block].square().sum(), conv[channel].square().sum()
        torch.testing.assert_close(scores["0.weight"][channel], conv[channel] ** 2 * after)
        torch.testing.assert_close(scores["2.weight"][:, block], linear[:, block] ** 2 * before)


def test_look_ahead_adds_branches_and_one_for_an_identity() -> None:
    snapshot = residual()
    around = {
        "stem.weight": Neighbours((), ("inner.weight", "head.weight")),
        "inner.weight": Neighbours(("stem.weight", IDENTITY), ("head.weight",)),
        "head.weight": Neighbours(("stem.weight", "inner.weight"), ()),
    }
    scores = LookAhead(lambda _: around)(snapshot)
    stem, inner, head = (snapshot.trained[f"{n}.weight"].double() ** 2 for n in names_of(snapshot))
    rows = [w.sum((1, 2, 3)) for w in (stem, inner)]
    to_head = head.sum(0).view(4, 9).sum(1)
    torch.testing.assert_close(
        scores["stem.weight"], stem * (inner.sum((0, 2, 3)) + to_head).view(4, 1, 1, 1)
    )
    torch.testing.assert_close(
        scores["inner.weight"], inner * (rows[0] + 1).view(1, 4, 1, 1) * to_head.view(4, 1, 1, 1)
    )
    torch.testing.assert_close(
        scores["head.weight"], head * (rows[0] + rows[1]).repeat_interleave(9)
    )


def names_of(snapshot: Snapshot) -> list[str]:
    return [name.removesuffix(".weight") for name in snapshot.masks]


def dense_twin(conv: nn.Module, weight: Tensor, dense: nn.Module) -> Tensor:
    """The weight of an ungrouped, not transposed 1x1 convolution that does the same."""
    inputs = torch.eye(conv.in_channels, dtype=weight.dtype).reshape(-1, conv.in_channels, 1, 1)
    outputs = torch.func.functional_call(conv, {"weight": weight}, inputs)
    return outputs.squeeze().T.reshape(dense.weight.shape)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_look_ahead_of_grouped_and_transposed_convolutions_is_that_of_their_dense_twin(
    kind: type[nn.Conv2d], groups: int
) -> None:
    def network(middle: nn.Module) -> nn.Sequential:
        ends = nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(8, 3, 1, bias=False)
        return nn.Sequential(ends[0], middle, ends[1]).double()

    middle = kind(4, 8, 1, groups=groups, bias=False)
    grouped = snapshot_of(network(middle), 2, 1, 1, share=1.1)
    dense = nn.Conv2d(4, 8, 1, bias=False)
    twin_weights = dict(grouped.trained)
    twin_weights["1.weight"] = dense_twin(middle, grouped.trained["1.weight"], dense)
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in twin_weights.items()}
    twin = Snapshot(network(dense), twin_weights, twin_weights, masks)
    around = chain(*grouped.masks)
    actual, expected = LookAhead(lambda _: around)(grouped), LookAhead(lambda _: around)(twin)
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(actual[name], expected[name])
    as_dense = dense_twin(middle, actual["1.weight"], dense)
    torch.testing.assert_close(as_dense, expected["1.weight"])


def test_look_ahead_finds_the_neighbours_itself() -> None:
    snapshot = snapshot_of(perceptron(4, 5, 3, 2), 4)
    expected = LookAhead(lambda _: chain(*snapshot.masks))(snapshot)
    torch.testing.assert_close(LookAhead()(snapshot), expected)


def test_look_ahead_names_what_it_cannot_look_through() -> None:
    snapshot = snapshot_of(perceptron(4, 5, 3), 4)
    with pytest.raises(UserError, match=r"every masked weight, missing '2.weight'"):
        LookAhead(lambda _: chain("0.weight"))(snapshot)
    skipping = {name: Neighbours(after=("0.weight",)) for name in snapshot.masks}
    with pytest.raises(UserError, match=r"fit, got 5 of '0.weight' beside 4 of '0.weight'"):
        LookAhead(lambda _: skipping)(snapshot)
    embedding = snapshot_of(nn.Sequential(nn.Embedding(4, 5)), 4)
    with pytest.raises(UserError, match=r"linear or convolution layers, got Embedding at '0.w"):
        LookAhead(lambda _: chain("0.weight"))(embedding)


def test_look_ahead_refuses_channels_that_only_divide() -> None:
    snapshot = snapshot_of(perceptron(4, 6, 3), 4)
    fused = {"0.weight": Neighbours(("2.weight",)), "2.weight": Neighbours(("0.weight",))}
    with pytest.raises(UserError, match=r"fit, got 4 of '0.weight' beside 3 of '2.weight'"):
        LookAhead(lambda _: fused)(snapshot)
    doubled = snapshot_of(nn.Sequential(nn.Linear(4, 3), nn.Linear(6, 2)), 4)
    with pytest.raises(UserError, match=r"fit, got 3 of '0.weight' beside 6 of '1.weight'"):
        LookAhead(lambda _: chain("0.weight", "1.weight"))(doubled)


def erk_densities(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """The layers' densities min(1, c sum(shape) / prod(shape)) (Evci et al., 2020, sec. 3)."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    slopes = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    budget = density * sum(sizes.values())
    open_layers = sorted(shapes, key=slopes.__getitem__)
    scale = 0.0
    while open_layers:
        scale = budget / sum(sum(shapes[name]) for name in open_layers)
        steepest = open_layers.pop()
        if scale * slopes[steepest] < 1:
            break
        budget -= sizes[steepest]  # it is full; the others share what is left
    return {name: min(1.0, scale * slope) for name, slope in slopes.items()}


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9, 1.0])
def test_erk_scores_cut_every_layer_to_its_erk_density_at_any_density(density: float) -> None:
    snapshot = snapshot_of(perceptron(5, 40, 30, 3), 5, share=1.1)
    shapes = {name: tuple(mask.shape) for name, mask in snapshot.masks.items()}
    total = sum(mask.numel() for mask in snapshot.masks.values())
    masks = drop_smallest(ERK()(snapshot), snapshot.masks, total - round(density * total))
    for name, wanted in erk_densities(shapes, density).items():
        assert abs(int(masks[name].sum()) - wanted * masks[name].numel()) <= 1 + 1e-9


def test_erk_ranks_within_a_layer_as_the_score_does() -> None:
    snapshot = residual()
    scores, ranked = magnitude(snapshot), ERK(within=magnitude)(snapshot)
    for name, mask in snapshot.masks.items():
        assert torch.equal(scores[name][mask].argsort(), ranked[name][mask].argsort())


def test_erk_never_drops_what_its_score_never_drops() -> None:
    snapshot = snapshot_of(perceptron(3, 3), 3)

    def protected(_: Snapshot) -> dict[str, Tensor]:
        return {"0.weight": torch.full((3, 3), torch.inf)}

    assert ERK(protected)(snapshot)["0.weight"].isinf().all()


@pytest.mark.parametrize("density", [0.01, 0.1, 0.37, 0.8, 0.99])
def test_erk_densities_keep_the_density_and_share_one_slope(density: float) -> None:
    shapes = {
        "stem": (16, 3, 3, 3),
        "block": (64, 64, 3, 3),
        "wide": (128, 64, 3, 3),
        "head": (10, 128),
    }
    densities = erk_densities(shapes, density)
    sizes = {name: np.prod(shape) for name, shape in shapes.items()}
    kept = sum(densities[name] * sizes[name] for name in shapes)
    assert kept == pytest.approx(density * sum(sizes.values()), rel=1e-12)
    slopes = {name: densities[name] * sizes[name] / sum(shapes[name]) for name in shapes}
    steepest = max(slopes.values())
    for name in shapes:
        assert densities[name] == 1.0 or slopes[name] == pytest.approx(steepest, rel=1e-12)


def test_random_scores_are_uniform_and_without_ties() -> None:
    masks = {"w": torch.ones(100, 100, dtype=torch.bool)}
    draws = Random(torch.Generator().manual_seed(0))(Snapshot(nn.Identity(), {}, {}, masks))["w"]
    assert draws.unique().numel() == draws.numel()
    counts = torch.histc(draws, 10, 0.0, 1.0)
    assert ((counts - 1000).square() / 1000).sum() < 27.9  # chi-squared, 9 degrees, p = 0.001


def test_scores_of_weights_that_the_loss_does_not_use_are_zero() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 3), "unused": nn.Linear(2, 3)})
    snapshot = snapshot_of(model, 2)
    snapshot = replace(snapshot, objective=lambda m, batch: classify(m["used"], batch))
    assert Gradient()(snapshot)["unused.weight"].count_nonzero() == 0


GRADIENT_SCORES = [Gradient(), SNIP(), GraSP()]


@pytest.mark.parametrize("score", GRADIENT_SCORES, ids=repr)
def test_gradient_scores_need_an_objective_and_a_batch(score: Score) -> None:
    snapshot = snapshot_of(perceptron(3, 3), 3)
    with pytest.raises(UserError, match=r"objective must be given .* got None"):
        score(replace(snapshot, objective=None))
    with pytest.raises(UserError, match="at least one batch, got none"):
        score(replace(snapshot, batches=[]))


def test_synflow_needs_a_floating_point_input() -> None:
    snapshot = snapshot_of(perceptron(3, 3), 3)
    with pytest.raises(UserError, match="at least one batch, got none"):
        SynFlow()(replace(snapshot, batches=[]))
    with pytest.raises(UserError, match=r"floating-point input, got torch\.int64"):
        SynFlow()(replace(snapshot, batches=[(torch.ones(2, 3, dtype=torch.long),)]))


def test_grasp_needs_a_tensor_from_the_model() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    with pytest.raises(UserError, match="returns a tensor, got tuple"):
        GraSP()(snapshot_of(Pair(3, 3), 3))


@pytest.mark.parametrize(
    ("make_score", "message"),
    [
        (lambda: Gradient(batches=0), "batches must be at least 1, got 0"),
        (lambda: SNIP(batches=-1), "batches must be at least 1, got -1"),
        (lambda: GraSP(batches=0), "batches must be at least 1, got 0"),
        (lambda: GraSP(temperature=0.0), r"temperature must be positive, got 0\.0"),
        (lambda: Gradient(at="end"), "unknown moment 'end'; choose from initial, trained"),
        (lambda: GraSP(at="end"), "unknown moment 'end'; choose from initial, trained"),
        (lambda: SynFlow(at="end"), "unknown moment 'end'; choose from initial, trained"),
    ],
)
def test_values_out_of_range_are_refused(make_score: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_score()


def test_reducing_within_one_process_changes_nothing() -> None:
    values = {"w": torch.ones(2)}
    assert reduce_across_processes(values) is values


SPLIT_SCORES = [Gradient(), SNIP(), GraSP()]


def split_snapshot() -> Snapshot:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return snapshot_of(perceptron(3, 4, 3), 3)


def score_one_batch_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    whole = split_snapshot()
    part = replace(whole, batches=whole.batches[rank : rank + 1])
    results = [score(part) for score in SPLIT_SCORES]
    results.append(reduce_across_processes({"w": torch.tensor([float(rank)])}))
    torch.save(results, f"{folder}/{rank}.pt")
    leave()


def test_two_processes_with_a_batch_each_agree_with_one_that_has_both(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(score_one_batch_of_two, (str(tmp_path),), nprocs=2)
    expected = [replace(score, batches=2)(split_snapshot()) for score in SPLIT_SCORES]
    expected.append({"w": torch.tensor([0.5])})
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    if not ORACLE.exists():
        pytest.skip("the oracle file is not here")
    return dict(np.load(ORACLE))


def oracle_snapshot(oracle: dict[str, np.ndarray]) -> Snapshot:
    def named(prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): torch.from_numpy(value)
            for key, value in oracle.items()
            if key.startswith(prefix)
        }

    model = nn.Sequential()
    model.conv1, model.conv2 = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 12, 3, bias=False)
    model.fc1, model.fc2 = nn.Linear(192, 20, bias=False), nn.Linear(20, 5, bias=False)
    trained = named("trained/")
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in trained.items()}
    return Snapshot(model, trained, named("start/"), masks)


def test_lamp_agrees_with_the_authors_code(oracle: dict[str, np.ndarray]) -> None:
    for name, score in lamp(oracle_snapshot(oracle)).items():
        theirs = torch.from_numpy(oracle[f"lamp/score/{name}"]).double()
        torch.testing.assert_close(score, theirs, rtol=2e-4, atol=1e-9)  # theirs is in float32


def test_look_ahead_agrees_with_the_authors_code(oracle: dict[str, np.ndarray]) -> None:
    snapshot = oracle_snapshot(oracle)
    scores = LookAhead(lambda _: chain(*snapshot.masks))(snapshot)
    for name in ("conv1.weight", "fc2.weight"):
        theirs = torch.from_numpy(oracle[f"lap/score/{name}"])
        torch.testing.assert_close(scores[name], theirs, rtol=1e-5, atol=0)


def test_magnitude_drops_what_the_ap_reference_drops(oracle: dict[str, np.ndarray]) -> None:
    snapshot = oracle_snapshot(oracle)
    theirs = {n: torch.from_numpy(oracle[f"ap/mask_after_X/{n}"]) for n in snapshot.masks}
    dropped = sum(int((~mask).sum()) for mask in theirs.values())
    ours = drop_smallest(magnitude(snapshot), snapshot.masks, dropped)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
