"""Live pictures: frame grabbers, network streams and video files, through OpenCV.

A thread waits for pictures, because a grabber's `read` blocks. It opens the source again, later
and later, whenever that is gone. Pictures that equal the one before are not passed on: a machine
whose picture is frozen, or an X-ray that is only held on the screen, shows nothing new, and a new
stamp would say that it does.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from hybrid_guidance.geometry.types import Image
from hybrid_guidance.imaging.frame import SourceError
from hybrid_guidance.imaging.retry import keep_trying

FROZEN_S = 1.0
"""A picture that has not changed for so long is reported."""

_KEPT = 8


class Capture(Protocol):
    """What OpenCV's VideoCapture does."""

    def isOpened(self) -> bool:
        """Tell whether the source is there."""
        ...

    def read(self) -> tuple[bool, Any]:
        """Wait for a picture; return whether there was one, and it."""
        ...

    def release(self) -> None:
        """Let go of the source."""
        ...


@dataclass(frozen=True)
class VideoFormat:
    """How a screen's picture becomes an image.

    Attributes:
        crop: px, (left, top, width, height) of the part that is the image; None: all of it.
        is_mirrored: whether left and right are swapped.
        is_interlaced: whether even and odd rows are of different times; only the even rows, of
            the first field, are used, and the rows between are interpolated.
    """

    crop: tuple[int, int, int, int] | None = None
    is_mirrored: bool = False
    is_interlaced: bool = False

    def apply(self, picture: Image) -> Image:
        """Return (height, width) grey levels of a (H, W) or (H, W, 3) BGR picture.

        Raises:
            SourceError: the crop is not inside the picture.
        """
        image = (picture if picture.ndim == 2
                 else np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)))
        if self.crop is not None:
            left, top, width, height = self.crop
            if left + width > image.shape[1] or top + height > image.shape[0]:
                raise SourceError(f'crop {self.crop} (left, top, width, height) is not inside the '
                                  f'picture of {image.shape[1]} x {image.shape[0]}; correct it')
            image = image[top:top + height, left:left + width]
        if self.is_interlaced:
            image = _first_field(image)
        return np.ascontiguousarray(image[:, ::-1] if self.is_mirrored else image)


def _first_field(image: Image) -> Image:
    """Return the even rows, and between them their means, in as many rows as there were."""
    even = np.ascontiguousarray(image[::2])
    whole = np.repeat(even, 2, axis=0)[:len(image)]
    between = cv2.addWeighted(even[:-1], 0.5, even[1:], 0.5, 0.0)
    whole[1:2 * len(between):2] = between
    return whole


def parse_crop(text: str) -> tuple[int, int, int, int] | None:
    """Return 'left top width height' in pixels; None for an empty text.

    Raises:
        SourceError: not four whole numbers that make a rectangle.
    """
    words = text.replace(',', ' ').split()
    if not words:
        return None
    numbers = [int(word) if word.isdecimal() and len(word) < 10 else -1 for word in words]
    if len(numbers) != 4 or min(numbers) < 0 or 0 in numbers[2:]:
        raise SourceError(f'crop: "{text}" is not "left top width height" in pixels')
    left, top, width, height = numbers
    return left, top, width, height


def open_capture(name: str) -> Capture:
    """Open a device by its number or path, a network stream by its URL, or a video file."""
    if Path(name).is_file():
        return PacedFile(name)
    return cv2.VideoCapture(int(name) if name.isdecimal() and len(name) < 6 else name)


class PacedFile:
    """A video file whose pictures come when they did; OpenCV alone hands them out at once.

    Args:
        name: the file.
    """

    def __init__(self, name: str) -> None:
        self._capture = cv2.VideoCapture(name)
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        # A file that says less than a picture in ten seconds says nonsense.
        self._period = 1.0 / rate if rate > 0.1 else 0.0
        self._due = time.monotonic()

    def isOpened(self) -> bool:
        """Tell whether OpenCV can read the file."""
        return self._capture.isOpened()

    def read(self) -> tuple[bool, Any]:
        """Return the next picture, at its time."""
        time.sleep(max(self._due - time.monotonic(), 0.0))
        self._due = max(self._due, time.monotonic() - self._period) + self._period
        return self._capture.read()

    def release(self) -> None:
        """Close the file."""
        self._capture.release()


class VideoStream:
    """Pictures of one source as they come, from a thread of its own.

    Args:
        name: device number or path, URL, or file.
        now_ns: the clock that stamps pictures, at the moment they arrive.
        on_picture: called from the thread when a picture can be taken.
        open_source: opens the source by its name.
        backoff: s, first and longest pause before the source is opened again.
    """

    def __init__(self, name: str, now_ns: Callable[[], int], on_picture: Callable[[], None],
                 open_source: Callable[[str], Capture] = open_capture,
                 backoff: tuple[float, float] = (0.2, 2.0)) -> None:
        self._name, self._now_ns, self._on_picture = name, now_ns, on_picture
        self._open = open_source
        self._pictures: deque[tuple[Image, int]] = deque(maxlen=_KEPT)
        self._ended = threading.Event()
        self._words = 'not opened yet'
        self.opened = self.repeated = self.dropped = 0
        self._thread = threading.Thread(
            target=keep_trying, args=(self._play, self._ended, backoff), name=f'video {name}',
            daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str:
        """What is wrong with the source, in words; '' when pictures come."""
        return self._words

    def take(self) -> tuple[Image, int] | None:
        """Return the oldest picture not taken yet and its time in ns, or None."""
        try:
            return self._pictures.popleft()
        except IndexError:
            return None

    def close(self) -> None:
        """End the thread and let go of the source."""
        self._ended.set()
        self._thread.join(timeout=2.0)

    def _play(self) -> bool:
        """Open the source and read it; tell whether there was any picture."""
        capture = self._open(self._name)
        shown = False
        try:
            if capture.isOpened():
                self.opened += 1
                shown = self._read(capture)
        except (cv2.error, OSError) as error:
            self._words = f'{self._name}: {error}; trying again'
        finally:
            capture.release()
        if not self.opened:
            self._words = (f'{self._name}: cannot be opened; check the device number, the '
                           'path or the address')
        return shown

    def _read(self, capture: Capture) -> bool:
        """Read until the source is gone; tell whether there was any picture."""
        last: Image | None = None
        changed = time.monotonic()
        while not self._ended.is_set():
            good, picture = capture.read()
            stamp = self._now_ns()
            if not good or picture is None:
                self._words = f'{self._name}: no picture any more; opening it again'
                break
            if last is not None and np.array_equal(picture, last):
                self.repeated += 1
                if time.monotonic() - changed > FROZEN_S:
                    self._words = (f'{self._name}: the picture is frozen; nothing is published '
                                   'until it moves')
                continue
            last, changed, self._words = picture, time.monotonic(), ''
            self.dropped += len(self._pictures) == _KEPT
            self._pictures.append((picture, stamp))
            self._on_picture()
        return last is not None
