"""The whole suite runs with the annotated shapes and types of `rectified` checked at every call."""

import jaxtyping

jaxtyping.install_import_hook("rectified", "beartype.beartype")
