"""The place where pipelines of version 0.1 find their scheduler; all else is in `pipelines`."""
