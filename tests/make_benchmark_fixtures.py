"""
Writes tests/benchmark_fixtures: a data root with a few questions of every benchmark in its published format, except
SAMA-Bench, which make_fixtures.py writes.

    python tests/make_benchmark_fixtures.py [FOLDER]

Pictures are 20 x 20 and masks are rectangles, so that a test can say which score it expects.
"""

import sys
from functools import partial
from pathlib import Path

from make_fixtures import FOLDER, GREEN, RED, Writer, jpegs, numbered, polygon, rle


SIDE = 20
SQUARE = {"height": SIDE, "width": SIDE}
code = partial(rle, **SQUARE)
MIDDLE, CORNER, LOWER = code(5, 5, 15, 15), code(0, 0, 5, 5), code(10, 10, 20, 20)
BLACK = (0, 0, 0)


def expressions(*phrases: str, **each) -> dict:
    """Expressions numbered from 0; `each` gives a list of one value an expression."""
    fields = [dict(zip(each, values, strict=True)) for values in zip(*each.values(), strict=True)] or [{}] * len(
        phrases
    )
    return {str(i): {"exp": phrase, **more} for i, (phrase, more) in enumerate(zip(phrases, fields, strict=True))}


def pictures(out: Writer, folder: str, names: list[str]) -> None:
    for index, name in enumerate(names):
        out.image(f"{folder}/{name}", (20 * index,) * 3, **SQUARE)


def make_mevis(out: Writer) -> None:
    root, two = "video_datas/mevis", numbered(2)
    # Object 8 is not in the second frame; one expression means two objects
    v1 = {"frames": two, "expressions": expressions("The square.", "two squares", anno_id=[[7], [7, 8]])}
    v2 = {"frames": two, "expressions": expressions("a square that rests", anno_id=[[7]])}
    out.json(f"{root}/valid_u/meta_expressions.json", {"videos": {"v1": v1, "v2": v2}})
    out.json(f"{root}/valid_u/mask_dict.json", {"7": [MIDDLE, MIDDLE], "8": [CORNER, None]})
    # Without masks, expression ids that are not sorted like numbers, names with a gap
    names = ["00000", "00005"]
    three = {key: {"exp": f"square {key}"} for key in ("0", "2", "10")}
    out.json(f"{root}/valid/meta_expressions.json", {"videos": {"w1": {"frames": names, "expressions": three}}})
    for folder in ("valid_u/JPEGImages/v1", "valid_u/JPEGImages/v2"):
        pictures(out, f"{root}/{folder}", jpegs(2))
    pictures(out, f"{root}/valid/JPEGImages/w1", [f"{name}.jpg" for name in names])


def make_ref_youtube_vos(out: Writer) -> None:
    root = "video_datas/rvos"
    r1 = {"frames": ["00000", "00005"], "expressions": expressions("a square", "the corner")}
    r2 = {"frames": ["00000"], "expressions": expressions("what lies below")}
    out.json(f"{root}/meta_expressions/valid/meta_expressions.json", {"videos": {"r1": r1, "r2": r2}})
    out.pickle(f"{root}/ref_youtube_valid_mask_dict.pkl", {"0": [MIDDLE] * 2, "1": [CORNER, None], "2": [LOWER]})
    pictures(out, f"{root}/valid/JPEGImages/r1", ["00000.jpg", "00005.jpg"])
    pictures(out, f"{root}/valid/JPEGImages/r2", ["00000.jpg"])


def make_ref_davis(out: Writer) -> None:
    # Four annotators an object, object by object; masks are numbered over the videos sorted by name
    root, three = "video_datas/davis17", numbered(3)
    words = [f"the {name} of annotator {i}" for name in ("left half", "right half") for i in range(4)]
    both = {"frames": three, "expressions": expressions(*words, obj_id=["1"] * 4 + ["2"] * 4)}
    words = [f"the square of annotator {i}" for i in range(4)]
    one = {"frames": three, "expressions": expressions(*words, obj_id=["1"] * 4)}
    out.json(f"{root}/meta_expressions/valid/meta_expressions.json", {"videos": {"b-vid": one, "a-vid": both}})
    left, right = [code(0, 0, 10, 20)] * 3, [code(10, 0, 20, 20)] * 3
    tracks = [left] * 4 + [right] * 4 + [[MIDDLE] * 3] * 4
    out.pickle(f"{root}/mask_dict.pkl", {str(key): masks for key, masks in enumerate(tracks)})
    for name in ("a-vid", "b-vid"):
        pictures(out, f"{root}/valid/JPEGImages/{name}", jpegs(3))


def make_revos(out: Writer) -> None:
    root, name = "video_datas/revos", "LVVIS/train/00009"
    asked = expressions("a square", "Which of them would roll?", "no square", anno_id=[[0]] * 3, type_id=[0, 1, 2])
    video = {"frames": numbered(2), "expressions": asked}
    out.json(f"{root}/meta_expressions_valid_.json", {"videos": {name: video}})
    out.json(f"{root}/mask_dict.json", {"0": [MIDDLE, MIDDLE]})
    whole = {"masks_rle": [code(0, 0, SIDE, SIDE)] * 2, "foreground_ratio": [1.0, 1.0]}
    out.json(f"{root}/mask_dict_foreground.json", {name: whole})
    pictures(out, f"{root}/{name}", jpegs(2))


def make_refcoco(out: Writer) -> None:
    # 40 and 25 pixels in image 1; two polygons that overlap in image 2
    names = {n: f"COCO_train2014_{n:012d}.jpg" for n in (1, 2)}
    shapes = {11: [polygon(0, 0, 10, 4)], 12: [polygon(5, 5, 10, 10)], 21: [polygon(1, 1, 4, 6), polygon(3, 3, 7, 5)]}
    images = [{"id": n, "file_name": name, **SQUARE} for n, name in names.items()]
    notes = [{"id": key, "image_id": key // 10, "segmentation": parts} for key, parts in shapes.items()]

    def ref(ref_id: int, ann_id: int, split: str, *sentences: str) -> dict:
        raw = [{"raw": sentence, "sent": sentence.lower()} for sentence in sentences]
        return {"ref_id": ref_id, "ann_id": ann_id, "image_id": ann_id // 10, "split": split, "sentences": raw}

    first = [ref(0, 11, "val", "The top"), ref(1, 12, "val", "middle.", "the square")]
    refs = {
        "refcoco/refs(unc).p": [*first, ref(2, 21, "testA", "man"), ref(3, 12, "testB", "not a man")],
        "refcoco+/refs(unc).p": [*first, ref(2, 21, "testA", "man"), ref(3, 12, "testB", "not a man")],
        "refcocog/refs(umd).p": [*first, ref(2, 21, "test", "A man in a picture.")],
    }
    for name, entries in refs.items():
        out.pickle(f"coco/{name}", entries)
        out.json(f"coco/{name.split('/')[0]}/instances.json", {"images": images, "annotations": notes})

    # gRefCOCO is JSON, its annotations are lists, [-1] where a sentence fits nothing
    def gref(ref_id: int, image: int, split: str, keys: list[int], sentence: str) -> dict:
        words = [{"raw": sentence, "sent": sentence.lower()}]
        about = {"ref_id": ref_id, "ann_id": keys, "image_id": image, "split": split, "sentences": words}
        return {**about, "no_target": keys == [-1]}

    grefs = [
        gref(0, 1, "val", [11], "the top"), gref(1, 1, "val", [11, 12], "Both of them"),
        gref(2, 1, "val", [-1], "a man in blue"), gref(3, 2, "val", [-1], "a green cow"),
        gref(4, 2, "testA", [21], "man"), gref(5, 2, "testB", [-1], "two men"),
    ]  # fmt: skip
    out.json("coco/grefcoco/grefs(unc).json", grefs)
    out.json("coco/grefcoco/instances.json", {"images": images, "annotations": notes})
    for name, colour in zip(names.values(), (RED, GREEN), strict=True):
        out.image(f"coco/train2014/{name}", colour, **SQUARE)


def make_captions(out: Writer) -> None:
    root = "glamm_data/annotations"

    def annotation(number: int, image: str, *box: int) -> dict:
        return {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": code(*box)}

    i1 = [annotation(1, "i1", 2, 2, 12, 12), annotation(2, "i1", 14, 14, 18, 18)]
    files = {
        "val": {"i1": i1, "i2": [annotation(3, "i2", 0, 0, 10, 10)]},
        "test": {"i3": [annotation(1, "i3", 5, 5, 15, 15)]},
    }
    captions = {
        "i1": ("A man plays with a ball.", ["a man", "a ball"]),
        "i2": ("A cat on the grass.", ["a cat"]),
        "i3": ("A red square.", ["A red square"]),
    }
    for split, by_image in files.items():
        images = [{"id": name, **SQUARE} for name in by_image]
        masks = [item for items in by_image.values() for item in items]
        kinds = [{"id": 1, "name": "object"}]
        notes = [{"id": i, "image_id": name, "caption": captions[name][0], "labels": captions[name][1]}
                 for i, name in enumerate(by_image)]  # fmt: skip
        out.json(
            f"{root}/{split}_gcg_coco_mask_gt.json", {"images": images, "annotations": masks, "categories": kinds}
        )
        out.json(f"{root}/{split}_gcg_coco_caption_gt.json", {"images": images, "annotations": notes})
        for name in by_image:
            out.image(f"glamm_data/images/grandf/val_test/{name}.jpg", RED, **SQUARE)
    regions = [
        ("1", 11, "the red car on the left", polygon(0, 0, 10, 4)),
        ("2", 21, "a small dog", polygon(5, 5, 9, 9)),
    ]
    images = [{"id": int(key), "file_name": f"COCO_train2014_{int(key):012d}.jpg", **SQUARE} for key, *_ in regions]
    notes = [{"id": number, "image_id": int(key), "caption": caption, "segmentation": [shape], "category_id": 1}
             for key, number, caption, shape in regions]  # fmt: skip
    out.json(f"{root}/finetune_refcocog_val_with_mask.json", {"images": images, "annotations": notes})


def make_mme(out: Writer) -> None:
    # One category is flat, the other has its pictures and questions in two folders
    end = "Please answer yes or no."
    for name, colour, right, wrong in (("one", RED, "red", "green"), ("two", GREEN, "green", "red")):
        out.image(f"mme/color/{name}.jpg", colour, **SQUARE)
        asked = f"Is it {right}? {end}\tYes\nIs it {wrong}? {end}\tNo\n"
        out.path(f"mme/color/{name}.txt").write_text(asked, encoding="utf-8")
    out.image("mme/OCR/images/1.jpg", BLACK, **SQUARE)
    path = out.path("mme/OCR/questions_answers_YN/1.txt")
    path.write_text(f"Is there a word? {end}\tNo\nIs it dark? {end}\tYes\n", encoding="utf-8")


MAKERS = (
    make_mevis, make_ref_youtube_vos, make_ref_davis, make_revos, make_refcoco, make_captions, make_mme,
)  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER.parent / "benchmark_fixtures"
    for make in MAKERS:
        make(Writer(folder))
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    print(f"{len(sizes)} files, {sum(sizes) / 1e6:.2f} MB in {folder}")


if __name__ == "__main__":
    main()
