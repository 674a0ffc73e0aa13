"""What the approximation `memory_pool=2` costs in masks: IoU with the exact ones and with the truth, as a table.

    python profiling/memory_pool.py [--model DIR] [--clips 60] [--long 300]

The model finds one object of each generated clip, and its masks are tracked twice. There is one long clip for ten
short ones: it goes forwards and backwards until it has that many frames. Only the small model knows toy world.
"""

import argparse
from collections.abc import Iterable

import numpy as np

from sama.drawing.tables import markdown_table
from sama.resources import SMALL_MODEL
from sama.serving.loading import load_model
from sama.toy_world.world import ToySettings, ToyWorld


SETTINGS = ToySettings(frames=(24, 24), height=128, width=128, split="val", tasks={"refer_look": 1})
SEED = 19
CLIPS_FOR_A_LONG_ONE = 10


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Mean IoU of two mask tracks (num_frames, height, width) over frames; 1 where both are empty."""
    union = (first | second).sum((1, 2))
    shared = (first & second).sum((1, 2))
    return float(np.where(union == 0, 1.0, shared / np.maximum(union, 1)).mean())


def there_and_back(num_frames: int, length: int) -> list[int]:
    """Frames of a clip of `length` frames, played forwards and backwards until there are `num_frames`."""
    period = 2 * length - 2
    return [min(index % period, period - index % period) for index in range(num_frames)]


def compare(model, processor, order: list[int], clips: Iterable[int]) -> list[float | int]:
    """Mean IoU of pooled with exact masks, of both with the truth, and how many clips had an object; frames of a clip
    in the given order."""
    world, rows = ToyWorld(SETTINGS, SEED), []
    for index in clips:
        sample = world[index]
        (target, *_) = [one for part in answer_parts(sample.record) for one in part.get("objects", ())]
        truth, found = sample.masks[int(target)][order], []
        for pool in (1, 2):
            model.config.memory_pool = pool
            chat = model.start_chat(processor, video=sample.frames[order])
            reply = chat.ask(sample.record["messages"][0]["content"][0]["text"])
            if reply.objects:
                track = reply.objects[0].track
                found.append(np.array([track[frame] for frame in range(len(order))]))
        if found:
            exact, pooled = found
            rows.append((iou(exact, pooled), iou(exact, truth), iou(pooled, truth)))
    model.config.memory_pool = 1
    return [*np.mean(rows, 0).round(4).tolist(), len(rows)]


def answer_parts(record: dict) -> list[dict]:
    """The parts of the first answer that are phrases."""
    content = record["messages"][1]["content"]
    return [part for part in content if isinstance(part, dict)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SMALL_MODEL), help="checkpoint folder")
    parser.add_argument("--clips", type=int, default=60, help="number of clips (default: 60)")
    parser.add_argument("--long", type=int, default=300, help="frames of a long clip (default: 300)")
    arguments = parser.parse_args()
    model, processor = load_model(arguments.model)
    length = SETTINGS.frames[1]
    rows = [
        [f"{length} frames", *compare(model, processor, list(range(length)), range(arguments.clips))],
        [
            f"{arguments.long} frames",
            *compare(
                model,
                processor,
                there_and_back(arguments.long, length),
                range(-(-arguments.clips // CLIPS_FOR_A_LONG_ONE)),
            ),
        ],
    ]
    header = ["clips", "IoU of pooled with exact", "IoU of exact with truth", "IoU of pooled with truth", "number"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
