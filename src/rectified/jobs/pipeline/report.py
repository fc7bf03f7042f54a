"""The report of `rectified diffusion --pipeline`: that of flows, and where the pipeline is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rectified.jobs.flow import report as flows
from rectified.jobs.job import Results
from rectified.report import Section, Text


def sections(results: Results) -> Iterator[Section]:
    """The parts of the report."""
    made = flows.sections(results)  # one by one: a terminal asks for the first alone
    first, guidance = next(made), results.settings["guidance"]
    place = Text((f"pipeline: {results.folder / 'pipeline'} (guidance_scale {guidance:g})",))
    yield replace(first, parts=(*first.parts, place))
    yield from made
