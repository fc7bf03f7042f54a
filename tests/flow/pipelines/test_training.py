"""Pairs of a pipeline and students trained on them: resumable, in pieces, whole or by LoRA."""

import sys
from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from rectified.errors import UserError
from rectified.flow import Discrete, FlowMatching, PairStore, Phased, noise_like, predictions
from rectified.flow.losses import element_huber, squared
from rectified.flow.pipelines import (
    Budget,
    InPieces,
    PipelineBatches,
    changed,
    make_pipeline_pairs,
    make_student,
    pipeline_field,
    read_schedule,
    rectification,
    save_pipeline,
    solve,
    trained_unet,
)
from rectified.seeds import seeded
from rectified.training import FitConfig, fit
from tests.flow.pipelines import tiny
from tests.flow.pipelines.tiny import PROMPTS

CONFIG = FitConfig(epochs=2, optimizer="adamw", learning_rate=1e-3, schedule="constant", seed=0)


def silent(_):
    pass


def store_of(field, schedule, folder, count=10, budget=None, **options):
    store = PairStore(folder, count=count, shard=4, seed=7)
    options = {"prompts": 3, "steps": 3, "guidance": 3.0, **options}
    skipped = make_pipeline_pairs(
        field, schedule, store, (4, 8, 8), budget or Budget(8, silent), **options
    )
    return store, skipped


@pytest.fixture
def known(pipeline):
    return pipeline_field(pipeline, PROMPTS)


@pytest.fixture
def store(known, tmp_path):
    return store_of(*known, tmp_path / "pairs")[0]


def test_pairs_are_what_the_solver_makes_of_noise_and_prompts(known, store):
    found = store.load()
    assert found["prompt"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert set(found) == {"x1", "kept", "prompt"}  # noise by its seed
    x0 = torch.cat([noise_like((n, 4, 8, 8), 7 + i) for i, n in enumerate((4, 4, 2))])
    labels = found["prompt"]
    wanted = solve(*known, x0, steps=3, labels=labels, guidance=3.0)
    # float32 sums in other orders, as the batches are of other sizes
    torch.testing.assert_close(found["x1"], wanted, atol=1e-4, rtol=1e-4)


def test_making_pairs_goes_on_where_it_stopped(known, store, tmp_path):
    whole = store.load()["x1"]
    store.path(1).unlink()
    kept = store.path(0).stat().st_mtime_ns
    again, _ = store_of(*known, tmp_path / "pairs")
    assert torch.equal(again.load()["x1"], whole)
    assert again.path(0).stat().st_mtime_ns == kept


def test_samples_that_are_not_finite_are_skipped_and_counted(known, tmp_path, monkeypatch):
    field, schedule = known
    unet = field.network.unet
    plain = unet.forward

    def failing(x, t, **rest):
        (output,) = plain(x, t, **rest)
        output = output.clone()
        output[-1] = torch.nan  # the last of whatever is computed together
        return (output,)

    monkeypatch.setattr(unet, "forward", failing)
    store, skipped = store_of(field, schedule, tmp_path / "pairs", guidance=1.0)
    assert skipped == 3  # one a shard
    rows = [len(x1) for _, x1, _ in PipelineBatches(store, size=1, updates=7).epoch(0)]
    assert rows == [1] * 7
    for x0, x1, _ in PipelineBatches(store, size=3, updates=5).epoch(0):
        assert bool(torch.isfinite(x1).all())
        assert x0.shape == x1.shape

    monkeypatch.setattr(unet, "forward", lambda x, t, **_: (x * torch.nan,))
    with pytest.raises(UserError, match="none of 10 samples is finite"):
        store_of(field, schedule, tmp_path / "none")


def test_pairs_are_made_with_less_at_a_time_where_memory_runs_out(known, tmp_path, monkeypatch):
    field, schedule = known
    whole = store_of(field, schedule, tmp_path / "whole")[0].load()
    unet, said = field.network.unet, []
    plain = unet.forward

    def small(x, t, **rest):
        if len(x) > 2:  # guidance asks twice
            raise torch.OutOfMemoryError
        return plain(x, t, **rest)

    monkeypatch.setattr(unet, "forward", small)
    found = store_of(field, schedule, tmp_path / "less", budget=Budget(4, said.append))[0].load()
    torch.testing.assert_close(found["x1"], whole["x1"], atol=1e-5, rtol=1e-4)
    assert said == [
        "out of memory with 4 examples at a time: going on with 2",
        "out of memory with 2 examples at a time: going on with 1",
    ]


def test_batches_hold_every_pair_with_its_own_noise_and_prompt(store):
    found = store.load()
    x0 = torch.cat([noise_like((n, 4, 8, 8), 7 + i) for i, n in enumerate((4, 4, 2))])
    rows = {tuple(x.flatten()[:2].tolist()): i for i, x in enumerate(x0)}
    batches = list(PipelineBatches(store, size=5, updates=2).epoch(0))
    seen = []
    for noise, samples, prompts in batches:
        for one, sample, prompt in zip(noise, samples, prompts, strict=True):
            row = rows[tuple(one.flatten()[:2].tolist())]
            seen.append(row)
            assert torch.equal(sample, found["x1"][row])
            assert prompt == found["prompt"][row]
    assert sorted(seen) == list(range(10))


def test_batches_depend_on_seed_and_epoch_alone(store):
    batches = PipelineBatches(store, size=3, updates=4, seed=1)
    assert len(batches) == 4
    first, again, other = ([one[1] for one in batches.epoch(number)] for number in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    data = next(PipelineBatches(store, size=3, updates=1, with_noise=False).epoch(0))
    assert [one.shape for one in data] == [(3, 4, 8, 8), (3,)]


def test_impossible_batches_are_refused(store):
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        PipelineBatches(store, size=0, updates=1)
    with pytest.raises(UserError, match="updates must be at least 1, got 0"):
        PipelineBatches(store, size=1, updates=0)


def test_the_objective_on_noise_is_the_papers_formula(known):
    field, schedule = known
    x0, x1 = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    labels = torch.arange(6) % 3
    torch.manual_seed(3)
    loss = rectification(schedule, loss="prediction")(field.network, (x0, x1, labels))
    torch.manual_seed(3)
    numbers = 999 - (torch.rand(6) * 1000).floor().long()  # of the levels, alike
    abar = tiny.scheduler().alphas_cumprod[numbers].reshape(-1, 1, 1, 1)
    x = abar.sqrt() * x1 + (1 - abar).sqrt() * x0
    states = field.network.prompts(labels)["encoder_hidden_states"]
    noise = field.network.unet(x, numbers, encoder_hidden_states=states).sample
    torch.testing.assert_close(loss, (noise - x0).square().mean(), rtol=1e-4, atol=1e-6)
    # and the reference code's: pseudo-Huber of width 0.001 on every element of the sample
    torch.manual_seed(3)
    loss = rectification(schedule, loss="target")(field.network, (x0, x1, labels))
    sample = (x - (1 - abar).sqrt() * noise) / abar.sqrt()
    wanted = (((sample - x1).square() + 1e-6).sqrt() - 1e-3).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=1e-6)


def test_the_loss_follows_from_what_is_predicted(known):
    _, schedule = known
    assert rectification(schedule).terms[0].space == "target"
    assert rectification(changed(schedule, "keep", "v_prediction")).terms[0].loss is squared
    flow = rectification(changed(schedule, "flow"))
    assert (flow.predicts, flow.terms[0].space) == (predictions.velocity, "prediction")
    assert flow.times == Discrete(1000)
    with pytest.raises(UserError, match="unknown loss 'l1'; choose from auto, prediction, target"):
        rectification(schedule, loss="l1")


def gradient(field, objective, batch):
    torch.manual_seed(0)
    field.network.zero_grad()
    objective(field.network.train(), batch).backward()
    return torch.cat([p.grad.flatten() for p in field.network.parameters() if p.requires_grad])


def test_checkpointing_and_pieces_change_no_gradient(known, store):
    field, schedule = known
    batch = next(PipelineBatches(store, size=4, updates=1).epoch(0))
    times = torch.rand(4, generator=torch.Generator().manual_seed(0))
    fixed = FlowMatching(None, schedule.path, schedule.predicts, lambda n, _: times[:n])
    plain = gradient(make_student(field, schedule), fixed, batch)
    lean = make_student(field, schedule, gradient_checkpointing=True)
    assert lean.network.unet.is_gradient_checkpointing
    torch.testing.assert_close(gradient(lean, fixed, batch), plain, atol=1e-6, rtol=1e-4)

    constant = FlowMatching(
        None, schedule.path, schedule.predicts, lambda n, _: times[:1].expand(n)
    )
    whole = gradient(make_student(field, schedule), constant, batch)
    pieces = InPieces(constant, Budget(3, silent))  # of 3 and 1
    torch.testing.assert_close(
        gradient(make_student(field, schedule), pieces, batch), whole, atol=1e-6, rtol=1e-4
    )


def test_training_goes_on_in_pieces_where_memory_runs_out():
    model, said = torch.nn.Linear(2, 2), []
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))

    def objective(model, batch):
        if len(batch[0]) > 3:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")
        return model(batch[0]).square().mean()

    loss = InPieces(objective, Budget(7, said.append))(model, (x,))
    loss.backward()
    summed = model.weight.grad.clone()
    model.zero_grad()
    model(x).square().mean().backward()
    torch.testing.assert_close(summed, model.weight.grad)
    assert said == ["out of memory with 7 examples at a time: going on with 3"]
    torch.testing.assert_close(loss.detach(), model(x).square().mean().detach())


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def failing(_model, _batch):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        InPieces(failing, Budget(4, silent))(torch.nn.Linear(1, 1), (torch.zeros(4, 1),))


def test_one_example_that_does_not_fit_is_told():
    def work(size):
        raise MemoryError

    with pytest.raises(UserError, match="out of memory with one example at a time"):
        Budget(4, silent).run(work)
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        Budget(0, silent)


@pytest.mark.parametrize("change", ["keep", "flow"])
def test_a_student_learns_and_its_teacher_stays(known, store, change):
    field, teacher_schedule = known
    schedule = changed(teacher_schedule, change)
    before = [p.clone() for p in field.network.parameters()]
    student = make_student(field, schedule, gradient_checkpointing=True)
    objective = InPieces(rectification(schedule, text_drop=0.1), Budget(4, silent))
    losses = fit(
        student.network,
        objective,
        PipelineBatches(store, size=4, updates=10),
        FitConfig(3, "adamw", 3e-3, schedule="constant", ema=0.5, precision="bf16", clip=1.0),
    )
    assert losses[-1] < losses[0]
    assert all(map(torch.equal, before, field.network.parameters()))
    assert field.network.prompts is student.network.prompts


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(known, store):
    field, schedule = known

    def trained(**span):
        student = make_student(field, schedule)
        objective = InPieces(rectification(schedule), Budget(4, silent))
        batches = PipelineBatches(store, size=4, updates=2)
        fit(student.network, objective, batches, CONFIG, **span)
        return torch.cat([p.flatten() for p in student.network.parameters()])

    class Kept:
        state = None

        def load(self):
            return self.state

        def save(self, state):
            self.state = state

    from rectified.training import loop

    kept, whole = Kept(), trained()
    before, loop._SAVE_EVERY_SECONDS = loop._SAVE_EVERY_SECONDS, -1.0
    try:
        trained(stop=1, store=kept)
        torch.testing.assert_close(trained(store=kept), whole)
    finally:
        loop._SAVE_EVERY_SECONDS = before


def test_lora_trains_few_weights_and_is_added_at_the_end(known, store, tmp_path, noise):
    field, schedule = known
    student = make_student(field, schedule, lora_rank=2, gradient_checkpointing=True)
    trainable = [p for p in student.network.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trainable)
    assert 0 < count < 0.3 * sum(p.numel() for p in field.network.parameters())
    t, labels = torch.full((3,), 0.5), torch.tensor([0, 1, 2])
    with torch.no_grad():
        # updates begin at zero
        torch.testing.assert_close(
            student.network(noise, t, labels), field.network(noise, t, labels)
        )
    objective = InPieces(rectification(schedule), Budget(4, silent))
    fit(student.network, objective, PipelineBatches(store, size=4, updates=5), CONFIG)
    with torch.no_grad():
        low_rank = student.network.eval()(noise, t, labels)
        unet = trained_unet(student)
        merged = student.network(noise, t, labels)
        assert (low_rank - field.network(noise, t, labels)).abs().max() > 1e-4
    assert isinstance(unet, UNet2DConditionModel)
    assert not unet.is_gradient_checkpointing
    torch.testing.assert_close(merged, low_rank, atol=1e-5, rtol=1e-4)
    assert set(unet.state_dict()) == set(field.network.unet.state_dict())


def test_lora_needs_peft_a_rank_and_layers(known, monkeypatch):
    field, schedule = known
    with pytest.raises(UserError, match="lora_rank must be at least 0, got -1"):
        make_student(field, schedule, lora_rank=-1)
    network = field.network.copy()
    network.unet = torch.nn.Sequential(torch.nn.Linear(1, 1))
    monkeypatch.setattr(type(network), "copy", lambda _: network)
    with pytest.raises(UserError, match="this UNet takes no LoRA"):
        make_student(field, schedule, lora_rank=2)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'peft is needed .*pip install "rectified\[diffusers\]"'):
        make_student(field, schedule, lora_rank=2)


def test_a_phased_student_is_trained_saved_and_sampled_in_a_step_a_phase(known, store, tmp_path):
    field, schedule = known
    student = make_student(field, schedule)
    objective = Phased(
        field,
        phases=4,
        steps=2,
        guidance=3.0,
        times=Discrete(250),
        label_drop=0.1,
        loss=element_huber,
    )
    batches = PipelineBatches(store, size=5, updates=15, with_noise=False)

    def loss():
        with torch.no_grad(), seeded(0):  # the same draws before and after
            return sum(float(objective(student.network, batch)) for batch in batches.epoch(0))

    before = loss()
    gentle = replace(CONFIG, learning_rate=1e-4)  # it begins at the teacher, near the best
    fit(student.network, InPieces(objective, Budget(5, silent)), batches, gentle)
    assert loss() < before
    pipeline = tiny.stable_diffusion(tmp_path)
    save_pipeline(pipeline, trained_unet(student), schedule, tmp_path / "phased")
    again = DiffusionPipeline.from_pretrained(tmp_path / "phased")
    again.set_progress_bar_config(disable=True)
    pictures = again(list(PROMPTS), num_inference_steps=4, guidance_scale=1.5, output_type="np")
    assert pictures.images.shape == (3, 16, 16, 3)
    assert again.scheduler.timesteps.tolist() == [999, 749, 499, 249]


def test_pairs_of_a_flow_are_made_by_heuns_method(tmp_path):
    pipeline = tiny.unconditional()
    schedule = changed(read_schedule(pipeline.scheduler), "flow")
    flow = save_pipeline(pipeline, pipeline.unet, schedule, tmp_path / "flow")
    field, schedule = pipeline_field(flow)
    store = PairStore(tmp_path / "pairs", count=3, shard=2)
    make_pipeline_pairs(field, schedule, store, (1, 8, 8), Budget(2, silent), steps=3)
    assert set(store.load()) == {"x1", "kept"}
    x0, x1 = next(PipelineBatches(store, size=3, updates=1).epoch(0))
    assert x0.shape == x1.shape == (3, 1, 8, 8)
