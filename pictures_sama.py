"""Pictures as a person sees them: stills of every usual format turned upright, animated pictures frame by frame,
folders of numbered pictures, and what a path may be.

The rules, which docs/data.md shows as a table: the orientation that a still declares (EXIF, or the transformation of
an AVIF or HEIC file) is applied; transparent pixels lie on white; 16-bit grey is scaled to 8 bits. An animated GIF,
PNG, WebP, AVIF or TIFF is a video of all its frames, and one with a single frame is a still.
"""

import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


pillow_heif: Any = None  # where it is not installed

try:
    import pillow_heif
except ImportError:
    pass

# What counts as a picture in a folder of frames and among the frames of an annotation file
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .heif .jpeg .jpg .jp2 .pgm .png .pnm .ppm .tif .tiff .webp".split()
)  # fmt: skip
# Formats that Pillow may try. Others start programs (EPS) or hold no photographs.
PICTURE_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
# Several pictures in one file, of which the first is the picture: phones store depth maps and bursts like that
STILL_FORMATS = frozenset({"MPO", "HEIF"})
# Brands of the ISO container, at byte 8 of the file
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})

WHITE = (255, 255, 255, 255)
ORIENTATION_TAG = 0x0112  # of EXIF, and of TIFF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
AS_STORED = UPRIGHT | {6: UPRIGHT[8], 8: UPRIGHT[6]}  # undoes them
# An animation of more pixels in all its frames together is refused: a file of a few kilobytes can claim any number
MAX_ANIMATION_PIXELS = 2**34
# Browsers show frames that declare less for 0.1 seconds
MIN_FRAME_MILLISECONDS, DEFAULT_FRAME_MILLISECONDS = 20, 100
# Longer names are shortened in messages: a `data:` URL has megabytes
MAX_SHOWN_NAME = 200


# ---- paths ---------------------------------------------------------------------------------------------------------


def shown_name(name: str) -> str:
    """A path for a message, shortened in the middle where it is very long."""
    return name if len(name) <= MAX_SHOWN_NAME else f"{name[:120]}...{name[-40:]}"


def existing_path(source: str | os.PathLike) -> str:
    """
    A file or folder that exists.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if `source` is a URL, or nothing that can be opened: too long a name, a loop of links, a device.
    """
    name = os.fspath(source)
    if not isinstance(name, str):
        raise ValueError(f"Expected a path as a string, got {type(name).__name__}.")
    # A `Path` made of a URL has lost one of the two slashes
    if re.match(r"(?:[A-Za-z][A-Za-z0-9+.-]+:/|data:)", name) and not os.path.exists(name):
        url = re.sub(r"^(https?|ftps?|s3|gs|hf):/(?!/)", r"\1://", name)
        raise ValueError(f"'{shown_name(url)}' is a URL; download it first and give the path of the file.")
    if not name:
        raise ValueError("The path is empty: give the name of a file.")
    try:
        mode = os.stat(name).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"There is no file '{shown_name(name)}'.") from None
    except OSError as error:
        raise ValueError(f"'{shown_name(name)}' cannot be opened: {error.strerror}.") from error
    except ValueError as error:  # a NUL character, or half of a surrogate pair
        raise ValueError(f"{shown_name(name)!r} is not a file name: it holds a character that no name has.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"'{shown_name(name)}' is neither a file nor a folder but a device, a pipe or a socket.")
    return str(Path(name))


def existing_file(source: str | os.PathLike) -> str:
    """[`existing_path`] for what must be a file."""
    path = existing_path(source)
    if os.path.isdir(path):
        raise ValueError(f"'{path}' is a folder where the file of one picture is expected.")
    return path


def natural_key(name: str) -> tuple[list, str]:
    """Sorts names as people count: frame_2 before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)], name


def pictures_in_folder(folder: str) -> tuple[list[str], list[str]]:
    """The pictures of a folder in natural order, and the names of what else lies there; hidden files are neither."""
    try:
        names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=natural_key)
    except OSError as error:
        raise ValueError(f"The folder '{folder}' cannot be read: {error.strerror}.") from error
    pictures = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    others = [name for name in names if Path(name).suffix.lower() not in IMAGE_SUFFIXES]
    if not pictures:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        problem = f"none of its {len(names)} files is one ({suffixes})" if names else "it is empty"
        raise ValueError(f"The folder '{folder}' holds no pictures to use as frames: {problem}.")
    return [os.path.join(folder, name) for name in pictures], others


# ---- pixels --------------------------------------------------------------------------------------------------------


def orientation(image: Image.Image) -> int:
    """The orientation from 1 to 8 that a picture declares; 1 where it has none, or one that viewers ignore, too."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    # What Pillow trips over in EXIF data that is damaged: viewers show such a picture as it is stored
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1


def to_rgb(image: Image.Image, upright: bool = True) -> np.ndarray:
    """
    The pixels of a picture as a uint8 array of shape `(height, width, 3)`.

    Transparent pixels are laid on white. 16-bit grey is scaled to 8 bits, 32-bit integers are read as 16-bit grey, and
    floats as grey from 0 to 1. CMYK is converted without its colour profile.

    Args:
        image (`PIL.Image.Image`): The picture; of several frames the current one.
        upright (`bool`): Whether its orientation is applied; that of a TIFF always is, see [`just_opened_rgb`].

    Raises:
        ValueError: if the values of integers or floats lie outside their range.
    """
    image.load()  # Pillow turns a TIFF upright here and forgets its orientation
    method = UPRIGHT.get(orientation(image)) if upright else None
    if image.mode.startswith("I") or image.mode == "F":
        pixels = _scaled_grey(image)
        image = Image.fromarray(pixels)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    image = image.convert("RGB")
    return np.array(image if method is None else image.transpose(method))


def just_opened_rgb(image: Image.Image, upright: bool) -> np.ndarray:
    """[`to_rgb`] of a picture that has not been loaded, of which a TIFF is not turned either unless `upright`."""
    method = AS_STORED.get(orientation(image)) if image.format == "TIFF" and not upright else None
    pixels = to_rgb(image, upright)
    return pixels if method is None else np.array(Image.fromarray(pixels).transpose(method))


def _scaled_grey(image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits as uint8, white staying white; what is transparent becomes white."""
    values, transparent = np.asarray(image), image.info.get("transparency")
    limit = 1.0 if image.mode == "F" else 65535
    smallest, largest = values.min(), values.max()
    if not (0 <= smallest and largest <= limit):
        raise ValueError(
            f"its pixels of mode {image.mode} go from {smallest} to {largest}, where 0 to {limit:g} is expected; "
            "save it with 8 or 16 bits"
        )
    grey = np.rint(values * (255.0 / limit)).astype(np.uint8)
    return grey if transparent is None else np.where(values == transparent, np.uint8(255), grey)


def resize_frame(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """A frame of shape `(height, width, 3)`, uint8, at the size of the first frame of its video."""
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


class PictureError(ValueError):
    """A picture that cannot be read; names the file."""


# ---- files ---------------------------------------------------------------------------------------------------------


def is_picture(path: str) -> bool:
    """
    Whether the content of a file is a picture, whatever its name.

    Raises:
        PictureError: if it is one that needs a library which is not installed, or cannot be opened at all.
    """
    try:
        with opened_picture(path):
            return True
    except PictureError as error:
        if isinstance(error.__cause__, Image.UnidentifiedImageError):
            return False
        raise


def _formats(path: str) -> list[str]:
    """The formats that Pillow may try on a file, once it has what the file needs."""
    with open(path, "rb") as file:
        head = file.read(12)
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    Image.init()
    if brand in AVIF_BRANDS and "AVIF" not in Image.OPEN:
        raise PictureError(f"'{path}' is an AVIF picture, which needs Pillow 11.3 or newer: pip install -U pillow.")
    if brand in HEIC_BRANDS and "HEIF" not in Image.OPEN:
        if pillow_heif is None:
            raise PictureError(f"'{path}' is a HEIC picture, which needs pillow-heif: pip install pillow-heif.")
        pillow_heif.register_heif_opener()
    return [name for name in PICTURE_FORMATS if name in Image.OPEN]


@contextmanager
def opened_picture(path: str) -> Iterator[Image.Image]:
    """
    An opened picture. Whatever goes wrong while it is open becomes one sentence.

    Raises:
        FileNotFoundError: if there is no such file.
        PictureError: if it is not a picture that can be read, or has too many pixels.
    """
    path = existing_file(path)
    try:
        with Image.open(path, formats=_formats(path)) as image:
            yield image
    except PictureError:
        raise
    except Image.UnidentifiedImageError as error:
        problem = "its content is not in a supported picture format"
        raise PictureError(f"'{path}' is not an image that can be read: {problem}.") from error
    except Image.DecompressionBombError as error:
        pixels, limit = (int(number) for number in re.findall(r"\d+", str(error))[:2])
        raise PictureError(f"'{path}' has {pixels:,} pixels; a picture may have {limit:,} at most.") from error
    # A decoder raises whatever the damage leads it to
    except Exception as error:
        reason = str(error).removesuffix(".") or type(error).__name__
        raise PictureError(f"'{path}' is not an image that can be read: {reason}.") from error


def number_of_frames(image: Image.Image) -> int:
    """Frames of an opened picture that a viewer shows; 1 for a still."""
    if image.format in STILL_FORMATS:
        return 1
    try:
        count: int = image.n_frames  # type: ignore[attr-defined]
    except AttributeError:  # a format without animations
        return 1
    # An animated PNG may begin with a picture for viewers that know no animation
    return count - 1 if image.info.get("default_image", False) and count > 1 else count


def read_still(path: str, upright: bool = True) -> np.ndarray:
    """
    A still as a uint8 array of shape `(height, width, 3)`; see [`to_rgb`].

    Raises:
        ValueError: if it cannot be read, or is animated.
    """
    with opened_picture(path) as image:
        count = number_of_frames(image)
        if count > 1:
            raise PictureError(f"'{path}' is animated, with {count} frames: give it as a video, not as one picture.")
        if image.info.get("default_image", False):  # a picture in front of the only frame, see `number_of_frames`
            image.seek(image.n_frames - 1)  # type: ignore[attr-defined]
        return just_opened_rgb(image, upright)


class AnimationReader:
    """
    The frames of an animated picture, in order of time. The file is gone through once to count them and to learn how
    long each is shown.

    Attributes as in `AvReader` of video_readers_sama.py:
        length (`int`): Frames that can be decoded.
        declared (`int`): Frames that the file claims to have.
        times (`list[float]`): When each frame is shown, in seconds, and when the last one ends; `None` without a clock
            (TIFF).
    """

    pixel_aspect, sound = Fraction(1), None

    def __init__(self, path: str, upright: bool = True):
        self.path, self.upright = path, upright
        self._image: Any = None
        self._open()
        self.declared = number_of_frames(self._image)
        self._first = self._image.n_frames - self.declared
        self._check_size()
        self.damaged: dict[int, str] = {}
        self.messages: list[str] = []
        durations = list(self._durations())
        self.length = len(durations)
        seconds = [duration for duration in durations if duration is not None]
        self.times = [0.0, *np.cumsum(seconds).tolist()] if len(seconds) == len(durations) else None
        # With a clock the rate follows from the times; a TIFF has none
        self.fps = len(seconds) / self.times[-1] if self.times is not None and self.times[-1] > 0 else 24.0

    def __reduce__(self):
        return AnimationReader, (self.path, self.upright)

    def _open(self) -> None:
        with opened_picture(self.path) as image:
            self._image = Image.open(self.path, formats=[str(image.format)])

    def _check_size(self) -> None:
        width, height = self._image.size
        if width * height * self.declared > MAX_ANIMATION_PIXELS:
            raise PictureError(
                f"'{self.path}' has {self.declared} frames of {width}x{height}: {width * height * self.declared:,} "
                f"pixels, more than the {MAX_ANIMATION_PIXELS:,} that an animation may have."
            )

    def _durations(self) -> Iterator[float | None]:
        """Seconds that each frame is shown, up to the first frame that cannot be decoded."""
        for index in range(self.declared):
            try:
                self._image.seek(self._first + index)
                self._image.load()
            except Exception:  # see `opened_picture`
                return
            # A frame of a GIF may declare no time, which counts as 0; a TIFF has none
            milliseconds = self._image.info.get("duration", 0 if self._image.format == "GIF" else None)
            if milliseconds is not None and milliseconds < MIN_FRAME_MILLISECONDS:
                milliseconds = DEFAULT_FRAME_MILLISECONDS
            yield None if milliseconds is None else milliseconds / 1000

    def read(self, index: int) -> np.ndarray:
        try:
            # Pillow cannot go back in an animated PNG, and a loaded frame of a TIFF has lost its orientation
            if self._first + index <= self._image.tell():
                self._image.close()
                self._open()
            self._image.seek(self._first + index)
            return just_opened_rgb(self._image, self.upright)
        except Exception as error:  # see `opened_picture`
            raise ValueError(str(error) or type(error).__name__) from error
