"""Every source with the files and options under which the fixtures hold it: source -> (reader, files, options)."""

from pathlib import Path


FIXTURES = Path(__file__).parent / "fixtures"
GLAMM, OSPREY, RVOS = "glamm_data/annotations", "osprey-724k", "video_datas/rvos"
SAMA = {
    "annotations": "sama239k_data/sama239k_train_final.json",
    "media": "sama239k_data",
    "mevis_masks": "sama239k_data/mevis_train_mask_dict.json",
    "lvvis_masks": "sama239k_data/lvvis_train_mask_dict.json",
    "ref_youtube_vos_masks": "sama239k_data/ref_youtube_train_mask_dict.pkl",
    "vidstg_masks": "sama239k_data/VidSTG_mask_dict_train_updated.json",
    "sav_masks": "sama239k_data/SAV_mask_dict_train.json",
}
BENCH_FILES = ["mevis", "lvvis_0", "lvvis_1", "ref_youtube_vos_0", "ref_youtube_vos_1"]
BENCH = {
    "annotations": [f"sama_bench/{name}.json" for name in (*BENCH_FILES, *(f"VidSTG_{i}" for i in range(8)))],
    "media": "sama_bench",
    "mevis_masks": "sama_bench/mevis_mask_dict.json",
    "lvvis_masks": "sama_bench/lvvis_mask_dict.json",
    "ref_youtube_vos_masks": "sama_bench/ref_youtube_vos_mask_dict.json",
    "vidstg_masks": "sama_bench/VidSTG_mask_dict.json",
}


def _refcoco(folder: str, refs: str) -> dict:
    files = {"instances": f"coco/{folder}/instances.json", "refs": f"coco/{folder}/{refs}"}
    return {**files, "media": "coco/train2014"}


def _osprey(name: str) -> dict:
    folders = [f"{OSPREY}/coco/{folder}" for folder in ("train2014", "val2014", "train2017", "val2017")]
    return {"annotations": f"{OSPREY}/Osprey-724K/osprey_{name}.json", "media": folders}


def _referring(expressions: str, media: str, masks: str) -> dict:
    return {"expressions": expressions, "media": media, "masks": masks}


SOURCES: dict[str, tuple[str, dict, dict]] = {
    "refcoco": ("refcoco", _refcoco("refcoco", "refs(unc).p"), {}),
    "refcoco+": ("refcoco", _refcoco("refcoco+", "refs(unc).p"), {}),
    "refcocog": ("refcoco", _refcoco("refcocog", "refs(umd).p"), {}),
    "llava": (
        "llava",
        {"annotations": "llava_data/llava_v1_5_mix665k.json", "media": "llava_data/llava_images"},
        {},
    ),
    "mevis": (
        "referring_video",
        _referring(
            "video_datas/mevis/train/meta_expressions.json",
            "video_datas/mevis/train/JPEGImages",
            "video_datas/mevis/train/mask_dict.json",
        ),
        {},
    ),
    "revos": (
        "referring_video",
        _referring(
            "video_datas/revos/meta_expressions_train_.json",
            "video_datas/revos",
            "video_datas/revos/mask_dict.json",
        ),
        {},
    ),
    "ref_youtube_vos": (
        "referring_video",
        _referring(
            f"{RVOS}/meta_expressions/train/meta_expressions.json",
            f"{RVOS}/train/JPEGImages",
            f"{RVOS}/ref_youtube_train_mask_dict.pkl",
        ),
        {"mask_keys": "counter"},
    ),
    "ref_davis17": (
        "referring_video",
        _referring(
            "video_datas/davis17/meta_expressions/valid/meta_expressions.json",
            "video_datas/davis17/valid/JPEGImages",
            "video_datas/davis17/mask_dict.pkl",
        ),
        {"mask_keys": "sorted_counter"},
    ),
    "chat_univi": (
        "chat_univi",
        {
            "annotations": "video_datas/chat_univi/video_chat.json",
            "media": "video_datas/chat_univi/Activity_Videos",
        },
        {},
    ),
    "ref_sav": ("ref_sav", {"annotations": "ref_sav/Ref-SAV.json", "media": "ref_sav/sam_v_full"}, {}),
    "gcg_openpsg": (
        "gcg",
        {"annotations": f"{GLAMM}/OpenPsgGCG_train.json", "media": "glamm_data/images/coco2017"},
        {},
    ),
    "gcg_grandf": (
        "gcg",
        {"annotations": f"{GLAMM}/GranDf_HA_GCG_train.json", "media": "glamm_data/images/grandf/train"},
        {},
    ),
    "gcg_flickr": (
        "gcg_flickr",
        {
            "annotations": f"{GLAMM}/flickr_mergedGT_GCG_train.json",
            "media": "glamm_data/images/flickr30k/Flickr30K",
        },
        {},
    ),
    "gcg_refcocog": (
        "gcg_refcocog",
        {
            "annotations": f"{GLAMM}/RefCOCOg_GCG_train.json",
            "media": "glamm_data/images/coco2014/train2014",
        },
        {},
    ),
    "osprey_conversation": ("osprey", _osprey("conversation"), {}),
    "osprey_description": ("osprey", _osprey("detail_description"), {}),
    "osprey_part": ("osprey", _osprey("part_level"), {}),
    "osprey_short": ("osprey", _osprey("short_form"), {"short_answers": True}),
    "osprey_lvis": ("osprey", _osprey("lvis_positive_negative"), {}),
    "sama239k_conversation": ("sama239k_conversation", SAMA, {}),
    "sama239k_description": ("sama239k_description", SAMA, {}),
    "sama_bench_g": ("sama_bench_g", BENCH, {}),
    "sama_bench_c": ("sama_bench_c", BENCH, {}),
    "json_lines": ("json_lines", {"records": "custom/records.jsonl", "media": "custom/media"}, {}),
}
