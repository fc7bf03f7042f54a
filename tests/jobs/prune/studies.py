"""Small studies through the command line."""

import pytest

from rectified.cli import main
from rectified.runs import read_results

FAST = "--limit 300 --epochs 2 --device cpu --quiet"

quick = pytest.mark.usefixtures("no_figures")


def prune(folder, flags):
    """The results of a study."""
    assert main(["prune", "--out", str(folder), *FAST.split(), *flags.split()]) == 0
    return read_results(folder)


def of(results, **wanted):
    """Its rows with these values."""
    return [row for row in results["rows"] if wanted.items() <= row.items()]
