"""The AP question at full size, part by part, in the order that docs/reproduction.md declares.

Every run is `rectified prune` itself. When the time is over, a run stops as for Ctrl-C and its
checkpoint stays in the work folder, so that the same command goes on from there; what it has found
by then comes back as rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# ResNet-20 without norms starts as in Fixup but lacks its scalars: half of the usual rate
RATES = {"batch": "0.1", "none": "0.05"}
EPOCHS, CYCLES, SEEDS = 9, 10, 8
LEAST_SECONDS = 20  # with less than this left, no further run is begun


@dataclass(frozen=True)
class Study:
    """One run: a norm, a score and two arms.

    Attributes:
        part: when it is run; see the declaration.
        norm: batch or none.
        score: what is pruned by.
        arms: AP and what it is compared with.
    """

    part: int
    norm: str
    score: str
    arms: str

    @property
    def name(self) -> str:
        """Of its folder and files."""
        return f"{self.norm}-{self.score}-{self.arms.split(',')[-1]}"


STUDIES = (
    Study(1, "batch", "magnitude", "off,lite"),
    Study(2, "none", "magnitude", "off,lite"),
    Study(3, "batch", "lamp", "off,lite"),
    Study(3, "none", "lamp", "off,lite"),
    Study(4, "batch", "magnitude", "off_pro,pro"),
    Study(4, "none", "magnitude", "off_pro,pro"),
    Study(4, "batch", "lamp", "off_pro,pro"),
    Study(4, "none", "lamp", "off_pro,pro"),
)


def command(study: Study, folder: Path, data: str, sizes: argparse.Namespace) -> list[str]:
    """The arguments of `rectified` for a study, or to go on with it."""
    if (folder / "config.yaml").exists():
        return ["prune", "--resume", str(folder), "--quiet"]
    return [
        *("prune", "--data", data, "--model", "resnet20", "--norm", study.norm),
        *("--score", study.score, "--ap", study.arms, "--rewind", "init"),
        *("--rate", str(sizes.rate), "--ap-rate", str(sizes.rate / 10)),
        *("--cycles", str(sizes.cycles), "--epochs", str(sizes.epochs)),
        *("--seeds", str(sizes.seeds), "--learning-rate", RATES[study.norm]),
        *("--together", str(sizes.together), "--precision", sizes.precision),
        *sizes.more,
        *("--out", str(folder), "--quiet"),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="folder with CIFAR-10 as parquet")
    parser.add_argument("--parts", default="1", help="such as 1,2")
    parser.add_argument("--seconds", type=float, default=400, help="for all of them")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="what comes back")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-work"), help="run folders")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--cycles", type=int, default=CYCLES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--together", type=int, default=2 * SEEDS)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--smoke", action="store_true", help="2 seeds, 2 cycles, 1 epoch")
    parser.add_argument("--toy", action="store_true", help="a few seconds on a CPU")
    sizes = parser.parse_args(arguments)
    sizes.more = []
    if sizes.smoke:
        sizes.seeds, sizes.cycles, sizes.epochs = 2, 2, 1
    if sizes.toy:
        sizes.seeds, sizes.cycles, sizes.epochs, sizes.rate = 2, 2, 1, 0.6
        sizes.precision, sizes.more = "float32", ["--limit", "100", "--dead-examples", "50"]
    parts = [int(word) for word in sizes.parts.split(",")]
    sizes.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + sizes.seconds
    lines, codes = [], []
    for study in (study for study in STUDIES if study.part in parts):
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            lines.append(f"{study.name:24} not begun: {left:.0f} s left")
            continue
        found = _run(study, sizes, left)
        codes.append(found["code"])
        lines.append(_line(study, found))
    print("\n" + "\n".join(lines), flush=True)
    return max((code for code in codes if code not in (130, 143)), default=0)


def _run(study: Study, sizes: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """One study within its time; its results are copied to where they come back from."""
    from rectified.cli import main as rectified

    # another size is another run
    size = f"{study.name}-{Path(sizes.data).name}-{sizes.seeds}-{sizes.cycles}-{sizes.epochs}"
    folder = sizes.work / size
    words = command(study, folder, sizes.data, sizes)
    print(f"rectified {' '.join(words)}", flush=True)
    began, code = time.monotonic(), 0
    with _alarm(seconds):
        if not (folder / "results.json").exists():
            code = rectified(words)
    found = collect(folder) | {
        "code": code,
        "wall": time.monotonic() - began,
        "study": vars(study),
    }
    (sizes.out / f"{study.name}.json").write_text(json.dumps(found, indent=1))
    if (folder / "report.html").exists() and not sizes.smoke:
        shutil.copyfile(folder / "report.html", sizes.out / f"{study.name}.html")
    return found


def collect(folder: Path) -> dict[str, Any]:
    """What a run has found, finished or not: its rows, settings and machine."""
    if (folder / "results.json").exists():
        return json.loads((folder / "results.json").read_text()) | {"complete": True}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    if (folder / "metrics.jsonl").exists():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event.get("event") == "cycle":  # a resumed run says some again: the last counts
                key = tuple(event[name] for name in ("seed", "score", "ap", "cycle"))
                rows[key] = {k: v for k, v in event.items() if k not in ("time", "event")}
    machine = folder / "environment.json"
    environment = json.loads(machine.read_text()) if machine.exists() else {}
    return {"complete": False, "environment": environment, "rows": list(rows.values())}


def _line(study: Study, found: dict[str, Any]) -> str:
    rows = found["rows"]
    last = max((row["cycle"] for row in rows), default=0)
    ends = [row for row in rows if row["cycle"] == last]
    words = []
    for ap in study.arms.split(","):
        accuracy, dead = (100 * _mean(ends, ap, name) for name in ("accuracy", "dynamic_dnr"))
        words.append(f"{ap} {accuracy:.2f} % ({dead:.1f})")
    state = "complete" if found["complete"] else f"stopped ({found['code']})"
    return (
        f"{study.name:24} {state}, {found['wall']:.0f} s ({_trained(rows):.0f} s of cycles), "
        f"{len(rows)} rows, cycle {last}: {', '.join(words)}"
    )


def _mean(rows: Sequence[dict[str, Any]], ap: str, name: str) -> float:
    values = [row[name] for row in rows if row["ap"] == ap]
    return sum(values) / len(values) if values else float("nan")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Ctrl-C after `seconds`."""

    def ring(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _trained(rows: Sequence[dict[str, Any]]) -> float:
    """Seconds that trainings and their measuring took; a dense network's stand in every arm."""
    own = {
        (row["seed"], row["cycle"], row["ap"] if row["cycle"] else ""): row.get("seconds", 0.0)
        for row in rows
    }
    return sum(own.values())


if __name__ == "__main__":
    sys.exit(main())
