"""Regions as typed, the questions they belong to, and masks read from pictures."""

import numpy as np
import pytest
from PIL import Image

from sama.serving.region_arguments import check_region, group_questions, parse_region, read_mask
from sama.video_sama import SamaVideo


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("frame=10,box=40,60,210,300", {"frame": 10, "box": (40, 60, 210, 300)}),
        ("box=1.5,2,3,4", {"frame": 0, "box": (1.5, 2, 3, 4)}),
        ("box=1,2,3,4,frame=7", {"frame": 7, "box": (1, 2, 3, 4)}),
        (" frame = 10 , point = 3, 4 ", {"frame": 10, "points": [(3, 4)], "labels": [1]}),
        ("point=1,2,point=3,4,negative=5,6", {"points": [(1, 2), (3, 4), (5, 6)], "labels": [1, 1, 0]}),
        ("negative=5,6,point=1,2", {"points": [(5, 6), (1, 2)], "labels": [0, 1]}),
        ("frame=2,scribble=1,2,3,4,5,6", {"frame": 2, "scribble": [(1, 2), (3, 4), (5, 6)]}),
        ("frame=2,mask=a,b=c/m 1.png", {"frame": 2, "mask_file": "a,b=c/m 1.png"}),
        ("mask=m.png", {"mask_file": "m.png"}),
        ("object=2", {"object": 2}),
    ],
)
def test_region_grammar(text, expected):
    argument = parse_region(text)
    found = argument.values | ({"mask_file": argument.mask_file} if argument.mask_file else {})
    assert found == ({} if "object" in expected else {"frame": 0}) | expected
    assert argument.text == text


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("", "exactly one .* got none"),
        ("frame=10", "exactly one .* got none"),
        ("frame=x,box=1,2,3,4", "frame=x is not a whole number"),
        ("frame=-1,box=1,2,3,4", "frame=-1 is not a whole number from 0"),
        ("frame=1,2,box=1,2,3,4", "frame=1,2 is not"),
        ("frame=1,frame=2,box=1,2,3,4", "frame= is given 2 times"),
        ("box=1,2,3", "box= takes 4 numbers, got 3"),
        ("box=1,2,3,4,5", "box= takes 4 numbers, got 5"),
        ("box=1,2,three,4", '"three" in box='),
        ("box=1,2,,4", '"" in box='),
        ("box=1,2,inf,4", "not finite"),
        ("box=1,2,3,4,box=1,2,3,4", "box= is given 2 times"),
        ("box=1,2,3,4,point=1,2", "got box and point"),
        ("object=1,mask=a.png", "got mask and object"),
        ("point=1", "point= takes 2 numbers, got 1"),
        ("negative=1,2", "negative= needs a point="),
        ("scribble=1,2", "two points or more, got 2 numbers"),
        ("scribble=1,2,3", "got 3 numbers"),
        ("mask=", "mask= needs the name"),
        ("object=0", "object=0 is not a whole number from 1"),
        ("object=two", "object=two"),
        ("frame=1,object=2", "leave frame= out"),
        ("circle=1,2,3", '"circle=1" is none of'),
        ("10,box=1,2,3,4", '"10" is none of'),
    ],
)
def test_region_grammar_names_the_wrong_piece(text, piece):
    with pytest.raises(ValueError, match=piece) as caught:
        parse_region(text)
    assert f'"{text}"' in str(caught.value) and "\n" not in str(caught.value)


def test_regions_go_to_the_questions_before_them():
    script = [("ask", "none"), ("ask", "<region> or <region>?"), ("region", "object=1"), ("region", "box=1,2,3,4")]
    script += [("ask", "<region>?"), ("region", "object=2")]
    grouped = [(question, [request.text for request in requests]) for question, requests in group_questions(script)]
    assert grouped == [
        ("none", []),
        ("<region> or <region>?", ["object=1", "box=1,2,3,4"]),
        ("<region>?", ["object=2"]),
    ]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([("ask", "What is <region>?")], "Question 1.* has 1 <region> marks but 0 --region"),
        ([("ask", "What?"), ("region", "object=1")], '"object=1" belongs to no question'),
        ([("region", "object=1"), ("ask", "<region>?")], "belongs to no question"),
        ([("ask", "a"), ("ask", "<region> <region>"), ("region", "object=1")], "Question 2.* 2 .* 1 --region"),
        ([("ask", "<region>"), ("region", "box=1")], "box= takes 4 numbers"),
    ],
)
def test_questions_and_regions_must_match(script, message):
    with pytest.raises(ValueError, match=message):
        group_questions(script)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB"])
def test_read_mask(tmp_path, mode):
    expected = np.zeros((6, 8), dtype=bool)
    expected[2:4, 3:6] = True
    image = Image.fromarray(np.uint8(expected), mode="P") if mode == "P" else Image.fromarray(np.uint8(expected) * 255)
    if mode == "P":
        image.putpalette([200, 0, 0, 0, 0, 0])  # the colours of a palette picture say nothing
    else:
        image = image.convert(mode)
    image.save(tmp_path / "mask.png")
    assert (read_mask(str(tmp_path / "mask.png")) == expected).all()


def test_read_mask_refuses(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png.*cannot be used"):
        read_mask(str(tmp_path / "text.png"))
    with pytest.raises(FileNotFoundError, match=r"no mask file .*absent\.png"):
        read_mask(str(tmp_path / "absent.png"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frame=4,box=1,1,9,9", "there is no frame 4; the video has 4, counted from 0"),
        ("frame=1,box=1,1,900,9", "does not lie inside the 30x20 pixels"),
        ("frame=1,point=31,5", r"The point \(31, 5\) lies outside the 30x20 pixels"),
        ("object=2", "there is no object 2; the answers so far have 1"),
    ],
)
def test_regions_are_checked_without_a_model(text, message):
    video = SamaVideo.open(np.zeros((4, 20, 30, 3), dtype=np.uint8))
    check_region(parse_region("frame=3,box=1,1,9,9"), video, 1)
    with pytest.raises(ValueError, match=message):
        check_region(parse_region(text), video, 1)
