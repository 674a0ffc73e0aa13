"""Write toy world to disk, in the file format of SAMA-239K or as records."""

import json
import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from .clip import Clip
from .questions import Scene, ToyTurn
from .tasks import describe_one
from .world import ToyWorld, encode_masks


# Frame folder and mask file of each source of SAMA-239K. SA-V is left out because its videos are mp4 files.
STORES = {
    "mevis/train/JPEGImages": "mevis_train_mask_dict.json",
    "lvvis/train/JPEGImages": "lvvis_train_mask_dict.json",
    "ref_youtube_vos/train/JPEGImages": "ref_youtube_train_mask_dict.pkl",
    "VidSTG/train": "VidSTG_mask_dict_train_updated.json",
}
ANNOTATIONS = "sama239k_train_final.json"
RECORDS = "records.jsonl"
JPEG = {"quality": 95, "subsampling": 0}
VIDSTG_INTERVAL = 4  # its frames are named by their index in the video, of which every fourth was kept


def write_sama239k(world: ToyWorld, folder: str | Path, indices: Iterable[int]) -> Path:
    """
    Write clips in the format of the published SAMA-239K: a list of videos, one mask dictionary per source, and frames
    as JPEG. Clips are assigned to the sources in turn; each has its turns as a conversation and descriptions of its
    objects.

    Args:
        world (`ToyWorld`): Source of the clips. The format cannot hold still images.
        folder (`str` or `Path`): Data root, created if needed.
        indices (iterable of `int`): Indices of the clips.

    Returns:
        Path of the list of videos.

    Raises:
        ValueError: if a clip is a still image.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    videos, masks = [], {store: {} for store in STORES}
    for count, index in enumerate(indices):
        task, clip, turns = world.generate(index)
        if task == "still":
            raise ValueError(f"clip {index} is a still, which SAMA-239K cannot hold: leave 'still' out of the tasks")
        store = tuple(STORES)[count % len(STORES)]
        names, listed = _frame_names(store, clip.num_frames, as_dicts=count % 2 == 1)
        video = f"{store}/{_video_name(store, index)}"
        _write_frames(clip.frames, folder / video, names)
        ids = _store_masks(clip, masks[store])
        rng = np.random.default_rng([world.seed, index])
        videos.append(
            {
                "video": video,
                "video_id": video.rsplit("/", 1)[1],
                "height": clip.frames.shape[1],
                "width": clip.frames.shape[2],
                "frames": listed,
                "anno_map": ids,
                "description": _descriptions(clip, ids, rng),
                **_conversation(turns, ids),
            }
        )
    for store, name in STORES.items():
        if name.endswith(".pkl"):
            (folder / name).write_bytes(pickle.dumps(masks[store]))
        else:
            (folder / name).write_text(json.dumps(masks[store]), encoding="utf-8")
    (folder / ANNOTATIONS).write_text(json.dumps(videos), encoding="utf-8")
    return folder / ANNOTATIONS


def _video_name(store: str, index: int) -> str:
    return f"{index:05d}" if store.startswith("lvvis") else f"toy{index:06d}"


def _frame_names(store: str, number: int, as_dicts: bool) -> tuple[list[str], list]:
    """File names, and how the annotation lists them: without suffix, with suffix, or as the dicts of VidSTG."""
    if not store.startswith("VidSTG"):
        stems = [f"{frame:05d}" for frame in range(number)]
        return [f"{stem}.jpg" for stem in stems], stems
    names = [f"frame_{frame * VIDSTG_INTERVAL}.jpg" for frame in range(number)]
    return names, [{"raw_filename": name} for name in names] if as_dicts else names


def _write_frames(frames: np.ndarray, folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for frame, name in zip(frames, names, strict=True):
        Image.fromarray(frame).save(folder / name, **JPEG)


def _store_masks(clip: Clip, masks: dict[str, list]) -> list[int]:
    """Add the masks of every object under the next free key; the key is -1 for an object that is never visible."""
    ids = []
    for track in clip.masks:
        ids.append(len(masks) if track.any() else -1)
        if track.any():
            masks[str(ids[-1])] = encode_masks(track)
    return ids


def _descriptions(clip: Clip, ids: list[int], rng: np.random.Generator) -> dict[str, str]:
    scene = Scene(clip, rng, masks=False)
    return {f"<obj{i}>": describe_one(scene, i).answer_text for i in scene.eligible(helpers=True) if ids[i] >= 0}


def _conversation(turns: list[ToyTurn], ids: list[int]) -> dict[str, list]:
    """The turns as text, with `<mask>` for a region and `<p> phrase </p> [SEG]` for a grounded phrase."""
    conversation, regions, truths = [], [], []
    for turn in turns:
        question = "".join("<mask>" if part["type"] == "region" else part["text"] for part in turn.question)
        answer = "".join(
            f"<p> {part['text']} </p> [SEG]" if part.get("objects") else part["text"] for part in turn.answer_parts
        )
        conversation += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        regions.append([ids[int(part["object"])] for part in turn.question if part["type"] == "region"])
        truths.append(
            [[ids[int(name)] for name in part["objects"]] for part in turn.answer_parts if part.get("objects")]
        )
    return {"conversation": conversation, "obj_masks": regions, "groundtruth": truths}


def write_records(world: ToyWorld, folder: str | Path, indices: Iterable[int]) -> Path:
    """
    Write clips as records, one per line: the frames of a clip as JPEG files in a folder, a still image as one file.

    Returns:
        Path of the JSON Lines file. Paths in it are relative to `folder`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / RECORDS, "w", encoding="utf-8") as file:
        for index in indices:
            frames, record, _ = world[index]
            if "image" in record:
                name = f"stills/{index:06d}.jpg"
                _write_frames(frames, folder / "stills", [f"{index:06d}.jpg"])
                visual = {"image": {"path": name}}
            else:
                names = [f"{frame:05d}.jpg" for frame in range(len(frames))]
                _write_frames(frames, folder / f"clips/{index:06d}", names)
                visual = {"video": {"path": f"clips/{index:06d}", "frames": names, "stride": 1}}
            rest = {key: value for key, value in record.items() if key not in ("image", "video")}
            file.write(json.dumps(rest | visual) + "\n")
    return folder / RECORDS
