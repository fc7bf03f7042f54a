"""How `rectified toy` is shown."""

from rectified.jobs.job import Report
from rectified.report import Column, Section, Table, Text


def sections(results):
    """A table that the terminal shows, too, and more on the page."""
    rows = [(row["step"], row["distance"], row["half"]) for row in results.rows]
    table = Table("Distances", ("step", Column("distance", better="lower", digits=2), "half"), rows)
    yield Section("What was found", (table,), is_brief=True)
    yield Section("More", (Text((f"steps shown: {results.details['shown']}",)),))


REPORT = Report("Toy report", lambda results: f"toy on {results.settings['data']}", sections)
