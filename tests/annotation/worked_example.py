"""
The worked example of docs/annotation.md: clips of toy world with exact masks, models behind a scripted endpoint that
make 300 planned mistakes, and how many of these the checks find.

    python tests/annotation/worked_example.py --output outputs/annotation_example
"""

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np


sys.path.insert(0, str(Path(__file__).parent))

from scripted_endpoint import KEY, ScriptedEndpoint, scripted_endpoint  # noqa: E402
from toy_clips import CONVERSATION, DESCRIPTION, Truth, thumbnail  # noqa: E402
from toy_mistakes import (  # noqa: E402
    DESCRIPTION_MISTAKES,
    FOR_A_PERSON,
    MAY_BE_TRUE,
    MODEL_CODES,
    NEAR_MISSES,
    REPLY_MISTAKES,
    TURN_MISTAKES,
)
from toy_truth import Planted, ToyModels  # noqa: E402

from sama.annotation import command as annotate  # noqa: E402
from sama.annotation.export import tagged_text  # noqa: E402
from sama.annotation.objects import read_scenes  # noqa: E402
from sama.annotation.problems import CODES  # noqa: E402
from sama.annotation.render import object_colors, shown_frames  # noqa: E402
from sama.annotation.scenes import select_objects  # noqa: E402
from sama.data.files import write_text_atomically  # noqa: E402
from sama.toy_world.export import RECORDS, write_records  # noqa: E402
from sama.toy_world.world import ToySettings, ToyWorld  # noqa: E402


NUM_CLIPS, NUM_MISTAKES = 40, 300
SETTINGS = ToySettings(frames=(8, 10), things=(4, 4), tasks={"dialogue": 1.0})
SHOWN, IMAGE_SIZE = 6, 128  # of the pictures: small, so that the example takes seconds


class Example(NamedTuple):
    """Folder, clips and planned mistakes of an example."""

    folder: Path
    truths: list[Truth]
    planted: list[Planted]

    @property
    def output(self) -> Path:
        return self.folder / "annotation"


def make_example(folder: Path, num_clips: int = NUM_CLIPS, num_mistakes: int = NUM_MISTAKES, seed: int = 0) -> Example:
    """Writes the clips with their masks, and plans the mistakes."""
    world = ToyWorld(SETTINGS, seed)
    write_records(world, folder / "clips", range(num_clips))
    truths = []
    scenes = read_scenes(folder / "clips", folder / "clips" / RECORDS, "toy")
    for index, scene in enumerate(scenes):
        clip = world.generate(index)[1]
        shown = shown_frames(clip.num_frames, SHOWN)
        objects, _ = select_objects(scene.objects, shown)
        colors = object_colors(scene.id, len(objects), 0)
        truths.append(Truth(scene.id, clip, list(objects), thumbnail(clip.frames[0]), colors, shown))
    return Example(folder, truths, plan(truths, num_mistakes, np.random.default_rng(seed)))


def plan(truths: Sequence[Truth], number: int, rng: np.random.Generator) -> list[Planted]:
    """
    So many mistakes, every kind equally often where it is possible, and a fifth as many near misses. The first object
    and the first turn of a clip stay right, so that later ones can be told from them, and so does every item that
    nothing is planned for.
    """
    planted, closed = [], set()
    order = rng.permutation(len(truths)).tolist()[: 3 * len(truths) // 4]  # one clip for each reply that is wrong
    for count, (index, (kind, (code, _))) in enumerate(zip(order, [*REPLY_MISTAKES.items()] * 2, strict=False)):
        truth = truths[index]
        only_turns = kind in ("too few turns", "wrong type", "missing field")
        stage = CONVERSATION if only_turns or count % 2 else DESCRIPTION
        stays = count >= len(REPLY_MISTAKES)
        planted.append(Planted(truth.name, stage, None, kind, code, stays))
        closed.add((truth.name, stage))
        if stage == DESCRIPTION and (stays or code == "refusal"):
            closed.add((truth.name, CONVERSATION))  # there will be none
    slots = [
        (truth, stage, item)
        for truth in truths
        for stage, last in ((DESCRIPTION, len(truth.objects)), (CONVERSATION, len(truth.turns())))
        for item in range(2, last + 1)
        if (truth.name, stage) not in closed
    ]
    slots = [slots[i] for i in rng.permutation(len(slots))]
    kinds = [(CONVERSATION, kind) for kind in TURN_MISTAKES] + [(DESCRIPTION, kind) for kind in DESCRIPTION_MISTAKES]
    turn = 0
    while len(planted) < number:
        stage, kind = kinds[turn % len(kinds)]
        turn += 1
        code, change = (TURN_MISTAKES if stage == CONVERSATION else DESCRIPTION_MISTAKES)[kind]
        slot = next((one for one in slots if one[1] == stage and _possible(change, one)), None)
        if slot is None:
            if turn > 20 * number:
                raise ValueError(f"Only {len(planted)} of {number} mistakes fit into {len(truths)} clips.")
            continue
        slots.remove(slot)
        stays = kind == "common knowledge" or bool(rng.integers(2))
        planted.append(Planted(slot[0].name, stage, slot[2], kind, code, stays))
    free = [(truth, item) for truth, stage, item in slots if stage == CONVERSATION]
    for (truth, item), kind in zip(free[: number // 5], cycle(NEAR_MISSES), strict=False):
        planted.append(Planted(truth.name, CONVERSATION, item, kind, "", True))
    return planted


def _possible(change, slot: tuple[Truth, str, int]) -> bool:
    truth, stage, item = slot
    right = truth.description(item) if stage == DESCRIPTION else truth.turns()[item - 1]
    return change(truth, item, right) is not None


@contextmanager
def toy_endpoint(example: Example) -> Iterator[ScriptedEndpoint]:
    """The models of an example behind a scripted endpoint."""
    models = ToyModels(example.truths, example.planted)
    with scripted_endpoint(models.answer, models.fault, models=("writer", "verifier", "guesser")) as server:
        yield server


def command(example: Example, url: str) -> list[str]:
    """The arguments of annotate.py."""
    clips = example.folder / "clips"
    return [
        *("--videos", str(clips), "--masks", str(clips / RECORDS), "--name", "toy", "--output", str(example.output)),
        *("--endpoint", url, "--model", "writer", "--verifier-model", "verifier", "--blind-model", "guesser"),
        *("--video-licence", "cc0-1.0", "--mask-licence", "cc0-1.0", "--mask-origin", "toy world"),
        *("--writer-terms", "yes", "--verifier-terms", "yes", "--blind-terms", "yes"),
        *("--frames", str(SHOWN), "--image-size", str(IMAGE_SIZE), "--concurrency", "4", "--palette-share", "0"),
        *("--blind-tries", "2"),
        *("--price", "writer=1,4", "--price", "verifier=1,4", "--price", "guesser=0.1,0.4"),
    ]


def run(example: Example) -> int:
    """Annotates the clips; returns the exit code of annotate.py."""
    os.environ["OPENAI_API_KEY"] = KEY
    with toy_endpoint(example) as server:
        return annotate.main(command(example, server.url))


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def found_mistakes(example: Example) -> set[tuple]:
    """(clip, stage, item, code) of everything that was found in the first replies, and by the scored checks. Doubts
    about near misses that may be true are counted by [`near_misses`]: they are not claimed to be mistakes."""
    rows = read_rows(example.output / "findings.jsonl")
    may_be_true = [one for one in example.planted if one.kind in MAY_BE_TRUE]
    doubts = {(one.video, one.stage, one.item, code) for one in may_be_true for code in ("leak", "count")}
    return {
        (row["video"], row["stage"], row["item"], row["code"])
        for row in rows
        if row["round"] == 0 or row["code"] == "blind"
    } - doubts


def planted_mistakes(example: Example) -> set[tuple]:
    """The same of everything that was planned."""
    return {(one.video, one.stage, one.item, one.code) for one in example.planted if one.code}


def near_misses(example: Example) -> Counter[tuple[bool, str]]:
    """How many near misses are kept, for a person ("review") or rejected; first whether they may be mistakes."""
    rejected = {(video, stage, item) for video, stage, item, _ in rejections(example)}
    rows = [row for row in read_rows(example.output / "review.jsonl") if not row["audit"]]
    doubtful = {(row["record"], row["turn"]) for row in rows}
    found: Counter[tuple[bool, str]] = Counter()
    for one in example.planted:
        if not one.code:
            place = f"{one.video}/{one.stage}", one.item - 1
            lost = {(one.video, one.stage, one.item), (one.video, one.stage, None)} & rejected
            state = "rejected" if lost else "review" if place in doubtful else "kept"
            found[one.kind in MAY_BE_TRUE, state] += 1
    return found


class CodeScore(NamedTuple):
    """How often a code was planned, found where it was planned, and found elsewhere."""

    planted: int
    right: int
    wrong: int

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.wrong) if self.right + self.wrong else 1.0

    @property
    def recall(self) -> float:
        return self.right / self.planted if self.planted else 1.0


def scores(example: Example) -> dict[str, CodeScore]:
    """Precision and recall of the checks, by code."""
    planted, found = planted_mistakes(example), found_mistakes(example)
    result = {}
    for code in CODES:
        planned, seen = ({one for one in those if one[3] == code} for those in (planted, found))
        if planned or seen:
            result[code] = CodeScore(len(planned), len(planned & seen), len(seen - planned))
    return result


def score_lines(found: dict[str, CodeScore]) -> Iterator[str]:
    """Precision and recall as a table."""
    yield f"{'code':18} {'planted':>7} {'found':>6} {'wrong':>6} {'precision':>9} {'recall':>7}"
    for code, one in found.items():
        yield f"{code:18} {one.planted:7} {one.right:6} {one.wrong:6} {one.precision:9.3f} {one.recall:7.3f}"
    for name, codes in (("exact checks", set(found) - set(MODEL_CODES)), ("asked of a model", set(MODEL_CODES))):
        rows = [one for code, one in found.items() if code in codes]
        total = CodeScore(*(sum(column) for column in zip(*rows, strict=True))) if rows else CodeScore(0, 0, 0)
        counts = f"{total.planted:7} {total.right:6} {total.wrong:6}"
        yield f"{name:18} {counts} {total.precision:9.3f} {total.recall:7.3f}"


def tagged(question: dict, answer: dict, names: Sequence[str], stage: str) -> str:
    """A turn of a record as `Truth.facts` has it, or a description as `Truth.told` has it."""
    if stage == DESCRIPTION:
        return "".join(part["text"] for part in answer["content"])
    text = f"{tagged_text(question, names)} {tagged_text(answer, names)}"
    return " ".join(re.sub(r"</?p>", "", text).split())


def expected_rejections(example: Example) -> set[tuple]:
    """(clip, stage, item, code) of what must be rejected: mistakes that stay and are sure, and refusals."""
    return {
        (one.video, one.stage, one.item, one.code)
        for one in example.planted
        if one.code == "refusal" or (one.code and one.stays and one.kind not in FOR_A_PERSON)
    }


def rejections(example: Example) -> set[tuple]:
    """The same of `rejected.jsonl`."""
    found, numbers = set(), {truth.name: [one.name for one in truth.objects] for truth in example.truths}
    for row in read_rows(example.output / "rejected.jsonl"):
        video = row["record"].removesuffix(f"/{row['stage']}")
        item = None if row["turn"] is None else row["turn"] + 1
        if row["object"] is not None:
            item = numbers[video].index(row["object"]) + 1
        found |= {(video, row["stage"], item, reason["code"]) for reason in row["reasons"]}
    return found


def write_mixture(example: Example) -> Path:
    """A mixture of the records, for train.py with the folder as data root."""
    path = example.folder / "mixture.yaml"
    files = "files: {records: annotation/records.jsonl, media: clips}"
    write_text_atomically(path, f"sources:\n  mine: {{weight: 1, format: json_lines, {files}}}\n")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="new folder for clips, records and mixture")
    parser.add_argument("--clips", type=int, default=NUM_CLIPS)
    parser.add_argument("--mistakes", type=int, default=NUM_MISTAKES)
    given = parser.parse_args(arguments)
    example = make_example(given.output, given.clips, given.mistakes)
    code = run(example)
    if code:
        return code
    print("\n".join(score_lines(scores(example))))
    same = rejections(example) == expected_rejections(example)
    mistakes = [one for one in example.planted if one.code]
    corrected = sum(not one.stays and one.kind not in FOR_A_PERSON and one.code != "refusal" for one in mistakes)
    doubtful = sum(one.kind in FOR_A_PERSON for one in mistakes)
    print(f"{len(mistakes)} mistakes: {corrected} corrected when asked for, {doubtful} for a person")
    print(f"rejected: {'exactly' if same else 'NOT exactly'} the others")
    for (doubt, state), number in sorted(near_misses(example).items()):
        print(f"near misses that {'may be mistakes' if doubt else 'are right'}: {number} {state}")
    print(f"mixture for train.py: {write_mixture(example)}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
