"""
Submissions to the challenge servers of MeViS and Ref-YouTube-VOS, and a check of the zip before it is uploaded.

Format (evaluation spec 4.1): one 8-bit greyscale PNG with the values 0 and 255 per frame of each expression,

    MeViS              <video>/<expression>/<frame>.png
    Ref-YouTube-VOS    Annotations/<video>/<expression>/<frame>.png
"""

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from sama.benchmarks import frame_masks
from sama.benchmarks.benchmark import Benchmark, BenchmarkError, Prediction
from sama.benchmarks.referring_video import ReferringVideo
from sama.data.files import atomic_path
from sama.metrics.submission import ARCHIVE_FOLDERS, grey_mask, member_name
from sama.metrics.values import PUBLISHED


MOST_PROBLEMS = 20
# A fixed date, so that the same predictions give the same bytes
DATE = (1980, 1, 1, 0, 0, 0)


def write_submission(predictions: Iterable[Prediction], benchmark: Benchmark, path: str | Path) -> None:
    """
    Writes the zip for the server.

    Args:
        predictions (iterable of [`Prediction`]): In any order.
        benchmark ([`Benchmark`]): A benchmark with a challenge server.
        path (`str` or `Path`): Path of the zip. It appears only when it is complete.

    Raises:
        BenchmarkError: for a benchmark without a server, and if expressions have no answer.
    """
    asked = need_server(benchmark)
    answered = {one.question: one for one in predictions}
    _check_complete(asked, answered)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for group, names in asked.outline().items():
            for name in names:
                for member, mask in _masks(asked, group, name, answered[name]):
                    archive.writestr(zipfile.ZipInfo(member, DATE), _png(mask), zipfile.ZIP_DEFLATED)


def check_submission(path: str | Path, benchmark: Benchmark) -> list[str]:
    """
    The problems of a zip as sentences, at most `MOST_PROBLEMS`; an empty list if there are none.

    The zip must contain every frame of every expression exactly once, with the size of its video, in mode L and with
    the values 0 and 255 only, and no other files.
    """
    asked = need_server(benchmark)
    try:
        with zipfile.ZipFile(path) as archive:
            problems = list(islice(_problems(archive, asked), MOST_PROBLEMS + 1))
    except FileNotFoundError:
        return [f"There is no file '{path}'."]
    except zipfile.BadZipFile as error:
        return [f"'{path}' is not a readable zip file ({error})."]
    return problems if len(problems) <= MOST_PROBLEMS else [*problems[:MOST_PROBLEMS], "And more."]


def members(benchmark: ReferringVideo, group: str, name: str) -> list[str]:
    """Member names of the frames of one expression, in order."""
    (record,), expression = benchmark.records(group), name.removeprefix(f"{group}/")
    stems = [PurePosixPath(frame).stem for frame in record["video"]["frames"]]
    return [member_name(benchmark.name, group, expression, stem) for stem in stems]


def need_server(benchmark: Benchmark) -> ReferringVideo:
    """The benchmark itself, if it has a challenge server; `BenchmarkError` otherwise."""
    if not isinstance(benchmark, ReferringVideo) or benchmark.name not in ARCHIVE_FOLDERS:
        raise BenchmarkError(
            f"{benchmark.name} has no challenge server; --submission works for MeViS and Ref-YouTube-VOS."
        )
    return benchmark


def _check_complete(benchmark: ReferringVideo, answered: Mapping[str, Prediction]) -> None:
    """Raises `BenchmarkError` if expressions were not asked or failed, and says what to do."""
    wanted = [name for names in benchmark.outline().values() for name in names]
    absent = [name for name in wanted if name not in answered]
    failed = [name for name in wanted if name in answered and answered[name].error is not None]
    problems = []
    if absent:
        problems.append(
            f"{len(absent)} of {len(wanted)} expressions were not asked, such as {absent[0]!r}: run the whole "
            "benchmark first."
        )
    if failed:
        problems.append(
            f"{len(failed)} of {len(wanted)} expressions failed, such as {failed[0]!r} "
            f"({answered[failed[0]].error}): remove the cause and run again with --retry_failed."
        )
    if problems:
        raise BenchmarkError(f"{benchmark.name} ({benchmark.split}): {' '.join(problems)}")


def _masks(
    benchmark: ReferringVideo, group: str, name: str, prediction: Prediction
) -> Iterator[tuple[str, np.ndarray]]:
    names = members(benchmark, group, name)
    found, size = [item.masks for item in prediction.turns[0].objects], (prediction.height, prediction.width)
    if prediction.num_frames != len(names):
        raise BenchmarkError(
            f"The prediction for {name!r} has {prediction.num_frames} frames, the expression file {len(names)}: the "
            "prediction was probably made with other files."
        )
    if benchmark.preset == PUBLISHED:  # the release writes the mask of the first [SEG]
        found = found[:1]
    yield from zip(names, frame_masks.united(found, len(names), size), strict=True)


def _png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey_mask(mask)).save(buffer, format="PNG")
    return buffer.getvalue()


def _problems(archive: zipfile.ZipFile, benchmark: ReferringVideo) -> Iterator[str]:
    listed = [item.filename for item in archive.infolist() if not item.is_dir()]
    left = set(listed)
    if len(left) < len(listed):
        twice = next(name for name in listed if listed.count(name) > 1)
        yield f"{len(listed) - len(left)} files occur more than once, such as '{twice}'."
    for group, names in benchmark.outline().items():
        expected = {member: name for name in names for member in members(benchmark, group, name)}
        absent = [member for member in expected if member not in left]
        if absent:
            yield f"{len(absent)} of {len(expected)} frames of the video {group!r} are missing, such as '{absent[0]}'."
        video = benchmark.open(group)
        for member in expected:
            if member in left:
                yield from _picture_problems(archive, member, (video.height, video.width))
        left -= set(expected)
    layout = member_name(benchmark.name, "<video>", "<expression>", "<frame>")
    for name in sorted(left):
        yield f"'{name}' is unexpected: no frame of the expression file has this name; the format is {layout}."


def _picture_problems(archive: zipfile.ZipFile, member: str, size: tuple[int, int]) -> Iterator[str]:
    try:
        with Image.open(io.BytesIO(archive.read(member))) as picture:
            picture.load()
    except (OSError, zipfile.BadZipFile) as error:
        yield f"'{member}' is not a readable image ({error})."
        return
    if picture.format != "PNG" or picture.mode != "L":
        yield f"'{member}' is {picture.format} in mode {picture.mode}, expected PNG in mode L (8-bit greyscale)."
    elif (picture.height, picture.width) != size:
        yield f"'{member}' is {picture.height} x {picture.width} (height x width), its video {size[0]} x {size[1]}."
    else:
        other = sorted(set(np.unique(np.asarray(picture)).tolist()) - {0, 255})
        if other:
            yield f"'{member}' contains the value {other[0]}, expected 0 and 255 only."
