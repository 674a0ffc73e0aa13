"""Makes training data from videos, in one process or on Ray: see `--help` and docs/annotation.md."""

import sys


try:
    from sama.annotation.command import main
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name is None or error.name.startswith("sama"):
        raise
    sys.exit(f"annotate: The Python module {error.name} is not installed. Run: pip install 'sama[annotate]'")


if __name__ == "__main__":
    sys.exit(main())
