"""What a sweep costs over a plain loop of the same runs, and what a second worker brings.

    OMP_NUM_THREADS=1 python -m benchmarks.jobs.bench_sweep

Three ways to the same runs (digits, one thread each), every one in a fresh process, in turns, so
that all pay for importing torch: a plain loop over `prune.run`, the sweep with one worker, the
sweep with two. Targets: one worker at most 1.05x the loop; two at least 1.8 times as fast as one.
"""

from __future__ import annotations

import argparse
import json
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
from rectified.jobs import prune
from rectified.runs import Run, environment
out, seeds, epochs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for seed in range(seeds):
    config = replace(prune.DEFAULT, seed=seed, epochs=epochs)
    prune.run(config, Run(out / str(seed)), environment(), False)
"""


def command(way: str, out: str, seeds: int, epochs: int) -> list[str]:
    """The command line of one way."""
    if way == "loop":
        return [sys.executable, "-c", LOOP, out, str(seeds), str(epochs)]
    workers = way.removeprefix("sweep_")
    grid = ["--grid", f"seed=0..{seeds - 1}", "--epochs", str(epochs)]
    sweep = [sys.executable, "-m", "rectified", "sweep", "prune", *grid]
    return [*sweep, "--workers", workers, "--out", out, "--quiet"]


def seconds(way: str, seeds: int, epochs: int) -> float:
    """Wall time of one way."""
    with tempfile.TemporaryDirectory() as folder:
        words = command(way, f"{folder}/out", seeds, epochs)
        started = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"loop": [], "sweep_1": [], "sweep_2": []}
    for _ in range(options.rounds):
        for way, taken in times.items():
            taken.append(seconds(way, options.seeds, options.epochs))
    median = {way: statistics.median(taken) for way, taken in times.items()}
    found = {
        "runs": options.seeds,
        "epochs": options.epochs,
        "rounds": options.rounds,
        "seconds": median,
        "overhead": median["sweep_1"] / median["loop"] - 1,
        "speedup_of_two_workers": median["sweep_1"] / median["sweep_2"],
    }
    print(
        f"{options.seeds} runs: loop {median['loop']:.1f} s, one worker {median['sweep_1']:.1f} s "
        f"({found['overhead']:+.1%}), two workers {median['sweep_2']:.1f} s "
        f"({found['speedup_of_two_workers']:.2f}x)"
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
