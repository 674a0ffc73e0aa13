"""What readers leave out of sources that are not broken: it is counted, and the rest is as if it was never there."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from data_fixtures import copied
from fixture_sources import FIXTURES, SOURCES

from sama.data.readers import READERS
from sama.data.readers.grounded_dialogue import grounded_rounds
from sama.data.readers.source_reader import SourceReader


def read(source: str, root: Path, change: Callable, **options) -> tuple[list[list[str]], Counter]:
    """The texts of the messages of each record after a change of the annotation file; and what was left out."""
    reader, files, fixed = SOURCES[source]
    path, dropped = root / files["annotations"], Counter()
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    records = READERS[reader](files, root, {**fixed, **options, "source": source, "dropped": dropped})
    return [["".join(map(written, message["content"])) for message in one["messages"]] for one in records], dropped


def written(part: dict) -> str:
    return f"[{part['text']}]" if part["type"] == "grounded" else part.get("text", "<region>")


def test_a_phrase_without_a_mask_does_not_shorten_its_neighbour(tmp_path):
    def change(items):
        mask = items[2]["groundings"]["One cat"]["rle_masks"]
        items[2] |= {
            "caption": "A man in a hat runs.",
            "groundings": {
                "A man in a hat": {"token_positives": [0, 14], "rle_masks": mask},
                "a hat": {"token_positives": [9, 14], "rle_masks": []},
            },
        }

    texts, dropped = read("gcg_grandf", copied(tmp_path), change)
    assert texts[-1][1] == "[A man in a hat] runs."
    assert dropped["phrases without a mask"] == 1 and "phrases inside other phrases" not in dropped


@pytest.mark.parametrize("blank", ["", " \n"])
@pytest.mark.parametrize("captions", ["long", "short"])
def test_empty_expressions_ask_nothing(tmp_path, captions, blank):
    def change(items):
        items["sav_000001"]["objects"]["0"] = {"formated": blank, "short_caps": [blank, "moving square"]}

    texts, dropped = read("ref_sav", copied(tmp_path), change, captions=captions)
    expected = {"long": ["A square that sinks."], "short": ["moving square", "sinking square"]}[captions]
    assert texts[0][::2] == expected and dropped == {"empty expressions": 1}


@pytest.mark.parametrize("blank", ["", " \n"])
def test_empty_answers_teach_nothing(tmp_path, blank):
    def change(items):
        items[0]["conversations"][1]["value"] = items[1]["conversations"][2]["value"] = blank

    texts, dropped = read("llava", copied(tmp_path), change)
    assert texts[0] == ["What\ncolour?", "Red."] and len(texts) == 3
    assert dropped["rounds with an empty answer"] == 2 and dropped["conversations without a complete round"] == 1


def test_an_empty_description_leaves_the_numbers_of_the_regions(tmp_path):
    def change(items):
        items[0]["description"][0] = "<>"

    texts, dropped = read("osprey_description", copied(tmp_path), change)
    assert texts[0] == ["region2", "Another one."] and dropped == {"empty descriptions": 1}


def test_an_empty_answer_of_a_grounded_dialogue_is_left_out():
    texts = ["What?", " ", "Why?", "Because."]
    rounds = {"conversation": [{"from": ("human", "gpt")[i % 2], "value": one} for i, one in enumerate(texts)]}
    reader = SourceReader({}, FIXTURES, {}, "sama239k_conversation", [])
    found = list(grounded_rounds(reader, rounds | {"obj_masks": [[], []], "groundtruth": [[], []]}, []))
    assert found[0] is None and found[1].answer["content"] == [{"type": "text", "text": "Because."}]
    assert reader.dropped == {"rounds with an empty answer": 1}
