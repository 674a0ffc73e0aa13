"""A run: questions about many videos are asked here or in a pool, the answers kept as they come and written as
Parquet at the end."""

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..benchmarks.benchmark import Prediction
from ..configuration_sama import SamaConfig
from ..data.records import describe_error
from ..evaluation.predictions import PredictionFiles, PredictionWriter
from ..evaluation.provenance import checkpoint_hash, commit_of
from ..evaluation.run import SOME_FAILED, load
from ..resources import PACKAGE
from ..serving.loading import check_model_name
from .answers import write_answers
from .gpu_errors import fatal_gpu_errors
from .jobs import (
    VideoJob,
    answer_job,
    checked_question,
    digests_of_jobs,
    jobs_of_folder,
    jobs_of_records,
    read_questions,
)
from .pool import Job, PoolSettings, ProcessLost, absolute_path, connect, run_jobs
from .workers import predictions_of, predictions_to_json, resolved_dtype


logger = logging.getLogger(__name__)
NAME, VERSION = "predict", 1  # of what was asked, in run.json


@dataclass(frozen=True)
class PredictSettings:
    """
    What is asked and how; the options of `scripts/predict.py`.

    Args:
        output (`Path`): Folder of the answers.
        model (`str`): Checkpoint folder, or a name on the Hub.
        records, media (`Path`, *optional*): Records and the folder of their videos.
        videos (`Path`, *optional*): Instead of records, a folder of videos.
        question (sequence of `str`): Asked about each of its videos.
        questions (`Path`, *optional*): File of more questions.
        limit (`int`, *optional*): Only the first videos.
        preset (`str`, *optional*): Of frames, prompts and decoder; by default the checkpoint's own.
        dtype (`str`): Of the weights.
        max_new_tokens (`int`): Maximum length of an answer.
        retry_failed (`bool`): Whether questions without an answer are asked again.
        shard_size (`int`): Videos in a Parquet file.
    """

    output: Path
    model: str
    records: Path | None = None
    media: Path | None = None
    videos: Path | None = None
    question: Sequence[str] = ()
    questions: Path | None = None
    limit: int | None = None
    preset: str | None = None
    dtype: str = "auto"
    max_new_tokens: int = 512
    retry_failed: bool = False
    shard_size: int = 1_000

    @property
    def media_folder(self) -> Path:
        """The folder that paths of videos are relative to."""
        return (self.media or self.videos or (self.records or Path()).parent).resolve()

    @property
    def loaded(self) -> argparse.Namespace:
        """What is loaded, as evaluation takes it."""
        return argparse.Namespace(model=self.model, preset=self.preset, dtype=self.dtype)

    def with_absolute_paths(self) -> "PredictSettings":
        """The settings for workers, which have another working directory."""
        return replace(self, model=absolute_path(self.model), media=self.media_folder)

    def jobs(self) -> list[VideoJob]:
        """What is asked, by video, without regard to the limit. [`DataError`] for wrong records or questions."""
        if self.records is not None:
            return jobs_of_records(self.records, self.media_folder)
        listed = [checked_question({"question": text}) for text in self.question]
        listed += read_questions(self.questions) if self.questions else []
        return jobs_of_folder(self.media_folder, listed)


class Predictor:
    """
    The worker of a run: answers a job with a model that it has loaded.

    Args:
        settings ([`PredictSettings`])
    """

    def __init__(self, settings: PredictSettings):
        self.settings = settings
        self.model, self.processor = load(settings.loaded)

    def __call__(self, text: str) -> str:
        """Maps the JSON of a [`VideoJob`] to that of its predictions."""
        return predictions_to_json(list(self.predictions(VideoJob.from_json(text))))

    def predictions(self, job: VideoJob) -> Iterator[Prediction]:
        """A prediction for each question, one by one."""
        done = 0
        while done < len(job.questions):
            try:
                with fatal_gpu_errors():
                    for prediction in self.answers(replace(job, questions=job.questions[done:])):
                        done += 1  # before it is taken: what comes before an error stays
                        yield prediction
            except ProcessLost:
                raise
            except Exception as error:  # a defect, or too little memory on a GPU: the others are asked nevertheless
                logger.warning("question %s failed", job.names[done], exc_info=True)
                yield Prediction(job.names[done], error=describe_error(error))
                done += 1

    def answers(self, job: VideoJob) -> Iterator[Prediction]:
        """See [`answer_job`]."""
        settings = self.settings
        return answer_job(job, settings.media_folder, self.model, self.processor, settings.max_new_tokens)


def predict(settings: PredictSettings, pool: PoolSettings | None = None) -> int:
    """
    Asks everything that has no answer yet and writes the answers as Parquet. Returns the exit code: 3 if some
    questions have no answer.

    Raises:
        DataError: for wrong records or questions.
        PredictionError: if the folder holds answers of another model or to other questions.
        BulkError: if the pool cannot be used.
    """
    jobs = settings.jobs()
    check_model_name(settings.model)
    settings = replace(settings, preset=settings.preset or SamaConfig.from_pretrained(settings.model).preset)
    pool = None if pool is None else connect(pool)
    settings = replace(settings, dtype=resolved_dtype(settings.loaded, pool))
    files = PredictionFiles(settings.output)
    about = about_run(settings, jobs)
    files.check_run(about, accept_foreign=None)
    files.write_run(about)
    jobs = jobs[: settings.limit]
    _ask(settings, jobs, files, pool)
    names = [name for job in jobs for name in job.names]
    files.merge(names)
    lines = files.index()
    paths = write_answers(settings.output, jobs, files.read(names, lines), settings.shard_size)
    failed = next(files.read([name for name in names if lines[name].failed], lines), None)
    number = sum(lines[name].failed for name in names)
    counts = f"{len(names) - number} questions answered, {number} failed"
    sys.stdout.write(f"{counts}. {len(paths)} Parquet files: {files.folder}\n")
    if failed is not None:
        sys.stderr.write(f"predict: {number} failed, first {failed.question}: {failed.error}\n")
    return SOME_FAILED if number else 0


def about_run(settings: PredictSettings, jobs: Sequence[VideoJob]) -> dict:
    """The content of `run.json`: what another run must agree with to continue this one, and its origin."""
    return {
        "model": settings.model,
        "checkpoint": checkpoint_hash(settings.model),
        "commit": commit_of(PACKAGE),
        "benchmark": NAME,
        "version": VERSION,
        "preset": settings.preset,
        **digests_of_jobs(jobs, settings.media_folder),
        "dtype": settings.dtype,
        "max_new_tokens": settings.max_new_tokens,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _ask(
    settings: PredictSettings, jobs: Sequence[VideoJob], files: PredictionFiles, pool: PoolSettings | None
) -> None:
    """Asks the open questions and appends each answer to the part of this run."""
    lines = files.index()
    known = {name for name, line in lines.items() if not (line.failed and settings.retry_failed)}
    rest = (replace(job, questions=[one for one in job.questions if one.id not in known]) for job in jobs)
    waiting = {index: job for index, job in enumerate(rest) if job.questions}
    bar = tqdm(total=sum(len(job.questions) for job in waiting.values()), desc=NAME, unit="question")
    with PredictionWriter(files.part(0)) as writer, bar:
        for prediction in answered(waiting, partial(Predictor, settings.with_absolute_paths()), pool):
            writer.write(prediction)
            bar.update()


def answered(
    waiting: dict[int, VideoJob], make_worker: partial[Predictor], pool: PoolSettings | None
) -> Iterator[Prediction]:
    """Yields the predictions of all jobs, in any order: one by one in this process, in a pool those of a job
    together."""
    if pool is None:
        if waiting:
            worker = make_worker()
            yield from (prediction for job in waiting.values() for prediction in worker.predictions(job))
        return
    jobs = [Job(index, job.to_json()) for index, job in waiting.items()]
    for result in run_jobs(jobs, make_worker, pool):
        yield from predictions_of(result, waiting[result.index].names)
