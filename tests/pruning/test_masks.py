"""Masks: exact counts, ties by position, and pruned weights that stay at zero whatever trains."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rectified.errors import UserError
from rectified.pruning.masks import (
    Masks,
    apply_,
    bare,
    density,
    droppable,
    full_masks,
    hold,
    kept,
    named_weights,
    prunable,
    prune,
    total,
)
from rectified.training import FitConfig, fit

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "maximise": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, maximize=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True),
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.1, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4),
}


class Small(nn.Module):
    """A convolution, norms and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.hidden, self.head = nn.Linear(64, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def small() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(count, 8, 2, 4, 4, generator=draw)
    labels = torch.randint(3, (count, 8), generator=draw)
    return list(zip(images, labels, strict=True))


def random_masks(model: nn.Module, share: float = 0.5) -> Masks:
    draw = torch.Generator().manual_seed(2)
    return {
        name: torch.rand(mask.shape, generator=draw) < share
        for name, mask in full_masks(model).items()
    }


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, keep: Callable[[], None], steps: int
) -> None:
    for images, labels in batches(steps):

        def loss(images: Tensor = images, labels: Tensor = labels) -> Tensor:
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(model(images), labels)
            value.backward()
            return value

        optimizer.step(loss)
        keep()


def pruned_weights(model: nn.Module, masks: Masks) -> Tensor:
    weights = named_weights(model)
    return torch.cat([weights[name].detach()[~mask] for name, mask in masks.items()])


def ones(**sizes: int) -> Masks:
    return {name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()}


layers = st.lists(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
)


def scored(entries: list[list[tuple[int, bool]]]) -> tuple[dict[str, Tensor], Masks]:
    """Scores with many ties, and masks that have already lost weights."""
    scores = {str(i): torch.tensor([float(s) for s, _ in e]) for i, e in enumerate(entries)}
    masks = {str(i): torch.tensor([k for _, k in e]) for i, e in enumerate(entries)}
    return scores, masks


@settings(max_examples=25)
@given(layers, st.floats(0, 1, exclude_max=True))
def test_global_scope_drops_exactly_the_smallest_and_of_ties_the_first(
    entries: list[list[tuple[int, bool]]], fraction: float
) -> None:
    scores, masks = scored(entries)
    found = prune(masks, scores, fraction, floor=0)

    alive = [(float(scores[n][i]), n, i) for n in masks for i in range(len(masks[n]))]
    alive = [entry for entry in alive if masks[entry[1]][entry[2]]]
    expected = {name: mask.clone() for name, mask in masks.items()}
    for _, name, index in sorted(alive, key=lambda e: (e[0], int(e[1]), e[2]))[
        : round(fraction * len(alive))
    ]:
        expected[name][index] = False
    assert all(torch.equal(found[name], expected[name]) for name in masks)


@settings(max_examples=25)
@given(layers, st.floats(0, 0.9), st.integers(0, 3))
def test_a_floor_keeps_the_best_of_every_layer_and_the_count_stays_exact(
    entries: list[list[tuple[int, bool]]], fraction: float, floor: int
) -> None:
    scores, masks = scored(entries)
    due = round(fraction * kept(masks))
    spare = sum(max(0, int(mask.sum()) - floor) for mask in masks.values())
    assert droppable(masks, scores, floor=floor) == spare
    if due > spare:
        with pytest.raises(UserError, match=f"got {due}"):
            prune(masks, scores, fraction, floor=floor)
        return
    found = prune(masks, scores, fraction, floor=floor)
    assert kept(masks) - kept(found) == due
    for name, mask in masks.items():
        alive, left = scores[name][mask], scores[name][found[name]]
        assert len(left) >= min(floor, len(alive))
        assert not (found[name] & ~mask).any()  # nothing comes back
        best = alive.sort(descending=True).values[: min(floor, len(alive))]
        assert torch.equal(left.sort(descending=True).values[: len(best)], best)


@settings(max_examples=25)
@given(layers, st.floats(0, 0.9))
def test_layer_scope_is_exact_in_all_and_within_one_weight_in_every_layer(
    entries: list[list[tuple[int, bool]]], fraction: float
) -> None:
    scores, masks = scored(entries)
    found = prune(masks, scores, fraction, scope="layer", floor=0)
    assert kept(masks) - kept(found) == round(fraction * kept(masks))
    for name, mask in masks.items():
        dropped = int(mask.sum()) - int(found[name].sum())
        assert abs(dropped - fraction * int(mask.sum())) < 1
        left, gone = scores[name][found[name]], scores[name][mask & ~found[name]]
        assert len(left) == 0 or len(gone) == 0 or gone.max() <= left.min()


def test_layer_scope_gives_the_share_of_a_full_layer_to_the_others() -> None:
    masks = ones(small=2, large=20)
    scores = {name: torch.arange(float(len(mask))) for name, mask in masks.items()}
    found = prune(masks, scores, 0.9, scope="layer")
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"small": 1, "large": 1}


def test_layer_scope_gives_the_share_of_protected_weights_to_the_others() -> None:
    masks = ones(protected=10, open=10)
    scores = {"protected": torch.full((10,), math.inf), "open": torch.arange(10.0)}
    found = prune(masks, scores, 0.4, scope="layer")
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"protected": 10, "open": 2}


def test_layer_scope_says_when_the_layers_cannot_spare_enough() -> None:
    masks = ones(a=2, b=2)
    scores = {name: torch.arange(2.0) for name in masks}
    with pytest.raises(UserError, match="asks for 3 weights, the layers can spare 2"):
        prune(masks, scores, 0.75, scope="layer")


def test_the_fraction_refers_to_the_masks_it_is_given() -> None:
    start = ones(w=100)
    scores = {"w": torch.arange(100.0)}
    first = prune(start, scores, 0.18)
    for scope in ("global", "layer"):
        assert kept(prune(first, scores, 0.02, of=start, scope=scope)) == 80
    assert kept(prune(first, scores, 0.02)) == 82 - round(0.02 * 82)


def test_given_masks_and_scores_are_left_alone() -> None:
    masks, scores = ones(a=6, b=4), {"a": torch.arange(6.0), "b": torch.arange(4.0)}
    for scope in ("global", "layer"):
        prune(masks, scores, 0.5, scope=scope)
    assert kept(masks) == 10
    assert torch.equal(scores["a"], torch.arange(6.0))


@pytest.mark.parametrize("floor", [0, 1, 3])
def test_equal_scores_are_dropped_from_the_front(floor: int) -> None:
    masks = ones(a=4, b=5)
    found = prune(masks, {"a": torch.ones(4), "b": torch.ones(5)}, 3 / 9, floor=floor)
    expected = [False] * min(3, 4 - floor) + [True] * max(1, floor)
    assert found["a"].tolist() == expected
    assert kept(found) == 6


def test_weights_of_infinite_score_stay() -> None:
    masks, scores = ones(w=4), {"w": torch.tensor([math.inf, 1.0, math.inf, 2.0])}
    assert prune(masks, scores, 0.5, floor=0)["w"].tolist() == [True, False, True, False]
    with pytest.raises(UserError, match="below inf"):
        prune(masks, scores, 0.75, floor=0)


def test_minus_infinity_goes_first_even_beside_pruned_weights() -> None:
    masks = {"w": torch.tensor([False, True, True])}
    scores = {"w": torch.tensor([5.0, -math.inf, -math.inf])}
    assert prune(masks, scores, 0.5)["w"].tolist() == [False, False, True]


@pytest.mark.parametrize("scope", ["global", "layer", "1:2"])
@pytest.mark.parametrize("position", [0, 7])
def test_nan_among_kept_weights_is_refused_wherever_it_stands(scope: str, position: int) -> None:
    masks = {"w": torch.ones(2, 4, dtype=torch.bool)}
    score = torch.arange(8.0).view(2, 4)
    score.view(-1)[position] = math.nan
    with pytest.raises(UserError, match="nan in 'w'"):
        prune(masks, {"w": score}, 0.25, scope=scope)
    with pytest.raises(UserError, match="nan in 'w'"):
        droppable(masks, {"w": score}, scope=scope)


def test_nan_at_a_pruned_weight_does_not_matter() -> None:
    masks = {"w": torch.tensor([False, True, True])}
    scores = {"w": torch.tensor([math.nan, 2.0, 1.0])}
    assert prune(masks, scores, 0.5)["w"].tolist() == [False, True, False]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, math.nan])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=r"fraction must be in \[0, 1\), got"):
        prune(ones(w=2), {"w": torch.ones(2)}, fraction)


def test_wrong_names_and_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="'w' is missing"):
        prune(ones(w=2), {}, 0.5)
    with pytest.raises(UserError, match=r"mask's shape \(2,\), got \(3,\)"):
        prune(ones(w=2), {"w": torch.ones(3)}, 0.5)
    with pytest.raises(UserError, match=r"of must have the names of masks, got \['v'\]"):
        prune(ones(w=2), {"w": torch.ones(2)}, 0.5, of=ones(w=2, v=1))


@pytest.mark.parametrize("scope", ["all", "4:2", "2:2", "0:4", "2:4:8", "-1:4", ""])
def test_an_unknown_scope_is_refused(scope: str) -> None:
    with pytest.raises(UserError, match="choose from global, layer, 2:4"):
        prune({"w": torch.ones(4, 4, dtype=torch.bool)}, {"w": torch.rand(4, 4)}, 0.5, scope=scope)


@pytest.mark.parametrize(("scope", "keep", "group"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
@pytest.mark.parametrize("shape", [(6, 16), (5, 8, 3, 3), (4, 8, 3)])
@pytest.mark.parametrize("ties", [False, True])
def test_a_pattern_leaves_at_most_n_of_every_m_neighbouring_inputs(
    scope: str, keep: int, group: int, shape: tuple[int, ...], ties: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    score = torch.rand(shape, generator=draw)
    score = torch.ones(shape) if ties else score
    masks = {"w": torch.ones(shape, dtype=torch.bool)}
    found = prune(masks, {"w": score}, 1 - keep / group, scope=scope)["w"]
    groups = found.movedim(1, -1).reshape(-1, group)
    assert (groups.sum(1) == keep).all()
    best = score.movedim(1, -1).reshape(-1, group).topk(keep).values.sum()
    assert float(score[found].sum()) == pytest.approx(float(best))


def test_a_pattern_is_reached_by_way_of_lesser_fractions() -> None:
    score = torch.rand(8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = {"w": torch.ones(8, 16, dtype=torch.bool)}
    masks = start
    for _ in range(4):
        masks = prune(masks, {"w": score}, 0.125, of=start, scope="2:4")
    assert (masks["w"].view(-1, 4).sum(1) == 2).all()
    with pytest.raises(UserError, match="below inf"):
        prune(masks, {"w": score}, 0.1, scope="2:4")


def test_a_pattern_leaves_layers_without_whole_groups_dense() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"image": (8, 3, 3, 3), "body": (8, 8, 3, 3), "scale": (8,)}
    scores = {name: torch.rand(shape, generator=draw) for name, shape in shapes.items()}
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    assert droppable(masks, scores, scope="2:4") == 8 * 8 * 9 // 2
    found = prune(masks, scores, 0.2, scope="2:4")
    assert found["image"].all()
    assert found["scale"].all()
    assert kept(masks) - kept(found) == round(0.2 * total(masks))


def test_a_floor_does_not_break_a_pattern_that_has_room_for_it() -> None:
    score = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]])
    found = prune({"w": score > 0}, {"w": score}, 0.5, scope="2:4", floor=4)["w"]
    assert found.tolist() == [[True, True, False, False, False, False, True, True]]


def test_density_counts_kept_over_total() -> None:
    masks = {"a": torch.tensor([True, False, False]), "b": torch.tensor([True])}
    assert (kept(masks), total(masks), density(masks)) == (2, 4, 0.5)


def test_weights_of_linear_and_convolution_layers_are_prunable_and_nothing_else_is() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.attention = nn.Embedding(5, 4), nn.MultiheadAttention(4, 2)
            self.norm, self.plane = nn.BatchNorm1d(4), nn.LayerNorm((4, 4))
            self.up, self.weight_net = nn.ConvTranspose1d(4, 4, 2), nn.Module()
            self.weight_net.position = nn.Parameter(torch.zeros(3, 4))
            self.token = nn.Parameter(torch.zeros(1, 1, 4))

    found = list(prunable(Odd()))
    assert found == ["attention.in_proj_weight", "attention.out_proj.weight", "up.weight"]
    assert "norm.weight" in prunable(Odd(), norms=True)
    assert "norm.bias" not in prunable(Odd(), norms=True)


def test_a_tied_embedding_is_left_alone() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    model[2].weight = model[0].weight
    assert list(prunable(model)) == ["1.weight"]


def test_a_network_without_weights_is_refused_by_its_name() -> None:
    with pytest.raises(UserError, match="BatchNorm1d has no weights to prune"):
        prunable(nn.DataParallel(nn.BatchNorm1d(3)))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_pruned_weights_stay_at_zero_under_every_optimiser(optimiser: str) -> None:
    model = small()
    optimizer = OPTIMISERS[optimiser](model.parameters())
    train(model, optimizer, lambda: None, 2)  # momentum from before the pruning
    masks = random_masks(model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    keep = hold(model, masks)
    assert not pruned_weights(model, masks).any()
    for _ in range(6):
        train(model, optimizer, keep, 1)
        assert not pruned_weights(model, masks).any()
    for name, mask in masks.items():
        after = model.get_parameter(name)
        assert bool((after[mask] != before[name][mask]).any())  # the kept ones train
        assert bool(after.isfinite().all())


def test_without_the_hook_momentum_brings_them_back() -> None:
    model = small()
    optimizer = OPTIMISERS["sgd"](model.parameters())
    train(model, optimizer, lambda: None, 2)
    masks = random_masks(model)
    apply_(model, masks)
    train(model, optimizer, lambda: None, 1)
    assert bool(pruned_weights(model, masks).any())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_hold_is_a_hook_of_fit(optimizer: str, channels_last: bool) -> None:
    class Data(list[Any]):
        def epoch(self, _number: int) -> Any:
            return iter(self)

    def objective(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    model = small()
    masks = random_masks(model)
    config = FitConfig(
        epochs=2, optimizer=optimizer, channels_last=channels_last, ema=0.9, device="cpu"
    )
    fit(model, objective, Data(batches(3)), config, hooks=[hold(model, masks)])
    assert not pruned_weights(model, masks).any()


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def reloaded(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    other = Small()
    other.load_state_dict(torch.load(stream))
    return other


@pytest.mark.parametrize("store", [copied, pickled, reloaded])
@pytest.mark.parametrize("moment", ["new", "held", "trained"])
def test_a_network_can_be_copied_and_saved_at_every_moment(
    store: Callable[[nn.Module], nn.Module], moment: str
) -> None:
    model = small()
    masks = random_masks(model)
    if moment != "new":
        keep = hold(model, masks)
    if moment == "trained":
        train(model, OPTIMISERS["adam"](model.parameters()), keep, 2)
    other = store(model)
    assert list(other.state_dict()) == list(small().state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    keep = hold(other, masks)
    train(other, OPTIMISERS["sgd"](other.parameters()), keep, 2)
    assert not pruned_weights(other, masks).any()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="aot_eager")


def data_parallel(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model)


def distributed(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


@pytest.fixture
def one_process() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", [compiled, data_parallel, distributed])
@pytest.mark.usefixtures("one_process")
def test_a_wrapped_network_has_the_names_and_zeros_of_the_bare_one(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    model = small()
    wrapped = wrap(model)
    assert bare(wrapped) is model
    assert list(full_masks(wrapped)) == list(full_masks(model))
    assert list(named_weights(wrapped)) == [name for name, _ in model.named_parameters()]
    masks = random_masks(model)
    train(wrapped, OPTIMISERS["sgd"](wrapped.parameters()), hold(wrapped, masks), 3)
    assert not pruned_weights(model, masks).any()


def test_wrappers_come_off_in_any_order() -> None:
    model = small()
    assert bare(compiled(data_parallel(compiled(model)))) is model
    average = AveragedModel(model)
    assert list(full_masks(average)) == list(full_masks(model))
    hold(average, random_masks(model))
    assert not pruned_weights(average, random_masks(model)).any()


def test_a_child_named_module_keeps_its_name() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 3)

    model = Outer()
    assert list(full_masks(model)) == ["module.weight"]
    hold(model, {"module.weight": torch.zeros(3, 2, dtype=torch.bool)})()
    assert not model.module.weight.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_masks_take_the_dtype_and_device_that_the_weights_have_at_the_first_step(
    dtype: torch.dtype,
) -> None:
    model = nn.Linear(4, 4)
    keep = hold(model, {"weight": torch.eye(4, dtype=torch.bool)})
    model.to(dtype)
    model.weight.data.fill_(1.0)
    keep()
    assert torch.equal(model.weight.detach(), torch.eye(4, dtype=dtype))


def test_masks_of_another_network_are_refused() -> None:
    model = nn.Linear(2, 3)
    for masks, said in [
        ({"weight": torch.ones(2, 3, dtype=torch.bool)}, r"shape \(2, 3\), the model has \(3, 2\)"),
        ({"other": torch.ones(2, dtype=torch.bool)}, "the model has no such parameter"),
    ]:
        for refuse in (apply_, hold):
            with pytest.raises(UserError, match=said):
                refuse(model, masks)


def test_no_masks_hold_nothing() -> None:
    model = nn.Linear(2, 3)
    before = model.weight.detach().clone()
    hold(model, {})()
    assert torch.equal(model.weight, before)
