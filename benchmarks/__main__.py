"""Run every benchmark in turn: `python -m benchmarks [name ...]`; results/NAME.json each."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run the benchmarks that were named, or all; returns the number that failed."""
    found = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.rglob("bench_*.py"))}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(found))
    names = parser.parse_args().names or list(found)
    unknown = set(names) - set(found)
    if unknown:
        parser.error(f"unknown benchmark {min(unknown)!r}; choose from {', '.join(found)}")
    (HERE / "results").mkdir(exist_ok=True)
    failed = 0
    for name in names:
        module = ".".join(found[name].relative_to(HERE.parent).with_suffix("").parts)
        print(f"\n== python -m {module}", flush=True)
        out = HERE / "results" / f"{name}.json"
        failed += subprocess.call([sys.executable, "-m", module, "--out", str(out)]) != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
