"""The process that converts uploads: its limits, its end, and damaged files of every kind."""

import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from upload_limits import SmallLimits
from video_files import quarters, write_clip

from sama.serving.conversion import ConversionLimits, convert
from sama.serving.media import FileRefused, normalise


LIMITS = SmallLimits()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return Path(write_clip(tmp_path_factory.mktemp("conversion") / "clip.mp4", 14))


def test_the_process_converts_and_refuses(clip, tmp_path):
    media = convert(clip, tmp_path, LIMITS, ConversionLimits())
    assert media == normalise(clip, tmp_path, LIMITS)
    (tmp_path / "text").write_text("no video")
    with pytest.raises(FileRefused, match="is neither a video nor a picture") as caught:
        convert(tmp_path / "text", tmp_path, LIMITS, ConversionLimits())
    assert caught.value.status == 415


def test_modules_of_the_working_directory_are_not_imported(clip, tmp_path, monkeypatch):
    (tmp_path / "types.py").write_text("raise SystemExit('foreign code')")
    monkeypatch.chdir(tmp_path)
    assert convert(clip, tmp_path, LIMITS, ConversionLimits()).num_frames == 14


@pytest.mark.parametrize(
    ("costs", "status", "sentence"),
    [
        ({"seconds": 0.05}, 413, "takes longer than 0.05 seconds"),
        ({"output_bytes": 1000}, 413, "playable copy would have more than 1,000 bytes"),
    ],
)
def test_the_process_has_limits(clip, tmp_path, costs, status, sentence):
    with pytest.raises(FileRefused, match=sentence) as caught:
        convert(clip, tmp_path, LIMITS, ConversionLimits(**costs))
    assert caught.value.status == status
    assert os.listdir(tmp_path) == []


def test_the_memory_of_the_process_is_limited(tmp_path):
    """A picture of 100 million pixels, which the process may have but has no memory for."""
    path = tmp_path / "upload.png"
    rows = zlib.compressobj()
    data = b"".join(rows.compress(bytes(10_001)) for _ in range(10_000)) + rows.flush()
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0), b"IDAT": data, b"IEND": b""}
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks.items():
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(content)
    with pytest.raises(FileRefused, match="needs more than 0.4 GiB of memory") as caught:
        convert(path, tmp_path, replace(LIMITS, frame_pixels=2**27), ConversionLimits(memory_bytes=400 * 2**20))
    assert caught.value.status == 413


def test_a_crash_of_the_decoder_is_a_sentence(clip, tmp_path, monkeypatch):
    """The process dies as by a fault in a decoder."""
    (tmp_path / "sitecustomize.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(FileRefused, match="cannot be converted: it is damaged in a way that stops the decoder"):
        convert(clip, tmp_path, LIMITS, ConversionLimits())


def test_the_process_ends_when_it_is_stopped(clip, tmp_path, monkeypatch):
    note = tmp_path / "process"
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    stop = threading.Event()

    def stop_when_started():
        while not note.exists() or not note.read_text():
            time.sleep(0.01)
        stop.set()

    threading.Thread(target=stop_when_started, daemon=True).start()
    with pytest.raises(FileRefused, match="was stopped"):
        convert(clip, tmp_path, LIMITS, ConversionLimits(), stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


MUTANTS = """
import sys
import numpy as np
from pathlib import Path
from upload_limits import SmallLimits
from sama.serving.media import FileRefused, normalise
folder, counts = Path(sys.argv[1]), {"copied": 0, "refused": 0}
for name in sys.argv[2:]:
    content = Path(name).read_bytes()
    for seed in range(20):
        rng, mutant = np.random.default_rng(seed), bytearray(content)
        first = max(0, len(mutant) - 1200) if seed % 3 == 0 else 0
        for at in rng.integers(first, len(mutant) if seed % 3 else min(len(mutant), first + 1200), 1 + seed % 9):
            mutant[at] = rng.integers(256)
        path = folder / "upload"
        path.write_bytes(mutant[: len(mutant) - (seed % 5 == 4) * int(rng.integers(len(mutant)))])
        try:
            normalise(path, folder, SmallLimits())
            counts["copied"] += 1
        except FileRefused as error:
            assert str(folder) not in str(error) and error.status in (400, 413, 415), error
            counts["refused"] += 1
print(counts["copied"], counts["refused"])
"""


def test_flipped_bytes_end_in_a_copy_or_in_one_sentence(clip, tmp_path):
    """In a process of its own: a crash is a failure of this test and not the end of all."""
    write_clip(tmp_path / "a.mkv", 5)
    frames = [Image.fromarray(quarters(index)) for index in range(5)]
    for name in ("a.webp", "a.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
    sources = [str(clip), *(str(tmp_path / name) for name in ("a.mkv", "a.webp", "a.gif"))]
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", MUTANTS, str(tmp_path), *sources]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    copied, refused = map(int, result.stdout.split())
    assert copied + refused == 80 and min(copied, refused) > 10
