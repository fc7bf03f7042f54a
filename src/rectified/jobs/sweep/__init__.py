"""`rectified sweep VERB`: many runs of one verb over a grid, on local cores or on a cluster.

    config.yaml     the verb, the grid, and the settings that all runs share
    runs/IDENTITY   one ordinary run folder per run
    results.json    the rows of all runs, and means over their seeds with intervals

A finished run is never repeated: neither after a kill, nor when the sweep goes on with a larger
grid (`rectified sweep --resume DIR --grid ...`).
"""

from rectified.jobs.job import Sweeper
from rectified.jobs.sweep.report import REPORT
from rectified.jobs.sweep.settings import SweepConfig, parts, whole
from rectified.jobs.sweep.study import perform

TOOL = Sweeper(SweepConfig(), whole, parts, perform, REPORT)
