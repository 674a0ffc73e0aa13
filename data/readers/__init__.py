"""
One reader for each format of annotation files: `READERS[format](files, root, options)` yields records.

`files` and `options` come from a catalogue entry, `root` is the data root. A reader is deterministic: it yields the
same records in the same order every time.
"""

from collections.abc import Callable

from .chat_univi import read_chat_univi
from .gcg import read_gcg
from .gcg_bench import read_gcg_bench
from .gcg_flickr import read_gcg_flickr
from .gcg_refcocog import read_gcg_refcocog
from .json_lines import read_json_lines
from .llava import read_llava
from .mask_stores import read_mask_store
from .mme import read_mme
from .osprey import read_osprey
from .ref_sav import read_ref_sav
from .refcoco import read_refcoco
from .referring_video import read_referring_video
from .region_captions import read_region_captions
from .sama239k import read_sama239k_conversation, read_sama239k_description
from .sama_bench import read_sama_bench_c, read_sama_bench_g


READERS: dict[str, Callable] = {
    "refcoco": read_refcoco,
    "llava": read_llava,
    "referring_video": read_referring_video,
    "ref_sav": read_ref_sav,
    "chat_univi": read_chat_univi,
    "gcg": read_gcg,
    "gcg_flickr": read_gcg_flickr,
    "gcg_refcocog": read_gcg_refcocog,
    "osprey": read_osprey,
    "sama239k_conversation": read_sama239k_conversation,
    "sama239k_description": read_sama239k_description,
    "sama_bench_g": read_sama_bench_g,
    "sama_bench_c": read_sama_bench_c,
    "json_lines": read_json_lines,
}

# Formats that are used for evaluation only
BENCHMARK_READERS: dict[str, Callable] = {
    "gcg_bench": read_gcg_bench,
    "region_captions": read_region_captions,
    "mme": read_mme,
}

__all__ = ["BENCHMARK_READERS", "READERS", "read_mask_store"]
