"""The recorded values that the repository carries: a recording of the release, cut down to what fits into 3 MB.

    python tests/parity/reduced_golden.py ../shared/golden/official_long tests/goldens/official_long

The reduced folder keeps the vision tower, the aggregator, the region encoders, the language model and the [SEG]
projection of a recording with 32 context frames, which fill two temporal windows. It leaves out:

* SAM 2, whose weights alone take 24 MB, and with it the recorded masks. Its parity is tested by `test_sam2.py`;
* rows of the question embeddings and columns of the shape encoders that are multiplied by zero or never read;
* frames of the video that the release does not read, and frames in which no region lies;
* most rows of the large outputs. The rows that are kept are compared as in the whole recording.

[`restore`] writes a folder of the original form: weights that are left out are zero, outputs that are left out are NaN
in part or absent.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer


WEIGHTS, VALUES = "official_state_dict.safetensors", "golden.safetensors"
COPIED = ("config.json", "golden.json", "tokenizer", "qformer_tokenizer")
SAM_PREFIX = "grounding_encoder."
WORD_EMBEDDINGS = "temporal_Qformer.bert.embeddings.word_embeddings.weight"
SHAPE_ENCODERS = ("Qformer_mask_proj.layers.0.weight", "Qformer_mask_proj_st.layers.0.weight")
FIRST_ADDED_TOKEN = 30522  # of the question tokenizer: [DEC], <mask>, <pos> and the others that BERT does not have
MIXED_ROWS = 120  # of the end of a prompt: its context tokens and its question
REGION_FRAMES = 5  # the release takes a region from one of the first frames
INPUTS = ("video_uint8", "region_masks_16", "region_masks_112")


class Reduced:
    """Tensors of which some rows or columns are kept. `layout` says which: name -> shape, dimension and indices."""

    def __init__(self):
        self.tensors: dict[str, torch.Tensor] = {}
        self.layout: dict[str, dict] = {}

    def keep(self, name: str, tensor: torch.Tensor, dim: int = 0, indices: list[int] | None = None) -> None:
        """Keeps `tensor`, or only its slices `indices` of dimension `dim`."""
        if indices is not None:
            self.layout[name] = {"shape": list(tensor.shape), "dim": dim, "indices": indices}
            tensor = tensor.index_select(dim, torch.tensor(indices, dtype=torch.long))
        self.tensors[name] = tensor.contiguous()

    def leave_out(self, name: str, tensor: torch.Tensor) -> None:
        """Keeps the shape of `tensor` alone."""
        self.layout[name] = {"shape": list(tensor.shape)}

    def save(self, path: Path) -> None:
        save_file(self.tensors, path, metadata={"layout": json.dumps(self.layout)})


def read_whole(path: Path, outputs: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """The tensors of a file of [`Reduced`] in their whole shapes. What was left out is zero, or NaN in `outputs`."""
    with safe_open(path, "pt") as file:
        layout = json.loads(file.metadata()["layout"])
    tensors = load_file(path)
    for name, kept in layout.items():
        part = tensors.get(name)
        dtype = torch.bfloat16 if part is None else part.dtype
        whole = torch.full(kept["shape"], float("nan") if name in outputs else 0, dtype=dtype)
        if part is not None:
            whole.index_copy_(kept["dim"], torch.tensor(kept["indices"], dtype=torch.long), part)
        tensors[name] = whole
    return tensors


def restore(reduced: Path, folder: Path) -> Path:
    """Writes the reduced recording `reduced` into `folder` in the form of a whole one, and returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        copy = shutil.copytree if (reduced / name).is_dir() else shutil.copyfile
        copy(reduced / name, folder / name)
    save_file(read_whole(reduced / WEIGHTS), folder / WEIGHTS)
    names = load_file(reduced / VALUES).keys()
    save_file(read_whole(reduced / VALUES, tuple(names - set(INPUTS))), folder / VALUES)
    return folder


def reduce_weights(weights: dict[str, torch.Tensor], values: dict, questions: list[str], folder: Path) -> Reduced:
    """The weights that decide the kept outputs."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "qformer_tokenizer")
    written = [question.replace("<mask>", "<vp><mask><pos></vp>") for question in questions]
    read = {token for ids in tokenizer(written)["input_ids"] for token in ids}
    rows = sorted(read | set(range(FIRST_ADDED_TOKEN, len(weights[WORD_EMBEDDINGS]))))
    masks = values["region_masks_112"][:, :REGION_FRAMES]
    columns = (masks.flatten(0, 1).flatten(1) > 0).any(0).nonzero().flatten().tolist()
    reduced = Reduced()
    for name, tensor in weights.items():
        if name.startswith(SAM_PREFIX):
            reduced.leave_out(name, tensor)
        elif name == WORD_EMBEDDINGS:
            reduced.keep(name, tensor, 0, rows)
        elif name in SHAPE_ENCODERS:
            reduced.keep(name, tensor, 1, columns)
        else:
            reduced.keep(name, tensor)
    return reduced


def reduce_values(values: dict[str, torch.Tensor], facts: dict, image_positions: dict[str, list[int]]) -> Reduced:
    """Inputs as far as they are read, small outputs whole, large ones in part; no masks."""
    reduced = Reduced()
    seen = values["region_masks_112"][:, :REGION_FRAMES].flatten(2).any(2).any(0)
    visible = seen.nonzero().flatten().tolist()
    for name, tensor in values.items():
        if name == "mask_logits_video" or name.startswith("masks_"):
            continue
        if name == "video_uint8":
            reduced.keep(name, tensor, 0, facts["sparse_indices"])
        elif name.startswith("region_masks"):
            reduced.keep(name, tensor, 1, visible)
        elif name == "vision_features":
            reduced.keep(name, tensor, 0, [0, len(tensor) - 1])
        elif name.startswith("inputs_embeds_"):
            reduced.keep(name, tensor, 1, image_positions[name])
        else:
            reduced.keep(name, tensor)
    return reduced


def rows_without_frames(embeds: torch.Tensor, embeddings: torch.Tensor) -> list[int]:
    """Rows of recorded embeddings (1, length, width) that are text, and of all others the last `MIXED_ROWS`: context
    tokens and regions, but hardly a token of the dense frames."""
    is_text = (embeds[0][:, None] == embeddings.float()[None]).all(-1).any(-1).tolist()
    return [row for row, text in enumerate(is_text) if text or row >= len(is_text) - MIXED_ROWS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    source, target = arguments.source, arguments.target
    target.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
        copy(source / name, target / name)
    weights, values = load_file(source / WEIGHTS), load_file(source / VALUES)
    facts = json.loads((source / "golden.json").read_text(encoding="utf-8"))
    questions = [facts[name] for name in sorted(facts) if name.startswith("question_")]
    embeddings = weights["language_model.model.embed_tokens.weight"]
    positions = {
        name: rows_without_frames(tensor, embeddings)
        for name, tensor in values.items()
        if name.startswith("inputs_embeds_")
    }
    reduce_weights(weights, values, questions, source).save(target / WEIGHTS)
    reduce_values(values, facts, positions).save(target / VALUES)


if __name__ == "__main__":
    main()
