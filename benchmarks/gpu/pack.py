"""Data, and the wheels that the machine lacks, in one folder: `... -m benchmarks.gpu.pack FOLDER`.

The folder gets `cifar10/{train,test}.parquet`, `wheels/*.whl` and, where there is room, a set of
protein backbones. It stays below 60 MiB, since the tree travels beside it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

LIMIT = 60 * 2**20
WHEELS = ("tyro", "typeguard", "docstring_parser", "beartype")  # what the machine lacks
PLATFORMS = ("2_28", "2_27", "2_17", "2014", "1")


def main(arguments: list[str] | None = None) -> int:
    """Fill the folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="with train and test.parquet")
    parser.add_argument("--proteins", type=Path, help="a set of backbones (npz)")
    parser.add_argument("--wheel", action="append", default=[], help="NAME==VERSION, one more")
    given = parser.parse_args(arguments)
    (given.folder / "cifar10").mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        shutil.copyfile(
            given.data / f"{split}.parquet", given.folder / "cifar10" / f"{split}.parquet"
        )
    wheels = given.folder / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    subprocess.run(download(wheels, given.wheel), check=True)
    if given.proteins is not None:
        room = LIMIT - size(given.folder)
        if given.proteins.stat().st_size < room:
            shutil.copyfile(given.proteins, given.folder / "backbones.npz")
        else:
            print(f"no room for {given.proteins.name}: {room / 2**20:.1f} MiB are left")
    total = size(given.folder)
    print(f"{given.folder}: {total / 2**20:.1f} MiB of {LIMIT / 2**20:.0f}")
    return int(total > LIMIT)


def download(folder: Path, more: list[str]) -> list[str]:
    """The command that fetches wheels for Python 3.12 on Linux, in the versions used here."""
    platforms = [word for name in PLATFORMS for word in ("--platform", f"manylinux{_tag(name)}")]
    names = [f"{name}=={version(name)}" for name in WHEELS]
    return [
        *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"),
        *("--python-version", "3.12", "--implementation", "cp", *platforms),
        *("-d", str(folder), *names, *more),
    ]


def _tag(name: str) -> str:
    return f"_{name}_x86_64" if "_" in name else f"{name}_x86_64"


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
