"""The whole suite runs with the annotated shapes and types of `rectified` checked at every call."""

import os
import tempfile

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # what was typed is remembered there
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads can be far slower on small work

import jaxtyping

jaxtyping.install_import_hook("rectified", "beartype.beartype")
