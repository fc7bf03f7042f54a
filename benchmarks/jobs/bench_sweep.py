"""What a sweep costs over a plain loop of the same runs, and what a second worker brings.

    OMP_NUM_THREADS=1 python -m benchmarks.jobs.bench_sweep

Four ways to the same runs (digits, one thread each), every one in fresh processes, in turns, so
that all pay for importing torch: a plain loop over `perform`, two such loops at a time with half
of the runs each (what the machine can do at best), the sweep with one worker, the sweep with two.
Targets: one worker at most 1.05x the loop; two at least 1.8 times as fast as one.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOOP = """
import sys
from dataclasses import replace
from pathlib import Path
from rectified.jobs import job_of
from rectified.jobs.job import perform
from rectified.runs import Run, environment
out, epochs, job = Path(sys.argv[1]), int(sys.argv[2]), job_of("prune")
for seed in map(int, sys.argv[3:]):
    config = replace(job.default, seed=seed, epochs=epochs)
    perform(job, config, Run(out / str(seed)), environment(), False)
"""


def commands(way: str, out: str, seeds: int, epochs: int) -> list[list[str]]:
    """The command lines of one way, to be run at a time."""
    kind, _, count = way.partition("_")
    if kind == "loops":
        loop = [sys.executable, "-c", LOOP, out, str(epochs)]
        return [[*loop, *map(str, range(part, seeds, int(count)))] for part in range(int(count))]
    grid = ["--grid", f"seed=0..{seeds - 1}", "--epochs", str(epochs)]
    sweep = [sys.executable, "-m", "rectified", "sweep", "prune", *grid]
    return [[*sweep, "--workers", count, "--out", out, "--quiet"]]


def seconds(way: str, seeds: int, epochs: int) -> tuple[float, float]:
    """Wall and CPU time of one way."""
    with tempfile.TemporaryDirectory() as folder:
        before, started = cpu(), time.perf_counter()
        running = [
            subprocess.Popen(words, stdout=subprocess.DEVNULL)
            for words in commands(way, f"{folder}/out", seeds, epochs)
        ]
        if any(process.wait() for process in running):
            raise RuntimeError(f"{way} failed")
        return time.perf_counter() - started, cpu() - before


def cpu() -> float:
    """CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {
        way: [] for way in ("loops_1", "sweep_1", "loops_2", "sweep_2")
    }
    for _ in range(options.rounds):
        for way, taken in times.items():
            taken.append(seconds(way, options.seeds, options.epochs))
    wall = {way: statistics.median(one[0] for one in taken) for way, taken in times.items()}
    used = {way: statistics.median(one[1] for one in taken) for way, taken in times.items()}
    found = {
        "runs": options.seeds,
        "epochs": options.epochs,
        "rounds": options.rounds,
        "wall_seconds": wall,
        "cpu_seconds": used,
        "overhead_wall": wall["sweep_1"] / wall["loops_1"] - 1,
        "overhead_cpu": used["sweep_1"] / used["loops_1"] - 1,
        "speedup_of_two_workers": wall["sweep_1"] / wall["sweep_2"],
        "speedup_of_two_loops": wall["loops_1"] / wall["loops_2"],
    }
    print(f"{options.seeds} runs, wall seconds: {wall}")
    print(f"overhead of one worker: {found['overhead_wall']:+.1%} wall, "
          f"{found['overhead_cpu']:+.1%} CPU")  # fmt: skip
    print(f"two workers {found['speedup_of_two_workers']:.2f}x one; two plain loops at a time "
          f"{found['speedup_of_two_loops']:.2f}x one")  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
