"""A pipeline as a field: what diffusers computes, computed by ours, and the other way round."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

from rectified.errors import UserError
from rectified.flow import integrate, natural_euler, predictions, straight, uniform_grid
from rectified.flow.paths import DDPM, scaled_linear_betas
from rectified.flow.pipelines import (
    DiffusersNetwork,
    Schedule,
    changed,
    few_step_scheduler,
    load_pipeline,
    pipeline_field,
    read_prompts,
    read_schedule,
    sample_shape,
    save_pipeline,
    solve,
)
from tests.flow.pipelines import tiny
from tests.flow.pipelines.tiny import PROMPTS

LABELS = torch.tensor([0, 1, 2])


def latents(pipeline, noise, **options):
    kind = {"prompt": list(PROMPTS)} if getattr(pipeline, "text_encoder", None) else {}
    return pipeline(latents=noise, output_type="latent", **kind, **options).images


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 4])
def test_natural_euler_is_ddim_with_trailing_spacing(tmp_path, noise, prediction_type, steps):
    pipeline = tiny.stable_diffusion(tmp_path, prediction_type=prediction_type)
    field, schedule = pipeline_field(pipeline, PROMPTS)
    pipeline.scheduler = few_step_scheduler(schedule)
    theirs = latents(pipeline, noise, num_inference_steps=steps, guidance_scale=3.0)
    times = uniform_grid(steps)
    times[-1] = schedule.time(0)  # DDIM's last step ends at the cleanest level
    with torch.no_grad():
        ours = integrate(field.given(LABELS, 3.0), noise, times, natural_euler)[-1]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [tiny.stable_diffusion, tiny.stable_diffusion_xl])
def test_samples_are_those_of_the_pipeline_with_its_own_dpm_solver(tmp_path, noise, make):
    pipeline = make(tmp_path)
    field, schedule = pipeline_field(pipeline, PROMPTS)
    ours = solve(field, schedule, noise, steps=6, labels=LABELS, guidance=5.0)
    pipeline.scheduler = DPMSolverMultistepScheduler(**tiny.SCHEDULE, timestep_spacing="trailing")
    theirs = latents(pipeline, noise, num_inference_steps=6, guidance_scale=5.0)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_dpm_solver_and_many_steps_of_our_own_agree(noise):
    pipeline = tiny.unconditional()
    field, schedule = pipeline_field(pipeline)
    x0 = noise[:, :1]
    with torch.no_grad():
        many = integrate(field, x0, uniform_grid(250), natural_euler)[-1]
    fast = solve(field, schedule, x0, steps=25)
    few = solve(field, schedule, x0, steps=2)
    error = (fast - many).norm() / many.norm()
    assert error < 0.02
    assert error < (few - many).norm() / many.norm()


def test_levels_and_times_are_one_to_one():
    schedule = read_schedule(tiny.scheduler())
    numbers = torch.arange(1000)
    network = Recorder()
    DiffusersNetwork(network, 1000)(torch.zeros(1000, 1, 1, 1), schedule.time(numbers))
    assert torch.equal(network.seen, numbers.float())
    abar = schedule.path.coefficients(schedule.time(numbers)).a.square()
    torch.testing.assert_close(abar, tiny.scheduler().alphas_cumprod, rtol=1e-4, atol=1e-6)


class Recorder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.config = {"in_channels": 1, "out_channels": 1}

    def forward(self, x, t, return_dict):
        self.seen = t
        return (x,)


def test_schedules_are_read_and_written_back():
    for settings in (
        {},
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.3, 0.2], "num_train_timesteps": 3},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ):
        first = read_schedule(tiny.scheduler(**settings))
        again = read_schedule(few_step_scheduler(first))
        assert (again.predicts, again.levels) == (first.predicts, first.levels)
        torch.testing.assert_close(again.path.betas, first.path.betas, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "kind",
    [
        diffusers.DDPMScheduler,
        diffusers.PNDMScheduler,  # Stable Diffusion 1.5's
        diffusers.EulerDiscreteScheduler,  # Stable Diffusion XL's
        diffusers.DPMSolverMultistepScheduler,
        diffusers.UniPCMultistepScheduler,
        diffusers.LCMScheduler,
    ],
)
def test_every_scheduler_with_betas_has_the_same_path(kind):
    found = read_schedule(kind(**tiny.SCHEDULE))
    torch.testing.assert_close(found.path.betas, scaled_linear_betas(), rtol=1e-4, atol=1e-7)
    assert (found.predicts, found.levels) == (predictions.noise, 1000)


def test_what_a_pipeline_was_told_is_told_to_the_student(tmp_path, noise):
    pipeline = tiny.stable_diffusion_xl(tmp_path)
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    schedule = read_schedule(pipeline.scheduler)
    save_pipeline(pipeline, pipeline.unet, schedule, tmp_path / "student")
    student = load_pipeline(str(tmp_path / "student"))
    assert not student.config["force_zeros_for_empty_prompt"]
    ours, theirs = (
        latents(one, noise, num_inference_steps=1, guidance_scale=2.0)
        for one in (student, pipeline)
    )
    assert ours.shape == theirs.shape
    field, _ = pipeline_field(student, PROMPTS)
    empty = field.network.prompts(torch.tensor([-1]))["encoder_hidden_states"]
    assert empty.abs().max() > 0


def test_the_written_scheduler_names_its_betas_where_it_can():
    config = few_step_scheduler(read_schedule(tiny.scheduler())).config
    assert config["beta_schedule"] == "scaled_linear"
    assert (config["timestep_spacing"], config["clip_sample"]) == ("trailing", False)
    assert not config["set_alpha_to_one"]
    assert few_step_scheduler(changed(read_schedule(tiny.scheduler()), "linear")).config[
        "beta_schedule"
    ] == ("linear")


@pytest.mark.parametrize("change", ["keep", "linear", "flow"])
def test_a_saved_pipeline_is_loaded_and_sampled_by_plain_diffusers(tmp_path, folder, change, noise):
    pipeline = load_pipeline(str(folder))
    schedule = changed(read_schedule(pipeline.scheduler), change)
    save_pipeline(pipeline, pipeline.unet, schedule, tmp_path / "student")
    student = DiffusionPipeline.from_pretrained(tmp_path / "student")
    student.set_progress_bar_config(disable=True)
    field, again = pipeline_field(student, PROMPTS)
    assert (again.predicts, again.levels) == (schedule.predicts, schedule.levels)
    for steps in (1, 2, 4):
        theirs = latents(student, noise, num_inference_steps=steps, guidance_scale=1.5)
        times = uniform_grid(steps)
        if change != "flow":
            times[-1] = again.time(0)
        with torch.no_grad():
            ours = integrate(field.given(LABELS, 1.5), noise, times, natural_euler)[-1]
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-4)
    pictures = student(list(PROMPTS), num_inference_steps=1, output_type="np").images
    assert pictures.shape == (3, 16, 16, 3)


@pytest.mark.parametrize("change", ["keep", "flow"])
def test_an_unconditional_pipeline_is_saved_and_sampled(tmp_path, change):
    pipeline = tiny.unconditional()
    schedule = changed(read_schedule(pipeline.scheduler), change)
    save_pipeline(pipeline, pipeline.unet, schedule, tmp_path / "student")
    student = DiffusionPipeline.from_pretrained(tmp_path / "student")
    student.set_progress_bar_config(disable=True)
    assert student(batch_size=2, num_inference_steps=2, output_type="np").images.shape[0] == 2
    assert read_schedule(student.scheduler).predicts is schedule.predicts


def test_a_pipeline_that_version_0_1_wrote_is_read(tmp_path):
    pipeline = tiny.unconditional()
    schedule = changed(read_schedule(pipeline.scheduler), "flow")
    save_pipeline(pipeline, pipeline.unet, schedule, tmp_path / "student")
    index = tmp_path / "student" / "model_index.json"
    index.write_text(index.read_text().replace("flow.pipelines.sch", "flow.diffusers.sch"))
    again = load_pipeline(str(tmp_path / "student"))
    assert read_schedule(again.scheduler).predicts is schedule.predicts


def test_saving_over_an_earlier_folder_replaces_it(tmp_path):
    pipeline = tiny.unconditional()
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "old").touch()
    save_pipeline(pipeline, pipeline.unet, read_schedule(pipeline.scheduler), tmp_path / "student")
    assert not (tmp_path / "student" / "old").exists()


def test_the_flow_scheduler_steps_along_the_straight_path(noise):
    scheduler = few_step_scheduler(Schedule(straight, predictions.velocity, 1000))
    scheduler.set_timesteps(4)
    x1, x = noise + 1, noise
    for number in scheduler.timesteps:
        torch.testing.assert_close(scheduler.add_noise(x1, noise, number), x)
        x = scheduler.step(x1 - noise, number, x).prev_sample
    torch.testing.assert_close(x, x1)
    assert len(scheduler) == 1000


def test_the_flow_scheduler_refuses_what_makes_no_steps(noise):
    scheduler = few_step_scheduler(Schedule(straight, predictions.velocity, 1000))
    with pytest.raises(UserError, match="set_timesteps must be called"):
        scheduler.step(noise, 0, noise)
    with pytest.raises(UserError, match="num_inference_steps must be at least 1, got 0"):
        scheduler.set_timesteps(0)


@pytest.mark.parametrize(
    ("change", "predict", "predicts", "gain"),
    [
        ("keep", "keep", "noise", 14.6),
        ("keep", "v_prediction", "v_prediction", 14.6),
        ("linear", "target", "target", 25.1),  # the schedule of the authors' script
        ("flow", "keep", "velocity", float("inf")),
    ],
)
def test_a_student_may_change_schedule_and_prediction(change, predict, predicts, gain):
    teacher = Schedule(DDPM(scaled_linear_betas()), predictions.noise, 1000)
    found = changed(teacher, change, predict)
    assert found.predicts.name == predicts
    assert found.path.terminal_gain == pytest.approx(gain, abs=0.05)


def test_impossible_changes_are_refused():
    teacher = Schedule(DDPM(scaled_linear_betas()), predictions.noise, 1000)
    flow = changed(teacher, "flow")
    with pytest.raises(UserError, match="unknown schedule 'cosine'; choose from keep, linear"):
        changed(teacher, "cosine")
    with pytest.raises(UserError, match="unknown prediction 'score'"):
        changed(teacher, "keep", "score")
    with pytest.raises(UserError, match="a flow predicts its velocity"):
        changed(teacher, "flow", "noise")
    with pytest.raises(UserError, match="no betas to make linear"):
        changed(flow, "linear")


def test_schedules_that_cannot_be_read_are_named():
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    with pytest.raises(UserError, match="of FlowMatchEulerDiscreteScheduler cannot be read"):
        read_schedule(FlowMatchEulerDiscreteScheduler())
    flow = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    with pytest.raises(UserError, match="of UniPCMultistepScheduler cannot be read"):
        read_schedule(flow)
    with pytest.raises(UserError, match="prediction_type must be one of epsilon"):
        read_schedule(DPMSolverMultistepScheduler(prediction_type="flow_prediction"))
    with pytest.raises(UserError, match="cannot be read: betas must be two or more"):
        read_schedule(tiny.scheduler(trained_betas=[-0.1, 0.2], num_train_timesteps=2))


CODE = "import pathlib; pathlib.Path('ran').touch()"


def named(folder, **changes):
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))


def broken(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    return str(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: shutil.rmtree(f / "unet"), "lacks unet/, which its model_index.json names"),
        (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is damaged"),
        (lambda f: (f / "unet" / "config.json").unlink(), "cannot be loaded .*: copy it anew"),
        (lambda f: weights(f).unlink(), "cannot be loaded .*: copy it anew"),
        (lambda f: weights(f).write_bytes(b"short"), "cannot be loaded .*: copy it anew"),
        (lambda f: without_part(f), "the weights of unet are incomplete"),
        (lambda f: (f / "unet" / "evil.py").write_text(CODE), "evil.py is code, which"),
        (lambda f: named(f, unet=["evil", "Evil"]), "takes unet from 'evil': only parts of"),
        (lambda f: named(f, unet=["evil", 3]), "takes unet from 'evil': only parts of"),
        (lambda f: named(f, _class_name=["evil", "Evil"]), "names no pipeline of diffusers"),
        (lambda f: (f / "model_index.json").write_text("[" * 100_000), "names no|is damaged"),
    ],
)
def test_incomplete_and_hostile_folders_are_refused_in_one_line(
    folder, tmp_path, monkeypatch, change, words
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(CODE)
    with pytest.raises(UserError, match=words):
        load_pipeline(broken(folder, tmp_path, change))
    assert not Path("ran").exists()


def weights(folder):
    return next((folder / "unet").glob("*.safetensors"))


def without_part(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(weights(folder))
    state.pop("conv_in.weight")
    save_file(state, weights(folder))


def test_a_hub_name_out_of_reach_is_told(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="nobody/nothing is not a folder, and cannot be loaded"):
        load_pipeline("nobody/nothing")


def test_a_pipeline_without_a_unet_is_refused(monkeypatch, tmp_path):
    class Transformer:
        scheduler = None

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda _: Transformer())
    (tmp_path / "model_index.json").write_text('{"_class_name": "X"}')
    with pytest.raises(UserError, match=r" \(Transformer\) has no unet: take a Stable"):
        load_pipeline(str(tmp_path))


def test_prompts_are_asked_for_where_they_are_needed_and_only_there(pipeline):
    with pytest.raises(UserError, match="makes pictures from texts: give it prompts"):
        pipeline_field(pipeline)
    with pytest.raises(UserError, match="has no text encoder: leave out the prompts"):
        pipeline_field(tiny.unconditional(), PROMPTS)


def test_labels_are_asked_for_where_there_are_prompts_and_only_there(pipeline, noise):
    field, _ = pipeline_field(pipeline, PROMPTS)
    with pytest.raises(UserError, match="needs labels"):
        field.network(noise, torch.zeros(3))
    plain, _ = pipeline_field(tiny.unconditional())
    with pytest.raises(UserError, match="has no prompts"):
        plain.network(noise[:, :1], torch.zeros(3), LABELS)


def test_prompts_come_from_a_file_one_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \n")
    assert read_prompts(file) == ("a cat", "a dog")
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(file)
    with pytest.raises(UserError, match=r"prompts cannot be read from .*no\.txt"):
        read_prompts(tmp_path / "no.txt")
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        read_prompts(file)


def test_prompts_are_encoded_once_and_in_full_precision(pipeline):
    field, _ = pipeline_field(pipeline, PROMPTS)
    prompts = field.network.prompts
    with torch.autocast("cpu", torch.bfloat16):
        found = prompts(torch.tensor([1, -1, 1]))["encoder_hidden_states"]
    assert found.dtype == torch.float32
    assert torch.equal(found[0], found[2])
    wanted = pipeline.encode_prompt([PROMPTS[1], ""], "cpu", 1, False)[0]
    torch.testing.assert_close(found[:2], wanted)
    pipeline.text_encoder = None  # not asked again
    assert torch.equal(prompts(torch.tensor([-1]))["encoder_hidden_states"][0], found[1])
    assert len(prompts) == 3


def test_kinds_of_unet_that_are_not_supported_are_named():
    for settings, words in (
        ({"in_channels": 9, "out_channels": 4}, "9 channels in and 4 out"),
        ({"in_channels": 4, "out_channels": 4, "num_class_embeds": 10}, "class embeddings"),
    ):
        network = Recorder()
        network.config = settings
        with pytest.raises(UserError, match=words):
            DiffusersNetwork(network, 1000)


def test_the_shape_of_a_sample_is_the_unets(pipeline):
    assert sample_shape(pipeline) == (4, 8, 8)
    pipeline.unet.register_to_config(sample_size=(8, 16))
    assert sample_shape(pipeline) == (4, 8, 16)
    pipeline.unet.register_to_config(sample_size=None)
    with pytest.raises(UserError, match="no sample_size"):
        sample_shape(pipeline)


def test_without_diffusers_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r'pip install "rectified\[diffusers\]"'):
        load_pipeline("anything")


def test_a_fresh_process_loads_a_flow_after_one_import(tmp_path):
    pipeline = tiny.unconditional()
    schedule = changed(read_schedule(pipeline.scheduler), "flow")
    save_pipeline(pipeline, pipeline.unet, schedule, tmp_path / "student")
    code = (
        "import rectified.flow.pipelines.scheduler\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipeline = DiffusionPipeline.from_pretrained({str(tmp_path / 'student')!r})\n"
        "print(pipeline(num_inference_steps=1, output_type='np').images.shape)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "(1, 8, 8, 1)\n"


def test_importing_flows_loads_no_diffusers():
    code = "import sys, rectified.flow, rectified.flow.pipelines; print('diffusers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
