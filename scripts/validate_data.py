"""Reads every record of a mixture and reports what is missing or broken, or draws a few of them.

    python scripts/validate_data.py data_configs/toy.yaml --preview 12      # reads the drawn records only
    python scripts/validate_data.py data_configs/toy.yaml
    python scripts/validate_data.py data_configs/sama_1b.yaml --workers 8 --report outputs/data.json

Each record is read once: its video or image is opened, the frames that training uses (--all-frames: all of them) and
all masks of its objects are decoded, and it is rendered. Exit code 0: no problem; 1: problems, which the report names;
2: the mixture file itself is wrong.
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path


try:
    from sama.data.files import write_text_atomically
    from sama.data.validation import MixtureValidator, report_lines
    from sama.drawing.preview import write_previews
    from sama.processing_sama import SamaProcessor
    from sama.resources import SMALL_MODEL
    from sama.serving.loading import check_model_name
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name is None or error.name.startswith("sama"):
        raise
    sys.exit(f"validate_data: The Python module {error.name} is not installed. Run: pip install 'sama[train]'")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixture", type=Path, help="a mixture file, such as data_configs/toy.yaml")
    parser.add_argument("--processor", default=str(SMALL_MODEL), help="checkpoint whose processor is used")
    parser.add_argument("--root", help="folder of the data (default: $SAMA_DATA_ROOT)")
    parser.add_argument("--cache", help="folder of the stores (default: $SAMA_CACHE, else in the home folder)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes; 0: only this one")
    parser.add_argument("--all-frames", action="store_true", help="decode every frame, not only those that are used")
    parser.add_argument("--limit", type=int, help="check only the first records of each source, this many")
    parser.add_argument("--report", type=Path, help="write the report to this JSON file")
    parser.add_argument(
        "--preview",
        type=int,
        default=0,
        metavar="N",
        help="draw N samples instead of checking all; with --limit or --report both",
    )
    parser.add_argument("--out", type=Path, help="folder of the drawings (default: outputs/preview/MIXTURE)")
    options = parser.parse_args(arguments)
    for name, least in (("preview", 0), ("workers", 0), ("limit", 1)):
        number = vars(options)[name]
        if number is not None and number < least:
            parser.error(f"--{name} must be at least {least}, got {number}")
    options.out = options.out or Path("outputs/preview") / options.mixture.stem
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    local = Path(options.processor).is_dir()  # code of the Hub is not run
    load_processor = partial(SamaProcessor.from_pretrained, options.processor, trust_remote_code=local)
    try:
        check_model_name(options.processor)
        load_processor()  # here, because each process that checks records loads its own
        validator = MixtureValidator(
            options.mixture, load_processor, options.root, options.cache, options.all_frames, options.limit
        )
    except (OSError, ValueError) as error:
        print(f"validate_data: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    drawn = True
    if options.preview and validator.sources:
        sheets = write_previews(validator.sources, validator.checker().renderer, options.preview, options.out)
        drawn = len(sheets) == options.preview
        print(f"{len(sheets)} drawings in {options.out}")
        if options.limit is None and options.report is None:
            return 0 if drawn else 1
    report = validator.run(options.workers)
    print("\n".join(report_lines(report)))
    if options.report:
        write_text_atomically(options.report, json.dumps(report, indent=2) + "\n")
    return 0 if drawn and not report["problems"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
