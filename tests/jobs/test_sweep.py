"""`rectified sweep`: what a grid means, that nothing is done twice, and what survives what."""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from rectified.cli import main
from rectified.errors import UserError
from rectified.jobs import JOBS, job_of
from rectified.jobs.job import Results, open_run
from rectified.jobs.report import combined
from rectified.jobs.sweep import engines, rows
from rectified.jobs.sweep.engines import carry_out
from rectified.jobs.sweep.grid import MOST_RUNS, points
from rectified.jobs.sweep.report import REPORT
from rectified.jobs.sweep.settings import check_cluster
from rectified.jobs.sweep.tasks import Outcome, Task, identity, work
from rectified.runs import Run, read_config, read_results
from rectified.statistics import interval
from tests.holding import family, has_ended, held, until
from tests.jobs.toy import ENTRY
from tests.jobs.toy.settings import ToyConfig
from tests.jobs.toy.study import CHECKED, TROUBLE

PruneConfig = type(job_of("prune").default)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """`rectified sweep toy`, in a folder of its own."""
    monkeypatch.setitem(JOBS, "toy", ENTRY)
    monkeypatch.chdir(tmp_path)
    TROUBLE.clear()
    CHECKED.clear()


def swept(*words):
    return main(["sweep", *words, "--quiet", "--workers", "1"])


def refused(capsys, *words):
    capsys.readouterr()
    assert main(["sweep", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


# ---- the grid


@pytest.mark.parametrize(
    ("grid", "found"),
    [
        ("seed=0..2", [{"seed": 0}, {"seed": 1}, {"seed": 2}]),
        ("seed=0..9..4,5", [{"seed": 0}, {"seed": 4}, {"seed": 8}, {"seed": 5}]),
        ("seed=1,1,1..1", [{"seed": 1}]),
        ("ap=off,lite+pro", [{"ap": ("off",)}, {"ap": ("lite", "pro")}]),
        ("rate=1 seed=none", [{"rate": 1.0, "seed": None}]),
        ("target=1e-1", [{"target": 0.1}]),
        ("--ap-rate=0.01", [{"ap_rate": 0.01}]),
        ("norm=none,batch", [{"norm": "none"}, {"norm": "batch"}]),
        ("deploy=true data='a b'", [{"deploy": True, "data": "a b"}]),
        ("data=../cifar10,7", [{"data": "../cifar10"}, {"data": "7"}]),
    ],
)
def test_a_grid_means(grid, found):
    assert points(grid, PruneConfig) == found
    for given, wanted in zip(points(grid, PruneConfig), found, strict=True):
        assert [type(v) for v in given.values()] == [type(v) for v in wanted.values()]


def test_a_grid_has_every_combination_with_the_last_setting_running_fastest():
    found = points("seed=0..1 rate=0.1,0.2", PruneConfig)
    assert [(p["seed"], p["rate"]) for p in found] == [(0, 0.1), (0, 0.2), (1, 0.1), (1, 0.2)]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("", "the grid must name at least one setting"),
        ("seed", r"must be name=value,... words, got 'seed'"),
        ("seed=", r"must be name=value,... words, got 'seed='"),
        ("seed=1,,2", r"must be name=value,... words"),
        ("=1", r"must be name=value,... words"),
        ("seed=1 seed=2", "names seed twice"),
        ("seeed=1", "unknown setting in the grid 'seeed'; choose from data, limit"),
        ("seed=x", "seed in the grid must be a whole number or none, got 'x'"),
        ("seed=true", "seed in the grid must be a whole number or none, got 'true'"),
        ("seed=1.5", "seed in the grid must be a whole number or none, got '1.5'"),
        ("norm=layer", "norm in the grid must be one of auto, batch, none, got 'layer'"),
        ("seed=9..0", r"a range must go up, such as 0\.\.9 or 0\.\.9\.\.3, got '9\.\.0'"),
        ("seed=0..9..0", "a range must go up"),
        (f"seed=0..{10**30}", "at most 18 digits"),
        ("seed=0.." + "9" * 5000, "a range must have numbers of at most 18 digits"),
        (f"seed=1..{MOST_RUNS + 1}", "the grid has 100,001 runs, at most 100,000"),
        ("data='a", "cannot be read"),
    ],
)
def test_a_grid_that_means_nothing_is_told_in_one_line(grid, words, capsys, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=words):
        points(grid, PruneConfig)
    monkeypatch.chdir(tmp_path)
    refused(capsys, "prune", "--grid", grid)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "a sweep needs a verb; choose from prune"),
        ("report --grid seed=1", "unknown verb to sweep 'report'; choose from prune"),
        ("prune --grid score=magnitude,lampp", "unknown score 'lampp'"),
        ("prune --grid seed=1 --cyclse 2", "--cyclse.*perhaps --cycles; see rectified prune"),
        ("prune --grid seed=1 --workers 0", "workers must be at least 1, got 0"),
        ("prune --grid seed=1 --tries 0", "tries must be at least 1"),
        ("prune --grid seed=1 --threads many", "--threads"),
        ("prune --grid seed=1 --cluster here", r"address of a Dask scheduler \(tcp://HOST:8786\)"),
        ("prune --grid seed=1 --cluster tcp://", "address of a Dask scheduler"),
        ("prune --grid seed=1 --cluster ray://h:1 --workers 2", "a cluster brings its own"),
        ("--resume nowhere", r"nothing to resume in nowhere: it has no config\.yaml"),
        ("--resume x --out y", "leave out --out"),
        ("prune --config nowhere.yaml", "no settings at nowhere.yaml"),
        ("demo --grid seed=1", "unknown verb to sweep 'demo'; choose from prune"),
        ("prune --grid seed=1 --data nowhere", "cannot load images from 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line(words, said, capsys, tmp_path, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    assert re.search(said, refused(capsys, *words.split()))
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_not_started_by_torchrun(toy, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start it without torchrun" in refused(capsys, "toy", "--grid", "seed=1")


# ---- who a run is


def test_the_identity_goes_by_settings_and_by_the_contents_of_the_data(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    data = str(tmp_path / "a")
    first = identity("toy", ToyConfig(data))
    assert identity("toy", ToyConfig(data)) == first
    assert identity("other", ToyConfig(data)) != first
    assert identity("toy", ToyConfig(data, seed=1)) != first
    (tmp_path / "a" / "x").write_text("22")
    changed = identity("toy", ToyConfig(data))
    assert changed != first
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert identity("toy", ToyConfig(data)) != changed


def test_a_finished_run_is_never_repeated(toy, capsys):
    assert swept("toy", "--grid", "seed=0..1", "--rate", "0.25", "--out", "s") == 0
    done = {path: path.stat().st_mtime_ns for path in Path("s/runs").rglob("results.json")}
    assert len(done) == 2
    left = next(iter(done)).with_name("checkpoint")  # by a kill just after its results
    left.mkdir()
    assert "s is finished" in refused(capsys, "--resume", "s")
    assert "s is finished" in refused(capsys, "--resume", "s", "--grid", "seed=0..1")
    assert main(["sweep", "--resume", "s", "--grid", "rate=0.25,1 seed=0..2", "--quiet"]) == 0
    assert not left.exists()
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    rows = read_results(Path("s"))["rows"]
    assert {(row["rate"], row["seed"]) for row in rows} == {
        (r, s) for r in (0.25, 1) for s in range(3)
    }
    assert len(list(Path("s/runs").iterdir())) == 6
    assert read_config(Path("s/config.yaml"))[1]["grid"] == "rate=0.25,1 seed=0..2"


def test_settings_come_from_a_sweep_or_from_a_run_and_flags_override_them(toy, capsys):
    assert swept("toy", "--grid", "seed=0", "--rate", "0.25", "--out", "s") == 0
    one = next(Path("s/runs").iterdir()) / "config.yaml"
    assert main(["sweep", "--config", "s/config.yaml", "--out", "t", "--workers", "1"]) == 0
    assert swept("toy", "--config", str(one), "--grid", "seed=3", "--out", "u") == 0
    assert {row["distance"] for row in read_results(Path("t"))["rows"]} == {0.25, 0.5}
    assert {row["distance"] for row in read_results(Path("u"))["rows"]} == {3.25, 3.5}
    assert "is for 'toy'" in refused(capsys, "prune", "--config", "s/config.yaml")
    Path("c.yaml").write_text("verb: sweep\nof: toy\nsettings: 3\n")
    said = refused(capsys, "--config", "c.yaml")
    assert "settings of a sweep must be names and values, got 3" in said


def test_what_is_impossible_is_known_before_anything_is_written(toy, capsys, tmp_path):
    assert "rate must be at least 0" in refused(capsys, "toy", "--grid", "rate=1,-1", "--out", "s")
    assert "no number in x" in refused(capsys, "toy", "--grid", "data=digits,x", "--out", "s")
    assert list(tmp_path.iterdir()) == []


def test_a_point_is_tried_once_for_all_seeds(toy):
    assert swept("toy", "--grid", "rate=0.5,1 seed=0..3", "--seeds", "3", "--out", "s") == 0
    tried = [config for config in CHECKED if config.seed == 0]
    assert [config.rate for config in tried[:2]] == [0.5, 1.0]
    assert len(CHECKED) == 2 + 2 * 4  # and each run tries its own


def test_on_a_cluster_it_is_tried_on_what_is_here(toy):
    from rectified.jobs.sweep import settings, study

    how = settings.SweepConfig(grid="seed=0", cluster="tcp://h:1")
    sweep = settings.whole("toy", ToyConfig(device="cuda"), how)
    study.check(settings.resolve(sweep), progress=False)
    assert [config.device for config in CHECKED] == ["auto"]


def test_a_variant_of_a_verb_can_be_swept(toy):
    assert swept("toy", "--twice", "3", "--grid", "rate=0.5 seed=0", "--out", "s") == 0
    assert {row["distance"] for row in read_results(Path("s"))["rows"]} == {1.5, 3.0}
    assert main(["sweep", "--resume", "s", "--grid", "rate=1 seed=0", "--quiet"]) == 0
    assert {row["distance"] for row in read_results(Path("s"))["rows"]} == {3.0, 6.0}


def test_the_default_folder_names_sweep_verb_and_data(toy):
    assert swept("toy", "--grid", "seed=0") == 0
    (path,) = Path("runs").iterdir()
    assert path.name.startswith("sweep-toy-digits-")


# ---- what is merged


def test_the_rows_are_those_of_the_runs_and_the_means_those_of_the_rows(toy):
    assert swept("toy", "--grid", "rate=0.5,1 seed=0..3", "--out", "s") == 0
    found = read_results(Path("s"))
    for row in found["rows"]:
        own = read_results(Path("s/runs") / row["run"])
        assert any(row == {"run": row["run"], "rate": row["rate"], **one} for one in own["rows"])
    assert len(found["rows"]) == 2 * 4 * 2
    for line in found["summary"]:
        members = [r["distance"] for r in found["rows"] if (r["rate"], r["step"]) == (
            line["rate"], line["step"])]  # fmt: skip
        assert line["n"] == 4
        assert line["distance_mean"] == interval(members).mean
        assert line["distance_ci95"] == interval(members).half_width


def test_the_page_compares_the_values_of_a_setting_seed_by_seed(toy):
    assert swept("toy", "--grid", "rate=0.5,1 seed=0..3", "--out", "s") == 0
    page = Path("s/report.html").read_text()
    for words in ("distance by step", "1.0 minus 0.5", "At the end", "All means"):
        assert words in page
    assert "s: At the end" not in combined([Path("s")])
    assert "s: All means" in combined([Path("s")])


def test_terminal_and_page_show_the_same_means(toy, capsys):
    assert swept("toy", "--grid", "rate=0.5,1 seed=0..3", "--out", "s") == 0
    said = capsys.readouterr().out
    assert "8 runs of rectified toy are merged here." in said
    results = open_run(Path("s"))
    assert results.text in said
    (line,) = (row for row in results.summary if (row["rate"], row["step"]) == (0.5, 2))
    for shown in (said, results.page.read_text()):
        assert f"{line['distance_mean']:.4g}" in shown
        assert f"{line['distance_ci95']:.4g}" in shown


def test_seeds_that_agree_have_no_spread_and_long_tables_are_cut():
    rows = [{"run": "a", "name": n, "seed": s, "x": 0.1 * n} for n in range(30) for s in range(3)]
    runs = [{"run": "a", "name": n} for n in range(30)]
    settings = {"of": "toy", "data": "x", "grid": ""}
    found = {"config": settings, "rows": rows, "summary": [], "runs": runs, "failed": []}
    (table,) = (p for p in next(iter(REPORT.sections(Results(Path("s"), found)))).parts
                if hasattr(p, "rows"))  # fmt: skip
    assert len(table.rows) == 24
    assert "6 more lines are in results.json" in table.note
    assert {row[2] for row in table.rows} == {0.0}


def test_a_sweep_of_runs_that_found_nothing_says_so():
    settings = {"of": "toy", "data": "x", "grid": ""}
    found = {"verb": "sweep", "config": settings, "rows": [], "runs": [{}, {}], "failed": []}
    said = Results(Path("s"), {**found, "environment": {}}).text
    assert said == "2 runs of rectified toy are merged here, and found nothing to merge."


def test_text_columns_are_keys_and_floats_are_measures():
    found = [{"seed": 0, "case": "a", "depth": 1, "measured": 1.0, "bound": None, "x": [1]}]
    assert rows.keys(found, []) == ["case", "depth", "bound"]
    assert rows.measures([*found, {"bound": 2.0}], []) == ["measured", "bound"]


# ---- what goes wrong


def test_a_run_with_impossible_settings_fails_once_and_the_others_count(toy, capsys):
    TROUBLE[1] = [UserError("the loss is nan"), UserError("not reached")]
    assert swept("toy", "--grid", "seed=0..2", "--out", "s") == 2
    said = capsys.readouterr().err
    assert "1 of 3 runs failed, the first of them seed=1: the loss is nan" in said
    assert len(TROUBLE[1]) == 1
    found = read_results(Path("s"))
    assert {row["seed"] for row in found["rows"]} == {0, 2}
    assert [one["message"] for one in found["failed"]] == ["the loss is nan"]
    assert "1 runs failed" in Path("s/report.html").read_text()
    TROUBLE.clear()
    assert main(["sweep", "--resume", "s", "--quiet"]) == 0
    assert read_results(Path("s"))["failed"] == []


def test_a_run_that_stumbles_is_begun_again_and_one_that_always_does_is_a_fault_of_ours(toy):
    TROUBLE[1] = [MemoryError("out of memory")] * 2
    assert swept("toy", "--grid", "seed=0..1", "--out", "s") == 0
    events = [json.loads(line) for line in Path("s/metrics.jsonl").read_text().splitlines()]
    assert [e["state"] for e in events if e["event"] == "run"].count("again") == 2
    assert list(Path("s/runs").glob("*.attempts")) == []
    TROUBLE[5] = [ZeroDivisionError("x")] * 9
    with pytest.raises(RuntimeError, match=r"seed=5: ZeroDivisionError: x(.|\n)*Traceback"):
        swept("toy", "--grid", "seed=5", "--out", "t")
    assert len(TROUBLE[5]) == 6


def task(tmp_path, number, **how):
    settings = ToyConfig(seed=number)
    path = tmp_path / "runs" / f"{number}"
    path.parent.mkdir(exist_ok=True)
    how = {"threads": 1, "tries": 3, "sweeper": os.getpid(), **how}
    return Task("toy", {"seed": number}, settings, path, tmp_path, **how)


def test_a_lost_worker_costs_its_neighbours_nothing_in_the_end(tmp_path):
    """Run 1 kills whoever does it; the engine then loses all that were under way."""
    tasks = [task(tmp_path, number) for number in range(4)]
    groups = []

    def engine(group):
        groups.append([one.identity for one in group])
        begun = [one for one in group if one.attempts < one.tries]
        yield from (work(one) for one in group if one not in begun)
        for one in begun:
            one.count_attempt()
        if tasks[1] in begun:
            raise OSError("a worker was lost")
        yield from (Outcome(one.identity, "finished") for one in begun)

    heard = []
    found = carry_out(tasks, engine, heard.append)
    assert [one.state for one in found] == ["finished", "failed", "finished", "finished"]
    assert "its worker was lost 3 times" in found[1].message
    assert groups[:2] == [["0", "1", "2", "3"]] * 2
    assert all(len(group) == 1 for group in groups[2:])


def test_an_engine_that_takes_nothing_is_given_up(tmp_path):
    def dead(group):
        raise OSError("nobody there")
        yield

    with pytest.raises(UserError, match=r"no worker took any of 1 runs \(OSError: nobody there\)"):
        carry_out([task(tmp_path, 0)], dead, print)


def test_a_run_that_somebody_else_is_doing_is_left_for_later(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("rectified.jobs.sweep.tasks._WAIT_SECONDS", 0.0)
    one = task(tmp_path, 0)
    other = Run(one.path)
    other.begin("toy", {}, {})
    found = work(one)
    assert (found.state, "another process is working" in found.message) == ("again", True)
    other.close()
    assert work(one).state == "finished"
    assert work(one).seconds == 0


def test_clusters_that_are_none_are_named(monkeypatch):
    for address in ("tcp:/x", "http://x", "ray:x", ""):
        with pytest.raises(UserError, match="cluster must be the address"):
            check_cluster(address)
    for package, address in (("distributed", "tcp://x:1"), ("ray", "ray://x:1")):
        monkeypatch.setitem(sys.modules, package, None)
        with (
            pytest.raises(UserError, match="pip install"),
            engines.engine(address, 1, 1),
        ):
            pass


def test_nobody_at_the_address_is_one_line(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(engines, "_CONNECT_SECONDS", 0.2)
    with (
        pytest.raises(UserError, match=r"no Dask scheduler answers at tcp://127.0.0.1:1"),
        engines.engine("tcp://127.0.0.1:1", 1, 1),
    ):
        pass


@pytest.fixture
def ray_that_fails(monkeypatch):
    """A Ray whose head cannot start the client's server at first, and how often it was asked."""
    asked = []

    def arrange(failures):
        def init(*_, **__):
            asked.append(1)
            if len(asked) <= failures:
                trace = "Traceback\n  a line\nRuntimeError: Starting Ray client server failed."
                raise ConnectionAbortedError(f"Initialization failure from server:\n{trace}\n")

        ray = types.SimpleNamespace(init=init, shutdown=lambda: None)
        joblib = types.SimpleNamespace(register_ray=lambda: None)
        for name, module in (("ray", ray), ("ray.util", None), ("ray.util.joblib", joblib)):
            monkeypatch.setitem(sys.modules, name, module)
        return asked

    return arrange


def test_a_ray_head_that_fails_to_start_a_server_is_asked_again(ray_that_fails):
    asked = ray_that_fails(2)
    with engines.engine("ray://h:1", 1, 1):
        pass
    assert len(asked) == 3


def test_a_ray_head_that_goes_on_failing_is_one_line_with_its_reason(ray_that_fails):
    asked = ray_that_fails(100)
    why = r"no Ray head answers at ray://h:1 \(RuntimeError: Starting Ray client server failed.\)"
    with pytest.raises(UserError, match=why), engines.engine("ray://h:1", 1, 1):
        pass
    assert 1 < len(asked) < 10


# ---- real processes, one of them killed in the middle

COMMAND = [sys.executable, "-m", "rectified", "sweep"]
SCATTER = [*COMMAND, "scatter", "--networks", "none", "--orientations", "2", "--seeds", "2"]
SCATTER += ["--grid", "limit=40,50,60", "--device", "cpu", "--quiet"]
UNDER_WAY = "checkpoint/study.safetensors", 2  # a worker is in its first run, and has kept some


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What the same runs find in one process, undisturbed."""
    path = tmp_path_factory.mktemp("alone") / "s"
    assert main(["sweep", *SCATTER[4:], "--workers", "1", "--out", str(path)]) == 0
    return numbers(path)


def numbers(path):
    rows = read_results(path)["rows"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def start(words, **how):
    def listen():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a suite in the background does not

    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen,
        **how,
    )


def events_of(path):
    lines = [line for log in path.glob("runs/*/metrics.jsonl") for line in log.open()]
    return [json.loads(line)["event"] for line in lines]


def test_a_killed_local_worker_is_replaced_and_its_run_goes_on(alone, tmp_path):
    path = tmp_path / "s"
    with held(*UNDER_WAY) as hold:
        words = [*SCATTER, "--workers", "2", "--out", str(path)]
        process = start(words, env=hold.environment())
        worker, *_ = hold.wait(process)
        os.kill(worker, signal.SIGKILL)
    assert process.wait() == 0, process.stderr.read()
    assert numbers(path) == alone
    assert "resume" in events_of(path)


def test_a_stopped_sweep_ends_its_workers_and_goes_on(alone, tmp_path):
    path = tmp_path / "s"
    with held(*UNDER_WAY) as hold:
        words = [*SCATTER, "--workers", "2", "--out", str(path)]
        process = start(words, env=hold.environment())
        hold.wait(process)
        children = family(process)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert f"go on with: rectified sweep --resume {path}" in process.stderr.read()
        until(lambda: all(map(has_ended, children)))
    assert main(["sweep", "--resume", str(path), "--quiet"]) == 0
    assert numbers(path) == alone


def test_dask_workers_do_the_runs_and_one_may_be_killed(alone, tmp_path):
    pytest.importorskip("distributed")
    module = [sys.executable, "-m"]
    where = ["--scheduler-file", "scheduler.json", "--host", "127.0.0.1", "--no-dashboard"]
    file, path = tmp_path / "scheduler.json", tmp_path / "s"
    processes = [start([*module, "distributed.cli.dask_scheduler", *where, "--port", "0"],
                       cwd=tmp_path)]  # fmt: skip
    try:
        until(lambda: file.exists() and '"address"' in file.read_text(), *processes)
        worker = [*module, "distributed.cli.dask_worker", *where, "--nthreads", "1", "--no-nanny"]
        with held(*UNDER_WAY) as hold:
            processes += [start(worker, cwd=tmp_path, env=hold.environment()) for _ in range(2)]
            address = json.loads(file.read_text())["address"]
            sweeping = start([*SCATTER, "--cluster", address, "--out", str(path)])
            processes.append(sweeping)
            one, *_ = hold.wait(*processes)
            os.kill(one, signal.SIGKILL)
        assert sweeping.wait() == 0, sweeping.stderr.read()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert numbers(path) == alone
    assert "resume" in events_of(path)


@pytest.mark.slow
def test_ray_nodes_do_the_runs_and_one_may_be_lost(alone, tmp_path, tmp_path_factory):
    pytest.importorskip("ray")
    path, home = tmp_path / "s", tmp_path_factory.mktemp("r")
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    ray += ["--object-store-memory", "80000000"]
    port, client = free_ports(2)
    nodes = []
    with held(*UNDER_WAY) as hold:
        environment = {**hold.environment(), "HOME": str(home), "PYTHONUNBUFFERED": "1"}
        environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        try:
            for role in (
                # the head takes no run: Ray may give it all of them, and it must not be lost
                ["--head", "--port", str(port), "--ray-client-server-port", str(client),
                 "--include-dashboard", "false", "--num-cpus", "0"],
                *[["--address", f"127.0.0.1:{port}", "--num-cpus", "1"]] * 2,
            ):  # fmt: skip
                nodes.append(start([*ray, *role], env=environment, start_new_session=True))
                assert any("Ray runtime started" in line for line in nodes[-1].stdout)
            until(lambda: listening(client), *nodes)
            words = [*SCATTER, "--cluster", f"ray://127.0.0.1:{client}", "--out", str(path)]
            sweeping = start(words, env=environment)
            workers = nodes[1:]
            nodes.append(sweeping)
            until(lambda: [n for n in workers if family(n) & set(hold.waiting())], *nodes)
            busy = next(n for n in workers if family(n) & set(hold.waiting()))
            end_group(busy)
            hold.release()
            assert sweeping.wait() == 0, sweeping.stderr.read()
        finally:
            for node in nodes:
                end_group(node)
                node.communicate()
    assert numbers(path) == alone
    assert "resume" in events_of(path)


def end_group(process):
    for child in family(process) if process.poll() is None else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    process.kill()


def free_ports(count):
    """Above those that Ray gives to its workers, below those that a system gives to whoever asks.

    Drawn by chance, since other suites may run here.
    """
    ports = list(range(20_000, 32_768))
    random.SystemRandom().shuffle(ports)
    return list(itertools.islice((port for port in ports if not listening(port)), count))


def listening(port):
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
