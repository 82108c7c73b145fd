"""`python -m areplay` is the command `areplay`."""

import sys

from areplay.cli import main

if __name__ == "__main__":
    sys.exit(main())
