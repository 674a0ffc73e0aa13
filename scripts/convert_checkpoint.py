"""Converts released checkpoints to ours; `--help` lists the options (docs/checkpoints.md)."""

import sys

from sama.conversion.convert import main


if __name__ == "__main__":
    sys.exit(main())
