"""Two processes that share one network, as replicas or in slices, prune as one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.pruning import Stage, full_masks, iterate, processes, prune
from rectified.pruning.processes import agree, digest, hold_shards, prune_shards, shards
from tests.leaving import leave


def network() -> nn.Sequential:
    """Odd sizes, so that the slices are uneven, and many equal weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[2].weight.copy_((model[2].weight * 4).round() / 4)
    return model


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8, 6, generator=generator)
    return inputs, torch.arange(8) % 3


def scores_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: w.abs() for name, w in weights.items()}


def train_dense(masks: dict[str, Tensor]) -> nn.Module:
    """Three steps on the whole batch, with masks held."""
    model = network()
    weights = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    inputs, labels = data()
    for _ in range(3):
        with torch.no_grad():
            for name, mask in masks.items():
                weights[name].mul_(mask)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


FRACTIONS = [(0.0, 1), (0.3, 1), (0.5, 4), (0.9, 1), (0.8, 5)]


def replicas(rank: int) -> dict[str, object]:
    """Ranks that would decide differently if left alone."""
    world = dist.group.WORLD
    mine = {"w": torch.tensor([rank == 0, True]), "v": torch.tensor([[rank == 1]])}
    agreed = agree(mine, world)

    def score(snapshot):
        generator = torch.Generator().manual_seed(rank)
        return {n: torch.rand(m.shape, generator=generator) for n, m in snapshot.masks.items()}

    cycles = iterate(network(), lambda _: None, [Stage(score, 0.5)], 2, group=world)
    return {"agreed": agreed, "cycles": [digest(cycle.masks) for cycle in cycles]}


def slices(rank: int) -> dict[str, object]:
    """A sharded network: pruned, held and trained without being gathered."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = dist.group.WORLD
    model = network()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    everything = {n: torch.ones_like(w, dtype=torch.bool) for n, w in shards(model).items()}
    scores = scores_of(shards(model))
    found = [prune_shards(everything, scores, f, floor=k, group=world) for f, k in FRACTIONS]
    masks = found[1]
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    inputs, labels = data()
    for _ in range(3):
        hold_shards(model, masks)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rank::2]), labels[rank::2]).backward()
        optimizer.step()
    trained = {n: w.clone() for n, w in shards(model).items()}
    again = prune_shards(masks, scores_of(trained), 0.4, group=world)
    return {"masks": found, "trained": trained, "again": again, "of": local_sizes(model)}


def local_sizes(model: nn.Module) -> dict[str, int]:
    return {name: weight.numel() for name, weight in shards(model).items()}


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({**replicas(rank), **slices(rank)}, f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(one_of_two, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


def joined(both: list[dict], pick) -> dict[str, Tensor]:
    """Slices put together again, for the test alone."""
    first, second = pick(both[0]), pick(both[1])
    return {name: torch.cat([first[name], second[name]]) for name in first}


def test_rank_0_decides_for_all(both) -> None:
    for found in both:
        assert found["agreed"]["w"].tolist() == [True, True]
        assert found["agreed"]["v"].tolist() == [[False]]
    assert both[0]["cycles"] == both[1]["cycles"]
    assert len(set(both[0]["cycles"])) == 3


def test_each_process_holds_a_part_only(both) -> None:
    for name, weight in network().named_parameters():
        if name in both[0]["of"]:
            assert 0 < both[0]["of"][name] < weight.numel()


def test_slices_are_pruned_as_the_whole_is_ties_included(both) -> None:
    model = network()
    masks, scores = full_masks(model), scores_of(dict(model.named_parameters()))
    for place, (fraction, floor) in enumerate(FRACTIONS):
        whole = prune(masks, scores, fraction, floor=floor)
        found = joined(both, lambda one, place=place: one["masks"][place])
        for name, mask in whole.items():
            assert torch.equal(found[name], mask), (fraction, floor, name)


def test_a_sharded_network_trains_and_is_pruned_again_as_one_process_does(both) -> None:
    masks = joined(both, lambda one: one["masks"][1])
    model = train_dense(masks)
    weights = dict(model.named_parameters())
    trained = joined(both, lambda one: one["trained"])
    for name in masks:
        torch.testing.assert_close(trained[name], weights[name].detach(), atol=1e-6, rtol=1e-5)
    whole = prune(masks, scores_of({n: weights[n].detach() for n in masks}), 0.4)
    again = joined(both, lambda one: one["again"])
    assert all(torch.equal(again[name], mask) for name, mask in whole.items())


def test_one_process_alone_needs_no_group() -> None:
    model = network()
    masks, scores = full_masks(model), scores_of(shards(model))
    for floor in (0, 1, 6):
        alone = prune_shards(masks, scores, 0.7, floor=floor, group=None)
        assert digest(alone) == digest(prune(masks, scores, 0.7, floor=floor))
    halves = {name: mask.clone() for name, mask in masks.items()}
    assert digest(agree(halves, None)) == digest(masks)
    assert digest(prune_shards(masks, scores, 0.5, of=masks, group=None)) == digest(
        prune(masks, scores, 0.5, of=masks)
    )


def test_processes_that_end_apart_are_a_fault(monkeypatch) -> None:
    monkeypatch.setattr(dist, "get_global_rank", lambda *_: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(dist, "broadcast", lambda *_, **__: None)

    def gather(found, own, group):
        found[:] = [own, "other"]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(RuntimeError, match="processes disagree on the masks"):
        agree({"w": torch.tensor([True])}, dist.ProcessGroup(0, 2))


def test_what_cannot_be_pruned_in_slices_is_named() -> None:
    model = network()
    masks, scores = full_masks(model), scores_of(shards(model))
    with pytest.raises(UserError, match=r"fraction must be in \[0, 1\), got 1"):
        prune_shards(masks, scores, 1.0, group=None)
    with pytest.raises(UserError, match=r"has shape .*, the slice has"):
        hold_shards(model, {"0.weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(UserError, match="no such parameter"):
        hold_shards(model, {"9.weight": torch.ones(2, 2, dtype=torch.bool)})

    class Place:
        def is_shard(self, axis):
            return axis == 1

        def is_replicate(self):
            return False

    sharded = nn.Parameter(torch.ones(2, 2))
    sharded.placements = (Place(),)
    with pytest.raises(UserError, match="'w' must be sharded along its first axis"):
        processes._slice("w", sharded)
