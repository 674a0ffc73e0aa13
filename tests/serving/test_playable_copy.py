"""The playable copy in a browser: from n / fps to (n + 1) / fps seconds it shows frame n of the video and no other."""

import base64
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from upload_limits import SmallLimits
from video_files import cut, quarters, turn, write_clip

from sama.serving.media import normalise
from sama.video_sama import SamaVideo


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Seeks to three places in each frame, first backward and then forward; returns the pixels that are shown there. The
# frame may be presented after "seeked", and is not presented again where it is shown already
SEEK = """
async ([url, fps, count, width, height]) => {
  const video = document.createElement("video");
  video.muted = true;
  await new Promise((resolve, reject) => {
    video.onloadeddata = resolve;
    video.onerror = () => reject(new Error(video.error.message));
    video.src = url;
  });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const shown = [], numbers = [...Array(count).keys()];
  for (const number of [...numbers.toReversed(), ...numbers]) {
    for (const part of [0.02, 0.5, 0.98]) {
      const seeked = new Promise((resolve) => { video.onseeked = resolve; });
      const presented = new Promise((resolve) => video.requestVideoFrameCallback(resolve));
      video.currentTime = (number + part) / fps;
      await seeked;
      await Promise.race([presented, new Promise((resolve) => setTimeout(resolve, 100))]);
      context.drawImage(video, 0, 0);
      const pixels = context.getImageData(0, 0, width, height).data;
      let text = "";
      for (let i = 0; i < pixels.length; i += 4) text += String.fromCharCode(...pixels.slice(i, i + 3));
      shown.push([number, btoa(text)]);
    }
  }
  return {duration: video.duration, shown};
}
"""


@pytest.fixture(scope="module")
def tab():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def odd_animation(path: Path) -> None:
    frames = [Image.fromarray(quarters(index)[:47, :79]) for index in range(5)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True, duration=[100, 300, 100, 100, 200])


SOURCES = {
    "turned.mp4": lambda clip, path: turn(clip, path, 90, mirrored=True),
    "trimmed.mp4": lambda clip, path: cut(clip, path, 0.5),
    "uneven.mp4": lambda clip, path: write_clip(path, 6, times=[0, 0.1, 0.5, 0.6, 1.4, 1.5]),
    "odd.webp": lambda clip, path: odd_animation(path),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_browser_shows_frame_n_at_its_time(tab, tmp_path, name):
    SOURCES[name](write_clip(tmp_path / "clip.mp4", 14), tmp_path / name)
    media = normalise(tmp_path / name, tmp_path, SmallLimits())
    url = "data:video/mp4;base64," + base64.b64encode((tmp_path / media.content).read_bytes()).decode()
    played = tab.evaluate(SEEK, [url, media.fps, media.num_frames, media.width, media.height])
    frames = np.stack(list(SamaVideo.open(str(tmp_path / name)))).astype(int)
    assert played["duration"] == pytest.approx(media.duration, abs=1e-3)
    assert len(played["shown"]) == 6 * len(frames)
    for number, text in played["shown"]:
        pixels = np.frombuffer(base64.b64decode(text), np.uint8).reshape(frames.shape[1:])
        distances = np.abs(frames - pixels).mean(axis=(1, 2, 3))
        assert distances.argmin() == number and distances[number] < 4
