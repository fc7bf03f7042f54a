"""Wheel and sdist: built, installed in a clean environment, and run there.

    python -m tests.torture.distribution python3.11 python3.12     # or: make dist

For each Python that is here: a fresh environment, the wheel (and, on the first Python, the sdist)
installed under constraints.txt, then `rectified demo`, outside of this folder. It says which
Pythons were not here. `--light` installs no dependencies, compiles every file, and asks for the
help only: for a Python without a small build of PyTorch. `--quick` shortens the demo.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(into: Path) -> list[Path]:
    """The wheel and the sdist."""
    copy = into / "tree"  # a build writes into its tree
    left = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left)
    command = [sys.executable, "-m", "build", "--outdir", str(into), str(copy)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=clean())
    return [next(into.glob("*.whl")), next(into.glob("*.tar.gz"))]


def clean() -> dict[str, str]:
    """The environment without this tree's sources, which pip would take for the package."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def version(python: str) -> str | None:
    """What an interpreter says it is; None if it is not here."""
    if shutil.which(python) is None:
        return None
    words = [python, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def check(python: str, package: Path, demo: list[str]) -> float:
    """Install `package` in an environment of its own and run a demo; returns the demo's seconds."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        subprocess.run([python, "-m", "venv", str(home / "venv")], check=True)
        inside = home / "venv" / "bin"
        install = [str(inside / "python"), "-m", "pip", "install", "--quiet"]
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*install, *constraints, str(package)], check=True, env=clean())
        environment = {**clean(), "HOME": place, "OMP_NUM_THREADS": "1"}
        started = time.monotonic()
        words = [str(inside / "rectified"), "demo", "--quiet", *demo]
        subprocess.run(words, check=True, cwd=place, env=environment)
        taken = time.monotonic() - started
        page = home / "runs" / "demo" / "report.html"
        assert page.stat().st_size > 10_000, "the demo's report is empty"
    return taken


def check_light(python: str, package: Path) -> None:
    """Install `package` alone, compile it, and show its help, which needs no other package."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([python, "-m", "venv", f"{place}/venv"], check=True)
        inside = Path(place) / "venv" / "bin"
        pip = [str(inside / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, str(package)], check=True, env=clean())
        where = next((Path(place) / "venv" / "lib").glob("python3*/site-packages/rectified"))
        compiled = [str(inside / "python"), "-W", "error", "-m", "compileall", "-q", "-f"]
        subprocess.run([*compiled, str(where)], check=True, env=clean())
        words = [str(inside / "rectified"), "--help"]
        subprocess.run(words, check=True, cwd=place, env=clean(), stdout=subprocess.DEVNULL)


def main(arguments: list[str]) -> int:
    """Returns the number of Pythons that are not here."""
    pythons = [one for one in arguments if not one.startswith("-")] or [sys.executable]
    demo = ["--limit", "300", "--cycles", "2", "--seeds", "2"] if "--quick" in arguments else []
    missing = 0
    with tempfile.TemporaryDirectory() as place:
        wheel, source = build(Path(place))
        print(f"built {wheel.name} and {source.name}", flush=True)
        for number, python in enumerate(pythons):
            found = version(python)
            if found is None:
                print(f"{python}: not here", flush=True)
                missing += 1
                continue
            if "--light" in arguments:
                check_light(python, wheel)
                print(f"Python {found}, {wheel.name}: installs, compiles, shows its help")
                continue
            for package in [wheel, source] if number == 0 else [wheel]:
                taken = check(python, package, demo)
                print(f"Python {found}, {package.name}: demo in {taken:.0f} s", flush=True)
    return missing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
