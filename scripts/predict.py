"""Asks questions about many videos, in one process or on Ray, and exports answers: see `--help` and docs/bulk.md."""

import sys

from sama.bulk.command import main


if __name__ == "__main__":
    sys.exit(main())
