"""Reflow: pairs of a flow, and a flow that is straighter for them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.flow import (
    Draws,
    Field,
    FlowMatching,
    PairStore,
    check_pairs,
    distil,
    euler,
    generate,
    invert,
    make_pairs,
    natural_euler,
    noise_like,
    predictions,
    reflow,
    straight,
    straightness,
    wasserstein2,
)
from rectified.flow.couplings import independent
from rectified.flow.paths import PATHS
from rectified.flow.solvers import rk4
from rectified.models import VelocityMLP, VelocityResMLP
from rectified.training import FitConfig
from tests.flow.oracles import GaussianFlow, normal

MODULE = sys.modules["rectified.flow.reflow"]  # its name is also the function's
TRAINING = FitConfig(
    epochs=2, optimizer="adam", learning_rate=5e-3, weight_decay=0.0, schedule="cosine", ema=0.99
)
TINY = FitConfig(epochs=1, optimizer="adam", learning_rate=1e-3, device="cpu")


# ---- draws


def test_draws_are_shuffled_passes_of_rows_that_belong_together():
    rows = torch.arange(10.0)[:, None]
    draws = Draws((rows, 2 * rows, torch.arange(10)), size=4, updates=5, seed=0)
    batches = list(draws.epoch(0))
    assert len(draws) == len(batches) == 5
    assert all(torch.equal(b, 2 * a) and torch.equal(a[:, 0].long(), c) for a, b, c in batches)
    seen = torch.cat([a[:, 0] for a, _, _ in batches])
    assert len(seen) == 20
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_draws_are_those_of_seed_and_epoch():
    def order(seed, epoch):
        draws = Draws((torch.arange(30),), size=30, updates=1, seed=seed)
        return next(iter(draws.epoch(epoch)))[0].tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_a_batch_may_be_larger_than_the_set():
    ((rows,),) = Draws((torch.arange(3),), size=8, updates=1).epoch(0)
    assert len(rows) == 8
    assert set(rows.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Draws((torch.zeros(3), torch.zeros(4)), size=1, updates=1),
            r"equally many rows, at least one; got \[3, 4\]",
        ),
        (lambda: Draws((torch.zeros(0, 2),), size=1, updates=1), r"at least one; got \[0\]"),
        (lambda: Draws((), size=1, updates=1), r"got \[\]"),
        (lambda: Draws((torch.zeros(3),), size=0, updates=1), "size must be at least 1, got 0"),
        (lambda: Draws((torch.zeros(3),), size=1, updates=0), "updates must be at least 1"),
        (
            lambda: Draws((torch.tensor([[0.0], [torch.nan]]),), size=1, updates=1),
            "data must be finite: row 1 holds a NaN",
        ),
        (
            lambda: Draws((torch.tensor([torch.inf, 0.0]),), size=1, updates=1),
            "data must be finite: row 0",
        ),
    ],
)
def test_impossible_draws_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


# ---- generating and inverting


def exact(name="straight", kind=predictions.v_prediction):
    flow = GaussianFlow(PATHS[name])
    return flow, Field(flow.network(kind), PATHS[name], kind)


@pytest.mark.parametrize("name", PATHS)
def test_samples_follow_the_flow_from_source_to_target(name):
    flow, field = exact(name)
    x0 = normal(20, 2)
    found, evaluations = generate(field, x0, steps=200)
    start = PATHS[name].start(x0)
    wanted = flow.at(start, torch.tensor(1.0).double(), torch.tensor(0.0).double())
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.05)
    assert evaluations == (399 if name == "straight" else 200)


@pytest.mark.parametrize("name", PATHS)
def test_inverting_and_generating_is_the_identity_within_the_solver_s_error(name):
    _, field = exact(name)
    x1 = 1.5 + 0.6 * normal(20, 2)
    errors = [
        float((generate(field, invert(field, x1, steps=n), steps=n)[0] - x1).abs().max())
        for n in (50, 200)
    ]
    assert errors[1] < 0.05
    assert errors[1] < errors[0] / 2


def test_the_source_of_an_exploding_path_is_scaled_once():
    """Noise of deviation sigma_max at t = 0, standard noise outside."""
    _, field = exact("edm")
    x0 = invert(field, 1.5 + 0.6 * normal(2000, 1), steps=100)
    assert float(x0.std()) == pytest.approx(1, abs=0.1)


def test_large_sets_are_integrated_in_parts(monkeypatch):
    monkeypatch.setattr(MODULE, "_AT_ONCE", 8)
    _, field = exact()
    x0 = normal(20, 2)
    parts, evaluations = generate(field, x0, steps=3, step=rk4)
    monkeypatch.undo()
    whole, same = generate(field, x0, steps=3, step=rk4)
    torch.testing.assert_close(parts, whole)
    assert evaluations == same == 12
    torch.testing.assert_close(invert(field, parts, steps=3), invert(field, whole, steps=3))


def test_labels_stay_with_their_points_and_are_guided(monkeypatch):
    monkeypatch.setattr(MODULE, "_AT_ONCE", 3)
    labels = torch.arange(8)

    def network(x, t, labels):
        return labels[:, None].to(x).expand_as(x)

    field = Field(network)
    x0 = torch.zeros(8, 2)
    found, _ = generate(field, x0, steps=1, step=euler, labels=labels)
    torch.testing.assert_close(found[:, 0], labels.float())
    guided, _ = generate(field, x0, steps=1, step=euler, labels=labels, guidance=2.0)
    torch.testing.assert_close(guided[:, 0], -1 + 2 * (labels + 1.0))


def test_generating_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).train()
    seen = []

    class Noted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, t):
            seen.append(self.training)
            return self.inner(x)

    model = Noted().train()
    found, _ = generate(Field(model), normal(4, 2), steps=2)
    assert not any(seen)
    assert model.training
    assert not found.requires_grad


def test_euler_on_a_curved_path_is_refused():
    with pytest.raises(UserError, match=r"curved path \(VPLinear\): take natural_euler"):
        generate(exact("vp_linear")[1], normal(2, 2), step=euler)


# ---- pairs


def test_pairs_are_the_seeds_noise_and_where_the_flow_sends_it(tmp_path):
    _, field = exact()
    store = PairStore(tmp_path, count=25, shard=10, seed=3)
    x0, x1 = make_pairs(field, store, (2,), steps=4)
    wanted = torch.cat([noise_like((store.size(i), 2), 3 + i) for i in range(3)])
    assert torch.equal(x0, wanted)
    torch.testing.assert_close(x1, generate(field, x0, steps=4)[0])
    assert set(store.read(0)) == {"x1"}  # the noise itself is not kept
    again = make_pairs(field, store, (2,), steps=4)
    assert torch.equal(again[0], x0)
    assert torch.equal(again[1], x1)


def test_another_source_is_kept_with_its_pairs(tmp_path):
    _, field = exact()

    def source(seed, count):
        return 5 + noise_like((count, 2), seed)

    store = PairStore(tmp_path, count=25, shard=10)
    x0, x1 = make_pairs(field, store, (2,), steps=4, source=source)
    assert torch.equal(x0, torch.cat([source(i, store.size(i)) for i in range(3)]))
    assert set(store.read(0)) == {"x0", "x1"}
    torch.testing.assert_close(x1, generate(field, x0, steps=4)[0])


def test_classes_are_drawn_alike_and_guided(tmp_path):
    network = VelocityResMLP((2,), width=8, blocks=1, classes=3)
    nn.init.normal_(network.leave[1].weight)
    field = Field(network)
    store = PairStore(tmp_path, count=300, shard=100)
    x0, x1, labels = make_pairs(field, store, (2,), steps=2, classes=3, guidance=1.5)
    assert torch.bincount(labels).min() > 70
    torch.testing.assert_close(x1, generate(field, x0, steps=2, labels=labels, guidance=1.5)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (3,)}, r"holds points of shape \(2,\), wanted \(3,\)"),
        (
            {"source": lambda seed, count: torch.zeros(count, 2)},
            "holds x1 of every pair, wanted x0, x1",
        ),
        ({"classes": 3}, "holds x1 of every pair, wanted labels, x1"),
    ],
)
def test_a_store_of_other_pairs_is_refused(tmp_path, options, message):
    _, field = exact()
    store = PairStore(tmp_path, count=5)
    make_pairs(field, store, (2,), steps=2)
    with pytest.raises(UserError, match=f"{message}: give another folder"):
        make_pairs(field, store, **{"shape": (2,), "steps": 2, **options})


def test_pairs_of_a_flow_that_diverges_are_refused(tmp_path):
    field = Field(lambda x, t: torch.full_like(x, torch.nan))
    with pytest.raises(UserError, match="x1 of shard 0 is not finite: what makes the pairs"):
        make_pairs(field, PairStore(tmp_path, count=5), (2,), steps=2)


def test_exchanged_pairs_are_seen():
    x0 = noise_like((2000, 2), 0)
    x1 = 0.3 * x0 + torch.tensor([2.0, -1.0])
    right, wrong = check_pairs(x0, x1), check_pairs(x1, x0)
    assert right.is_oriented is True
    assert wrong.is_oriented is False
    assert right.mean < 0.1
    assert right.deviation == pytest.approx(1, abs=0.05)
    assert wrong.mean > 1.5
    assert check_pairs(x0, -x0).is_oriented is None  # both are standard noise


def test_duplicates_are_counted():
    x0 = noise_like((10, 2), 0)
    x1 = x0.clone() + 1
    x1[3:6] = x1[2]
    assert check_pairs(x0, x1).duplicates == 3
    assert check_pairs(x0, x0 + 1).duplicates == 0


# ---- training on pairs


class Turn(nn.Module):
    """A flow that turns by a fixed angle: curved, its pairs known in closed form."""

    angle = 1.5

    def forward(self, x, t):
        return self.angle * torch.stack([-x[:, 1], x[:, 0]], 1)


def turned(x0):
    c, s = torch.cos(torch.tensor(Turn.angle)), torch.sin(torch.tensor(Turn.angle))
    return x0 @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])])


@pytest.fixture(scope="module")
def straightened():
    """Reflow and distillation of `Turn` on its exact pairs, from the same untrained network."""
    x0 = noise_like((4000, 2), 0)
    pairs = (x0, turned(x0))
    torch.manual_seed(0)
    begin = Field(VelocityMLP(2, (48, 48)))
    found = {
        "reflow": reflow(begin, pairs, TRAINING, updates=300, batch_size=256),
        "distil": distil(begin, pairs, TRAINING, updates=300, batch_size=256),
    }
    return begin, found


def test_after_reflow_one_step_does_what_many_do(straightened):
    _, found = straightened
    x0 = noise_like((500, 2), 1)
    one, _ = generate(found["reflow"], x0, steps=1, step=euler)
    many, _ = generate(found["reflow"], x0, steps=100, step=euler)
    assert float((one - many).square().mean()) < 0.05
    assert float((one - turned(x0)).square().mean()) < 0.05
    assert float((generate(Field(Turn()), x0, steps=1, step=euler)[0] - turned(x0)).std()) > 0.5


def test_reflow_is_straighter(straightened):
    _, found = straightened
    x0 = noise_like((500, 2), 1)
    before = straightness(Field(Turn()), x0).relative
    after = straightness(found["reflow"], x0).relative
    assert after < before / 5


def test_distillation_is_for_one_step_and_destroys_several(straightened):
    _, found = straightened
    x0 = noise_like((500, 2), 1)
    errors = {
        n: float((generate(found["distil"], x0, steps=n, step=euler)[0] - turned(x0)).std())
        for n in (1, 4)
    }
    assert errors[1] < 0.2
    assert errors[4] > 3 * errors[1]
    after = generate(found["distil"], x0, steps=1, step=euler)[0]
    assert wasserstein2(after, turned(x0)) < 0.3


def test_the_last_flow_s_network_is_copied_not_changed(straightened):
    begin, found = straightened
    assert begin.network is not found["reflow"].network
    torch.manual_seed(0)
    untouched = VelocityMLP(2, (48, 48)).state_dict()
    assert all(torch.equal(v, untouched[k]) for k, v in begin.network.state_dict().items())
    assert not found["reflow"].network.training


def test_reflow_starts_from_the_last_weights():
    begin = Field(VelocityMLP(2, (8,)))
    pairs = (noise_like((20, 2), 0), noise_like((20, 2), 1))
    still = FitConfig(epochs=1, optimizer="adam", learning_rate=1e-12, weight_decay=0.0)
    after = reflow(begin, pairs, still, updates=1)
    for name, value in after.network.state_dict().items():
        torch.testing.assert_close(value, begin.network.state_dict()[name])


def test_reflow_keeps_path_and_prediction_and_takes_labels():
    network = VelocityResMLP((2,), width=8, blocks=1, classes=3)
    field = Field(network, PATHS["vp_cosine"], predictions.v_prediction)
    pairs = (noise_like((20, 2), 0), noise_like((20, 2), 1), torch.arange(20) % 3)
    seen = []
    after = reflow(field, pairs, TINY, updates=3, hooks=[lambda step: seen.append(step.number)])
    assert (after.path, after.predicts) == (field.path, field.predicts)
    assert seen == [1, 2, 3]
    one = distil(after, pairs, TINY, updates=1)
    assert (one.path, one.predicts) == (field.path, field.predicts)


def test_distillation_replaces_the_time_law_alone():
    times = []

    class Noted(VelocityMLP):
        def forward(self, x, t):
            times.append(t)
            return super().forward(x, t)

    pairs = (noise_like((20, 2), 0), noise_like((20, 2), 1))
    distil(Field(Noted(2, (8,))), pairs, TINY, updates=2, objective=FlowMatching(None))
    assert torch.equal(torch.cat(times), torch.zeros(40))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda f, p: reflow(f, p, TINY, objective=FlowMatching(independent)),
            "objective must have coupling=None",
        ),
        (
            lambda f, p: reflow(f, (p[0], p[1][:5]), TINY),
            r"of one shape, got \(20, 2\) and \(5, 2\)",
        ),
        (
            lambda f, p: reflow(Field(lambda x, t: x), p, TINY),
            "network must be an nn.Module, got function",
        ),
        (lambda f, p: reflow(f, (p[0], p[1] / 0), TINY), "data must be finite: row 0"),
        (
            lambda f, p: generate(f, p[0], steps=0),
            "steps must be at least 1, got 0",
        ),
        (
            lambda f, p: generate(f, p[0], guidance=2.0),
            "guidance needs a condition",
        ),
    ],
)
def test_impossible_reflows_are_refused(make, message):
    pairs = (noise_like((20, 2), 0), noise_like((20, 2), 1))
    with pytest.raises(UserError, match=message):
        make(Field(VelocityMLP(2, (8,)), straight), pairs)


def test_default_solvers_follow_the_path():
    assert generate(exact()[1], normal(2, 2), steps=3)[1] == 5  # Heun's
    flow, field = exact("vp_linear")
    ours, _ = generate(field, normal(2, 2), steps=3)
    theirs, _ = generate(field, normal(2, 2), steps=3, step=natural_euler)
    assert torch.equal(ours, theirs)
    assert flow.path is field.path
