"""
Asks questions about many videos and writes the answers with their mask tracks as Parquet, or exports such answers.

python scripts/predict.py --videos clips --question "Segment the ball." --output outputs/predictions
python scripts/predict.py --videos clips --questions questions.jsonl --output outputs/predictions
python scripts/predict.py --records mine.jsonl --media videos --output outputs/predictions --ray 8 --ray-gpus 0.5
python scripts/predict.py --output outputs/predictions --export coco --to outputs/coco --media clips --frames

An interrupted run continues where it stopped when the same command is started again. docs/bulk.md describes questions,
columns, formats and clusters.

Exit codes: 0; 1 if the run failed, with one sentence that says why; 3 if some questions have no answer.
"""

import argparse
import sys
from collections.abc import Sequence

from ..configuration_sama import check_preset
from ..data.files import user_path
from ..metrics.values import PRESETS
from ..resources import SMALL_MODEL
from .exports import FORMATS, export
from .pool import ProcessLost, add_pool_arguments, pool_settings
from .predict import PredictSettings, predict


DTYPES = ("auto", "float32", "bfloat16", "float16")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=user_path, required=True, help="folder of the answers")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--records", type=user_path, help="JSON Lines of records")
    asked.add_argument("--media", type=user_path, help="folder of their videos; default: that of the records")
    asked.add_argument("--videos", type=user_path, help="instead of records: a folder of videos and pictures")
    asked.add_argument("--question", action="append", default=[], help="asked about each of them; may be repeated")
    asked.add_argument("--questions", type=user_path, help="file of questions: text, one a line, or JSON Lines")
    asked.add_argument("--limit", type=int, help="only the first LIMIT videos")
    how = parser.add_argument_group("how it is answered")
    how.add_argument("--model", default=str(SMALL_MODEL), help="checkpoint folder, or a name on the Hub")
    how.add_argument("--preset", type=_preset, choices=PRESETS, help="default: the checkpoint's own")
    how.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights; default on CPU: float32")
    how.add_argument("--max-new-tokens", type=int, default=512, help="maximum length of an answer")
    how.add_argument("--retry-failed", action="store_true", help="ask questions without an answer again")
    how.add_argument("--shard-size", type=int, default=1_000, help="videos in a Parquet file")
    add_pool_arguments(parser, "-")
    exports = parser.add_argument_group("exports of answers that are there")
    exports.add_argument("--export", choices=FORMATS, help="format; nothing is asked")
    exports.add_argument("--to", type=user_path, help="folder of the export")
    exports.add_argument("--frames", action="store_true", help="write the frames as pictures, too")
    found = parser.parse_args(arguments)
    if (folder := user_path(found.model)).is_dir():  # a shell does not expand ~ behind "="
        found.model = str(folder)
    check(parser, found)
    return found


def check(parser: argparse.ArgumentParser, found: argparse.Namespace) -> None:
    """Ends the program for options that do not fit each other."""
    if found.export:
        if found.to is None:
            parser.error("--export needs the folder --to")
        if found.frames and found.media is None and found.videos is None:
            parser.error("--frames needs the folder of the videos, --media or --videos")
        return
    if found.to or found.frames:
        parser.error("--to and --frames belong to --export")
    if (found.records is None) == (found.videos is None):
        parser.error("give either --records or --videos")
    if found.videos is not None and found.media is not None:
        parser.error("--media is the folder of the videos of --records; --videos is one itself")
    if found.records is not None and (found.question or found.questions):
        parser.error("records have their questions; --question and --questions belong to --videos")
    if found.videos is not None and not (found.question or found.questions):
        parser.error("--videos needs --question or --questions")
    for name in ("limit", "max_new_tokens", "shard_size", "ray"):
        value = vars(found)[name]
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def _preset(name: str) -> str:
    return check_preset(name) if name == "release" else name


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    found = parse(arguments)
    try:
        if found.export:
            media = found.media or found.videos
            counts = export(found.export, found.output, found.to, media, found.frames)
            sys.stdout.write(f"{', '.join(f'{number} {name}' for name, number in counts.items())} in {found.to}\n")
            return 0
        names = PredictSettings.__dataclass_fields__
        settings = PredictSettings(**{name: value for name, value in vars(found).items() if name in names})
        return predict(settings, pool_settings(found))
    except ProcessLost as error:
        return _fail(error.sentence())
    except (ValueError, OSError) as error:  # among them BulkError, DataError and PredictionError
        return _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return _fail("interrupted; run again to go on", code=130)


def _fail(problem: str, code: int = 1) -> int:
    sys.stderr.write(f"predict: {problem}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
