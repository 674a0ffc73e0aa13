"""Answers about real files, with true masks, and a model that says what it is told: for the tests of bulk work."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from sama.benchmarks.benchmark import PredictedObject, PredictedTurn, Prediction
from sama.bulk.answers import write_answers
from sama.bulk.jobs import AskedQuestion, VideoJob
from sama.data.masks import encode_rle
from sama.objects_sama import GroundedPhrase, MaskTrack


ASSETS = Path(__file__).parent.parent / "assets"
CLIP = "clips/toy.mp4"  # 24 frames of 256 x 256
PICTURE = "ring.png"  # of 9 x 12 (height x width)
RING = np.zeros((9, 12), dtype=bool)
RING[1:7, 1:8] = True
RING[3:5, 3:6] = False  # a hole, and a second part that touches the first by a corner
RING[7, 8] = True


def write_media(folder: Path) -> Path:
    """A folder with a clip of toy world, a picture and a file that is no video."""
    (folder / "clips").mkdir(parents=True)
    shutil.copyfile(ASSETS / "toy_world.mp4", folder / CLIP)
    Image.fromarray(np.repeat((RING * np.uint8(255))[..., None], 3, axis=-1)).save(folder / PICTURE)
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    return folder


def true_tracks() -> list[list[dict | None]]:
    """The masks of the objects of the clip."""
    record = json.loads((ASSETS / "toy_world.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return [one["masks"] for one in record["objects"].values()]


def write_truth(folder: Path, shard_size: int = 1_000) -> tuple[list[VideoJob], list[Path]]:
    """The true masks as answers in a folder: two questions about the clip, one about the picture, one that failed and
    one about text alone. Returns the jobs and the files."""
    tracks = true_tracks()
    clip = VideoJob(
        {"video": {"path": CLIP, "upright": True}},
        [AskedQuestion("first", "Which <region>?"), AskedQuestion("second", "What?", label="thing")],
    )
    jobs = [
        clip,
        VideoJob({"image": {"path": PICTURE, "upright": True}}, [AskedQuestion("ring", "Where is the ring?")]),
        VideoJob({"video": {"path": "broken.mp4"}}, [AskedQuestion("broken", "What?")]),
        VideoJob({}, [AskedQuestion("text", "How are you?")]),
    ]
    size = {"num_frames": 24, "height": 256, "width": 256}
    two = [PredictedObject("the <b> & one", tracks[0], 0.9), PredictedObject("it", tracks[1], None)]
    predictions = [
        Prediction("first", [PredictedTurn("<p> the <b> & one </p> [SEG] and <p> it </p> [SEG].", two)], **size),
        Prediction("second", [PredictedTurn("[SEG]", [PredictedObject("", tracks[0], 0.5)])], **size),
        Prediction("ring", [PredictedTurn("<p> ring </p> [SEG]", [PredictedObject("ring", [encode_rle(RING)], 1.0)])],
                   num_frames=1, height=9, width=12),
        Prediction("broken", error="DataError: is damaged"),
        Prediction("text", [PredictedTurn("Well.")]),
    ]  # fmt: skip
    return jobs, write_answers(folder, jobs, iter(predictions), shard_size)


class ScriptedModel:
    """Finds the upper half of every frame in answer to everything. `asked` is what it was asked and told."""

    def __init__(self):
        self.asked = []

    def start_chat(self, processor, video=None, image=None):
        return ScriptedChat(self, video if video is not None else image)


class ScriptedChat:
    def __init__(self, model, video):
        self.model, self.video = model, video

    def reset(self):
        pass

    def add_messages(self, messages):
        self.model.asked += messages

    def ask(self, text, regions=(), max_new_tokens=512, masks=True, do_sample=False):
        self.model.asked.append((text, len(regions)))
        if "crash" in text:
            raise ZeroDivisionError("a defect")
        if self.video is None:
            return SimpleNamespace(tagged_text="Hi.", objects=[])
        found = np.zeros((len(self.video), self.video.height, self.video.width), dtype=bool)
        found[:, : self.video.height // 2] = True
        phrase = GroundedPhrase("half", (0, 4), MaskTrack.from_masks(found), 0.5)
        return SimpleNamespace(tagged_text="<p> half </p> [SEG].", objects=[phrase])


def surrounded(ring: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centers are inside a ring, by the even-odd rule: a ray to the right crosses it an odd number
    of times."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, dtype=bool)
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside


def cvat_pixels(points: list[int], shape: tuple[int, int]) -> np.ndarray:
    """What CVAT reads: runs within the box, which begin outside the mask."""
    *runs, left, top, right, bottom = points
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask = np.zeros(shape, dtype=bool)
    mask[top : bottom + 1, left : right + 1] = flat.reshape(bottom - top + 1, right - left + 1)
    return mask
