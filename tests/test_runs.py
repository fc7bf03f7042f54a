import errno
import json
import multiprocessing
import os
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rectified.errors import UserError
from rectified.runs import (
    Run,
    atomic,
    default_path,
    environment,
    load_tree,
    read_config,
    read_json,
    read_results,
    save_tree,
    to_json,
    write_config,
    write_text,
)

FORK = multiprocessing.get_context("fork")


def begun(path, **how):
    run = Run(path, **how)
    run.begin("prune", {"seeds": 3}, {"python": "3"})
    return run


def files(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


# ---- atomic writes


def test_a_writer_that_fails_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic(target) as temporary:
        temporary.write_text("half of the n" * (1 // 0))
    assert target.read_text() == "old"
    assert files(tmp_path) == ["a.txt"]


def test_a_file_is_complete_before_it_has_its_name(tmp_path):
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_an_error_of_the_disk_names_the_file_and_not_the_temporary(tmp_path):
    with pytest.raises(OSError) as caught, atomic(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_a_full_disk_is_an_os_error_for_tensors_too(tmp_path, monkeypatch):
    save_tree(tmp_path / "a.safetensors", {"old": 1})

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as caught:
        save_tree(tmp_path / "a.safetensors", torch.zeros(9))
    assert caught.value.errno == errno.ENOSPC
    assert load_tree(tmp_path / "a.safetensors") == {"old": 1}
    assert files(tmp_path) == ["a.safetensors"]


# ---- JSON


def test_numbers_that_are_not_finite_become_null_at_any_depth():
    value = {"a": [float("nan"), {"b": (float("inf"), -float("inf"), 1.5)}]}
    assert json.loads(to_json(value)) == {"a": [None, {"b": [None, None, 1.5]}]}


def test_json_holds_dataclasses_paths_and_sets():
    @dataclass
    class Point:
        x: float

    found = to_json({"p": Point(1.0), "path": Path("a/b"), "set": {1}, 2: "ü"})
    assert found == '{"p": {"x": 1.0}, "path": "a/b", "set": [1], "2": "ü"}'


# ---- trees of tensors


def test_a_tree_comes_back_as_it_was(tmp_path):
    tree = {
        "nested": {"list": [1, 2.5, None, True, "text"], 7: torch.arange(6).reshape(2, 3)},
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "mask": torch.tensor([[True], [False]]),
        "scalar": torch.tensor(3),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "no entries": torch.zeros(0, 4),
        "empty": [{}, []],
    }
    save_tree(tmp_path / "tree.safetensors", tree)
    found = load_tree(tmp_path / "tree.safetensors")
    assert list(found) == list(tree)
    assert found["nested"]["list"] == [1, 2.5, None, True, "text"]
    assert found["empty"] == [{}, []]
    for name in ("half", "mask", "scalar", "transposed", "no entries"):
        assert found[name].dtype == tree[name].dtype
        assert torch.equal(found[name], tree[name])
    assert torch.equal(found["nested"][7], tree["nested"][7])


def test_tuples_come_back_as_lists_and_undefined_numbers_as_they_were(tmp_path):
    save_tree(tmp_path / "t.safetensors", (1, (float("inf"),)))
    assert load_tree(tmp_path / "t.safetensors") == [1, [float("inf")]]


def test_a_tensor_that_occurs_twice_is_stored_once(tmp_path):
    tensor = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    save_tree(tmp_path / "one.safetensors", [tensor])
    save_tree(tmp_path / "two.safetensors", [tensor, {"again": tensor}])
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("one", "two")]
    assert sizes[1] - sizes[0] < 1000
    first, second = load_tree(tmp_path / "two.safetensors")
    assert torch.equal(first, tensor)
    assert torch.equal(second["again"], tensor)


def test_views_of_one_memory_keep_their_own_values(tmp_path):
    whole = torch.arange(6.0)
    save_tree(tmp_path / "t.safetensors", [whole, whole[:3], whole.reshape(2, 3), whole[::2]])
    found = load_tree(tmp_path / "t.safetensors")
    assert [one.tolist() for one in found[1:]] == [[0, 1, 2], [[0, 1, 2], [3, 4, 5]], [0, 2, 4]]


def test_a_tree_of_anything_else_is_refused(tmp_path):
    with pytest.raises(TypeError, match="cannot store a object"):
        save_tree(tmp_path / "t.safetensors", {"a": object()})
    assert files(tmp_path) == []


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "foreign", "flipped"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    from safetensors.torch import save_file

    path = tmp_path / "t.safetensors"
    save_tree(path, {"a": torch.zeros(100)})
    whole = path.read_bytes()
    if damage == "foreign":
        save_file({"a": torch.zeros(2)}, path)
    else:
        contents = {"empty": b"", "cut": whole[:-7], "text": b"hello " * 9}
        path.write_bytes(contents.get(damage, bytes([255]) + whole[1:]))
    with pytest.raises(UserError, match=r"t\.safetensors is damaged or not a checkpoint of ours"):
        load_tree(path)


# ---- the folder


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


# ---- reading back


def test_settings_come_back_from_yaml(tmp_path):
    settings = {"ap": ("off", "lite"), "rate": 1e-5, "target": None, "norm": "auto", "no": "off"}
    write_config(tmp_path / "c.yaml", "prune", settings)
    verb, found = read_config(tmp_path / "c.yaml")
    assert verb == "prune"
    assert found == {**settings, "ap": ["off", "lite"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no settings at .*No such file"),
        ("a: [", "is not a YAML file of settings"),
        ("- 1", "does not say which verb"),
        ("data: digits", "does not say which verb"),
        ("verb: prune\n?", "a setting's name is no text"),
        (b"\xff\xfe\x00", "is not a YAML file of settings"),
        ("!!python/object/apply:os.system ['true']", "is not a YAML file of settings"),
    ],
)
def test_settings_that_are_none_are_named(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no results\.json: it is not a finished run"),
        ("{", "is damaged"),
        ("3", "lacks config, environment, rows, summary, verb"),
        ('{"verb": "prune", "config": {}, "rows": [], "summary": []}', "lacks environment"),
    ],
)
def test_results_that_are_none_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_results(tmp_path)


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no details\.json"):
        read_json(tmp_path / "details.json")


def test_the_environment_names_versions_machine_and_command():
    found = environment()
    assert found["packages"]["torch"] == torch.__version__
    assert {"python", "platform", "processor", "cores", "gpu", "command", "started"} <= set(found)


def test_the_default_folder_is_new_and_named_by_verb_and_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = default_path("prune", "owner/my data")
    assert first.parts[0] == "runs"
    assert first.name.startswith("prune-my_data-")
    first.mkdir(parents=True)
    assert default_path("prune", "owner/my data") != first
