"""`python -m rectified`, which is how `torchrun` starts it."""

import sys

from rectified.cli import main

if __name__ == "__main__":
    sys.exit(main())
