import errno
import json
import multiprocessing
import signal
from pathlib import Path

import pytest
import torch

from rectified.errors import UserError
from rectified.runs import Run, default_path, read_config, read_results

FORK = multiprocessing.get_context("fork")


def begun(path, **how):
    run = Run(path, **how)
    run.begin("prune", {"seeds": 3}, {"python": "3"})
    return run


def files(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


def test_nothing_is_written_before_a_run_begins(tmp_path):
    Run(tmp_path / "run")
    assert files(tmp_path) == []


def test_a_begun_run_says_what_it_was_told(tmp_path):
    run = begun(tmp_path / "deep" / "run")
    assert read_config(run.path / "config.yaml") == ("prune", {"seeds": 3})
    assert json.loads((run.path / "environment.json").read_text()) == {"python": "3"}
    assert json.loads((run.path / "metrics.jsonl").read_text())["event"] == "start"
    assert run.begun
    assert not run.finished


def test_a_finished_run_has_results_and_no_checkpoint(tmp_path):
    run = begun(tmp_path / "run")
    run.store("study").save({"a": 1})
    rows = [{"accuracy": float("nan")}]
    run.write_results(verb="prune", config={}, environment={}, rows=rows, summary=[], pack={"b": 1})
    run.close()
    assert run.finished
    assert not (run.path / "checkpoint").exists()
    found = read_results(run.path)
    assert list(found) == ["verb", "config", "environment", "rows", "summary", "pack"]
    assert found["rows"] == [{"accuracy": None}]


def test_what_a_kill_just_after_the_results_left_is_removed(tmp_path):
    run = begun(tmp_path / "run")
    run.write_results(verb="prune", config={}, environment={}, rows=[], summary=[])
    run.store("study").save({"a": 1})  # as if there had been no time to drop it
    run.close()
    assert Run(run.path, resume=True).finished
    assert not (run.path / "checkpoint").exists()
    assert read_results(run.path)["rows"] == []


def test_a_folder_that_is_no_run_keeps_its_checkpoint(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(UserError, match="nothing to resume"):
        Run(tmp_path, resume=True)
    assert (tmp_path / "checkpoint").is_dir()


def test_only_the_writer_of_several_processes_writes(tmp_path):
    run = begun(tmp_path / "run", writer=False)
    run.log({"a": 1})
    run.store("study").save({"a": 1})
    run.write_text("report.html", "x")
    run.write_weights({"w": torch.zeros(1)}, {})
    run.write_results(verb="prune", config={}, environment={}, rows=[], summary=[])
    run.close()
    assert files(tmp_path) == []


def test_weights_that_share_memory_are_written(tmp_path):
    from safetensors.torch import load_file

    run = begun(tmp_path / "run")
    weight = torch.arange(6.0).reshape(2, 3)
    run.write_weights({"encoder": weight, "decoder": weight, "turned": weight.T}, {"model": "x"})
    found = load_file(run.path / "model.safetensors")
    assert torch.equal(found["encoder"], found["decoder"])
    assert torch.equal(found["turned"], weight.T)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "data"])
def test_somebody_elses_folder_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).mkdir() if name == "data" else (tmp_path / name).write_text("mine")
    for how in ({}, {"replace": True}):
        with pytest.raises(UserError, match="holds files that are not a run's: give --out"):
            Run(tmp_path, **how)
    assert files(tmp_path) == [name]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match=r"run is a file: give --out a folder"):
        Run(tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    run = Run(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"file/run cannot be made .*give --out a place"):
        run.begin("prune", {}, {})


def test_a_run_is_not_overwritten_unless_that_is_asked_for(tmp_path):
    begun(tmp_path / "run").close()
    with pytest.raises(UserError, match=r"already holds a run: go on with --resume .*run"):
        Run(tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a run: choose another --out, or remove it"):
        Run(tmp_path / "run")
    (tmp_path / "run" / "checkpoint").mkdir()
    (tmp_path / "run" / "checkpoint" / "old.safetensors").write_text("old")
    begun(tmp_path / "run", replace=True).close()
    assert files(tmp_path / "run") == [".lock", "config.yaml", "environment.json", "metrics.jsonl"]


def test_nothing_but_a_run_can_be_resumed(tmp_path):
    with pytest.raises(UserError, match=r"nothing to resume in .*: it has no config\.yaml"):
        Run(tmp_path, resume=True)


def test_a_run_of_a_version_with_other_draws_is_not_gone_on_with(tmp_path):
    begun(tmp_path / "run").close()
    facts = {"packages": {"rectified": "0.1.7"}}
    (tmp_path / "run" / "environment.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"begun by rectified 0\.1\.7, which draws other random"):
        Run(tmp_path / "run", resume=True)
    (tmp_path / "run" / "environment.json").write_text("{")  # it does not say
    Run(tmp_path / "run", resume=True)


def test_a_resumed_run_keeps_its_settings_and_events(tmp_path):
    begun(tmp_path / "run").close()
    run = Run(tmp_path / "run", resume=True)
    run.begin("prune", {"seeds": 99}, {})
    run.close()
    events = [json.loads(x)["event"] for x in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert events == ["start", "resume"]
    assert read_config(run.path / "config.yaml") == ("prune", {"seeds": 3})


def test_what_a_killed_writer_left_is_swept_up(tmp_path):
    (tmp_path / ".config.yaml.123.tmp").write_text("half")
    (tmp_path / ".student.123.tmp").mkdir()
    (tmp_path / ".student.123.tmp" / ".weights.tmp").touch()
    (tmp_path / ".lock").touch()
    begun(tmp_path).close()
    assert files(tmp_path) == [".lock", "config.yaml", "environment.json", "metrics.jsonl"]


@pytest.mark.parametrize("existed", [True, False])
def test_a_run_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch, existed):
    path = tmp_path / "run"
    if existed:
        path.mkdir()

    def full(self, text, **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError):
        begun(path)
    assert files(tmp_path) == (["run"] if existed else [])


def test_an_event_that_does_not_fit_leaves_no_torn_line(tmp_path, monkeypatch):
    run = begun(tmp_path / "run")
    before = (run.path / "metrics.jsonl").read_bytes()
    opened = Path.open

    class HalfFull:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            return self.file.write(data[:5])

    monkeypatch.setattr(Path, "open", lambda *a, **k: HalfFull(opened(*a, **k)))
    with pytest.raises(OSError) as caught:
        run.log({"event": "cycle"})
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert (run.path / "metrics.jsonl").read_bytes() == before


def _hold(path, ready):
    _run = begun(path)  # the lock goes with it
    ready.set()
    signal.pause()


def test_a_second_process_is_kept_out_until_the_first_is_gone_however_it_ends(tmp_path):
    ready = FORK.Event()
    first = FORK.Process(target=_hold, args=(tmp_path / "run", ready), daemon=True)
    first.start()
    ready.wait()
    second = Run(tmp_path / "run", resume=True)
    with pytest.raises(UserError, match=r"another process is working in .*: wait, or use another"):
        second.begin("prune", {}, {})
    second.close()
    first.kill()
    first.join()
    third = Run(tmp_path / "run", resume=True)
    third.begin("prune", {}, {})
    third.close()


def test_a_replacing_run_is_kept_out_too_and_removes_nothing(tmp_path):
    first = begun(tmp_path / "run")
    with pytest.raises(UserError, match="another process"):
        begun(tmp_path / "run", replace=True)
    assert first.begun
    first.close()


def test_the_default_folder_is_new_and_named_by_verb_and_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = default_path("prune", "owner/my data")
    assert first.parts[0] == "runs"
    assert first.name.startswith("prune-my_data-")
    first.mkdir(parents=True)
    assert default_path("prune", "owner/my data") != first
