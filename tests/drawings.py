"""Figures without their drawings, for tests that are about something else: drawing takes long."""

from rectified.report import Figure, plots


def without_drawing(*_, title, alt, note):
    """In place of `rectified.report.drawing.figure`."""
    return Figure(title, "<svg></svg>", alt, note)


def undrawn(patch):
    """Let figures have their words alone."""
    patch.setattr(plots, "figure", without_drawing)
