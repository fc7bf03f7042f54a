"""Tables of paths, and pruning with a guarantee."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.scattering import (
    Layer,
    ScatteringNetwork,
    bounds,
    curvelets,
    from_convolution,
    path_table,
    prune_paths,
    tanh,
    wavelets,
    weyl_heisenberg,
)


def network() -> ScatteringNetwork:
    return ScatteringNetwork([Layer(wavelets(J=2, L=2)), Layer(weyl_heisenberg(4), tanh)], (16, 16))


def smooth() -> torch.Tensor:
    axis = torch.linspace(0, 6, 16, dtype=torch.float64)
    return torch.stack([axis.sin()[:, None] * axis.cos(), axis[:, None] * axis])[:, None]


def test_the_table_lists_features_in_their_order():
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    maps = network().propagated(x)
    for depth, (level, found) in enumerate(zip(path_table(network(), x), maps, strict=True)):
        assert len(level) == found.shape[1]
        for place in (0, len(level) // 2, len(level) - 1):
            path = level[place]
            assert path.order == depth == len(path.filters) == len(path.angles)
            energy = found[:, place].abs().square().sum().item()
            assert path.energy == pytest.approx(energy)


def test_a_path_s_maps_are_made_by_the_filters_that_it_names():
    net, x = network(), torch.randn(1, 16, 16, dtype=torch.float64)
    path = path_table(net)[2][37]
    maps = x
    for depth, filter_ in enumerate(path.filters):
        bank, layer = net.banks[depth], net.layers[depth]
        one = torch.fft.ifft2(torch.fft.fft2(maps) * bank.filters[filter_, 0])
        maps = layer.pooling(layer.nonlinearity(one), 2)
    torch.testing.assert_close(net.propagated(x)[2][37], maps[0])


def test_a_mixing_layer_has_a_path_a_filter():
    conv = nn.Conv2d(3, 5, 3)
    net = ScatteringNetwork([Layer(from_convolution(conv)), Layer(wavelets(J=1, L=1))], (8, 8))
    assert [len(level) for level in path_table(net, channels=3)] == [3, 5, 10]


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.3])
def test_dropped_paths_cost_no_more_than_is_guaranteed(tolerance):
    x = smooth()
    pruned = prune_paths(network(), x, tolerance=tolerance)
    whole, lean = network()(x), pruned.network(x)
    lost = bounds.sum_of_squares(whole) - bounds.sum_of_squares(lean)
    assert lost.clamp_min(0).sqrt() <= (pruned.error + 1e-7) * x.norm()
    assert pruned.error <= tolerance
    assert tuple(one.shape[1] for one in lean) == pruned.paths


def test_what_is_left_is_what_it_was():
    x = smooth()
    pruned = prune_paths(network(), x, tolerance=0.2)
    table, left = path_table(network(), x), path_table(pruned.network, x)
    whole, lean = network()(x), pruned.network(x)
    assert len(left[2]) < len(table[2])
    for depth in (1, 2):
        names = [path.filters for path in table[depth]]
        places = [names.index(path.filters) for path in left[depth]]
        torch.testing.assert_close(lean[depth], whole[depth][:, places])


def test_pruning_twice_prunes_further():
    x = smooth()
    once = prune_paths(network(), x, tolerance=0.05)
    twice = prune_paths(once.network, x, tolerance=0.4)
    assert twice.paths[2] < once.paths[2]
    names = {path.filters for path in path_table(once.network)[2]}
    assert {path.filters for path in path_table(twice.network)[2]} <= names
    whole = {path.filters: n for n, path in enumerate(path_table(network())[2])}
    places = [whole[path.filters] for path in path_table(twice.network)[2]]
    torch.testing.assert_close(twice.network(x)[2], network()(x)[2][:, places])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prune_paths(network(), smooth(), tolerance=1.0), r"tolerance must be in \[0, 1\)"),
        (
            lambda: prune_paths(
                ScatteringNetwork(
                    [Layer(curvelets(J=1, L=1)), Layer(from_convolution(nn.Conv2d(4, 2, 3)))],
                    (8, 8),
                ),
                torch.ones(1, 8, 8),
                tolerance=0.1,
            ),
            "beyond the first take single maps",
        ),
        (
            lambda: prune_paths(network(), smooth(), tolerance=0.1).network(torch.ones(3, 16, 16)),
            "x must have 1 channels, as when paths were pruned, got 3",
        ),
    ],
)
def test_impossible_prunings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
