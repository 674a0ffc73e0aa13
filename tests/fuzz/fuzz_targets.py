"""What is fuzzed. A target draws a mutant, hands it to the code, and says which errors that may raise."""

import itertools
import json
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fixture_sources import FIXTURES, SOURCES
from fuzz_mutations import hostile, mutate, mutate_bytes, mutate_json, mutate_json_lines, mutate_pickle
from processor_fixtures import tiny_processor
from safetensors.torch import save_file

from sama.benchmarks.benchmark import PredictedObject, PredictedTurn, Prediction
from sama.conversion.files import CheckpointError, WeightFiles
from sama.data.catalogue import Entry, FileSource, read_catalogue
from sama.data.frames import MEDIA_ERRORS, open_visual
from sama.data.masks import decode_rle, encode_rle, to_rle, union
from sama.data.mixture import read_mixture
from sama.data.readers import BENCHMARK_READERS, READERS, read_mask_store
from sama.data.records import DataError, decode_object
from sama.data.rendering import Renderer
from sama.evaluation.predictions import PredictionError, complete_lines
from sama.objects_sama import prepare_region
from sama.video_sama import SamaVideo


BENCHMARK_FIXTURES = FIXTURES.parent / "benchmark_fixtures"
GLAMM = "glamm_data/annotations"
BENCHMARK_SOURCES = {
    "gcg_bench": {
        "mask_annotations": f"{GLAMM}/val_gcg_coco_mask_gt.json",
        "captions": f"{GLAMM}/val_gcg_coco_caption_gt.json",
        "media": "glamm_data/images/grandf/val_test",
    },
    "region_captions": {
        "annotations": f"{GLAMM}/finetune_refcocog_val_with_mask.json",
        "media": "coco/train2014",
    },
    "mme": {"media": "mme"},
}
SIZE = (24, 32)
RNG = np.random.Generator


@dataclass(frozen=True)
class Target:
    """
    Args:
        name (`str`): For messages.
        try_one (callable): Draws a mutant from a generator and reads it; returns a description of the mutant first.
        errors (tuple of types): What it may raise, exactly; the subclasses of other projects are leaks.
        own (`bool`): Whether a permitted error must also come from a line of this project.
        weight (`int`): How often it is drawn.
    """

    name: str
    try_one: Callable[[RNG], None]
    errors: tuple[type, ...]
    own: bool = False
    weight: int = 10


def mutator_of(path: Path) -> Callable[[bytes, RNG], bytes]:
    """How the bytes of a file are mutated, by its suffix."""
    kinds = {".json": mutate_json, ".jsonl": mutate_json_lines, ".p": mutate_pickle, ".pkl": mutate_pickle}
    return kinds.get(path.suffix, mutate_bytes)


class MutatedFile:
    """Writes mutants of a file and restores it afterwards."""

    def __init__(self, path: Path):
        self.path, self.original, self.mutate = path, path.read_bytes(), mutator_of(path)

    def __call__(self, rng: RNG, function: Callable[[], object]) -> None:
        self.path.write_bytes(self.mutate(self.original, rng))
        try:
            function()
        finally:
            self.path.write_bytes(self.original)


def annotation_paths(files: dict, root: Path) -> list[Path]:
    """The annotation and mask files of a source, without its folders."""
    names = itertools.chain.from_iterable([name] if isinstance(name, str) else name for name in files.values())
    return sorted(root / name for name in set(names) if (root / name).is_file())


class ReaderTarget:
    """A reader and the mask files beside it; some records are rendered as training would."""

    def __init__(self, name: str, reader: Callable, files: dict, options: dict, root: Path, renderer: Renderer):
        self.name, self.reader, self.files, self.options, self.root = name, reader, files, options, root
        self.renderer = renderer
        media = root / files["media"] if isinstance(files["media"], str) else root
        texts = sorted(media.rglob("*.txt")) if name == "mme" else []
        masklets = sorted(media.rglob("*.json")) if name == "ref_sav" else []
        self.mutants = [MutatedFile(path) for path in [*annotation_paths(files, root), *texts, *masklets]]

    def __call__(self, rng: RNG) -> None:
        self.mutants[rng.integers(len(self.mutants))](rng, lambda: self.read(rng))

    def read(self, rng: RNG) -> None:
        broken = []
        on_error = "raise" if rng.random() < 0.5 else broken.append
        options = {**self.options, "source": self.name, "dropped": Counter(), "on_error": on_error}
        records = list(self.reader(self.files, self.root, options))
        assert all(type(error) is DataError for error in broken)
        stores = {}
        for key, file in self.files.items():
            if key.endswith("masks"):
                stores[key] = dict(read_mask_store(self.root / file, lambda key, error: None))
        for record in records[:2]:
            json.dumps(record, ensure_ascii=False).encode()
            self.use(record, stores, rng)

    def use(self, record: dict, stores: dict, rng: RNG) -> None:
        def lookup(store: str, key: str) -> list:
            return stores[store][key]

        for name in list(record.get("objects", {}))[:2]:
            frames = len((record.get("video") or {}).get("frames") or [None])
            try:
                decode_object(record, name, SIZE, frames, lookup, [0])
            except DataError:
                pass
        if "image" in record and rng.random() < 0.2:
            video = open_visual(record, self.root)
            try:
                self.renderer(record, video, lookup, rng)
            except MEDIA_ERRORS as error:
                # What `Mixture` turns into a DataError
                if not isinstance(error, OSError | ValueError):
                    raise


def read_store(name: str, root: Path, cache: Path) -> Callable[[RNG], None]:
    """A source opened through its stores, which are built, or damaged after they were built."""
    format, files, options = SOURCES[name]
    mutants = [MutatedFile(path) for path in annotation_paths(files, root)]

    def open_all() -> None:
        source = FileSource(Entry(name, format, files, options), root, cache, "skip")
        for index in range(min(len(source), 2)):
            source.record(index)
        for store in source.masks.values():
            for key in itertools.islice(store.keys(), 2):
                try:
                    store[key]
                except DataError:
                    pass

    def try_one(rng: RNG) -> None:
        if rng.random() < 0.5:
            return mutants[rng.integers(len(mutants))](rng, open_all)
        open_all()  # builds the stores anew if the last mutant was one of the files
        # The library that maps an Arrow file trusts it
        built = sorted(path for path in cache.rglob("*") if path.suffix in (".json", ".npy"))
        return MutatedFile(built[rng.integers(len(built))])(rng, open_all)

    return try_one


def try_masks(rng: RNG) -> None:
    """Run-length codes, polygons and arrays."""
    code = encode_rle(rng.random(SIZE) < 0.3)
    runs = {"size": list(SIZE), "counts": [100, 68, 600]}
    shapes = [code, runs, [code, code], [[2, 2, 12, 2, 12, 12, 2, 12], [8.5, 8, 20, 8, 20, 20.25]], [runs, code, runs]]
    entry = mutate([shapes[rng.integers(len(shapes))]], rng)
    if isinstance(entry, list) and entry and isinstance(entry[0], dict) and isinstance(entry[0].get("counts"), str):
        if rng.random() < 0.5:
            counts = mutate_bytes(entry[0]["counts"].encode("utf-8", "replace"), rng)
            entry[0]["counts"] = counts if rng.random() < 0.5 else counts.decode("latin-1")
    entry = entry[0] if isinstance(entry, list) and len(entry) == 1 else entry
    action = rng.integers(5)
    if action == 0:
        to_rle(entry, SIZE)
    elif action == 1:
        decode_rle(entry, SIZE, resize=True)
    elif action == 2:
        decode_rle(entry, (rng.integers(1, 50).item(), 7))
    elif action == 3:
        union([entry, code, code])
    else:
        kinds = [np.float32, np.float64, np.int16, bool, np.uint8, object, complex, "U3"]
        array = np.zeros([(0, 5), (3, 4), (2, 3, 4), (5,), (24, 32)][rng.integers(5)], dtype=kinds[rng.integers(8)])
        if array.dtype.kind == "f" and array.size:
            array.flat[0] = [np.nan, np.inf, 1.0][rng.integers(3)]
        encode_rle(array)


def try_predictions(folder: Path) -> Callable[[RNG], None]:
    """Lines of a file of predictions."""
    mask = {"size": list(SIZE), "counts": "PP\\9"}
    turn = PredictedTurn("<p> a dog </p> [SEG]", [PredictedObject("a dog", [mask, None], 0.5)])
    line = json.dumps(Prediction("q/1", [turn], 2, *SIZE).to_dict()).encode() + b"\n"

    def try_one(rng: RNG) -> None:
        path = folder / "predictions.jsonl"
        path.write_bytes(line + mutate_json(line.strip(), rng).replace(b"\n", b" ") + b"\n")
        list(complete_lines(path))

    return try_one


def try_yaml(folder: Path) -> Callable[[RNG], None]:
    """Mixtures and catalogues."""
    entry = {"format": "llava", "files": {"annotations": "a.json", "media": "m"}, "options": {}, "links": ["m"]}
    mixture = {
        "sources": {"mine": {"weight": 1.5, **entry}},
        "rendering": {"preset": "consistent"},
        "on_error": "raise",
    }
    tags = [
        b"!!int ''",
        b"!!bool x",
        b"!!timestamp x",
        b"? [a]\n: b",
        b"*x",
        b"&x [*x]",
        b"!!python/none",
        b".nan",
        b"\t",
    ]

    def try_one(rng: RNG) -> None:
        path = folder / "settings.yaml"
        data = json.dumps(mutate(mixture if rng.random() < 0.5 else {"mine": entry}, rng)).encode()
        path.write_bytes(mutate_bytes(data, rng, tags + [b"[" * 3000]) if rng.random() < 0.4 else data)
        (read_mixture if rng.random() < 0.5 else read_catalogue)(path)

    return try_one


def try_weights(folder: Path) -> Callable[[RNG], None]:
    """Weight files of torch, old and new, and of safetensors, and their index."""
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    torch.save(tensors, folder / "new.pt")
    torch.save({"model": tensors}, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
    originals = {name: (folder / name).read_bytes() for name in ("new.pt", "old.pt", "model.safetensors")}
    place = folder / "mutant"
    place.mkdir()

    def try_one(rng: RNG) -> None:
        for old in place.iterdir():
            old.unlink()
        kind = rng.integers(4)
        if kind == 3:
            (place / "model.safetensors").write_bytes(originals["model.safetensors"])
            (place / "model.safetensors.index.json").write_bytes(mutate_json(json.dumps(index).encode(), rng))
        else:
            name = list(originals)[kind]
            data = mutate_bytes(originals[name], rng)
            if name.endswith("tensors") and rng.random() < 0.5:  # the header alone
                (length,) = struct.unpack("<Q", originals[name][:8])
                header = mutate_json(originals[name][8 : 8 + length].strip(), rng)
                data = struct.pack("<Q", len(header)) + header + originals[name][8 + length :]
            (place / name).write_bytes(data)
        files = WeightFiles(place)
        for name in files.tensors:
            files.read(name)

    return try_one


class Conversations:
    """Messages and regions as a user writes them."""

    def __init__(self):
        self.processor = tiny_processor()
        self.pixels = np.zeros((5, *SIZE, 3), dtype=np.uint8)
        self.video = SamaVideo.open(self.pixels)
        self.regions = [
            {"frame": 1, "box": [2, 3, 12, 14]},
            {"points": [[2, 3], [4, 5]], "labels": [1, 0]},
            {"frame": 2, "scribble": [[1, 1], [9, 9], [20, 4]]},
            {"frame": [0, 1], "box": [[1, 1, 5, 5], [2, 2, 6, 6]]},
        ]

    def odd(self, rng: RNG):
        """A value that only Python can hold, or one that JSON can."""
        odd = [
            (1, 2),
            {1, 2},
            b"x",
            object(),
            np.zeros(3),
            np.float64(1.0),
            np.int64(1),
            1 + 2j,
            range(3),
            str,
            np.array([[np.nan] * 32] * 24),
            np.zeros((0, 5)),
            np.ones(SIZE),
            {1: 2},
            {"frame": 1.5},
            iter([]),
        ]
        return odd[rng.integers(len(odd))] if rng.random() < 0.3 else hostile(rng)

    def messages(self, rng: RNG) -> None:
        regions = [{"type": "region", **one} for one in self.regions]
        asked = [{"type": "text", "text": "What is "}, regions[rng.integers(4)], {"type": "text", "text": " here?"}]
        messages = [
            {"role": "user", "content": [{"type": "video", "video": "VIDEO"}, *asked]},
            {"role": "assistant", "content": [{"type": "text", "text": "<p> a dog </p> [SEG]."}]},
            {"role": "user", "content": "And now?"},
        ]
        mutant = mutate(messages, rng, self.odd)
        self.processor.apply_chat_template(self.with_video(mutant), tokenize=False)

    def with_video(self, value):
        """The same messages with the opened video in its place."""
        if isinstance(value, dict):
            return {key: self.with_video(inner) for key, inner in value.items()}
        if type(value) is list:
            return [self.with_video(inner) for inner in value]
        return self.video if isinstance(value, str) and value == "VIDEO" else value

    def region(self, rng: RNG) -> None:
        mutant = mutate(self.regions[rng.integers(4)], rng, self.odd)
        if rng.random() < 0.1:
            mutant = {"frame": 0, "points": [[1, 1]] * 10**6} if rng.random() < 0.5 else self.odd(rng)
        prepare_region(mutant, self.video, [0, 2], "box" if rng.random() < 0.5 else "mask")


def all_targets(folder: Path) -> list[Target]:
    """Every target; their files lie below `folder`."""
    root = Path(shutil.copytree(FIXTURES, folder / "root"))
    other = Path(shutil.copytree(BENCHMARK_FIXTURES, folder / "benchmarks"))
    talk = Conversations()
    renderer = Renderer(talk.processor)
    targets = []
    for name, (reader, files, options) in SOURCES.items():
        read = ReaderTarget(name, READERS[reader], files, options, root, renderer)
        targets.append(Target(f"reader {name}", read, (DataError,), weight=30 if name == "json_lines" else 10))
    for name, files in BENCHMARK_SOURCES.items():
        read = ReaderTarget(name, BENCHMARK_READERS[name], files, {}, other, renderer)
        targets.append(Target(f"reader {name}", read, (DataError,)))
    for name in ("mevis", "ref_davis17"):
        targets.append(
            Target(f"store {name}", read_store(name, root, folder / f"cache-{name}"), (DataError,), weight=3)
        )
    (folder / "weights").mkdir()
    return [
        *targets,
        Target("masks", try_masks, (ValueError,), own=True, weight=80),
        Target("predictions", try_predictions(folder), (PredictionError,), weight=30),
        Target("mixtures", try_yaml(folder), (DataError,), weight=20),
        Target("weights", try_weights(folder / "weights"), (CheckpointError,), weight=30),
        Target("messages", talk.messages, (ValueError, FileNotFoundError), own=True, weight=50),
        Target("regions", talk.region, (ValueError,), own=True, weight=40),
    ]
