"""Batches: one length, one chain a cluster, and the same for the same epoch."""

from __future__ import annotations

import pytest
import torch

from rectified.errors import UserError
from rectified.protein.chains import ChainBatches, PairBatches, uniform_times
from rectified.protein.frames import Frames
from rectified.protein.se3_flow import FrameLoss, prior
from rectified.training import FitConfig, fit

from .conftest import SMALL, awake, chain, helix, strand


def chains(lengths, clusters=None):
    clusters = clusters or [-1] * len(lengths)
    return [
        chain(helix(n) if n % 2 else strand(n), f"c{n}_A", cluster)
        for n, cluster in zip(lengths, clusters, strict=True)
    ]


def test_a_batch_shows_windows_of_one_length():
    batches = ChainBatches(chains([20, 31, 25, 40, 12]), 2, crop=15, seed=0)
    assert len(batches) == 2  # the chain of 12 is too short
    for x0, q0, x1, q1, t, index, coin in batches.epoch(0):
        assert x0.shape == x1.shape == (2, 15, 3)
        assert q0.shape == q1.shape == (2, 15, 4)
        assert x1.mean(1).abs().max() < 1e-4
        assert ((t >= 0.01) & (t <= 0.99)).all()
        assert torch.equal(index, torch.arange(15.0).expand(2, 15))
        assert (coin == coin[0]).all()


def test_an_epoch_is_the_same_for_the_same_number_and_another_for_another():
    made = ChainBatches(chains([20, 31, 25, 40]), 2, crop=15, seed=0)
    first, again, other = (list(made.epoch(n)) for n in (3, 3, 4))
    assert all(
        torch.equal(a, b)
        for x, y in zip(first, again, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert not torch.equal(first[0][2], other[0][2])


def test_an_epoch_shows_one_chain_of_each_cluster():
    made = ChainBatches(chains([20, 22, 24, 26], [5, 5, 5, 9]), 1, crop=18, seed=0)
    assert len(made) == len(list(made.epoch(0))) == 2


def test_whole_chains_come_in_buckets_of_nearly_one_length():
    lengths = [20, 21, 22, 40, 41, 42]
    made = ChainBatches(chains(lengths), 3, crop=None, seed=0)
    shapes = [batch[2].shape[:2] for batch in made.epoch(0)]
    assert sorted(tuple(shape) for shape in shapes) == [(3, 20), (3, 40)]


def test_long_chains_come_in_smaller_batches():
    made = ChainBatches(chains([40] * 8), 8, crop=40, seed=0, pairs=4000)
    assert [len(batch[0]) for batch in made.epoch(0)] == [3, 3]


def test_gaps_in_the_numbers_are_seen():
    one = chain(helix(20))
    gapped = type(one)(one.name, one.atoms, one.index + (one.index > 10) * 5, one.sequence)
    ((_, _, _, _, _, index, _),) = ChainBatches([gapped], 1, crop=None, seed=0).epoch(0)
    assert index[0, 9] == 9
    assert index[0, 10] == 15


def test_transport_shortens_the_way_on_average():
    many = chains([30, 31, 32, 33, 34, 35, 36, 37])
    way = []
    for transport in (False, True):
        made = ChainBatches(many, 8, crop=30, seed=0, transport=transport)
        ((x0, _, x1, *_),) = made.epoch(0)
        way.append(float((x1 - x0).square().mean()))
    assert way[1] < way[0]


def test_pairs_are_shown_as_they_are():
    noise = prior(5, 10, generator=torch.Generator().manual_seed(0))
    data = Frames(noise.translations * 0.1, noise.quaternions)
    batches = PairBatches([(noise, data)], 2, seed=0)
    assert len(batches) == 2
    for x0, q0, x1, q1, *_ in batches.epoch(0):
        torch.testing.assert_close(x1, 0.1 * x0)
        assert torch.equal(q0, q1)


def test_a_network_learns_one_chain():
    torch.manual_seed(0)
    from rectified.protein.model import FlowModel

    model = awake(FlowModel(SMALL))
    batches = ChainBatches([chain(helix(16))] * 16, 8, crop=16, seed=0)
    config = FitConfig(
        epochs=14,
        optimizer="adamw",
        learning_rate=6e-3,
        weight_decay=0.0,
        schedule="constant",
        warmup=0.0,
        clip=1.0,
        device="cpu",
    )
    losses = fit(model, FrameLoss(bonds=1.0), batches, config)
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_times_are_uniform():
    t = uniform_times(10_000, torch.Generator().manual_seed(0))
    assert t.mean() == pytest.approx(0.5, abs=0.02)


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(UserError, match="no chain has 50 residues: lower crop"):
        ChainBatches(chains([20]), 2, crop=50)
    empty = prior(1, 5)[:0]
    with pytest.raises(UserError, match="pairs must hold at least one pair, got none"):
        PairBatches([(empty, empty)], 2)
