"""A verb that takes no time, in the form that every verb has: a folder, and a row of the registry.

It measures a `distance` that is known beforehand, so that what the doors do to it can be checked.
`--twice` makes it another job behind the same verb.
"""

from rectified.jobs import Entry
from rectified.jobs.job import Job, Sampler
from tests.jobs.toy.report import REPORT
from tests.jobs.toy.settings import ToyConfig, TwiceConfig, resolve
from tests.jobs.toy.study import check, network, sample, study

ENTRY = Entry("a toy", ("--rate 0.5", "--twice 3"), "tests.jobs.toy:JOB")
SAMPLER = Sampler(sample, steps=7, takes=("label",))
TWICE = Job("toy", TwiceConfig(), resolve, check, study, REPORT)
JOB = Job(
    "toy",
    ToyConfig(),
    resolve,
    check,
    study,
    REPORT,
    network=network,
    sampler=SAMPLER,
    variants={"twice": "tests.jobs.toy:TWICE"},
)
