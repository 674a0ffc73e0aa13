"""Asks questions about many videos, in one process or on Ray, and exports answers: see `--help` and docs/bulk.md."""

import sys


try:
    from sama.bulk.command import main
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name is None or error.name.startswith("sama"):
        raise
    sys.exit(f"predict: The Python module {error.name} is not installed. Run: pip install 'sama[bulk]'")


if __name__ == "__main__":
    sys.exit(main())
