"""AP: the authors' own masks, an independent recomputation, and arms of equal density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.pruning.activate import (
    ARMS,
    Activate,
    activation_scope,
    arm,
    norms_before_relu,
    reference_arm,
)
from rectified.pruning.cycle import Cycle, Stage, Training, iterate
from rectified.pruning.dead_neurons import dead_neuron_rate
from rectified.pruning.masks import Masks, density, full_masks, hold, kept
from rectified.pruning.schedule import Schedule, cubic, geometric, one_shot
from rectified.pruning.scores import (
    ERK,
    Gradient,
    Movement,
    Random,
    ScoreFunction,
    Snapshot,
    SynFlow,
    lamp,
    magnitude,
)

ORACLE = Path(__file__).parents[2] / "../shared/oracles/pruning_small.npz"


def snapshot(trained: dict[str, Tensor], start: dict[str, Tensor], masks: Masks) -> Snapshot:
    return Snapshot(nn.Identity(), trained, start, masks)


def oracle(part: str) -> dict[str, Tensor]:
    if not ORACLE.exists():
        pytest.skip("reference data are not here")
    stored = np.load(ORACLE)
    return {
        name.removeprefix(part): torch.from_numpy(stored[name])
        for name in stored.files
        if name.startswith(part)
    }


def dropped_once(
    stages: list[Stage], trained: dict[str, Tensor], start: dict[str, Tensor]
) -> Cycle:
    """One cycle that begins with `trained` as the outcome of a training from `start`."""
    model = Holder(start)
    masks = full_masks(model)
    dense = Cycle(0, masks, start, trained, start)
    return list(iterate(model, lambda _training: None, stages, 1, after=dense))[-1]


class Holder(nn.Module):
    """Linear layers named so that their weights have the given names."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            layer = nn.Module()
            layer.weight = nn.Parameter(weight.clone())
            self.add_module(name.removesuffix(".weight"), layer)


def test_the_reference_arm_gives_the_masks_of_the_authors_code() -> None:
    start, trained = oracle("start/"), oracle("trained/")
    found = dropped_once(reference_arm(0.20, 0.02), trained, start)
    expected = oracle("ap/mask_after_AP/")
    assert all(torch.equal(found.masks[name], expected[name]) for name in expected)
    after_x = kept(oracle("ap/mask_after_X/"))
    assert found.dropped == (kept(full_masks(Holder(start))) - after_x, 101)


def test_the_reference_arm_starts_with_the_authors_magnitude_step() -> None:
    start, trained = oracle("start/"), oracle("trained/")
    found = dropped_once(reference_arm(0.20, 0.02)[:1], trained, start)
    expected = oracle("ap/mask_after_X/")
    assert all(torch.equal(found.masks[name], expected[name]) for name in expected)


def by_numpy(
    trained: dict[str, Tensor], start: dict[str, Tensor], rate: float, ap_rate: float
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """AP-lite with exact counts by flat arrays and stable sorts."""
    flat = np.concatenate([t.double().numpy().ravel() for t in trained.values()])
    begin = np.concatenate([t.numpy().ravel() for t in start.values()])
    single = np.concatenate([t.numpy().ravel() for t in trained.values()])
    alive = np.ones(len(flat), dtype=bool)
    first = round((rate - ap_rate) * len(flat))
    alive[np.argsort(np.abs(flat), kind="stable")[:first]] = False
    after_x = alive.copy()
    moved = np.where(alive & (flat < 0), np.abs(single - begin), np.inf)
    alive[np.argsort(moved, kind="stable")[: round(rate * len(flat)) - first]] = False
    cuts = np.cumsum([t.numel() for t in trained.values()])[:-1]
    return tuple(
        {
            n: part.reshape(t.shape)
            for (n, t), part in zip(trained.items(), np.split(mask, cuts), strict=True)
        }
        for mask in (after_x, alive)
    )


def test_the_exact_arm_agrees_with_an_independent_recomputation() -> None:
    start, trained = oracle("start/"), oracle("trained/")
    found = dropped_once(arm("lite", magnitude, 0.2, 0.02, floor=0), trained, start)
    _, expected = by_numpy(trained, start, 0.2, 0.02)
    assert all(np.array_equal(found.masks[name].numpy(), expected[name]) for name in expected)


def test_the_exact_arm_is_the_authors_but_for_their_one_weight_too_many() -> None:
    start, trained = oracle("start/"), oracle("trained/")
    exact = dropped_once(arm("lite", magnitude, 0.2, 0.02, floor=0), trained, start)
    theirs = oracle("ap/mask_after_AP/")
    differing = sum(int((exact.masks[name] ^ theirs[name]).sum()) for name in theirs)
    assert kept(exact.masks) - kept(theirs) == differing == 1
    assert exact.dropped == (dropped_once(reference_arm(0.2, 0.02), trained, start).dropped[0], 100)


def test_the_authors_rule_drops_all_ties_and_stops_where_candidates_run_out() -> None:
    start = {"a.weight": torch.zeros(2, 5)}
    trained = {"a.weight": torch.tensor([[-1.0, -1.0, -1.0, -1.0, -2.0], [3.0] * 5])}
    found = dropped_once(reference_arm(0.3, 0.1), trained, start)
    assert found.dropped == (0, 4)  # 20 % percentile is -1's size: nothing lies strictly below
    with pytest.raises(UserError, match="AP wants 7 candidates, only 5 are left"):
        dropped_once(reference_arm(0.7, 0.6), trained, start)


def test_candidates_are_negative_and_kept_and_in_scope() -> None:
    w = {"a": torch.tensor([-1.0, 2.0, -3.0, 0.0]), "b": torch.tensor([-1.0])}
    start = {"a": torch.tensor([-2.0, 2.0, -3.5, 0.0]), "b": torch.tensor([-1.0])}
    masks = {"a": torch.tensor([True, True, False, True]), "b": torch.tensor([True])}
    infinity = float("inf")
    found = snapshot(w, start, masks)
    assert Activate(["a"])(found)["a"].tolist() == [1.0, infinity, infinity, infinity]
    assert Activate(["a"])(found)["b"].tolist() == [infinity]
    assert Activate(sign="positive")(found)["a"].tolist() == [infinity, 0.0, infinity, infinity]
    assert Activate(sign="any")(found)["a"].tolist() == [1.0, 0.0, infinity, 0.0]
    assert Activate()(found)["b"].tolist() == [0.0]


@pytest.fixture
def unchecked() -> Any:
    """Lets values of the wrong type through, as they come from a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_sign_is_refused() -> None:
    with pytest.raises(UserError, match="unknown sign 'both'; choose from negative"):
        Activate(sign="both")  # type: ignore[arg-type]


LAYERS = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh()]


def perceptron(*sizes: int, seed: int = 0) -> nn.Sequential:
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_the_scope_is_what_reads_nonnegative_inputs_and_feeds_a_relu() -> None:
    model = nn.Sequential(*LAYERS, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    masks, x = full_masks(model), torch.randn(9, 6)
    assert activation_scope(model, x, masks) == ("2.weight",)
    assert activation_scope(model, x.abs(), masks) == ("0.weight", "2.weight")
    assert activation_scope(nn.DataParallel(model), x, masks) == ("2.weight",)
    assert norms_before_relu(model, x) == ()


def test_norms_between_weight_and_relu_are_named() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()
    )
    x = torch.randn(2, 3, 8, 8)
    assert norms_before_relu(model, x) == ("0.weight",)
    assert activation_scope(model, x, full_masks(model)) == ("3.weight",)


def test_networks_that_ap_cannot_help_are_refused_with_a_remedy() -> None:
    tanh = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    with pytest.raises(UserError, match=r"Sequential calls no ReLU .* prune with ap 'off'"):
        activation_scope(nn.DataParallel(tanh), torch.randn(2, 2), full_masks(tanh))
    relu = perceptron(2, 3, 2)
    with pytest.raises(UserError, match=r"no layer of Sequential reads inputs >= 0.*'all'"):
        activation_scope(relu, torch.randn(2, 2), full_masks(relu))


def test_unknown_arms_and_impossible_rates_are_refused() -> None:
    with pytest.raises(UserError, match="unknown ap 'light'; choose from off, lite"):
        arm("light", magnitude, 0.2)
    for ap_rate in (0.0, 0.2, 0.3, -0.1, float("nan")):
        with pytest.raises(UserError, match=r"ap_rate must be in \(0, rate\), rate being 0\.2"):
            arm("lite", magnitude, 0.2, ap_rate)
    assert len(arm("off", magnitude, 0.2, 0.3)) == 1  # nothing to split


def draws(training: Training) -> None:
    """Stands for a training: kept weights move, from a generator that the masks' count seeds."""
    keep = hold(training.model, training.masks)
    draw = torch.Generator().manual_seed(kept(training.masks))
    optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1)
    for _ in range(2):
        for parameter in training.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
        keep()


class FewRounds(SynFlow):
    """SynFlow in fewer steps, for time's sake."""

    rounds = 3


SCORES: dict[str, Callable[[], ScoreFunction]] = {
    "magnitude": lambda: magnitude,
    "lamp": lambda: lamp,
    "erk": ERK,
    "movement": Movement,
    "random": lambda: Random(torch.Generator().manual_seed(1)),
    "gradient": Gradient,
    "synflow": FewRounds,
}

RATES: dict[str, tuple[float | Schedule, float, int]] = {
    "0.2 - 0.02": (0.2, 0.02, 4),
    "0.5 - 0.05": (0.5, 0.05, 4),
    "0.3 - 0.1": (0.3, 0.1, 4),
    "1/3 - 1/7": (1 / 3, 1 / 7, 4),
    "geometric": (geometric(0.11, 4), 0.02, 4),
    "cubic": (cubic(0.11, 4), 0.02, 4),
    "one shot": (one_shot(0.3), 0.05, 2),
}


def arms_end_equal(score: str, rate: str, scope: str = "global") -> None:
    data = [(torch.randn(8, 7, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)]

    def objective(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    share, ap_rate, cycles = RATES[rate]
    counts = {}
    for name in ARMS:
        model = perceptron(7, 11, 13, 3)
        stages = arm(name, SCORES[score](), share, ap_rate, scope=scope, layers=("2.weight",))
        found = iterate(model, draws, stages, cycles, batches=data, objective=objective)
        counts[name] = [kept(cycle.masks) for cycle in found]
    expected = [7 * 11 + 11 * 13 + 13 * 3]
    for cycle in range(1, cycles + 1):
        fraction = share(cycle) if callable(share) else share
        expected.append(expected[-1] - round(round(fraction, 12) * expected[-1]))
    assert counts == dict.fromkeys(ARMS, expected)


@pytest.mark.parametrize("rate", RATES)
def test_every_arm_ends_every_cycle_at_the_same_density(rate: str) -> None:
    arms_end_equal("magnitude", rate)


@pytest.mark.parametrize("score", sorted(set(SCORES) - {"magnitude"}))
def test_every_arm_of_every_score_ends_at_the_same_density(score: str) -> None:
    arms_end_equal(score, "0.2 - 0.02")


def test_arms_in_layer_scope_and_patterns_end_at_the_same_density() -> None:
    arms_end_equal("magnitude", "0.2 - 0.02", "layer")
    model = perceptron(8, 12, 12, 3)
    found = []
    for name in ARMS:
        stages = arm(name, magnitude, 0.1, 0.02, scope="2:4")
        cycles = list(iterate(perceptron(8, 12, 12, 3), draws, stages, 3))
        found.append([kept(cycle.masks) for cycle in cycles])
    assert found == [found[0]] * len(ARMS)
    assert found[0][0] == kept(full_masks(model))


def test_the_score_alone_with_double_training_stays_in_its_layers() -> None:
    stages = arm("off_pro", magnitude, 0.2, 0.05, scope="layer")
    assert [stage.scope for stage in stages] == ["layer", "layer"]
    cycles = list(iterate(perceptron(10, 20, 20, 4), draws, stages, 2))
    for name, mask in cycles[-1].masks.items():
        assert density({name: mask}) == pytest.approx(0.64, abs=1.5 / mask.numel())


def test_where_candidates_run_out_the_method_drops_the_rest_and_it_is_counted() -> None:
    model = perceptron(6, 8, 8, 2)
    stages = arm("lite", magnitude, 0.5, 0.4, layers=("2.weight",))
    cycles = list(iterate(model, draws, stages, 3))
    plain = list(iterate(perceptron(6, 8, 8, 2), draws, arm("off", magnitude, 0.5), 3))
    assert [kept(c.masks) for c in cycles] == [kept(c.masks) for c in plain]
    assert any(cycle.missing[1] > 0 for cycle in cycles[1:])
    for before, after in pairwise(cycles):
        assert sum(after.dropped) == kept(before.masks) - kept(after.masks)
        assert 0 <= after.missing[1] <= after.dropped[1]
        assert after.missing[0] == 0


def test_lite_drops_both_shares_by_hand() -> None:
    start = {"a.weight": torch.tensor([[-1.0, -1.0, -1.0, 1.0], [1.0, -4.0, 4.0, 0.1]])}
    trained = {"a.weight": torch.tensor([[-1.5, -1.2, -1.9, 1.0], [1.3, -4.1, 4.0, 0.2]])}
    found = dropped_once(arm("lite", magnitude, 3 / 8, 2 / 8), trained, start)
    # magnitude drops 0.2; of the negatives -4.1 moved 0.1 and -1.2 moved 0.2
    assert found.masks["a.weight"].tolist() == [
        [True, False, True, True],
        [True, False, True, False],
    ]
    every = dropped_once(arm("any_sign", magnitude, 3 / 8, 2 / 8), trained, start)
    assert every.masks["a.weight"].tolist() == [
        [True, True, True, False],
        [True, True, False, False],
    ]


@pytest.mark.parametrize("name", ["pro", "off_pro"])
def test_pro_trains_between_the_stages_from_the_rewound_weights(name: str) -> None:
    model = perceptron(6, 8, 2)
    point = {n: p.detach().clone() for n, p in model.named_parameters()}
    asked: list[tuple[int, bool]] = []

    def train(training: Training) -> None:
        rewound = all(
            torch.equal(p.detach(), point[n] * training.masks.get(n, torch.ones(())))
            for n, p in training.model.named_parameters()
        )
        asked.append((kept(training.masks), rewound))
        draws(training)

    cycles = list(iterate(model, train, arm(name, magnitude, 0.25, 0.1), 1))
    assert asked == [(64, True), (54, True), (48, True)]
    assert cycles[1].dropped == (10, 6)


def test_ap_lowers_the_dynamic_rate_of_a_relu_network_without_norms() -> None:
    """The digits study in small; over 8 seeds the effect was between -0.16 and -0.09."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.data).float() / 16
    x = (x - x.mean()) / x.std()
    y = torch.from_numpy(digits.target)

    def study(name: str, seed: int) -> float:
        model = perceptron(64, 64, 64, 10, seed=seed)
        for module in model[::2]:
            nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(seed))
        layers = activation_scope(model, x[:64], full_masks(model))
        stages = arm(name, magnitude, 0.5, 0.05, layers=layers)

        def train(training: Training) -> None:
            keep = hold(training.model, training.masks)
            draw = torch.Generator().manual_seed(seed)
            optimizer = torch.optim.SGD(
                training.model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, foreach=True
            )
            for _ in range(4):
                for batch in torch.randperm(len(x), generator=draw).split(128):
                    optimizer.zero_grad()
                    F.cross_entropy(training.model(x[batch]), y[batch]).backward()
                    optimizer.step()
                    keep()

        *_, last = iterate(model, train, stages, 3)
        assert last.density == pytest.approx(0.125, abs=1e-3)
        return dead_neuron_rate(model, [(x,)], masks=last.masks).dynamic()

    effects = np.array([study("lite", seed) - study("off", seed) for seed in range(2)])
    assert (effects < 0).all()


def test_a_stage_may_be_changed_but_not_in_place() -> None:
    stages = arm("lite", magnitude, 0.2)
    assert replace(stages[0], fraction=0.1).fraction == 0.1
    with pytest.raises(AttributeError):
        stages[0].fraction = 0.1  # type: ignore[misc]
