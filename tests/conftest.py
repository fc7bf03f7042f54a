"""The whole suite runs with the annotated shapes and types of `rectified` checked at every call."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads can be far slower on small work

import jaxtyping

jaxtyping.install_import_hook("rectified", "beartype.beartype")
