"""`python -m benchmarks.gpu VERB`: see the package."""

from __future__ import annotations

import sys
from importlib import import_module

VERBS = ("correct", "probe", "prune", "merge")


def main(arguments: list[str] | None = None) -> int:
    """Run one of the verbs; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in VERBS:
        print(f"usage: python -m benchmarks.gpu {{{','.join(VERBS)}}} [options]", file=sys.stderr)
        return 2
    return int(import_module(f"benchmarks.gpu.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
