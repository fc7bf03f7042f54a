"""Jobs: one file a verb, its settings and its `run`. They know experiments, not formulas."""
