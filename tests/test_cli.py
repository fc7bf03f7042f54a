"""The command line, from end to end: what it says, what it leaves, and how it goes on."""

import errno
import multiprocessing
import os
import pickle
import random
import re
import signal
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rectified import __version__
from rectified.cli import exits, main
from rectified.errors import UserError
from rectified.jobs import JOBS, TOOLS, job_of
from rectified.jobs import run as door
from rectified.jobs.values import from_settings
from rectified.runs import read_config, read_results
from rectified.training import loop
from tests.drawings import undrawn
from tests.holding import held

COMMAND = import_module("rectified.cli.main")  # the package has a function of that name
VERBS = {**JOBS, **TOOLS}
PruneConfig = type(job_of("prune").default)
FORK = multiprocessing.get_context("fork")
FAST = [
    "prune",
    "--limit",
    "200",
    "--epochs",
    "2",
    "--cycles",
    "1",
    "--seed",
    "0",
    "--device",
    "cpu",
]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    undrawn(monkeypatch)


def files(path):
    return sorted(str(entry.relative_to(path)) for entry in Path(path).rglob("*"))


def refused(capsys, *arguments):
    """The one line of a command that ends with 2."""
    assert main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("rectified: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err


def numbers(folder):
    """All that a run found, but how long it took."""
    rows = read_results(Path(folder))["rows"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# ---- help


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_help_lists_every_verb_with_an_example(words, capsys):
    assert main(words) == 0
    said = capsys.readouterr().out
    for verb, entry in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(entry.summary)}$", said, re.MULTILINE)
        assert f"  rectified {verb}" in said.partition("examples:")[2]


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help_with_examples(verb, capsys):
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"rectified {verb} {VERBS[verb].examples[0]}".strip() in said
    assert "--out" in said


def test_the_help_of_prune_shows_defaults_and_what_quiet_does(capsys):
    main(["prune", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "print nothing but the results." in said
    assert "(default: off,lite)" in said
    for flag in ("--resume", "--config", "--seeds", "--seed", "--device", "--target", "--rewind"):
        assert flag in said


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_told(flag, capsys):
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"rectified {__version__}\n"


# ---- what a person can get wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("prun", "unknown verb 'prun'; choose from demo, prune,"),
        ("--out x", "unknown verb '--out'"),
        ("prune --scores lamp", "--scores, lamp; perhaps --score; see rectified prune --help"),
        ("prune --cycles many", "--cycles must be a whole number, got 'many'"),
        ("prune --ap_rat 0.1", "unknown options: --ap-rat, 0.1; perhaps --ap-rate"),
        ("prune --quiet=yes", "--quiet/--no-quiet ignored explicit argument 'yes'"),
        ("prune --data --seeds 3", "--data expected one argument; see rectified prune --help"),
        (
            "prune --norm layer",
            "--norm must be one of auto, batch, none, got 'layer'; see rectified prune --help",
        ),
        ("prune --out", "--out"),
        ("prune --resume", "--resume"),
        ("prune stray", "stray"),
        ("prune --score lampp", "unknown score 'lampp'; choose from magnitude, .*lamp"),
        ("prune --ap lite,heavy", "unknown ap 'heavy'; choose from off, lite, pro"),
        ("prune --model resnet18", "unknown model 'resnet18'; choose from mlp"),
        ("prune --rate 0.01", r"ap_rate must be in \(0, rate\), rate being 0.01; got 0.02"),
        ("prune --ap-rate 0.2", r"ap_rate must be in \(0, rate\)"),
        ("prune --target 1.2", r"target must be in \(0, 1\), the present density, got 1.2"),
        ("prune --scope 4:2", "unknown scope '4:2'; choose from global, layer, 2:4"),
        ("prune --rewind back", "unknown rewind 'back'; choose from init, epoch:K"),
        ("prune --device tpu", "--device must be one of auto, cpu, cuda, got 'tpu'"),
        ("prune --seeds 0", "seeds must be at least 1, got 0"),
        ("prune --limit 3", r"limit must be at least the number of classes \(10\), got 3"),
        ("prune --data nowhere", "cannot load images from 'nowhere'; give 'digits'"),
        ("prune --weights nowhere.pt", r"no weights at nowhere\.pt"),
        ("prune --config nowhere.yaml", r"no settings at nowhere\.yaml .*config\.yaml"),
        ("prune --resume nowhere", r"nothing to resume in nowhere: it has no config\.yaml"),
        ("prune --resume r --seeds 3", "goes on with the run's own settings: leave out --seeds"),
        ("prune --resume r --out x", "leave out --out"),
        ("report", r"rectified report RUN\.\.\.; see rectified report --help"),
        ("report nowhere", r"nowhere has no results\.json"),
        ("report --what x", "unknown options: --what; see rectified report --help"),
    ],
)
def test_a_mistake_is_one_line_that_names_value_and_remedy(arguments, words, capsys, tmp_path):
    assert re.search(words, refused(capsys, *arguments.split()))
    assert files(tmp_path) == []


MODULE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, classes, act):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, classes)
        self.act = act
    def forward(self, x):
        return self.c(self.act(self.b(self.act(self.a(x.flatten(1))))))
def tanh(num_classes): return Net(num_classes, torch.tanh)
def five(): return Net(5, torch.relu)
def weightless(): return nn.Identity()
def wide(num_classes): return nn.Sequential(nn.Linear(65, num_classes), nn.ReLU())
"""


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("tanh", "Net calls no ReLU"),
        ("weightless", "Identity has no weights to prune: pass a network with Linear"),
        ("five", r"must return 10 class scores an image.*got \(5,\)"),
        ("wide", r"cannot read images of shape \(1, 8, 8\).*take another model or other data"),
        ("absent", "cannot be imported .*write module:factory"),
    ],
)
def test_a_model_that_cannot_be_pruned_is_named(model, words, capsys, tmp_path):
    (tmp_path / "models_of_mine.py").write_text(MODULE)
    assert re.search(
        words, refused(capsys, *FAST, "--model", f"models_of_mine:{model}", "--out", "run")
    )
    assert not (tmp_path / "run").exists()


def folder_of_images(path, classes, count=12):
    generator = np.random.default_rng(0)
    for name in classes:
        (path / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / name / f"{number}.png")


def labels_out_of_range(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.mkdir()
    folder_of_images(path / "pictures", "ab")
    pngs = [p.read_bytes() for p in sorted((path / "pictures").rglob("*.png"))]
    table = {"img": [{"bytes": b, "path": None} for b in pngs], "label": [0, 1] * 11 + [1, -1]}
    pq.write_table(pa.table(table), path / "train.parquet")


def test_impossible_data_are_named(tmp_path, capsys):
    folder_of_images(tmp_path / "one", ["cat"])
    folder_of_images(tmp_path / "corrupt", ["cat", "dog"])
    (tmp_path / "corrupt" / "dog" / "3.png").write_bytes(b"\x89PNG not really")
    labels_out_of_range(tmp_path / "labels")
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    for data, words in {
        "one": "must hold at least two classes|class",
        "corrupt": r"dog/3\.png",
        "labels": "-1",
        "empty": "empty must hold parquet files, or a folder of images",
    }.items():
        assert re.search(words, refused(capsys, "prune", "--data", data, "--out", "run"))
    assert files(tmp_path) == before


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_weights_that_do_not_fit_or_would_run_code_are_refused(tmp_path, capsys):
    torch.save({"1.weight": torch.zeros(3, 3)}, "other.pt")
    torch.save({"weight": torch.zeros(3, 3)}, "foreign.pt")
    Path("bomb.pt").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    before = files(tmp_path)
    shapes = r"'1\.weight' has shape \(3, 3\), the model has \(64, 64\)"
    assert re.search(shapes, refused(capsys, *FAST, "--weights", "other.pt"))
    assert "lack '1.weight'" in refused(capsys, *FAST, "--weights", "foreign.pt")
    assert "cannot be read safely" in refused(capsys, *FAST, "--weights", "bomb.pt")
    assert files(tmp_path) == before


def test_an_out_that_cannot_be_used_is_named_and_left_alone(tmp_path, capsys):
    Path("file").write_text("mine")
    Path("foreign").mkdir()
    Path("foreign/notes.txt").write_text("mine")
    before = files(tmp_path)
    assert "file is a file" in refused(capsys, *FAST, "--out", "file")
    assert "file/run cannot be made" in refused(capsys, *FAST, "--out", "file/run")
    assert "not a run's: give --out" in refused(capsys, *FAST, "--out", "foreign")
    assert "too long" in refused(capsys, *FAST, "--out", "x" * 300)
    if Path("/proc/self").exists():  # where not even root may write
        assert "/proc/run cannot be made" in refused(capsys, *FAST, "--out", "/proc/run")
    assert files(tmp_path) == before


@pytest.mark.parametrize("code", sorted(exits.USER_ERRNO))
def test_errors_of_the_disk_are_the_users_and_others_are_ours(code, capsys, monkeypatch):
    def fail(*_):
        raise OSError(code, os.strerror(code), "run/config.yaml")

    monkeypatch.setattr(COMMAND, "_run", fail)
    assert refused(capsys, "prune").startswith("rectified: run/config.yaml: ")

    def ours(*_):
        raise OSError(errno.EIO, "?")

    monkeypatch.setattr(COMMAND, "_run", ours)
    with pytest.raises(OSError):
        main(["prune"])


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_full_disk_leaves_nothing_half_written(after, capsys, monkeypatch, tmp_path):
    """The disk is full from some write on."""
    left = after

    def limited(write):
        def wrapped(self, *arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                self.touch()  # the name is made, the content does not fit
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(self, *arguments, **options)

        return wrapped

    monkeypatch.setattr(Path, "write_text", limited(Path.write_text))
    monkeypatch.setattr(Path, "write_bytes", limited(Path.write_bytes))
    assert re.search(
        r"run/.*: the disk is full: free some space", refused(capsys, *FAST, "--out", "run")
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    undrawn(monkeypatch)
    found = files(tmp_path)
    assert not [name for name in found if ".tmp" in name]
    assert not Path("run/results.json").exists()
    if after < 2:
        assert found == []
    else:
        assert main(["prune", "--resume", "run", "--quiet"]) == 0
        assert main([*FAST, "--out", "other", "--quiet"]) == 0
        assert numbers("run") == numbers("other")


def test_a_fault_of_ours_is_not_told_as_the_users(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(COMMAND, "_run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["prune"])


# ---- settings


def test_settings_go_round_through_a_file_and_flags_override_them(capsys):
    flags = "--score lamp,magnitude --ap off --dead-threshold 0.001 --ap-rate 0.01 --floor 2"
    assert main([*FAST, *flags.split(), "--out", "first", "--quiet"]) == 0
    again = "prune --config first/config.yaml --cycles 0 --score lamp --out second --quiet"
    assert main(again.split()) == 0
    verb, first = read_config(Path("first/config.yaml"))
    _, second = read_config(Path("second/config.yaml"))
    assert verb == "prune"
    assert set(first) == set(PruneConfig.__dataclass_fields__)
    assert {key for key in first if first[key] != second[key]} == {"cycles", "score"}
    assert (second["floor"], second["seed"], second["limit"]) == (2, 0, 200)
    assert read_results(Path("second"))["config"] == second


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("verb: prune\nratte: 0.2\n", "unknown setting in c.yaml 'ratte'; choose from"),
        ("verb: prune\nrate: fast\n", "rate in c.yaml must be a number, got 'fast'"),
        ("verb: prune\nscore: [1]\n", "score in c.yaml must be a list of texts, got [1]"),
        ("verb: binarize\n", "c.yaml is for `rectified binarize`, not for `rectified prune`"),
        ("rate: 0.2\n", "does not say which verb"),
    ],
)
def test_a_file_with_other_settings_is_named(text, words, capsys):
    Path("c.yaml").write_text(text)
    assert words in refused(capsys, "prune", "--config", "c.yaml")


def test_whole_numbers_may_stand_for_rates():
    assert from_settings(PruneConfig, {"dead_threshold": 1}, source="x").dead_threshold == 1.0
    with pytest.raises(UserError, match="unknown setting"):
        from_settings(PruneConfig, {"x": 1}, source="x")


def test_seeds_are_counted_or_named():
    assert main([*FAST, "--cycles", "0", "--out", "one", "--quiet"]) == 0
    many = "prune --limit 200 --epochs 1 --cycles 0 --seeds 2 --ap off --quiet --out two"
    assert main(many.split()) == 0
    assert {row["seed"] for row in numbers("one")} == {0}
    assert [row["seed"] for row in numbers("two")] == [0, 1]


def test_the_default_folder_is_told(capsys):
    assert main([*FAST, "--cycles", "0"]) == 0
    assert re.search(
        r"report: runs/prune-digits-\d{8}-\d{6}/report\.html$", capsys.readouterr().out
    )


def test_the_demo_replaces_what_an_earlier_one_left(monkeypatch, capsys):
    small = PruneConfig(limit=200, epochs=1, cycles=1, seed=0, device="cpu")
    here = sys.modules[__name__]
    monkeypatch.setattr(here, "DEMO", replace(job_of("demo"), default=small), raising=False)
    monkeypatch.setitem(JOBS, "demo", replace(JOBS["demo"], place=f"{__name__}:DEMO"))
    for _ in range(2):
        assert main(["demo", "--quiet"]) == 0
    assert Path("runs/demo/report.html").exists()
    Path("runs/demo/results.json").unlink()
    assert main(["demo", "--resume", "runs/demo", "--quiet"]) == 0
    assert len(numbers("runs/demo")) == 4
    assert main([*FAST, "--out", "runs/demo"]) == 2


def test_quiet_prints_the_results_and_shows_no_progress(capsys, monkeypatch):
    shown = []
    bar = loop._bar
    monkeypatch.setattr(loop, "_bar", lambda words, *a: (shown.append(words), bar(words, *a))[1])
    assert main([*FAST, "--out", "quiet", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.endswith("report: quiet/report.html\n")
    assert set(shown) == {""}
    assert main([*FAST, "--out", "loud"]) == 0
    assert "" not in shown[len(shown) // 2 :]


# ---- stopping and going on

MLP = "prune --limit 200 --epochs 3 --cycles 2 --seeds 2 --device cpu --quiet"
STUDIES = {
    "mlp": f"{MLP} --score movement,random --ap pro,random --rewind epoch:1",
    "cnn": f"{MLP} --model cnn --together 1 --ap lite,pro --cycles 1",
}


def _kill_at(writes):
    """Let this process be killed before its n-th file takes its name."""
    replace = Path.replace

    def counted(self, target):
        nonlocal writes
        writes -= 1
        if writes < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = counted


def _child(arguments, writes, hold):
    loop._SAVE_EVERY_SECONDS = -1.0  # every epoch
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    if hold is not None:
        hold.listen()
    if writes is not None:
        _kill_at(writes)
    for number in (1, 2):
        os.dup2(os.open(f"child.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    code = main(arguments)
    sys.stderr.flush()
    os._exit(code)


def start(arguments, writes=None, hold=None):
    process = FORK.Process(target=_child, args=(arguments, writes, hold), daemon=True)
    process.start()
    return process


def finished(process):
    process.join()
    return process.exitcode


@pytest.mark.parametrize("name", STUDIES)
def test_a_run_killed_again_and_again_ends_with_the_same_numbers(name):
    study = STUDIES[name].split()
    assert finished(start([*study, "--out", "undisturbed"])) == 0
    lives, place = 0, Path("killed")
    chance = random.Random(0)
    code = finished(start([*study, "--out", str(place)], writes=chance.randrange(3, 12)))
    while code == -signal.SIGKILL and lives < 40:
        lives += 1
        moved = Path(f"moved{lives}")
        place = place.rename(moved) if lives == 2 else place
        resume = ["prune", "--resume", str(place), "--quiet"]
        code = finished(start(resume, writes=chance.randrange(10, 16)))
    assert code == 0, Path("child.2").read_text()
    assert lives >= 2
    assert numbers(place) == numbers("undisturbed")
    assert "checkpoint" not in files(place)
    assert not [name for name in files(place) if name.endswith(".tmp")]


def test_a_run_killed_before_it_had_settings_can_be_started_again(capsys):
    assert finished(start([*FAST, "--out", "run"], writes=0)) == -signal.SIGKILL
    assert "nothing to resume" in refused(capsys, "prune", "--resume", "run")
    assert main([*FAST, "--out", "run", "--quiet"]) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_says_how_to_go_on_and_does(number, code, capsys):
    study = [*STUDIES["cnn"].split(), "--cycles", "2", "--seed", "0"]
    with held("checkpoint/study.safetensors", 4) as hold:  # in the first cycle
        process = start([*study, "--out", "my run"], hold=hold)
        hold.wait(process)
        locked = refused(capsys, "prune", "--resume", "my run")
        assert "another process is working in my run" in locked
        taken = refused(capsys, *FAST, "--out", "my run")
        assert "already holds a run: go on with --resume my run" in taken
        os.kill(process.pid, number)
        assert finished(process) == code
    said = Path("child.2").read_text()
    assert "interrupted; go on with: rectified prune --resume 'my run'" in said
    assert "Traceback" not in said
    assert finished(start(["prune", "--resume=my run"])) == 0
    assert len(numbers("my run")) == 2 * 3
    assert "my run is finished: see" in refused(capsys, "prune", "--resume", "my run")
    assert "already holds a run: choose another --out" in refused(capsys, *FAST, "--out", "my run")


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (exits.Terminated, 143)])
def test_a_stop_before_anything_was_written_says_so(stop, code, capsys, monkeypatch):
    def interrupted(*_):
        raise stop

    monkeypatch.setattr(door, "perform", interrupted)
    assert main(FAST) == code
    assert "interrupted before anything was written" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(capsys):
    assert finished(start([*FAST, "--out", "run"], writes=7)) == -signal.SIGKILL
    study = Path("run/checkpoint/study.safetensors")
    study.write_bytes(study.read_bytes()[:-9])
    assert "study.safetensors is damaged" in refused(capsys, "prune", "--resume", "run")


def test_the_handler_of_sigterm_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    main(["--version"])
    assert signal.getsignal(signal.SIGTERM) is before
