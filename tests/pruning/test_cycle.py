"""The cycle: what is rewound, what is resumed, and what each stage drops."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.pruning.activate import Activate, arm
from rectified.pruning.cycle import Cycle, Rewind, Stage, Training, iterate, plan
from rectified.pruning.masks import Masks, full_masks, hold, kept, named_weights
from rectified.pruning.schedule import one_shot
from rectified.pruning.scores import (
    Movement,
    Random,
    Score,
    ScoreFunction,
    Snapshot,
    SynFlow,
    Within,
    lamp,
    magnitude,
)


class Small(nn.Module):
    """A convolution with a batch norm, two linear layers, and a buffer of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.hidden, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1)
        return self.head(F.relu(self.hidden(x)))


def small() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


EPOCHS = 3


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(epoch)
    return [
        (torch.randn(6, 1, 4, 4, generator=draw), torch.randint(3, (6,), generator=draw))
        for _ in range(2)
    ]


def objective(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(training: Training) -> None:
    """A user's own loop, which copies no optimiser's state, neither at the start nor the end."""
    model = training.model.train()
    keep = hold(model, training.masks)
    rate = 0.01 if training.finetune else 0.1
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=0.01)
    if training.state.optimizer is not None:
        optimizer.load_state_dict(training.state.optimizer)
    stop = EPOCHS if training.stop is None else training.stop
    for epoch in range(training.start, stop):
        for batch in batches(epoch):
            optimizer.zero_grad()
            objective(model, batch).backward()
            optimizer.step()
            keep()
    training.state.optimizer = optimizer.state_dict()


def run(
    stages: list[Stage], cycles: int, model: nn.Module | None = None, **options: Any
) -> list[Cycle]:
    options = {"batches": batches(0), "objective": objective} | options
    return list(iterate(small() if model is None else model, train, stages, cycles, **options))


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def same_tree(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tree(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_tree, one, other))
    return one == other


def same(one: Cycle, other: Cycle) -> bool:
    return same_tree(vars(one), vars(other))


def masked(state: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    return {n: v * masks[n] if n in masks else v for n, v in state.items()}


HALF = [Stage(magnitude, 0.5)]
REWINDS = ["init", "epoch:1", "epoch:0", "lr", "finetune"]
SCORES: dict[str, Callable[[], ScoreFunction]] = {
    "magnitude": lambda: magnitude,
    "lamp": lambda: lamp,
    "movement": Movement,
    "random": lambda: Random(torch.Generator().manual_seed(4)),
    "within random": lambda: Within(Random(torch.Generator().manual_seed(4)), ("hidden.weight",)),
    "within movement": lambda: Within(Movement(), ("hidden.weight", "head.weight")),
}


def test_a_cycle_drops_the_smallest_of_what_was_trained() -> None:
    dense, pruned = run(HALF, 1)
    sizes = torch.cat([dense.trained[name][mask].abs() for name, mask in dense.masks.items()])
    bound = sizes.sort().values[round(0.5 * len(sizes)) - 1]
    for name, mask in pruned.masks.items():
        assert torch.equal(mask, dense.trained[name].abs() > bound)
    assert (dense.number, pruned.number) == (0, 1)
    assert dense.density == 1
    assert pruned.density == 0.5


def test_init_goes_back_to_before_the_first_training_with_everything() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cycles = run(HALF, 3, model)
    assert int(cycles[0].trained["norm.num_batches_tracked"]) == 2 * EPOCHS
    for cycle in cycles:
        assert same_state(cycle.point, before)
        assert same_state(cycle.initial, masked(before, cycle.masks))
        assert int(cycle.initial["norm.num_batches_tracked"]) == 0
        assert cycle.optimizer is None
        assert not same_state(cycle.trained, cycle.initial)


def test_epoch_k_goes_back_to_after_k_epochs_with_the_optimiser() -> None:
    model = small()
    asked: list[tuple[int, int | None]] = []
    states: list[Any] = []

    def noting(training: Training) -> None:
        asked.append((training.start, training.stop))
        states.append(copy.deepcopy(training.state.optimizer))
        train(training)

    cycles = list(iterate(model, noting, HALF, 2, rewind="epoch:1"))
    reference = small()
    training = Training(reference, full_masks(reference), 0, 1)
    train(training)
    assert asked == [(0, 1), (1, None), (1, None), (1, None)]
    assert states[0] is None
    assert all(same_tree(state, training.state.optimizer) for state in states[1:])
    for cycle in cycles:
        assert same_state(cycle.point, reference.state_dict())
        assert same_state(cycle.initial, masked(reference.state_dict(), cycle.masks))
        assert same_tree(cycle.optimizer, training.state.optimizer)


def test_a_dense_training_in_two_parts_is_the_one_in_a_piece() -> None:
    whole, parts = run(HALF, 0)[0], run(HALF, 0, rewind="epoch:1")[0]
    assert same_state(whole.trained, parts.trained)


@pytest.mark.parametrize("rewind", ["lr", "finetune"])
def test_trained_weights_are_kept_by(rewind: str) -> None:
    asked: list[tuple[int, bool, Any]] = []

    def noting(training: Training) -> None:
        asked.append((training.start, training.finetune, training.state.optimizer))
        train(training)

    cycles = list(iterate(small(), noting, HALF, 2, rewind=rewind))
    assert asked == [(0, False, None)] + [(0, rewind == "finetune", None)] * 2
    for before, after in itertools.pairwise(cycles):
        assert same_state(after.initial, masked(before.trained, after.masks))


def test_a_pretrained_network_is_only_finetuned() -> None:
    asked: list[bool] = []

    def noting(training: Training) -> None:
        asked.append(training.finetune)

    list(iterate(small(), noting, HALF, 1, rewind="finetune", pretrained=True))
    assert asked == [True, True]
    asked.clear()
    list(iterate(small(), noting, HALF, 1, rewind="lr", pretrained=True))
    assert asked == [False, False]


@pytest.mark.parametrize("rewind", REWINDS)
def test_no_training_changes_what_a_cycle_has_noted(rewind: str) -> None:
    noted: list[tuple[Cycle, Cycle]] = []
    stages = arm("pro", magnitude, 0.4, 0.1)
    for cycle in iterate(small(), train, stages, 3, rewind=rewind):
        noted.append((cycle, copy.deepcopy(cycle)))
    for cycle, then in noted:
        assert same(cycle, then)


@pytest.mark.parametrize("rewind", REWINDS)
def test_the_movement_that_ap_sees_is_that_of_the_cycles_own_training(rewind: str) -> None:
    seen: list[Snapshot] = []

    def looks(snapshot: Snapshot) -> dict[str, Tensor]:
        seen.append(snapshot)
        return Activate(sign="any")(snapshot)

    began: list[dict[str, Tensor]] = []
    ended: list[dict[str, Tensor]] = []

    def noting(training: Training) -> None:
        if training.stop is None:
            began.append(copy.deepcopy(dict(training.model.state_dict())))
        train(training)
        if training.stop is None:
            ended.append(copy.deepcopy(dict(training.model.state_dict())))

    stages = [Stage(magnitude, 0.2, retrain=True), Stage(looks, 0.1)]
    list(iterate(small(), noting, stages, 2, rewind=rewind))
    for snapshot, start, end in zip(seen, began[1::2], ended[1::2], strict=True):
        assert same_state(dict(snapshot.initial), start)
        assert same_state(dict(snapshot.trained), end)
        assert not any(start[name][~mask].any() for name, mask in snapshot.masks.items())


@pytest.mark.parametrize("rewind", REWINDS)
@pytest.mark.parametrize("score", SCORES)
def test_going_on_from_any_cycle_gives_the_same_to_the_bit(score: str, rewind: str) -> None:
    def stages() -> list[Stage]:
        return [
            Stage(SCORES[score](), 0.3),
            Stage(Activate(), 0.05, fallback=magnitude),
        ]

    whole = run(stages(), 3, rewind=rewind)
    for after in whole[:-1]:
        other = Small()  # of other weights
        rest = run(stages(), 3, other, rewind=rewind, after=stored(after))
        assert len(rest) == len(whole) - after.number - 1
        assert all(same(one, two) for one, two in zip(whole[after.number + 1 :], rest, strict=True))
        assert same_state(dict(other.state_dict()), whole[-1].trained)


@pytest.mark.parametrize("name", ["pro", "random", "any_sign", "off_pro"])
def test_every_arm_goes_on_as_it_would_have(name: str) -> None:
    def stages() -> list[Stage]:
        return arm(
            name,
            Random(torch.Generator().manual_seed(8)),
            0.3,
            0.1,
            layers=("hidden.weight",),
            generator=torch.Generator().manual_seed(9),
        )

    whole = run(stages(), 3)
    for after in whole[:-1]:
        rest = run(stages(), 3, after=stored(after))
        assert all(same(one, two) for one, two in zip(whole[after.number + 1 :], rest, strict=True))


def stored(cycle: Cycle) -> Cycle:
    """Through a file, as plain tensors and numbers."""
    stream = io.BytesIO()
    torch.save(vars(cycle), stream)
    stream.seek(0)
    return Cycle(**torch.load(stream, weights_only=True))


def test_a_dense_cycle_serves_arms_with_other_stages_and_scores() -> None:
    dense = run([Stage(Random(torch.Generator().manual_seed(4)), 0.2)], 0)[0]
    for score in (magnitude, Movement(), Random(torch.Generator().manual_seed(4))):
        if not isinstance(score, Movement):
            found = run(arm("lite", score, 0.2, 0.05), 1, after=dense)
            assert found[0].density == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("rewind", ["init", "epoch:1"])
def test_a_plan_driven_by_hand_is_iterate(rewind: str) -> None:
    stages = arm("pro", magnitude, 0.3, 0.1)
    events = plan(small(), stages, 2, rewind=rewind)
    found = []
    for event in events:
        if isinstance(event, Training):
            train(event)
        else:
            found.append(event)
    assert all(map(same, found, run(stages, 2, rewind=rewind)))


def test_plans_may_run_in_step() -> None:
    def alone(score: ScoreFunction) -> Iterator[Any]:
        return plan(small(), [Stage(score, 0.3)], 2)

    separate = [run([Stage(score, 0.3)], 2) for score in (Movement(), Movement())]
    together: list[list[Cycle]] = [[], []]
    for events in zip(alone(Movement()), alone(Movement()), strict=True):
        for number, event in enumerate(events):
            if isinstance(event, Training):
                train(event)
            else:
                together[number].append(event)
    assert all(map(same, together[0], separate[0]))
    assert all(map(same, together[1], separate[1]))


def test_movement_sums_the_last_training_only_and_is_told_to_the_trainer() -> None:
    score = Movement()
    flags: list[bool] = []

    def noting(training: Training) -> None:
        flags.append(training.watched)
        assert score.state == {}
        train(training)

    list(iterate(small(), noting, [Stage(score, 0.2)], 2))
    assert flags == [True] * 3
    assert not any(run_flags(magnitude))


def run_flags(score: ScoreFunction) -> list[bool]:
    flags: list[bool] = []

    def noting(training: Training) -> None:
        flags.append(training.watched)

    list(iterate(small(), noting, [Stage(score, 0.2)], 1))
    return flags


def test_a_fallback_that_watches_is_watched() -> None:
    found = run([Stage(Activate(("head.weight",)), 0.4, fallback=Movement())], 1)
    assert found[1].missing[0] > 0
    assert found[1].density == pytest.approx(0.6, abs=0.01)


def test_the_optimiser_hook_ends_with_the_plan() -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks

    before = len(_global_optimizer_pre_hooks)
    events = plan(small(), [Stage(Movement(), 0.2)], 1)
    next(events)
    assert len(_global_optimizer_pre_hooks) == before + 1
    events.close()
    assert len(_global_optimizer_pre_hooks) == before


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")]
)
@pytest.mark.parametrize("rewind", ["init", "epoch:1"])
def test_a_wrapped_network_goes_through_the_same_cycles(
    wrap: Callable[[nn.Module], nn.Module], rewind: str
) -> None:
    stages = arm("pro", magnitude, 0.3, 0.1)
    expected = run(stages, 1, rewind=rewind)
    found = run(stages, 1, wrap(small()), rewind=rewind)
    assert all(map(same, found, expected))
    rest = run(stages, 1, wrap(Small()), rewind=rewind, after=found[0])
    assert same(rest[0], expected[1])


def test_pruned_weights_are_zero_wherever_a_cycle_ends_or_begins() -> None:
    model = small()
    for cycle in iterate(model, train, arm("pro", magnitude, 0.5, 0.1), 3):
        for state in (cycle.initial, cycle.trained, dict(named_weights(model))):
            assert not any(state[name][~mask].any() for name, mask in cycle.masks.items())


def test_masks_given_at_the_start_hold_from_cycle_0() -> None:
    masks = full_masks(small())
    masks["hidden.weight"][:4] = False
    given = copy.deepcopy(masks)
    cycles = run(HALF, 1, masks=masks)
    assert same_tree(masks, given)
    assert not cycles[0].trained["hidden.weight"][:4].any()
    assert not cycles[0].initial["hidden.weight"][:4].any()
    assert kept(cycles[1].masks) == kept(masks) - round(0.5 * kept(masks))


def test_only_masked_layers_are_pruned() -> None:
    masks = {"hidden.weight": full_masks(small())["hidden.weight"]}
    found = run(HALF, 1, masks=masks)[1]
    assert list(found.masks) == ["hidden.weight"]
    assert found.trained["conv.weight"].all()


def test_no_layer_collapses() -> None:
    def tiny_head(snapshot: Snapshot) -> dict[str, Tensor]:
        scores = magnitude(snapshot)
        return {n: s * (1e-9 if n == "head.weight" else 1) for n, s in scores.items()}

    found = run([Stage(tiny_head, 0.5, floor=3)], 4)
    assert int(found[-1].masks["head.weight"].sum()) == 3
    assert kept(run([Stage(tiny_head, 0.5, floor=0)], 4)[-1].masks) == kept(found[-1].masks)


def test_a_stage_that_cannot_drop_its_share_is_refused() -> None:
    with pytest.raises(UserError, match=r"cycle 1 must drop 94 weights, but only \d+ may go"):
        run([Stage(Activate(("hidden.weight",)), 0.5)], 1)
    with pytest.raises(UserError, match="scope 'global', at least 60 a layer"):
        run([Stage(magnitude, 0.9, floor=60)], 1)
    with pytest.raises(UserError, match="fraction"):
        run([Stage(magnitude, -0.2)], 1)


def test_a_fallback_that_cannot_help_is_refused() -> None:
    stage = Stage(Activate(("head.weight",)), 0.9, fallback=magnitude, floor=40)
    with pytest.raises(UserError, match="below inf"):
        run([stage], 1)


def test_nan_scores_never_fall_back_in_silence() -> None:
    def broken(snapshot: Snapshot) -> dict[str, Tensor]:
        return {name: torch.full_like(s, float("nan")) for name, s in magnitude(snapshot).items()}

    with pytest.raises(UserError, match="must be numbers, got nan"):
        run([Stage(broken, 0.2, fallback=magnitude)], 1)


def test_a_schedule_decides_each_cycles_share() -> None:
    shares: list[int] = []

    def schedule(cycle: int) -> float:
        shares.append(cycle)
        return 0.1 * cycle

    found = run([Stage(magnitude, schedule)], 3)
    counts = [kept(cycle.masks) for cycle in found]
    assert counts[1:] == [n - round(s * n) for s, n in zip((0.1, 0.2, 0.3), counts, strict=False)]
    assert set(shares) == {1, 2, 3}
    once = run([Stage(magnitude, one_shot(0.4))], 2)
    assert kept(once[1].masks) == kept(once[2].masks)
    assert once[2].dropped == (0,)


class Counting(SynFlow):
    """SynFlow that notes the densities at which it is asked."""

    rounds = 5

    def __call__(self, snapshot: Snapshot, /) -> dict[str, Tensor]:
        seen.append(kept(snapshot.masks))
        return super().__call__(snapshot)


seen: list[int] = []


def test_a_score_of_several_rounds_is_asked_at_geometric_densities() -> None:
    seen.clear()
    cycles = run([Stage(Counting(), 0.75)], 1)
    start = kept(cycles[0].masks)
    assert seen == [round(start * 0.25 ** (k / 5)) for k in range(5)]
    assert kept(cycles[1].masks) == start - round(0.75 * start)


def test_rounds_add_up_what_the_fallback_drops() -> None:
    class InHead(Score):
        """Two rounds; only the head's weights may go."""

        rounds = 2

        def __call__(self, snapshot: Snapshot, /) -> dict[str, Tensor]:
            return Within(magnitude, ("head.weight",))(snapshot)

    found = run([Stage(InHead(), 0.6, fallback=magnitude)], 1)[1]
    assert found.dropped[0] - found.missing[0] == 23  # the head's 24 but one


def test_shares_of_a_cycle_add_up_without_rounding_twice() -> None:
    for parts in ([0.18, 0.02], [0.1, 0.1, 0.1], [0.05, 0.15, 0.1, 0.01], [1 / 3, 1 / 7]):
        found = run([Stage(magnitude, part) for part in parts], 3)
        counts = [kept(cycle.masks) for cycle in found]
        total = round(sum(parts), 12)
        assert counts[1:] == [n - round(total * n) for n in counts[:-1]]
        assert all(len(cycle.dropped) == len(parts) for cycle in found[1:])


def test_rewinds_are_read_from_words() -> None:
    assert Rewind.parse("epoch:12") == Rewind("epoch", 12)
    assert Rewind.parse("lr") == Rewind("lr")
    assert [Rewind.parse(word).restores_weights for word in REWINDS] == [True] * 3 + [False] * 2
    for word in ("", "epoch", "epoch:", "epoch:-1", "epoch:x", "init:2", "none", "epoch:1.5"):
        with pytest.raises(UserError, match=r"unknown rewind .* choose from init, epoch:K"):
            Rewind.parse(word)


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(UserError, match="at least one stage, got none"):
        run([], 1)
    with pytest.raises(UserError, match="cycles must be at least 0, got -1"):
        run(HALF, -1)
    with pytest.raises(UserError, match="unknown rewind 'start'"):
        run(HALF, 1, rewind="start")
    assert len(run(HALF, 0)) == 1


def test_a_finished_study_has_nothing_to_go_on_with() -> None:
    last = run(HALF, 1)[-1]
    assert run(HALF, 1, after=last) == []


def test_cycles_are_values() -> None:
    cycle = run(HALF, 0)[0]
    with pytest.raises(AttributeError):
        cycle.number = 3  # type: ignore[misc]
    assert replace(cycle, number=3).number == 3
