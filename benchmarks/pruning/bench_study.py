"""How long a study with intervals takes: many networks trained as one, against one by one.

    python -m benchmarks.pruning.bench_study --seeds 64 --cycles 17

Times the digits study (arms off and lite) with all networks as one module, and a part of it with
networks in turn (`together` 1), which is scaled up by the number of trainings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rectified.jobs import job_of
from rectified.jobs.job import perform
from rectified.runs import Run


def seconds(**settings: int) -> float:
    """Wall time of one study."""
    job = job_of("prune")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        perform(job, replace(job.default, **settings), Run(Path(folder) / "run"), {}, False)
        return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--cycles", type=int, default=17)
    parser.add_argument("--sample", type=int, default=1, help="seeds that run in turn")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    together = seconds(seeds=options.seeds, cycles=options.cycles)
    in_turn = seconds(seeds=options.sample, cycles=options.cycles, together=1)
    found = {
        "seeds": options.seeds,
        "cycles": options.cycles,
        "together_seconds": together,
        "in_turn_seconds_a_seed": in_turn / options.sample,
        "ratio": in_turn / options.sample * options.seeds / together,
    }
    print(
        f"{options.seeds} seeds, 2 arms, {options.cycles} cycles: {together:.0f} s as one module; "
        f"in turn {found['in_turn_seconds_a_seed']:.1f} s a seed, {found['ratio']:.1f}x as long"
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
