"""Where pipelines that version 0.1 wrote find their scheduler; all else is in `pipelines`."""
