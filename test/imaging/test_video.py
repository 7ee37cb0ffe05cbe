"""Live video: pictures to images, and a source that goes away, freezes, or floods."""

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from hybrid_guidance.imaging import video
from hybrid_guidance.imaging.frame import SourceError
from hybrid_guidance.imaging.video import (
    FROZEN_S,
    VideoFormat,
    VideoStream,
    open_capture,
    parse_crop,
)

PICTURE = np.arange(48, dtype=np.uint8).reshape(6, 8)


def test_the_crop_is_cut_out_and_then_mirrored() -> None:
    image = VideoFormat((2, 1, 3, 4), is_mirrored=True).apply(PICTURE)
    assert np.array_equal(image, PICTURE[1:5, 2:5][:, ::-1])
    assert image.flags.c_contiguous


def test_colour_becomes_luminance_of_bgr() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[..., 1] = 200
    assert np.all(VideoFormat().apply(picture) == round(0.587 * 200))


@pytest.mark.parametrize('height', [6, 7])
def test_of_an_interlaced_picture_only_the_first_field_is_left(height: int) -> None:
    """Its rows stay where they were; the other field, 255 here, is nowhere."""
    picture = np.full((height, 4), 255, np.uint8)
    picture[::2] = 10 * np.arange(0, height, 2, dtype=np.uint8)[:, None]
    image = VideoFormat(is_interlaced=True).apply(picture)
    inner = height if height % 2 else height - 1
    assert np.array_equal(image[:inner, 0], 10 * np.arange(inner))
    assert image.shape == picture.shape
    assert image.max() < 255


@pytest.mark.parametrize('crop', [(0, 0, 9, 6), (0, 3, 8, 4)])
def test_a_crop_outside_the_picture_is_refused_with_both_sizes(crop) -> None:
    with pytest.raises(SourceError, match='not inside the picture of 8 x 6'):
        VideoFormat(crop).apply(PICTURE)


def test_a_crop_is_four_numbers_or_nothing() -> None:
    assert parse_crop('') is None
    assert parse_crop('1, 2, 30 40') == (1, 2, 30, 40)
    for text in ('1 2 3', '1 2 0 4', '1 2 00 4', '1 2 3 -4', 'a b c d', '1 2 3 ²', '9' * 5000):
        with pytest.raises(SourceError, match='left top width height'):
            parse_crop(text)


class Source:
    """Captures that each give some pictures and are then gone."""

    def __init__(self, *lives: list[int], absent: int = 0) -> None:
        self.lives, self.absent = list(lives), absent
        self.released = 0
        self.pause = 0.0

    def __call__(self, name: str) -> 'Source':
        self.there = self.absent == 0 and bool(self.lives)
        self.absent = max(self.absent - 1, 0)
        self.levels = list(self.lives.pop(0)) if self.there else []
        return self

    def isOpened(self) -> bool:
        return self.there

    def read(self):
        time.sleep(self.pause)
        return (True, np.full((2, 2), self.levels.pop(0), np.uint8)) if self.levels else (
            False, None)

    def release(self) -> None:
        self.released += 1


def taken(stream: VideoStream, until, seconds: float = 3.0) -> list[tuple[int, int]]:
    pictures: list[tuple[int, int]] = []
    deadline = time.monotonic() + seconds
    while not until(pictures) and time.monotonic() < deadline:
        while (item := stream.take()) is not None:
            pictures.append((int(item[0].flat[0]), item[1]))
        time.sleep(0.002)
    assert until(pictures)
    return pictures


def test_it_opens_a_source_again_that_was_absent_and_that_went_away() -> None:
    source = Source([1, 2], [3], absent=2)
    clock = iter(range(100))
    stream = VideoStream('grabber', lambda: next(clock), lambda: None, source, (0.01, 0.02))
    pictures = taken(stream, lambda pictures: len(pictures) == 3)
    stream.close()
    assert pictures[0] == (1, 0)
    assert [level for level, _ in pictures] == [1, 2, 3]
    assert stream.opened == 2
    assert source.released >= 4
    assert 'grabber' in stream.trouble


def test_a_source_that_never_was_there_is_named_with_what_to_check() -> None:
    stream = VideoStream('7', lambda: 0, lambda: None, Source(), (0.01, 0.02))
    taken(stream, lambda _: 'check the device number' in stream.trouble)
    stream.close()


def test_a_frozen_picture_is_passed_on_once_and_reported() -> None:
    source = Source([5, 5] + [6] * 400)
    source.pause = 0.005
    woken = threading.Event()
    stream = VideoStream('screen', lambda: 0, woken.set, source, (0.01, 0.02))
    pictures = taken(stream, lambda _: 'frozen' in stream.trouble, 3.0 + FROZEN_S)
    stream.close()
    assert [level for level, _ in pictures] == [5, 6]
    assert woken.is_set()


def test_nobody_takes_and_memory_does_not_grow() -> None:
    stream = VideoStream('flood', lambda: 0, lambda: None, Source(list(range(200))), (5.0, 5.0))
    taken_late = []
    deadline = time.monotonic() + 3.0
    while stream.dropped < 190 and time.monotonic() < deadline:
        time.sleep(0.01)
    while (item := stream.take()) is not None:
        taken_late.append(int(item[0][0, 0]))
    stream.close()
    assert taken_late == list(range(192, 200))


def write_video(file: Path, levels: list[int], rate: float) -> Path:
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*'MJPG'), rate, (64, 48))
    if not writer.isOpened():
        pytest.skip('this OpenCV writes no video')
    for level in levels:
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    return file


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_video_file_comes_at_its_own_rate(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(video, 'time', clock)
    file = open_capture(str(write_video(tmp_path / 'scan.avi', [20, 120, 220], 20.0)))
    times = []
    while file.read()[0]:
        times.append(clock.now)
    assert times == pytest.approx([0.0, 0.05, 0.1])


def test_a_video_file_starts_over(tmp_path: Path) -> None:
    file = write_video(tmp_path / 'scan.avi', [20, 120, 220], 20.0)
    stream = VideoStream(str(file), time.monotonic_ns, lambda: None, backoff=(0.01, 0.01))
    pictures = taken(stream, lambda pictures: len(pictures) >= 4)
    stream.close()
    assert np.allclose([level for level, _ in pictures[:4]], [20, 120, 220, 20], atol=3)
