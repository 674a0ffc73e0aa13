"""MME: a folder a category; in it pictures, and beside each a text file of yes/no questions with their answers."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..frames import IMAGE_SUFFIXES
from ..records import DataError
from .source_reader import SourceReader, assistant, text, user


# The release of the benchmark keeps some categories flat and some in two folders
QUESTIONS, IMAGES = "questions_answers_YN", "images"
ANSWERS = ("Yes", "No")


def read_mme(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    One record a picture, its two questions as turns that do not depend on each other. Files: media (the folder of the
    categories). `info` of a question holds `category` and `image`.
    """
    reader = SourceReader(files, root, options, "mme", ["media"])
    media = reader.path("media")
    if not media.is_dir():
        raise DataError("there is no such folder", source=reader.source, file=reader.files["media"])
    for category in sorted(path for path in media.iterdir() if path.is_dir()):
        folder = category / QUESTIONS if (category / QUESTIONS).is_dir() else category
        listed = sorted(folder.glob("*.txt"))
        yield from reader.convert(
            ((path.stem, path) for path in listed),
            lambda stem, path, name=category.name: _read_picture(reader, name, path),
            folder,
        )


def _read_picture(reader: SourceReader, category: str, path: Path) -> Iterator[dict]:
    folder = path.parent.parent / IMAGES if path.parent.name == QUESTIONS else path.parent
    names = [f"{path.stem}{suffix}" for suffix in IMAGE_SUFFIXES]
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        raise DataError(f"'{folder}' holds none of {', '.join(names)}", field="image")
    messages = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        question, tab, answer = line.rstrip().rpartition("\t")
        if not tab or answer not in ANSWERS:
            raise DataError(f"is {line!r} where a question, a tab and Yes or No are expected", field=f"line {number}")
        info = {"category": category, "image": name, "answer": answer}
        messages += [user([text(question.strip())], info=info), assistant([text(answer)])]
    if not messages:
        raise DataError("holds no question")
    shown = (folder / name).relative_to(reader.path("media")).as_posix()
    yield {
        "id": f"{reader.source}/{category}/{path.stem}",
        "source": reader.source,
        "image": {"path": reader.media(shown, "image")},
        "messages": messages,
        "layout": "llava",
    }
