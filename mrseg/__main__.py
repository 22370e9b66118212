"""`python -m mrseg` is the command `mrseg`."""

import sys

from mrseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
