"""Look-ahead scores against Jacobians, dense twins and the authors' code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.pruning.scores import LookAhead, Snapshot
from rectified.pruning.scores.lookahead import IDENTITY, Neighbours
from tests.pruning.scores.snapshots import perceptron, residual, snapshot_of


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


def test_look_ahead_agrees_with_the_authors_code(
    oracle: dict[str, np.ndarray], oracle_snapshot: Snapshot
) -> None:
    snapshot = oracle_snapshot
    scores = LookAhead(lambda _: chain(*snapshot.masks))(snapshot)
    for name in ("conv1.weight", "fc2.weight"):
        theirs = torch.from_numpy(oracle[f"lap/score/{name}"])
        torch.testing.assert_close(scores[name], theirs, rtol=1e-5, atol=0)
