"""`rectified diffusion --pipeline`: from a folder to one that is sampled in few steps."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

from rectified.errors import UserError
from rectified.flow import PairStore, noise_like, pipelines
from rectified.jobs.job import open_run, perform
from rectified.jobs.pipeline import JOB, measuring, study, training
from rectified.jobs.pipeline.settings import PipelineConfig, resolve
from rectified.jobs.values import from_settings
from rectified.runs import Run, read_config, write_config
from tests.flow.pipelines import tiny
from tests.flow.pipelines.tiny import PROMPTS
from tests.jobs.conftest import without_figures

SMALL = PipelineConfig(
    prompt=PROMPTS,
    pairs=8,
    pair_steps=4,
    rectify_updates=12,
    batch_size=4,
    learning_rate=2e-3,
    samples=3,
    ema=0.5,
    seed=0,
)


PLAIN = replace(SMALL, prompt=())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A pipeline without prompts."""
    place = tmp_path_factory.mktemp("pipelines") / "plain"
    tiny.unconditional().save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipelines")
    tiny.stable_diffusion(place).save_pretrained(place / "sd")
    return str(place / "sd")


@pytest.fixture(autouse=True, scope="module")
def coarse():
    """Bends on few steps: these tests are not of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "GEOMETRY_STEPS", 4)
        yield


@pytest.fixture
def no_page(monkeypatch):
    """Without figures, whose drawings take longer than the rest."""
    without_figures(monkeypatch)


def done(config, place, **options):
    run = Run(place, **options)
    try:
        text = perform(JOB, config, run, {"command": "rectified diffusion"}, False).text
    finally:
        run.close()
    return json.loads((place / "results.json").read_text()), text


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "run"
    return place, *done(replace(SMALL, pipeline=folder, gradient_checkpointing=True), place)


def test_rows_and_summary_have_the_public_fields(finished):
    _, results, _ = finished
    assert results["verb"] == "diffusion"
    rows = results["rows"]
    public = {"seed", "round", "recipe", "solver", "steps", "distance", "distance_name"}
    assert all({*public, "straightness", "transport_cost"} <= set(row) for row in rows)
    assert {(row["recipe"], row["round"], row["steps"]) for row in rows} == {
        (*arm, steps) for arm in (("teacher", 1), ("rd", 2)) for steps in (1, 2, 4)
    }
    assert {"recipe", "round", "steps", "distance_mean", "distance_ci95", "n"} <= set(
        results["summary"][0]
    )


def test_the_pipeline_that_is_written_is_sampled_by_plain_diffusers(finished):
    place, _, _ = finished
    student = DiffusionPipeline.from_pretrained(place / "pipeline")
    student.set_progress_bar_config(disable=True)
    for steps in (1, 2, 4):
        pictures = student(
            list(PROMPTS), num_inference_steps=steps, guidance_scale=1.5, output_type="np"
        ).images
        assert pictures.shape == (3, 16, 16, 3)


@pytest.mark.usefixtures("no_page")
def test_training_moves_the_student_towards_its_teachers_samples(plain, tmp_path):
    config = replace(PLAIN, pipeline=plain, rectify_updates=120, pairs=24, steps=(1,))
    results, _ = done(config, tmp_path / "run")
    teacher, student = results["rows"]
    assert student["distance"] < 0.8 * teacher["distance"]  # of what it was not trained on


def test_a_teachers_distance_is_that_of_plain_diffusers(folder, finished):
    _, results, _ = finished
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = noise_like((3, 4, 8, 8), measuring.HELD_OUT)
    pipeline.scheduler = DPMSolverMultistepScheduler(**tiny.SCHEDULE, timestep_spacing="trailing")

    def made(steps):
        return pipeline(
            list(PROMPTS),
            latents=noise,
            num_inference_steps=steps,
            guidance_scale=5.0,
            output_type="latent",
        ).images

    floor = (made(8) - made(4)).square().mean() / made(4).square().mean()
    assert results["notes"]["seed 0, teacher"]["floor"] == pytest.approx(float(floor), rel=1e-2)


def test_what_is_ill_conditioned_is_said_with_the_remedies(finished):
    place, results, text = finished
    (warning,) = results["warnings"]
    assert warning.startswith("terminal gain 14.6")
    for words in (text, (place / "report.html").read_text()):
        assert "v_prediction" in words
        assert "linear betas" in words


def test_the_run_leaves_pairs_prompts_pictures_and_a_report(finished):
    place, results, text = finished
    assert (place / "pairs" / "prompts.txt").read_text().splitlines() == list(PROMPTS)
    assert (place / "samples.png").is_file()
    assert not (place / "checkpoint").exists()
    page = (place / "report.html").read_text()
    assert "Samples, teacher model" in page
    assert "the teacher in twice the steps" in page
    assert f"pipeline: {place / 'pipeline'}" in text
    assert results["notes"]["seed 0, rd"]["losses"]
    assert open_run(place).text == text


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("stop", ["pairs", "training", "measuring"])
def test_a_run_that_was_stopped_goes_on_to_the_same_results(plain, tmp_path, monkeypatch, stop):
    config = replace(PLAIN, pipeline=plain)
    monkeypatch.setattr(training, "SHARD", 4)
    wanted, _ = done(config, tmp_path / "whole")

    class Stopped(BaseException):
        pass

    def stopping(*_args, **_options):
        raise Stopped

    name = {"training": "measure", "measuring": "_findings"}
    with monkeypatch.context() as patch:
        if stop == "pairs":
            patch.setattr(PairStore, "write", failing_after_one(Stopped))
        else:
            patch.setattr(study, name[stop], stopping)
        with pytest.raises(Stopped):
            done(config, tmp_path / "run")
    found, _ = done(config, tmp_path / "run", resume=True)
    assert found["rows"] == wanted["rows"]
    assert found["notes"] == wanted["notes"]


def failing_after_one(stopped):
    plain = PairStore.write

    def write(store, index, tensors):
        if index:
            raise stopped
        plain(store, index, tensors)

    return write


@pytest.mark.usefixtures("no_page")
def test_phases_give_a_student_for_as_many_steps(folder, tmp_path):
    results, _ = done(
        replace(SMALL, pipeline=folder, phases=4, phase_steps=1, lora_rank=2, steps=(4,)),
        tmp_path / "run",
    )
    assert [row["recipe"] for row in results["rows"]] == ["teacher", "phased"]
    student = DiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert student.scheduler.config["timestep_spacing"] == "trailing"


@pytest.mark.usefixtures("no_page")
def test_a_pipeline_without_prompts_and_another_form(plain, tmp_path):
    config = replace(PLAIN, pipeline=plain, schedule="flow", seed=None, seeds=2)
    results, _ = done(config, tmp_path / "run")
    assert results["warnings"] == []
    assert [row["seed"] for row in results["rows"] if row["recipe"] == "rd"] == [0] * 3 + [1] * 3
    assert results["rows"][0]["evaluations"] == 1


@pytest.mark.usefixtures("no_page")
def test_samples_that_are_not_finite_are_counted_in_the_report(plain, tmp_path, monkeypatch):
    whole = pipelines.solve

    def overflowing(field, schedule, x0, **options):
        found = whole(field, schedule, x0, **options)
        found[0] = torch.inf
        return found

    monkeypatch.setattr("rectified.flow.pipelines.pairs.solve", overflowing)
    results, text = done(replace(PLAIN, pipeline=plain), tmp_path / "run")
    assert results["notes"]["seed 0, rd"]["skipped"] == 2
    assert "2 of 8 samples were not finite and are left out" in text


@pytest.mark.usefixtures("no_page")
def test_running_out_of_memory_is_told_and_survived(plain, tmp_path, monkeypatch):
    whole = pipelines.DiffusersNetwork.forward

    def small(self, x, t, labels=None):
        if len(x) > 2:
            raise torch.OutOfMemoryError
        return whole(self, x, t, labels)

    monkeypatch.setattr(pipelines.DiffusersNetwork, "forward", small)
    _, text = done(replace(PLAIN, pipeline=plain), tmp_path / "run")
    assert "out of memory with 4 examples at a time: going on with 2" in text


def test_mistakes_leave_nothing_behind(folder, tmp_path):
    for changes, words in (
        ({"prompt": ()}, "give it prompts"),
        ({"prompts": str(tmp_path / "none.txt")}, "prompts cannot be read"),
        ({"pipeline": str(tmp_path)}, "has no model_index.json"),
        ({"schedule": "flow", "predict": "noise"}, "a flow predicts its velocity"),
    ):
        with pytest.raises(UserError, match=words):
            done(replace(SMALL, **{"pipeline": folder, **changes}), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pipeline": ""}, "pipeline must be a folder or a name"),
        ({"pairs": 0}, "pairs must be at least 1, got 0"),
        ({"lora_rank": -1}, "lora_rank must be at least 0, got -1"),
        ({"steps": ()}, r"steps must be numbers of at least 1, got \(\)"),
        ({"steps": (0, 1)}, r"steps must be numbers of at least 1, got \(0, 1\)"),
        ({"text_drop": 1.0}, r"text_drop must be in \[0, 1\), got 1.0"),
        ({"guidance": 0.5}, "guidance must be at least 1, got 0.5"),
        ({"phases": 2, "loss": "prediction"}, "leave out the loss 'prediction'"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, got -1.0"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        resolve(replace(SMALL, **{"pipeline": "somewhere", **changes}))


def test_the_learning_rate_follows_from_what_is_trained():
    plain = PipelineConfig(pipeline="somewhere")
    for rank, rate in ((0, 5e-6), (4, 1e-4)):  # the reference code's; of LoRA
        plan = resolve(replace(plain, lora_rank=rank))
        assert plan.config.learning_rate == plan.fitting.learning_rate == rate


def test_settings_come_back_from_a_file(tmp_path):
    config = replace(SMALL, pipeline="somewhere", steps=(4, 1), prompts="prompts.txt")
    write_config(tmp_path / "config.yaml", "diffusion", asdict(config))
    _, told = read_config(tmp_path / "config.yaml")
    assert from_settings(PipelineConfig, told, source="config.yaml") == config


def test_a_low_rank_student_begins_where_its_seed_says(plain, tmp_path):
    config = replace(PLAIN, pipeline=plain, lora_rank=2, rectify_updates=1, samples=1, pairs=4)
    one, other = (done(config, tmp_path / name)[0] for name in ("a", "b"))
    assert one["notes"] == other["notes"]


def test_a_rectified_pipeline_has_no_network_of_ours_and_is_sampled_by_diffusers(finished):
    results = open_run(finished[0])
    with pytest.raises(UserError, match="which saves no network"):
        results.network()
    with pytest.raises(UserError, match=r"sample it with diffusers, DiffusionPipeline.from_pre"):
        results.job.sampler.make(results, None)
