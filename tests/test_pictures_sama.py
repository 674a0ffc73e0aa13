"""Pictures as a person sees them, what a path may be, and animated pictures."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from sama import pictures_sama
from sama.pictures_sama import AnimationReader, existing_path, natural_key, read_still, to_rgb
from sama.video_sama import SamaVideo


# The transformation that a camera leaves to the viewer, inverted: what is stored for each orientation
STORED = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
LOSSY = {"jpg", "webp", "avif", "heic"}


def quarters(height=32, width=48):
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[: height // 2, : width // 2] = (200, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 200, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 200)
    return picture


def stored_picture(orientation):
    picture = Image.fromarray(quarters())
    return picture if STORED[orientation] is None else picture.transpose(STORED[orientation])


def skip_unless_written(suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()


def assert_like(found, expected):
    assert found.shape == expected.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).mean() < 10


# Orientation


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif", "heic"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, suffix, orientation):
    skip_unless_written(suffix)
    exif, stored = Image.Exif(), stored_picture(orientation)
    exif[0x0112] = orientation
    path = tmp_path / f"picture.{suffix}"
    stored.save(path, exif=exif.tobytes(), **({"quality": 95} if suffix in LOSSY else {}))
    image = SamaVideo.open(path)
    assert image.is_image and (image.height, image.width) == (32, 48)
    assert_like(image[0], quarters())
    kept = quarters() if suffix == "heic" else np.asarray(stored)  # libheif turns it itself
    assert_like(SamaVideo.open(path, upright=False)[0], kept)
    with Image.open(path) as opened:
        assert_like(SamaVideo.open(opened)[0], quarters())
    with Image.open(path) as opened:
        video = SamaVideo.open(opened, upright=False)
        np.testing.assert_array_equal(video[0], video[0])


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(quarters()).save(tmp_path / "a.png", exif=exif.tobytes())
    np.testing.assert_array_equal(read_still(tmp_path / "a.png"), quarters())


def test_damaged_exif_data_is_ignored(tmp_path):
    Image.fromarray(quarters()).save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_still(tmp_path / "a.png"), quarters())


def test_frames_given_as_files_are_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(2):
        stored_picture(6).save(tmp_path / f"{number}.png", exif=exif.tobytes())
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    assert SamaVideo.open(paths)[1].shape == SamaVideo.open(tmp_path)[1].shape == (32, 48, 3)
    assert SamaVideo.open(paths, upright=False)[1].shape == (48, 32, 3)


@pytest.mark.parametrize("upright", [True, False])
def test_frames_of_a_tiff_are_turned_one_by_one(tmp_path, upright):
    frames = []
    for orientation in (3, 2, 4):
        exif = Image.Exif()
        exif[0x0112] = orientation
        frames.append(stored_picture(orientation))
        frames[-1].encoderinfo = {"exif": exif}  # Pillow's way to give each frame its own
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:], **frames[0].encoderinfo)
    video = SamaVideo.open(tmp_path / "a.tif", upright=upright)
    for index in (2, 0, 1, 0, 2):
        np.testing.assert_array_equal(video[index], quarters() if upright else np.asarray(frames[index]))


# Modes


def ramp(dtype, limit):
    return np.linspace(0, limit, 32).astype(dtype).reshape(4, 8)


@pytest.mark.parametrize(
    ("picture", "suffix"),
    [
        (Image.fromarray(ramp(np.uint16, 65535)), "png"),
        (Image.fromarray(ramp(np.uint16, 65535)), "tif"),
        (Image.fromarray(ramp(np.int32, 65535)), "tif"),
        (Image.fromarray(ramp(np.float32, 1)), "tif"),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else value,
)
def test_grey_of_more_than_8_bits_is_scaled(tmp_path, picture, suffix):
    picture.save(tmp_path / f"a.{suffix}")
    found = read_still(tmp_path / f"a.{suffix}")
    assert np.abs(found[..., 1].astype(int) - ramp(np.float64, 255)).max() <= 1
    assert found.min() == 0 and found.max() == 255


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (ramp(np.int32, 70000), "mode I go from 0 to 70000, where 0 to 65535 is expected"),
        (ramp(np.int32, 900) - 5, "mode I go from -5 to"),
        (ramp(np.float32, 255), "mode F go from 0.0 to 255.0, where 0 to 1 is expected"),
        (np.full((4, 8), np.nan, np.float32), "mode F go from nan"),
    ],
)
def test_grey_outside_its_range_is_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"a.tif' is not an image that can be read: .*{message}"):
        read_still(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"Frame 0 of 'image' cannot be used: .*{message}"):
        SamaVideo.open(Image.fromarray(values))


def transparent(mode):
    """A picture of two columns: a colour, and the same colour behind full transparency."""
    if mode == "P":
        picture = Image.new("P", (2, 1))
        picture.putpalette([200, 0, 0, 200, 0, 0])
        picture.putpixel((1, 0), 1)
        picture.info["transparency"] = 1
        return picture
    if mode == "RGB":
        picture = Image.new("RGB", (2, 1), (200, 0, 0))
        picture.putpixel((1, 0), (7, 8, 9))
        picture.info["transparency"] = (7, 8, 9)
        return picture
    if mode == "I;16":
        picture = Image.fromarray(np.array([[60 * 257, 7]], dtype=np.uint16))
        picture.info["transparency"] = 7
        return picture
    full, none = {"LA": ((60, 255), (60, 0)), "RGBA": ((200, 0, 0, 255), (200, 0, 0, 0))}[mode]
    picture = Image.new(mode, (2, 1), full)
    picture.putpixel((1, 0), none)
    return picture


@pytest.mark.parametrize("mode", ["P", "RGB", "LA", "RGBA", "I;16"])
def test_transparent_pixels_lie_on_white(tmp_path, mode):
    transparent(mode).save(tmp_path / "a.png", **transparent(mode).info)
    expected = [[[60] * 3 if mode in ("LA", "I;16") else [200, 0, 0], [255, 255, 255]]]
    np.testing.assert_array_equal(read_still(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(to_rgb(transparent(mode)), expected)


def test_half_transparent_pixels_are_mixed_with_white():
    assert to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 51))).tolist() == [[[204, 204, 204]]]


def test_other_modes(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_still(tmp_path / "cmyk.jpg")[0, 0].astype(int) - (255, 0, 0)).max() < 5
    Image.new("1", (8, 8), 1).save(tmp_path / "bit.png")
    assert read_still(tmp_path / "bit.png").tolist() == [[[255] * 3] * 8] * 8
    picture = Image.new("P", (1, 1))
    picture.putpalette([1, 2, 3])
    assert to_rgb(picture).tolist() == [[[1, 2, 3]]]


# Animated pictures


def animation(path, frames=4, durations=(100, 50, 10, 200, 100, 40)):
    pictures = [Image.new("RGB", (24, 16), (50 * number, 0, 255 - 50 * number)) for number in range(frames)]
    timing = {} if path.suffix == ".tif" or frames == 1 else {"duration": list(durations[:frames])}
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **timing, **lossless)
    return path


def test_an_animation_at_an_even_rate_needs_no_times(tmp_path):
    frames = [Image.new("RGB", (24, 16), (60 * index, 0, 0)) for index in range(4)]
    frames[0].save(tmp_path / "even.gif", save_all=True, append_images=frames[1:], duration=100)
    video = SamaVideo.open(tmp_path / "even.gif")
    assert (len(video), video.times, video.fps) == (4, None, pytest.approx(10))


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif", ".avif"])
def test_an_animated_picture_is_a_video_of_all_its_frames(tmp_path, suffix):
    skip_unless_written(suffix[1:])
    path = animation(tmp_path / f"a{suffix}", frames=6)
    video = SamaVideo.open(path)
    assert (len(video), video.height, video.width, video.is_image) == (6, 16, 24, False)
    for index in (2, 1, 4, 0, 3, 5):  # also backward
        assert np.abs(video[index][0, 0].astype(int) - (50 * index, 0, 255 - 50 * index)).max() < 12
    with pytest.raises(ValueError, match=f"a{suffix}' is a video of 6 frames; give it as a video"):
        SamaVideo.open(path, "image")
    with pytest.raises(ValueError, match=f"a{suffix}' is animated, with 6 frames"):
        SamaVideo.open([path, path])
    if suffix in (".gif", ".png", ".webp"):  # 10 milliseconds are shown as 100
        assert np.allclose(video.times, [0, 0.1, 0.15, 0.25, 0.45, 0.55, 0.59])
        assert video.fps == pytest.approx(6 / 0.59)
    if suffix == ".tif":
        assert video.times is None and video.fps == 24


def test_frames_of_a_gif_that_declare_no_time(tmp_path):
    pictures = [Image.new("RGB", (24, 16), (50 * number, 0, 0)) for number in range(4)]
    pictures[0].save(tmp_path / "some.gif", save_all=True, append_images=pictures[1:], duration=[0, 500, 0, 500])
    assert np.allclose(SamaVideo.open(tmp_path / "some.gif").times, [0, 0.1, 0.6, 0.7, 1.2])
    pictures[0].save(tmp_path / "none.gif", save_all=True, append_images=pictures[1:])
    video = SamaVideo.open(tmp_path / "none.gif")
    assert (len(video), video.times, video.fps) == (4, None, pytest.approx(10))


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif", ".avif"])
def test_one_frame_is_an_image(tmp_path, suffix):
    skip_unless_written(suffix[1:])
    image = SamaVideo.open(animation(tmp_path / f"a{suffix}", frames=1), "image")
    assert image.is_image and len(image) == 1 and image[0].shape == (16, 24, 3)


def test_a_first_picture_for_viewers_without_animations_is_not_shown(tmp_path):
    pictures = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (255, 10, 20)]
    path = tmp_path / "a.png"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], default_image=True, duration=100)
    video = SamaVideo.open(path)
    assert [frame[0, 0, 0] for frame in video] == [10, 20]
    pictures[0].save(path, save_all=True, append_images=pictures[1:2], default_image=True, duration=100)
    assert SamaVideo.open(path).is_image and read_still(path)[0, 0, 0] == 10


def test_several_pictures_of_a_phone_are_one_image(tmp_path):
    pictures = [Image.fromarray(quarters()), Image.new("RGB", (48, 32))]
    pictures[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:], quality=95)
    image = SamaVideo.open(tmp_path / "a.jpg", "image")
    assert image.is_image
    assert_like(image[0], quarters())


def test_an_animation_that_ends_early(tmp_path):
    content = animation(tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: content.rindex(b"fcTL") + 4])
    with pytest.warns(UserWarning, match=r"Only the first \d of 4 frames of '.*cut.png' can be decoded") as caught:
        video = SamaVideo.open(tmp_path / "cut.png")
    assert 0 < len(video) < 4 and len(caught) == 1 and len(list(video)) == len(video)
    content = animation(tmp_path / "a.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(content[:-40])
    with pytest.raises(ValueError, match="cut.gif' is not an image that can be read"):
        SamaVideo.open(tmp_path / "cut.gif")


def test_an_animation_of_too_many_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures_sama, "MAX_ANIMATION_PIXELS", 1000)
    with pytest.raises(ValueError, match="has 4 frames of 24x16: 1,536 pixels, more than the 1,000"):
        AnimationReader(str(animation(tmp_path / "a.gif")))


# What a file is, its content says


def test_content_decides_and_not_the_name(tmp_path):
    Image.fromarray(quarters()).save(tmp_path / "picture.mp4", format="PNG")
    image = SamaVideo.open(tmp_path / "picture.mp4", "image")
    assert image.is_image
    np.testing.assert_array_equal(image[0], quarters())


def test_too_many_pixels(tmp_path, monkeypatch):
    Image.fromarray(quarters()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match="a.png' has 1,536 pixels; a picture may have 1,000 at most"):
        SamaVideo.open(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("brand", "message"), [(b"heic", "pip install pillow-heif"), (b"avif", "Pillow 11.3 or newer")]
)
def test_formats_whose_library_is_missing(tmp_path, monkeypatch, brand, message):
    Image.init()
    monkeypatch.setattr(Image, "OPEN", {name: one for name, one in Image.OPEN.items() if name not in ("AVIF", "HEIF")})
    monkeypatch.setattr(pictures_sama, "pillow_heif", None)
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x00\x00\x00\x1cftyp" + brand + bytes(40))
    with pytest.raises(ValueError, match=f"a.bin' is an? {brand.decode().upper()} picture, which needs .*{message}"):
        SamaVideo.open(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp", "avif", "heic"])
def test_flipped_bytes_end_in_a_picture_or_in_one_sentence(tmp_path, suffix):
    skip_unless_written(suffix)
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"a.{suffix}"
    Image.fromarray(quarters()).save(whole)
    content, read = whole.read_bytes(), 0
    for seed in range(40):
        rng, mutant = np.random.default_rng(seed), bytearray(content)
        for at in rng.integers(0, min(len(content), 400), 1 + seed % 6):
            mutant[at] = rng.integers(256)
        path.write_bytes(mutant[: len(mutant) - (seed % 4 == 3) * int(rng.integers(len(mutant)))])
        try:
            read += read_still(path).size > 0
        except ValueError as error:
            assert f"'{path}'" in str(error)
    assert read > 0


# Paths


@pytest.mark.parametrize("url", ["https://host.org/a/clip.mp4", "s3://bucket/a.mp4", "hf://datasets/a.mp4"])
def test_urls(url):
    for source in (url, Path(url)):
        with pytest.raises(ValueError) as caught:
            SamaVideo.open(source)
        assert str(caught.value) == f"'{url}' is a URL; download it first and give the path of the file."


def test_what_no_path_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop.mp4", "loop.mp4")
    (tmp_path / "file").write_text("x")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket.mp4")
    os.mkfifo("pipe.mp4")
    for source, message in {
        "loop.mp4": "'loop.mp4' cannot be opened: Too many levels of symbolic links",
        "x" * 300 + ".mp4": "cannot be opened: File name too long",
        "a\0.mp4": r"'a\\x00.mp4' is not a file name",
        "a\ud800.mp4": "is not a file name",
        "": "The path is empty",
        "socket.mp4": "neither a file nor a folder",
        "pipe.mp4": "neither a file nor a folder",
        "data:video/mp4;base64," + "A" * 9999: r"'data:video/mp4;base64,A+\.\.\.A+' is a URL",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            SamaVideo.open(source)
        assert len(str(caught.value)) < 400
    for source in ("absent.mp4", "file/clip.mp4"):
        with pytest.raises(FileNotFoundError, match=f"There is no file '{source}'"):
            SamaVideo.open(source)
    with pytest.raises(ValueError, match="Expected a path.*got bytes"):
        SamaVideo.open(b"clip.mp4")
    listener.close()
    assert existing_path("file") == "file"


def test_natural_order():
    names = ["f10.png", "f2.png", "F1.png", "f02b.png", "10.png", "9.png", "f2.jpg"]
    assert sorted(names, key=natural_key) == ["9.png", "10.png", "F1.png", "f2.jpg", "f2.png", "f02b.png", "f10.png"]
    assert sorted(["f1.png", "f"], key=natural_key) == ["f", "f1.png"]
