"""
Writes tests/fixtures: at least two samples of every source in its published format, laid out like a data root.

    python tests/make_fixtures.py [FOLDER]

Everything is tiny (pictures of 32 x 24) and written by hand: masks are rectangles (x1, y1, x2, y2), so that a test can
say what it expects. The awkward cases of the real files are in it. Nothing of ours is used to write it.
"""

import json
import pickle
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image
from pycocotools import mask as coco


FOLDER = Path(__file__).parent.parent / "tests" / "fixtures"
HEIGHT, WIDTH = 24, 32
RED, GREEN, BLUE = (220, 40, 40), (40, 180, 60), (50, 80, 220)


def canvas(x1: int, y1: int, x2: int, y2: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    return mask


def rle(*box: int, **size: int) -> dict:
    code = coco.encode(canvas(*box, **size))
    return {"size": code["size"], "counts": code["counts"].decode("ascii")}


def uncompressed(*box: int) -> dict:
    runs, value, length = [], 0, 0
    for pixel in canvas(*box).ravel(order="F").tolist():
        if pixel != value:
            runs, value, length = [*runs, length], pixel, 0
        length += 1
    return {"size": [HEIGHT, WIDTH], "counts": [*runs, length]}


def bytes_rle(*box: int) -> dict:
    """As the pickles have it."""
    return {"size": [HEIGHT, WIDTH], "counts": coco.encode(canvas(*box))["counts"]}


def polygon(x1: int, y1: int, x2: int, y2: int) -> list[float]:
    return [float(number) for number in (x1, y1, x2, y1, x2, y2, x1, y2)]


class Writer:
    """Writes files below one folder."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def json(self, name: str, content) -> None:
        self.path(name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def pickle(self, name: str, content) -> None:
        self.path(name).write_bytes(pickle.dumps(content, protocol=2))

    def image(self, name: str, colour=RED, height: int = HEIGHT, width: int = WIDTH) -> None:
        Image.fromarray(np.full((height, width, 3), colour, dtype=np.uint8)).save(self.path(name), quality=90)

    def frames(self, folder: str, names: list[str]) -> None:
        """Frame i is grey 20 * i, so that a test can see which one it was given."""
        for index, name in enumerate(names):
            self.image(f"{folder}/{name}", (20 * index,) * 3)

    def video(self, name: str, num_frames: int) -> None:
        """As `frames`, in a video file without dates or versions in it."""
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with av.open(str(self.path(name)), "w", format="mp4", options=options) as container:
            stream = container.add_stream("mpeg4", rate=24)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.options = {"flags": "+bitexact", "qscale": "2"}
            stream.codec_context.thread_count = 1
            for index in range(num_frames):
                picture = np.full((HEIGHT, WIDTH, 3), 20 * index, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))


def numbered(count: int) -> list[str]:
    return [f"{index:05d}" for index in range(count)]


def jpegs(count: int) -> list[str]:
    return [f"{name}.jpg" for name in numbered(count)]


def human(text: str, **extra) -> dict:
    return {"from": "human", "value": text, **extra}


def gpt(text: str) -> dict:
    return {"from": "gpt", "value": text}


def make_refcoco(out: Writer) -> None:
    # Object 11 is two polygons that overlap; image 3 belongs to the validation split only
    for number, colour in ((1, RED), (2, GREEN), (3, BLUE)):
        out.image(f"coco/train2014/COCO_train2014_{number:012d}.jpg", colour)
    size = {"height": HEIGHT, "width": WIDTH}
    images = [{"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", **size} for n in (1, 2, 3)]
    shapes = {
        11: (1, [polygon(2, 2, 12, 12), polygon(8, 8, 20, 20)]),
        12: (1, [polygon(20, 2, 30, 10)]),
        21: (2, [polygon(0, 0, 32, 6)]),
        31: (3, [polygon(4, 4, 8, 8)]),
    }
    annotations = [{"id": key, "image_id": n, "segmentation": parts} for key, (n, parts) in shapes.items()]

    def ref(ref_id: int, ann_id: int, split: str, *sentences: str) -> dict:
        raw = [{"raw": sentence, "sent": sentence.lower()} for sentence in sentences]
        return {"ref_id": ref_id, "ann_id": ann_id, "image_id": ann_id // 10, "split": split, "sentences": raw}

    refs = {
        # Two entries about object 12, a sentence that is only a full stop
        "refcoco/refs(unc).p": [
            ref(0, 11, "train", "The Left man.", "man in red"),
            ref(1, 12, "train", "right dog"),
            ref(2, 12, "train", ".", "small dog"),
            ref(3, 21, "train", "the wall"),
            ref(4, 31, "val", "blue thing"),
            ref(5, 21, "testA", "top"),
            ref(6, 31, "testB", "bottom"),
        ],
        "refcoco+/refs(unc).p": [ref(0, 11, "train", "man"), ref(1, 21, "train", "wall")],
        "refcocog/refs(umd).p": [ref(0, 12, "train", "A small dog on the right."), ref(1, 21, "train", "A red wall.")],
    }
    for name, entries in refs.items():
        out.pickle(f"coco/{name}", entries)
        out.json(f"coco/{name.split('/')[0]}/instances.json", {"images": images, "annotations": annotations})


def make_llava(out: Writer) -> None:
    picture = "coco/train2017/000000000001.jpg"
    out.image(f"llava_data/llava_images/{picture}")
    first = [
        human("<image>\nWhat is it?\nAnswer the question using a single word."), gpt("Square."),
        human("What\ncolour? "), gpt(" Red.\n"),
    ]  # fmt: skip
    items = [
        {"id": "a", "image": picture, "conversations": first},
        {"id": "b", "conversations": [gpt("Hello."), human("Name a colour."), gpt("Blue.")]},
        {"id": "a", "image": picture, "conversations": [human("Where is it?\n<image>"), gpt("Left."), human("Why?")]},
        {"id": "c", "image": picture, "conversations": [human("Is it red?"), gpt("Yes.")]},
    ]
    out.json("llava_data/llava_v1_5_mix665k.json", items)


def make_mevis(out: Writer) -> None:
    # Frames out of order; null, a list of codes and an uncompressed code among the masks; a video of 13 frames
    vid_b = {
        "frames": ["00002", "00000", "00001"],
        "expressions": {
            "0": {"exp": "The Moving dog.", "anno_id": [7], "obj_id": [0]},
            "2": {"exp": "two dogs", "anno_id": [7, 8], "obj_id": [0, 1]},
            "10": {"exp": "dog on the right", "anno_id": [8], "obj_id": [1]},
        },
    }
    vid_a = {"frames": numbered(13), "expressions": {"0": {"exp": "cat", "anno_id": ["9"], "obj_id": [0]}}}
    masks = {
        "7": [rle(0, 0, 8, 8), None, rle(4, 0, 12, 8)],
        "8": [[rle(16, 0, 24, 8), rle(16, 4, 24, 12)], uncompressed(18, 0, 26, 8), None],
        "9": [rle(i, 2, i + 6, 10) for i in range(13)],
    }
    out.json("video_datas/mevis/train/meta_expressions.json", {"videos": {"vid_b": vid_b, "vid_a": vid_a}})
    out.json("video_datas/mevis/train/mask_dict.json", masks)
    out.frames("video_datas/mevis/train/JPEGImages/vid_b", jpegs(3))
    out.frames("video_datas/mevis/train/JPEGImages/vid_a", jpegs(13))


def make_revos(out: Writer) -> None:
    # Video names hold slashes, an expression may be a question, obj_id may be missing
    videos = {
        "LVVIS/train/00001": {
            "frames": numbered(2),
            "expressions": {
                "0": {"exp": "Which animal is about to jump?", "anno_id": [0], "type_id": 1},
                "1": {"exp": "the two animals", "anno_id": [0, 1], "type_id": 0, "obj_id": [0, 1]},
            },
        },
    }
    cup = {"exp": "the cup", "anno_id": [2], "type_id": 0}
    videos["TAO/train/clip"] = {"frames": ["f1", "f2"], "expressions": {"0": cup}}
    masks = {"0": [rle(0, 0, 4, 4), rle(1, 0, 5, 4)], "1": [None, rle(2, 2, 9, 6)]}
    masks["2"] = [rle(5, 5, 9, 9), rle(6, 5, 10, 9)]
    out.json("video_datas/revos/meta_expressions_train_.json", {"videos": videos})
    out.json("video_datas/revos/mask_dict.json", masks)
    out.frames("video_datas/revos/LVVIS/train/00001", jpegs(2))
    out.frames("video_datas/revos/TAO/train/clip", ["f1.jpg", "f2.jpg"])


def make_ref_youtube_vos(out: Writer) -> None:
    # Mask keys are running numbers over the file: "10" comes before "2", "zebra" before "ant". Mask n begins at x = n
    zebra = {"frames": numbered(2), "expressions": {str(i): {"exp": f"zebra number {i}"} for i in range(11)}}
    ant = {"frames": numbered(2), "expressions": {"0": {"exp": "an ant"}, "1": {"exp": "the other ant"}}}
    path = "video_datas/rvos/meta_expressions/train/meta_expressions.json"
    out.json(path, {"videos": {"zebra": zebra, "ant": ant}})
    masks = {str(key): [bytes_rle(key, 0, key + 4, 4), None] for key in range(13)}
    out.pickle("video_datas/rvos/ref_youtube_train_mask_dict.pkl", masks)
    for name in ("zebra", "ant"):
        out.frames(f"video_datas/rvos/train/JPEGImages/{name}", jpegs(2))


def make_ref_davis(out: Writer) -> None:
    # Running numbers over the videos sorted by name: those of "bear" come before those of "dog"
    dog = {"frames": numbered(2), "expressions": {"0": {"exp": "a dog"}}}
    bear = {"frames": numbered(2), "expressions": {"0": {"exp": "a bear"}, "1": {"exp": "the bear"}}}
    folder = "video_datas/davis17"
    out.json(f"{folder}/meta_expressions/valid/meta_expressions.json", {"videos": {"dog": dog, "bear": bear}})
    out.pickle(f"{folder}/mask_dict.pkl", {str(key): [bytes_rle(key, 0, key + 4, 4)] * 2 for key in range(3)})
    out.frames(f"{folder}/valid/JPEGImages/dog", jpegs(2))
    out.frames(f"{folder}/valid/JPEGImages/bear", jpegs(2))


def make_chat_univi(out: Writer) -> None:
    # The second video is named .mkv and lies there as .mp4
    one = [human("What happens?\n<image>"), gpt("It grows brighter.")]
    two = [human("<image>\nIs it dark?"), gpt("At first."), human("And then?"), gpt("No.")]
    items = [{"video": "v_one.mp4", "conversations": one}, {"video": "v_two.mkv", "conversations": two}]
    out.json("video_datas/chat_univi/video_chat.json", items)
    out.video("video_datas/chat_univi/Activity_Videos/v_one.mp4", 6)
    out.video("video_datas/chat_univi/Activity_Videos/v_two.mp4", 6)


def make_ref_sav(out: Writer) -> None:
    # Of 13 frames every fourth is annotated: 4. The first folder of the paths does not exist
    content, folder = {}, "sav_train/sav_000"
    shifts = {"sav_000001": range(4), "sav_000002": range(3)}
    for name, shift in shifts.items():
        out.video(f"ref_sav/sam_v_full/{folder}/{name}.mp4", 13 if name == "sav_000001" else 9)
        masklet = [[rle(i, 0, i + 8, 8), rle(16, i, 24, i + 8)] for i in shift]
        out.json(f"ref_sav/sam_v_full/{folder}/{name}_manual.json", {"video_id": name, "masklet": masklet})
        content[name] = {
            "video_path": f"sav_000/{folder}/{name}.mp4",
            "anno_path": f"sav_000/{folder}/{name}_manual.json",
            "objects": {
                "0": {"formated": "A Square that moves right.", "short_caps": ["square", "moving square"]},
                "1": {"formated": "A square that sinks.", "short_caps": ["sinking square"]},
            },
        }
    del content["sav_000002"]["objects"]["0"]
    out.json("ref_sav/Ref-SAV.json", content)


def make_gcg(out: Writer) -> None:
    notes, images = "glamm_data/annotations", "glamm_data/images"
    for name in ("coco2017/train2017/p1", "coco2017/train2017/p2", "grandf/train/g1", "grandf/train/g2"):
        out.image(f"{images}/{name}.jpg")

    def grounding(start: int, end: int, *masks: dict) -> dict:
        return {"token_positives": [start, end], "rle_masks": list(masks)}

    # Two masks of one phrase overlap; a phrase of another caption is null; quotes around the caption
    dog = grounding(0, 5, rle(0, 0, 8, 8), rle(4, 4, 12, 12))
    first = {"A dog": dog, "a ball": grounding(15, 21, rle(20, 0, 24, 4)), "Sky": None}
    second = {"A dog": None, "a ball": None, "Sky": grounding(0, 3, rle(0, 0, 32, 6))}
    # Positions in the caption as it stands, with its quotes
    third = {"A dog": None, "a cat": grounding(2, 7, rle(2, 2, 6, 6)), "straw": grounding(11, 16, rle(0, 8, 32, 24))}
    out.json(f"{notes}/OpenPsgGCG_train.json", [
        {"file_name": "train2017/p1.jpg", "caption": '"A dog runs for a ball." ', "groundings": first},
        {"file_name": "train2017/p2.jpg", "caption": "Sky over a field.", "groundings": second},
        {"file_name": "train2017/p2.jpg", "caption": ' "A cat on Straw." ', "groundings": third},
    ])  # fmt: skip
    # The second has no mask at all
    out.json(f"{notes}/GranDf_HA_GCG_train.json", [
        {"file_name": "g1.jpg", "caption": "Two cats sleep.", "groundings": {
            "Two cats": grounding(0, 8, rle(0, 0, 8, 8), rle(16, 0, 24, 8))}},
        {"file_name": "g2.jpg", "caption": "Nothing here.", "groundings": {"Two cats": None}},
        {"file_name": "g2.jpg", "caption": "One cat.", "groundings": {"One cat": grounding(0, 7, rle(1, 1, 5, 5))}},
    ])  # fmt: skip


def make_gcg_flickr_and_refcocog(out: Writer) -> None:
    notes, images = "glamm_data/annotations", "glamm_data/images"
    for number in (1, 2, 3):
        out.image(f"{images}/flickr30k/Flickr30K/{999 + number}.jpg", GREEN, 40, 40)
        out.image(f"{images}/coco2014/train2014/COCO_train2014_{number:012d}.jpg", BLUE)
    # Too short a caption, an ignored box, an empty box, two people for one phrase
    square = {"height": 40, "width": 40}
    flickr = {"images": [
        {"id": 1, "file_name": "1000.jpg", "caption": "Two men with a red kite", **square},
        {"id": 2, "file_name": "1001.jpg", "caption": "Two men", **square},
        {"id": 3, "file_name": "1002.jpg", "caption": "A kite above trees", **square},
    ], "annotations": [
        {"id": 1, "image_id": 1, "bbox": [20, 0, 10, 10], "area": 100, "tokens_positive": [[13, 23]],
         "sam_mask": rle(20, 0, 30, 10, height=40, width=40)},
        {"id": 2, "image_id": 1, "bbox": [0, 0, 8, 30], "area": 240, "tokens_positive": [[0, 7], [8, 12]],
         "sam_mask": rle(0, 0, 8, 30, height=40, width=40)},
        {"id": 3, "image_id": 1, "bbox": [10, 0, 8, 30], "area": 240, "tokens_positive": [[0, 7]],
         "sam_mask": rle(10, 0, 18, 30, height=40, width=40)},
        {"id": 4, "image_id": 1, "bbox": [0, 0, 8, 8], "area": 64, "ignore": 1, "tokens_positive": [[0, 3]],
         "sam_mask": rle(0, 0, 8, 8, height=40, width=40)},
        {"id": 5, "image_id": 3, "bbox": [0, 0, 0, 4], "area": 0, "tokens_positive": [[0, 6]],
         "sam_mask": rle(0, 0, 1, 4, height=40, width=40)},
        {"id": 6, "image_id": 3, "bbox": [0, 20, 40, 20], "area": 800, "tokens_positive": [[13, 18]],
         "sam_mask": rle(0, 20, 40, 40, height=40, width=40)},
    ]}  # fmt: skip
    out.json(f"{notes}/flickr_mergedGT_GCG_train.json", flickr)
    # Capitals, spans that overlap, a phrase that is not there, one that is also inside a word, polygons that overlap
    out.json(f"{notes}/RefCOCOg_GCG_train.json", [
        {"101": {"img_file_name": "COCO_train2014_000000000001.jpg",
                 "caption": '"A Woman next to a man in Red"', "refs": [
            {"sentence": "man in red", "bbox": [16, 0, 8, 8], "segmentation": [polygon(16, 0, 24, 8)]},
            {"sentence": "A woman next to a man", "bbox": [0, 0, 12, 12],
             "segmentation": [polygon(0, 0, 8, 8), polygon(4, 4, 12, 12)]},
            {"sentence": "hat", "bbox": [0, 0, 2, 2], "segmentation": [polygon(0, 0, 2, 2)]},
        ]}},
        {"102": {"img_file_name": "COCO_train2014_000000000002.jpg", "caption": "A woman, a man", "refs": [
            {"sentence": "Man", "bbox": [0, 0, 4, 4], "segmentation": [polygon(0, 0, 4, 4)]}]}},
    ])  # fmt: skip


def make_osprey(out: Writer) -> None:
    folder = "osprey-724k"
    for place in ("train2014/one", "val2014/two", "train2017/three", "val2017/four"):
        out.image(f"{folder}/coco/{place}.jpg")
    size = {"height": HEIGHT, "width": WIDTH}
    both = [{"segmentation": [polygon(0, 0, 8, 8)]}, {"segmentation": uncompressed(4, 4, 12, 12)}]
    code = [{"segmentation": rle(16, 0, 24, 8)}]

    def item(name: str, shapes: list, **content) -> dict:
        return {"file_name": f"{name}.jpg", **size, "annotation": shapes, **content}

    talk = [
        human("What is <region1> to <region2>?\nSay it shortly."), gpt("<region1> is left of <region2>."),
        human("Is <region2> big?"), gpt("Yes."),
    ]  # fmt: skip
    short = [human("What colour is <region1>?"), gpt("Red")]
    files = {
        "conversation": [
            item("one", both, conversations=talk),
            item("three", code, conversations=[*short, human("Sure?")]),
        ],
        "detail_description": [
            item("two", both, description=["A red <square>.", " Another one. "]),
            item("four", code, description=["A part of the wall."]),
        ],
        "part_level": [item("one", both, conversations=talk[:2]), item("two", both, conversations=talk[2:])],
        "short_form": [item("three", both, conversations=short), item("four", both, conversations=talk[2:])],
        "lvis_positive_negative": [
            item("one", code, conversations=[human("Is <region1> a dog?"), gpt("No.")]),
            item("four", code, conversations=[human("Is <region1> a wall?"), gpt("Yes.")]),
        ],
    }
    for name, items in files.items():
        out.json(f"{folder}/Osprey-724K/osprey_{name}.json", items)


MAN_AND_DOG = [
    human("<video>\nWhat is the man <mask> doing?"),
    gpt("<p> The man </p> [SEG] feeds <p> a dog </p> [SEG]."),
    # a sentence that asks for masks already, older tags, one [SEG] for two objects
    human("How do <mask> and <mask> differ? Response with interleaved segmentation masks."),
    gpt("<g_s>Both<g_e> <seg> run. "),
    # left out: two <mask> and one object
    human("Compare <mask> with <mask>."),
    gpt("<p> The man </p> [SEG] is bigger."),
    # an object without masks: an empty entry, a phrase without [SEG]
    human("What is behind it?"),
    gpt("<p> The sky </p> and <p> the dog </p> [SEG]."),
    # the next four: without any [SEG] once the third is left out, because it has one entry too few
    human("Why?"),
    gpt("Because."),
    human("Where is <mask>?"),
    gpt("<p> It </p> [SEG] is left of <p> the dog </p> [SEG]."),
    human("And then?"),
]
MAN_AND_DOG_MASKS = {
    "obj_masks": [[3], [3, 4], [3], [], [], [3]],
    "groundtruth": [[[3], [4]], [[3, 4]], [[3]], [[], [4]], [], [[3]]],
}


def make_sama239k(out: Writer) -> None:
    root, size = "sama239k_data", {"height": HEIGHT, "width": WIDTH}
    mevis = {"video": "mevis/train/JPEGImages/abc", "video_id": "abc", **size, "frames": numbered(6)}
    # Object 2 has no mask, object 3 is object 1 again
    mevis |= {"anno_map": [3, 4, -1, 4], "conversation": MAN_AND_DOG, **MAN_AND_DOG_MASKS}
    mevis["description"] = {"<obj0>": "A man. ", "<obj1>": "A dog.", "<obj2>": "The sky.", "<obj3>": "That dog."}
    lvvis = {"video": "lvvis/train/JPEGImages/00007", "video_id": 7, **size, "frames": numbered(2)}
    lvvis |= {"anno_map": ["5"], "description": {"<obj0>": " A car.\n"}}
    rvos = {"video": "ref_youtube_vos/train/JPEGImages/zebra", "video_id": "zebra", **size, "frames": numbered(2)}
    rvos |= {"anno_map": [2], "conversation": [human("Show it."), gpt("It is [SEG] here.")]}
    rvos |= {"obj_masks": [[]], "groundtruth": [[[2]]]}
    # Names in the order of time, which is not the order of strings
    stg = [{"raw_filename": f"frame_{i}.jpg", "index": i} for i in (0, 4, 8, 12)]
    vidstg = {"video": "VidSTG/train/2400", "video_id": "2400", **size, "frames": stg, "anno_map": [0]}
    vidstg |= {"conversation": [human("What does <mask> do?"), gpt("<p> The child </p> [SEG] runs.")]}
    vidstg |= {"obj_masks": [[0]], "groundtruth": [[[0]]], "description": {"<obj0>": "A child."}}
    sav = {"video": "sav_train/sav_000/sav_000001.mp4", "video_id": "sav_000001", "height": None, "width": None}
    sav |= {"frames": None, "anno_map": [10], "description": {"<obj0>": "A square."}}
    sav |= {"conversation": [human("<image>\nWhere does <mask> go?"), gpt("<p> It </p> [SEG] goes right.")]}
    sav |= {"obj_masks": [[10]], "groundtruth": [[[10]]]}
    out.json(f"{root}/sama239k_train_final.json", [mevis, lvvis, rvos, vidstg, sav])

    man = [rle(0, 0, 8, 12), None, *(rle(i, 0, i + 8, 12) for i in range(1, 5))]
    out.json(f"{root}/mevis_train_mask_dict.json", {"3": man, "4": [rle(20, 12, 28, 20)] * 6})
    out.json(f"{root}/lvvis_train_mask_dict.json", {"5": [None, rle(2, 2, 10, 6)]})
    out.json(f"{root}/VidSTG_mask_dict_train_updated.json", {"0": [rle(i, i, i + 6, i + 6) for i in range(4)]})
    out.json(f"{root}/SAV_mask_dict_train.json", {"10": [rle(i, 0, i + 8, 8) for i in range(3)]})  # of 4 frames
    out.pickle(f"{root}/ref_youtube_train_mask_dict.pkl", {"2": [bytes_rle(2, 0, 6, 4), None]})
    out.frames(f"{root}/mevis/train/JPEGImages/abc", jpegs(6))
    out.frames(f"{root}/lvvis/train/JPEGImages/00007", jpegs(2))
    out.frames(f"{root}/ref_youtube_vos/train/JPEGImages/zebra", jpegs(2))
    out.frames(f"{root}/VidSTG/train/2400", [f"frame_{i}.jpg" for i in (0, 4, 8, 12)])
    out.video(f"{root}/sav_train/sav_000/sav_000001.mp4", 13)


def make_sama_bench(out: Writer) -> None:
    def entry(video: str, frames: list, key: int, first_id: int) -> dict:
        item = {"video": video, "video_id": video, "height": 0, "width": 0, "frames": frames, "anno_map": [key, -1]}
        talk = [human("<video>\nWhat is <mask>?", question_id=first_id), gpt("<p> It </p> [SEG] is a square.")]
        talk += [human("What shape is <mask>?", question_id=first_id + 1), gpt("Square.")]
        item |= {"conversation": talk, "obj_masks": [[key], [key]], "groundtruth": [[[key]], []]}
        return item | {"description": {"<obj0>": " A square. "}, "description_id": {"<obj0>": first_id + 2}}

    root, stg = "sama_bench", [f"frame_{i}.jpg" for i in (0, 4, 8, 12)]
    files = {"mevis": [entry("mevis/val_u/JPEGImages/m1", numbered(3), 11, 0)]}
    second = [{**message, "question_id": 900 + i} for i, message in enumerate(MAN_AND_DOG)]
    files["mevis"].append(
        {"video": "mevis/val_u/JPEGImages/m2", "frames": numbered(3), "anno_map": [3, 4, -1], "conversation": second}
        | MAN_AND_DOG_MASKS
        | {"description": {"<obj1>": "A dog."}, "description_id": {"<obj1>": 77}}
    )
    rvos = "ref_youtube_vos/valid/JPEGImages/r1"
    for part in (0, 1):
        files[f"lvvis_{part}"] = [entry("lvvis/val/JPEGImages/2", numbered(3), 21, 100 + 10 * part)]
        files[f"ref_youtube_vos_{part}"] = [entry(rvos, numbered(3), 31, 200 + 10 * part)]
    for part in range(8):
        names = [{"raw_filename": name} for name in stg] if part % 2 else stg
        files[f"VidSTG_{part}"] = [entry("VidSTG/val/3001", names, 41, 300 + 10 * part)]
    for name, items in files.items():
        out.json(f"{root}/{name}.json", items)

    # Masks that end before the video does, and masks of twice the size
    out.json(f"{root}/mevis_mask_dict.json", {
        "11": [rle(0, 0, 8, 8), None], "3": [rle(0, 0, 8, 12)] * 3, "4": [rle(20, 12, 28, 20)] * 3,
    })  # fmt: skip
    out.json(f"{root}/ref_youtube_vos_mask_dict.json", {"31": [rle(8, 8, 24, 16, height=48, width=64)] * 3})
    out.json(f"{root}/VidSTG_mask_dict.json", {"41": [rle(0, 0, 4, 4)] * 4})
    out.json(f"{root}/lvvis_mask_dict.json", {
        "21": {"id": 21, "category_id": 4, "segmentations": [None, rle(3, 3, 9, 9), rle(4, 3, 10, 9)]},
    })  # fmt: skip
    videos = ("mevis/val_u/JPEGImages/m1", "mevis/val_u/JPEGImages/m2", "lvvis/val/JPEGImages/00002", rvos)
    for folder in videos:
        out.frames(f"{root}/{folder}", jpegs(3))
    out.frames(f"{root}/VidSTG/val/3001", stg)


def make_json_lines(out: Writer) -> None:
    def say(text: str) -> dict:
        return {"type": "text", "text": text}

    clip = {"path": "clip", "frames": ["0.png", "1.png"]}
    question = [say("What is "), {"type": "region", "object": "ball"}, say("?")]
    answer = [{"type": "grounded", "text": "A ball", "objects": ["ball"]}, say(".")]

    def talk(asked: list, answered: list) -> dict:
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}

    ball = {"ball": {"masks": [uncompressed(0, 0, 4, 4), None]}}
    records = [
        {"id": "mine/1", "video": clip, "objects": ball, **talk(question, answer)},
        talk([say("Hello")], [say("Hi.")]),
    ]
    lines = [json.dumps(record) for record in records]
    out.path("custom/records.jsonl").write_text(f"{lines[0]}\n\n{lines[1]}\n", encoding="utf-8")
    out.frames("custom/media/clip", clip["frames"])


MAKERS = (
    make_refcoco, make_llava, make_mevis, make_revos, make_ref_youtube_vos, make_ref_davis, make_chat_univi,
    make_ref_sav, make_gcg, make_gcg_flickr_and_refcocog, make_osprey, make_sama239k, make_sama_bench, make_json_lines,
)  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for make in MAKERS:
        make(Writer(folder))
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    print(f"{len(sizes)} files, {sum(sizes) / 1e6:.2f} MB in {folder}")


if __name__ == "__main__":
    main()
