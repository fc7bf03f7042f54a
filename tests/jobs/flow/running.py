"""Small runs of `rectified flow`, for its tests."""

from rectified.cli import main
from rectified.runs import read_results

FAST = (
    "--updates 6 --reflow-updates 6 --pairs 40 --pair-steps 2 --samples 20 --batch-size 8 "
    "--limit 100 --seed 0 --device cpu --quiet --steps 1,2"
)


def run(folder, flags):
    assert main(["flow", "--out", str(folder), *FAST.split(), *flags.split()]) == 0
    return read_results(folder)


def refused(capsys, folder, flags):
    """What is said of a mistake: one line."""
    capsys.readouterr()
    assert main(["flow", "--out", str(folder), *FAST.split(), *flags.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rectified: ")
    assert said.count("\n") == 1
    return said


def of(results, **wanted):
    return [row for row in results["rows"] if wanted.items() <= row.items()]
