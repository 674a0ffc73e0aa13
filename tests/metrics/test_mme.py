"""MME's points, counted by hand."""

import pytest

from sama.metrics.mme import PERCEPTION, REASONING, YesNo, mme_rating, yes_or_no


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", True),
        ("no", False),
        ("No, it is not", False),
        ("Yes, there is no dog in the image.", True),
        ("yes and no", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_yes_or_no(answer, expected):
    assert yes_or_no(answer) is expected


def test_points():
    rows = [
        YesNo("color", "1", True),
        YesNo("color", "1", True),
        YesNo("color", "2", True),
        YesNo("color", "2", False),
    ]
    found = mme_rating(rows)
    assert found["color"].value == 75 + 50
    assert found["count"] == (None, "no question of this category was answered")
    assert found["perception"].value is None and "OCR, artwork, celebrity, count" in found["perception"].reason


def test_incomplete_images_are_not_in_acc_plus():
    rows = [
        YesNo("color", "1", True),
        YesNo("color", "2", True),
        YesNo("color", "2", False),
        YesNo("scene", "3", True),
    ]
    found = mme_rating([*rows, YesNo("posters", "4", True, questions=1)])
    assert found["color"].value == pytest.approx(200 / 3)  # one image is complete, and not right
    assert found["scene"] == (None, "no image of this category has answers to all its questions")
    assert found["posters"].value == 200


def test_sums():
    rows = [YesNo(name, image, True) for name in (*PERCEPTION, *REASONING) for image in "1122"]
    found = mme_rating(rows)
    assert (found["perception"].value, found["reasoning"].value) == (2000, 800)


def test_unknown_category():
    with pytest.raises(ValueError, match="no category 'colour'"):
        mme_rating([YesNo("colour", "1", True)])
