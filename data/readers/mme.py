"""MME: one folder for each category, with images and a text file of yes/no questions and answers for each image."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from sama.pictures_sama import IMAGE_SUFFIXES
from sama.regions_sama import shortened

from ..records import DataError, read_lines, reading
from .source_reader import SourceReader, assistant, text, user


# Some categories are published in one folder, others in these two
QUESTIONS, IMAGES = "questions_answers_YN", "images"
ANSWERS = ("Yes", "No")


def read_mme(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    One record for each image, whose two questions are independent turns. Files: media (the folder of the categories).
    `info` of a question has `category`, `image` and `answer`.
    """
    reader = SourceReader(files, root, options, "mme", ["media"])
    media = reader.path("media")
    if not media.is_dir():
        raise DataError("there is no such folder", source=reader.source, file=reader.files["media"])
    with reading(media):
        categories = sorted(path for path in media.iterdir() if path.is_dir())
    for category in categories:
        folder = category / QUESTIONS if (category / QUESTIONS).is_dir() else category
        listed = sorted(folder.glob("*.txt"))
        yield from reader.convert(
            ((path.stem, path) for path in listed),
            lambda stem, path, name=category.name: _read_image(reader, name, path),
            folder,
        )


def _read_image(reader: SourceReader, category: str, path: Path) -> Iterator[dict]:
    folder = path.parent.parent / IMAGES if path.parent.name == QUESTIONS else path.parent
    names = [f"{path.stem}{suffix}" for suffix in sorted(IMAGE_SUFFIXES)]
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        missing = [str(folder / name) for name in names]
        raise DataError(f"'{folder}' contains none of {', '.join(names)}", field="image", missing=missing)
    messages = []
    for number, content in read_lines(path):
        try:
            line = content.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"is not UTF-8 text (byte {error.start})", field=f"line {number}") from error
        question, tab, answer = line.rstrip().rpartition("\t")
        if not tab or answer not in ANSWERS:
            raise DataError(f"is {shortened(line)}, expected a question, a tab, and Yes or No", field=f"line {number}")
        info = {"category": category, "image": name, "answer": answer}
        messages += [user([text(question.strip())], info=info), assistant([text(answer)])]
    if not messages:
        raise DataError("contains no question")
    shown = (folder / name).relative_to(reader.path("media")).as_posix()
    yield {
        "id": f"{reader.source}/{category}/{path.stem}",
        "source": reader.source,
        "image": {"path": reader.media(shown, "image")},
        "messages": messages,
        "layout": "llava",
    }
