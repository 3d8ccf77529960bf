"""`python -m refiners`."""

import sys

from refiners.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
