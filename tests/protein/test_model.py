"""The network: the reference's answers, the definition's, its symmetries, and its names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.protein.straightforward import distogram, forward

from rectified.errors import UserError
from rectified.protein import linear as L
from rectified.protein import quaternion as Q
from rectified.protein.embeddings import BINS, distance_bins
from rectified.protein.frames import Frames
from rectified.protein.model import SIZES, FlowModel, ModelSizes, sized

from .conftest import SMALL, awake

SHARED = Path(__file__).parents[3] / "shared"
ORACLE = SHARED / "oracles" / "reqflow_small.npz"
NAMES = SHARED / "specs" / "protein_state_dict.txt"


def noisy(batch: int, count: int, seed: int = 0) -> Frames:
    generator = torch.Generator().manual_seed(seed)
    places = 8 * torch.randn(batch, count, 3, generator=generator)
    return Frames(places, Q.uniform(batch, count, generator=generator)).centred()


@pytest.mark.skipif(not ORACLE.is_file(), reason="the reference's answers are not here")
@pytest.mark.parametrize("case", ["plain", "self_conditioned", "masked"])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_outputs_are_the_references(case, with_gradients):
    oracle = dict(np.load(ORACLE))
    settings = json.loads(str(oracle["config"]))
    names = {  # theirs -> ours
        "node_embed_size": "node",
        "edge_embed_size": "pair",
        "node_features.c_pos_emb": "position",
        "node_features.c_timestep_emb": "time",
        "edge_features.feat_dim": "feature",
        "ipa.c_hidden": "hidden",
        "ipa.no_heads": "heads",
        "ipa.no_qk_points": "query_points",
        "ipa.no_v_points": "value_points",
        "ipa.seq_tfmr_num_heads": "sequence_heads",
        "ipa.seq_tfmr_num_layers": "sequence_layers",
        "ipa.num_blocks": "blocks",
    }
    sizes = ModelSizes(**{ours: settings[f"model.{theirs}"] for theirs, ours in names.items()})
    model = FlowModel(sizes)
    weights = {k[7:]: torch.from_numpy(v) for k, v in oracle.items() if k.startswith("weight/")}
    model.load_state_dict(weights, strict=True)
    given = {
        k.rpartition("/")[2]: torch.from_numpy(v) for k, v in oracle.items() if f"{case}/in" in k
    }
    with torch.set_grad_enabled(with_gradients):
        found = model(
            Frames(given["trans_t"], given["rotquats_t"]),
            given["so3_t"][:, 0],
            translation_time=given["r3_t"][:, 0],
            previous=given.get("trans_sc"),
            index=given["res_idx"],
            exists=given["res_mask"],
            moves=given["diffuse_mask"],
        )
    expected = {k.rpartition("/")[2]: v for k, v in oracle.items() if f"{case}/out" in k}
    off = found.translations.detach().numpy() - expected["pred_trans"]
    assert np.abs(off).max() < 5e-4  # Angstrom; the reference is 1.2e-4 from float64
    turned = Q.distance(found.quaternions.detach(), torch.from_numpy(expected["pred_rotquats"]))
    assert turned.max() < 1e-3
    matrices = found.matrices().detach().numpy() - expected["pred_rotmats"]
    assert np.abs(matrices).max() < 2e-5


@pytest.mark.skipif(not NAMES.is_file(), reason="the table of names is not here")
def test_names_and_shapes_are_those_of_the_published_checkpoints():
    rows = [line.split("\t") for line in NAMES.read_text().splitlines() if "\t" in line]
    ours = {name: str(list(value.shape)) for name, value in FlowModel().state_dict().items()}
    assert ours == {name: shape.strip() for name, shape in rows}
    assert len(ours) == 382


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("has_previous", [False, True])
def test_the_fast_evaluation_is_the_straightforward_one(small_model, with_gradients, has_previous):
    frames, t = noisy(2, 70), torch.tensor([0.2, 0.9])
    previous = frames.translations * 0.7 if has_previous else None
    with torch.set_grad_enabled(with_gradients):
        ours = small_model(frames, t, previous=previous)
    theirs = forward(small_model, frames, t, previous=previous)
    torch.testing.assert_close(ours.translations, theirs.translations, atol=2e-4, rtol=1e-5)
    assert Q.distance(ours.quaternions, theirs.quaternions).max() < 2e-5


def test_gradients_are_those_of_the_straightforward_evaluation(small_model):
    frames, t = noisy(2, 9), torch.tensor([0.3, 0.6])
    gradients = []
    for evaluate in (small_model, lambda *a: forward(small_model, *a)):
        out = evaluate(frames, t)
        loss = out.translations.square().mean() + out.quaternions[..., 1].sum()
        gradients.append(torch.autograd.grad(loss, list(small_model.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        scale = theirs.abs().max().clamp(min=1e-3)
        torch.testing.assert_close(ours / scale, theirs / scale, atol=2e-4, rtol=0)


def test_the_chain_may_turn_and_the_prediction_turns_with_it(small_model):
    frames, t = noisy(1, 15), torch.tensor([0.4])
    turn = Q.uniform(generator=torch.Generator().manual_seed(3))
    turned = Frames(Q.rotate(turn, frames.translations), Q.multiply(turn, frames.quaternions))
    plain, other = small_model(frames, t), small_model(turned, t)
    torch.testing.assert_close(
        other.translations, Q.rotate(turn, plain.translations), atol=1e-3, rtol=1e-4
    )
    assert Q.distance(other.quaternions, Q.multiply(turn, plain.quaternions)).max() < 1e-4


def test_the_sign_of_a_quaternion_changes_nothing_but_the_sign(small_model):
    frames, t = noisy(1, 15), torch.tensor([0.4])
    plain = small_model(frames, t)
    other = small_model(Frames(frames.translations, -frames.quaternions), t)
    torch.testing.assert_close(other.translations, plain.translations)
    torch.testing.assert_close(other.quaternions, -plain.quaternions)


def test_padding_changes_nothing(small_model):
    frames, t = noisy(1, 12), torch.tensor([0.4])
    longer = noisy(1, 17, seed=4)
    padded = Frames(
        torch.cat((frames.translations, longer.translations[:, 12:]), 1),
        torch.cat((frames.quaternions, longer.quaternions[:, 12:]), 1),
    )
    exists = (torch.arange(17) < 12).float()[None]
    found = small_model(padded, t, exists=exists, moves=exists)
    plain = small_model(frames, t)
    torch.testing.assert_close(found.translations[:, :12], plain.translations, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.translations[:, 12:], padded.translations[:, 12:])


def test_given_residues_stay_where_they_are(small_model):
    frames, t = noisy(1, 12), torch.tensor([0.4])
    moves = (torch.arange(12) >= 5).float()[None]
    found = small_model(frames, t, moves=moves)
    torch.testing.assert_close(found.translations[:, :5], frames.translations[:, :5])
    assert Q.distance(found.quaternions[:, :5], frames.quaternions[:, :5]).max() < 1e-6
    assert (found.translations[:, 5:] - frames.translations[:, 5:]).abs().max() > 1e-3


def test_a_fresh_network_returns_its_input():
    frames = noisy(2, 10)
    found = FlowModel(SMALL)(frames, torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(found.translations, frames.translations)
    assert Q.distance(found.quaternions, frames.quaternions).max() < 1e-6


def test_chains_of_a_batch_do_not_see_each_other(small_model):
    frames, t = noisy(3, 20), torch.tensor([0.1, 0.5, 0.9])
    together = small_model(frames, t)
    for n in range(3):
        alone = small_model(frames[n : n + 1], t[n : n + 1])
        torch.testing.assert_close(
            alone.translations, together.translations[n : n + 1], atol=1e-4, rtol=1e-5
        )


def test_pairs_in_bf16_differ_by_less_than_noise(small_model):
    frames, t = noisy(1, 30), torch.tensor([0.5])
    with torch.no_grad():
        exact = small_model(frames, t).translations
        small_model.pair_precision = torch.bfloat16
        half = small_model(frames, t).translations
    moved = (exact - frames.translations).square().mean().sqrt()
    assert 0 < (half - exact).square().mean().sqrt() < 0.05 * moved + 0.05


def test_distances_fall_into_bins_that_are_open_at_both_ends():
    edges = torch.linspace(1e-3, 20, BINS)
    x = torch.zeros(1, 4, 3)
    x[0, 1, 0], x[0, 2, 0], x[0, 3, 0] = edges[3], 5.0, 400.0
    found = distance_bins(x)[0, 0].tolist()
    assert found[:2] == [0, 0]  # itself, and a distance that equals an edge
    assert found[3] == BINS
    one_hot = torch.nn.functional.one_hot(distance_bins(noisy(2, 9).translations), BINS + 1)[
        ..., 1:
    ]
    assert torch.equal(one_hot.float(), distogram(noisy(2, 9).translations))


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5)])
@pytest.mark.parametrize("relu", [False, True])
def test_the_fast_product_is_the_plain_one(shape, relu):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator).requires_grad_()
    wide = torch.randn(4, 11, generator=generator)
    weight = wide[:, 3:8].requires_grad_()  # a part of a wider matrix
    bias = torch.randn(4, generator=generator).requires_grad_()
    ours = L.linear(x, weight, bias, relu=relu)
    theirs = torch.nn.functional.linear(x, weight, bias)
    theirs = theirs.relu() if relu else theirs
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), (x, weight, bias)),
        torch.autograd.grad(theirs.square().sum(), (x, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(L.linear(x, weight, relu=relu), L.linear(x, weight, relu=relu))


def test_without_the_fast_product_the_network_is_the_same(small_model, monkeypatch):
    frames, t = noisy(1, 20), torch.tensor([0.5])
    with torch.no_grad():
        fast = small_model(frames, t).translations
        monkeypatch.setattr(L, "_HAS_ONEDNN", False)
        plain = small_model(frames, t).translations
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-5)


def test_sizes_that_have_names():
    assert [sum(p.numel() for p in sized(name).parameters()) for name in ("tiny", "reqflow")] == [
        2_097_296,
        16_779_268,
    ]
    assert set(SIZES) == {"tiny", "small", "reqflow"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"node": 30, "sequence_heads": 4}, "sequence_heads must divide node, got 4 and 30"),
        ({"pair": 30}, "pair must be a multiple of 4, got 30"),
        ({"time": 2}, "time must be at least 4, got 2"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        ModelSizes(**change)


def test_an_unknown_size_is_refused():
    with pytest.raises(UserError, match="unknown size 'huge'; choose from tiny, small, reqflow"):
        sized("huge")


def test_awake_networks_move_their_input():
    frames = noisy(1, 10)
    torch.manual_seed(0)
    moved = awake(FlowModel(SMALL))(frames, torch.tensor([0.5])).translations
    assert (moved - frames.translations).abs().max() > 0.01
