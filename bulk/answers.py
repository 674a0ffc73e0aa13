"""
Answers with their mask tracks as Parquet: a row for each question, in the order of the questions.

    id, video, visual, label        of the question; `visual` is that of a record, as JSON: which frames were shown
    num_frames, height, width       of the video; 0 without one
    turns                           question, answer, tagged answer, and the objects of the answer: phrase, its
                                    characters in the answer, score, and a COCO run-length code for each visible frame
    error                           why there is no answer

docs/bulk.md describes the columns for users.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from ..benchmarks.benchmark import PredictedTurn, Prediction
from ..data.files import atomic_path
from ..data.json_text import without_surrogates
from ..data.masks import decode_rle
from ..prompts_sama import parse_tagged_text
from .jobs import AskedQuestion, VideoJob
from .pool import BulkError


MASK = pa.struct([("frame", pa.int32()), ("counts", pa.string())])
OBJECT = pa.struct(
    [
        ("phrase", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("score", pa.float64()),
        ("masks", pa.list_(MASK)),
    ]
)
TURN = pa.struct(
    [
        ("question", pa.string()),
        ("answer", pa.string()),
        ("tagged_answer", pa.string()),
        ("objects", pa.list_(OBJECT)),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("video", pa.string()),
        pa.field("visual", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("turns", pa.list_(TURN), nullable=False),
        pa.field("error", pa.string()),
    ]
)
FILES = "answers-*-of-*.parquet"
ROWS_IN_MEMORY = 64  # tracks of long videos are megabytes each


def answer_row(job: VideoJob, asked: AskedQuestion, prediction: Prediction) -> dict[str, Any]:
    """The row of a question."""
    path = next(iter(job.visual.values()), {}).get("path")
    return {
        "id": asked.id,
        "video": None if path is None else without_surrogates(path),
        "visual": without_surrogates(json.dumps(job.visual, ensure_ascii=False, sort_keys=True)),
        "label": asked.label,
        "num_frames": prediction.num_frames,
        "height": prediction.height,
        "width": prediction.width,
        "turns": [
            _turn_row(text, turn) for text, turn in zip(asked.texts(), prediction.turns, strict=bool(prediction.turns))
        ],
        "error": prediction.error,
    }


def _turn_row(question: str, turn: PredictedTurn) -> dict[str, Any]:
    words, spans = parse_tagged_text(turn.text)
    # A question that asked for no masks has no objects, although its answer may have tags
    found = list(zip(turn.objects, spans, strict=True)) if turn.objects else []
    objects = [
        {
            "phrase": item.phrase,
            "start": start,
            "end": end,
            "score": item.score,
            "masks": [
                {"frame": frame, "counts": code["counts"]} for frame, code in enumerate(item.masks) if code is not None
            ],
        }
        for item, (_, (start, end)) in found
    ]
    return {"question": question, "answer": words, "tagged_answer": turn.text, "objects": objects}


def write_answers(
    folder: Path, jobs: Sequence[VideoJob], predictions: Iterator[Prediction], shard_size: int
) -> list[Path]:
    """
    Writes the answers as Parquet, `shard_size` videos a file. The same answers give the same bytes, whoever computed
    them and in which order. Files of an earlier run are replaced.

    Args:
        folder (`Path`)
        jobs (sequence of [`VideoJob`])
        predictions (iterator of [`Prediction`]): One for each question, in the order of the jobs.
        shard_size (`int`): Videos in a file.
    """
    starts = range(0, len(jobs), shard_size)
    paths = [folder / f"answers-{number:05d}-of-{len(starts):05d}.parquet" for number in range(len(starts))]
    for path, start in zip(paths, starts, strict=True):
        with atomic_path(path) as temporary, parquet.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            rows = []
            for job in jobs[start : start + shard_size]:
                rows += [answer_row(job, asked, next(predictions)) for asked in job.questions]
                if len(rows) >= ROWS_IN_MEMORY:
                    writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                    rows = []
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    for path in set(folder.glob(FILES)) - set(paths):
        path.unlink()
    return paths


# ---- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundObject:
    """
    An object of an answer.

    Args:
        number (`int`): From 1, among the objects of its video.
        question (`str`): Id of the question.
        label (`str`): That of the question, else the phrase, else "object".
        phrase (`str`): What the answer calls it.
        score (`float`, *optional*)
        masks (`dict[int, dict]`): Frame -> compressed run-length code; only frames on which it is visible.
    """

    number: int
    question: str
    label: str
    phrase: str
    score: float | None
    masks: Mapping[int, dict]


@dataclass(frozen=True)
class AnsweredVideo:
    """
    A video with the objects of all answers about it.

    Args:
        name (`str`): Its path below the folder of the media.
        visual (`dict`): As in a record.
        num_frames, height, width (`int`)
        objects (sequence of [`FoundObject`])
    """

    name: str
    visual: dict
    num_frames: int
    height: int
    width: int
    objects: Sequence[FoundObject]

    @property
    def is_image(self) -> bool:
        """Whether it is a picture."""
        return "image" in self.visual

    def check_whole(self, tool: str) -> None:
        """[`BulkError`] if the model was shown a part of the frames: a tool that reads the file counts all of them."""
        shown = self.visual.get("video", {})
        if shown.get("frames") is not None or shown.get("stride", 1) > 1:
            raise BulkError(
                f"{tool} shows video files; {self.name!r} was shown as some of its frames. Export coco with --frames."
            )

    def by_frame(self) -> Iterator[tuple[int, list[FoundObject]]]:
        """Each frame on which an object is visible, with those objects."""
        for frame in sorted({frame for one in self.objects for frame in one.masks}):
            yield frame, [one for one in self.objects if frame in one.masks]


def answer_files(path: Path) -> list[Path]:
    """The Parquet files of a folder, or the file itself; [`BulkError`] if there is none, or not all of one run."""
    found = sorted(path.glob(FILES)) if path.is_dir() else [path] * path.is_file()
    if not found:
        raise BulkError(f"There are no answers in {path}, expected {FILES}; predict first.")
    whole = [f"answers-{number:05d}-of-{len(found):05d}.parquet" for number in range(len(found))]
    if path.is_dir() and [file.name for file in found] != whole:
        names = f"{found[0].name} to {found[-1].name}"
        raise BulkError(
            f"The {len(found)} files of answers in {path}, {names}, are not all of one run; predict again."
        )
    return found


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of all files, a few at a time; [`BulkError`] for a file that is damaged or has other columns."""
    for file in answer_files(path):
        try:
            with parquet.ParquetFile(file) as opened:
                if not opened.schema_arrow.equals(SCHEMA):
                    missing = sorted(set(SCHEMA.names) - set(opened.schema_arrow.names))
                    raise BulkError(f"{file} does not hold answers: {', '.join(missing) or 'a column'} is different.")
                for batch in opened.iter_batches(ROWS_IN_MEMORY):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise BulkError(f"{file} is damaged or no Parquet file: {' '.join(str(error).split())}") from error


def read_videos(path: Path) -> Iterator[AnsweredVideo]:
    """
    The videos with the objects of their answers. Answers about text alone and failed questions have none.

    Raises:
        BulkError: for a mask that is damaged or lies outside the frames of its video.
    """
    rows: list[dict[str, Any]] = []
    for row in read_rows(path):
        if row["video"] is None or row["error"] is not None:
            continue
        if rows and rows[-1]["visual"] != row["visual"]:
            yield _video_of(rows)
            rows = []
        rows.append(row)
    if rows:
        yield _video_of(rows)


def _video_of(rows: Sequence[Mapping[str, Any]]) -> AnsweredVideo:
    first = rows[0]
    size = [first["height"], first["width"]]
    objects: list[FoundObject] = []
    for row in rows:
        if [row["height"], row["width"], row["num_frames"]] != [*size, first["num_frames"]]:
            raise BulkError(
                f"The answer {row['id']!r} is about {row['num_frames']} frames of {row['height']} x {row['width']}, "
                f"{first['id']!r} about {first['num_frames']} of {size[0]} x {size[1]} of the same video."
            )
        for found in (one for turn in row["turns"] for one in turn["objects"]):
            masks = {mask["frame"]: {"size": size, "counts": mask["counts"]} for mask in found["masks"]}
            outside = [frame for frame in masks if not 0 <= frame < first["num_frames"]]
            if outside:
                raise BulkError(
                    f"The answer {row['id']!r} has a mask of frame {outside[0]}, its video {first['num_frames']} "
                    "frames, counted from 0."
                )
            label = row["label"] or found["phrase"] or "object"
            objects.append(FoundObject(len(objects) + 1, row["id"], label, found["phrase"], found["score"], masks))
    visual = json.loads(first["visual"])
    return AnsweredVideo(first["video"], visual, first["num_frames"], size[0], size[1], objects)


def decode(video: AnsweredVideo, found: FoundObject, frame: int) -> np.ndarray:
    """The mask of an object on a frame: bool array of shape `(height, width)`; [`BulkError`] if it is damaged or
    empty."""
    try:
        mask = decode_rle(found.masks[frame], (video.height, video.width))
    except ValueError as error:
        raise BulkError(f"The answer {found.question!r} has a damaged mask on frame {frame}: {error}.") from error
    if not mask.any():
        raise BulkError(f"The answer {found.question!r} has an empty mask on frame {frame}, where none is expected.")
    return mask
