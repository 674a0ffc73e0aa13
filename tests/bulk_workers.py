"""Workers for pools of Ray actors, which import this file. Without torch, where none is needed."""

import os
import signal
import time
from pathlib import Path


class MortalWorker:
    """
    Writes jobs in capitals, and what it did to a file.

    Args:
        folder (`Path`): Of the file of each actor, named by its process.
    """

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / f"{os.getpid()}.log"
        self.log.touch()

    def __call__(self, text: str) -> str:
        from sama.bulk.pool import ProcessLost

        with open(self.log, "a", encoding="utf-8") as file:
            file.write(text + "\n")
        if text.startswith("slow"):
            time.sleep(0.3)
        if text == "bad":
            raise ValueError("of two\nlines")
        if text == "lost once" and self.is_first(text):
            raise ProcessLost("the GPU fell off")
        if text == "deadly" or (text == "killed once" and self.is_first(text)):
            os.kill(os.getpid(), signal.SIGKILL)
        return text.upper()

    def is_first(self, text: str) -> bool:
        """Whether no actor has been given this job before."""
        return sum(path.read_text(encoding="utf-8").splitlines().count(text) for path in self.logs()) == 1

    def logs(self) -> list[Path]:
        return list(self.folder.glob("*.log"))


class MortalPredictor:
    """The worker of scripts/predict.py, which is killed when it is asked about a file named `killed` for the first
    time, in the middle of the work."""

    def __init__(self, settings):
        from sama.bulk.predict import Predictor

        self.predictor, self.marker = Predictor(settings), settings.output.resolve() / "killed.txt"

    def __call__(self, text: str) -> str:
        result = self.predictor(text)
        if "killed.png" in text and not self.marker.exists():
            self.marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class FailingWorker:
    """Cannot be made."""

    def __init__(self):
        raise FileNotFoundError("there is no model")


class RegisteredAnnotationWorker:
    """The worker of a run of annotate.py, whose process is named by a file in the folder $ACTORS."""

    def __init__(self, *arguments):
        from sama.annotation.pool import AnnotationWorker

        self.worker = AnnotationWorker(*arguments)
        Path(os.environ["ACTORS"], str(os.getpid())).touch()

    def __call__(self, text: str) -> str:
        return self.worker(text)
