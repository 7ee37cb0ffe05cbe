"""A folder of PNG, JPEG or TIFF files as a recording, one image in each file."""

import re
from collections.abc import Callable
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Image
from hybrid_guidance.imaging.frame import RecordedFrame, SourceError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff')
_MAXIMUM_FILES = 100_000
_MAXIMUM_BYTES = 256 << 20
_GREY = {3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY}


class ImageFolder:
    """Image files in natural order (2 before 10), at one rate.

    Every image has the size of the first that can be read; another size is an error of that image.

    Attributes:
        projection: of every image.
        period: seconds from the first frame to where a loop starts over.
        notes: what a user should know.
        times: seconds of each frame since the first.
        files: in order.
    """

    def __init__(self, files: tuple[Path, ...], rate: float, projection: Projection,
                 undistort: Callable[[Image], Image], notes: tuple[str, ...]) -> None:
        """Use ``open_images``."""
        self.files = files
        self._undistort = undistort
        self.projection = projection
        self.notes = notes
        self.times: tuple[float, ...] = tuple((np.arange(len(files)) / rate).tolist())
        self.period = len(files) / rate

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> RecordedFrame:
        """Return frame ``index``.

        Raises:
            IndexError: there is no such frame.
            SourceError: its file is damaged, or of another size; the others may still be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f'no frame {index} of {len(self)}')
        pixels = read_image(self.files[index])
        height, width = pixels.shape
        if (width, height) != (self.projection.width, self.projection.height):
            raise SourceError(f'{self.files[index]}: is {width} x {height}, the first image is '
                              f'{self.projection.width} x {self.projection.height}; keep images '
                              'of one size in a folder')
        if self.projection.is_calibrated:
            pixels = self._undistort(pixels)
        return RecordedFrame(pixels, self.times[index])


def open_images(name: str | Path, rate: float,
                project: Callable[[tuple[int, int]], Projection] = Projection.uncalibrated,
                undistort: Callable[[Image], Image] = lambda image: image) -> ImageFolder:
    """Open a folder, a glob such as ``scans/left*.png``, or one file.

    Args:
        name: what to open; of a folder, all image files in it, but none of those below it.
        rate: images per second.
        project: takes the (width, height) of the images to their projection.
        undistort: makes an image one that the projection is true for.

    Raises:
        SourceError: no image file there, or not one that can be read.
    """
    files = tuple(sorted(_files(str(name)), key=_natural))
    if not files:
        raise SourceError(f'{name}: no image file there; name a folder or a pattern of files that '
                          f'end in {", ".join(SUFFIXES)}')
    if len(files) > _MAXIMUM_FILES:
        raise SourceError(f'{name}: {len(files)} files are more than {_MAXIMUM_FILES}; use fewer')
    first, bad = _first_readable(files)
    notes = (f'{len(files)} images at {rate:g} per second, {files[0].name} to {files[-1].name}',
             *(() if not bad else (f'unreadable at its beginning: {bad}',)))
    projection = project((first.shape[1], first.shape[0]))
    if not projection.is_calibrated:
        notes += ('uncalibrated: image files say nothing of their geometry, and the calibration '
                  'file nothing of images of this size',)
    return ImageFolder(files, rate, projection, undistort, notes)


def _files(name: str) -> list[Path]:
    folder = Path(name)
    if folder.is_dir():
        return [path for path in folder.iterdir() if _is_image(path)]
    if folder.is_file() or not has_magic(name):
        return [folder] if folder.is_file() and _is_image(folder) else []
    return [path for path in map(Path, glob(name)) if _is_image(path)]


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith('.')


def _natural(path: Path) -> tuple[Any, ...]:
    """Return a key in which 2 comes before 10."""
    parts = re.split(r'(\d+)', str(path).lower())
    return tuple((0, int(part), '') if part.isdecimal() else (1, 0, part) for part in parts)


def _first_readable(files: tuple[Path, ...]) -> tuple[Image, str]:
    """Return the first image that can be read, and why one before it could not."""
    why = ''
    for path in files:
        try:
            return read_image(path), why
        except SourceError as error:
            why = why or str(error)
    raise SourceError(f'not one of {len(files)} files can be read; the first: {why}')


def read_image(path: Path) -> Image:
    """Return the (H, W) uint8 or uint16 grey levels of a file; colour becomes luminance.

    Raises:
        SourceError: missing, damaged, or not of 8 or 16 bits.
    """
    try:
        if path.stat().st_size > _MAXIMUM_BYTES:
            raise SourceError(f'{path}: larger than {_MAXIMUM_BYTES >> 20} MiB; cut it')
        data = np.fromfile(path, np.uint8)
        # As it is: a camera's remark on how to turn the picture would undo its calibration.
        found = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except (OSError, cv2.error) as error:
        raise SourceError(f'{path}: cannot be read ({" ".join(str(error).split())[:200]})'
                          ) from None
    if found is None:
        raise SourceError(f'{path}: is damaged, or no PNG, JPEG or TIFF image; write it again')
    pixels: NDArray[Any] = np.asarray(found)
    if pixels.dtype not in (np.uint8, np.uint16) or (
            pixels.ndim == 3 and pixels.shape[2] not in _GREY):
        raise SourceError(f'{path}: pixels of type {pixels.dtype} in {pixels.shape} are not grey '
                          'levels or colours of 8 or 16 bits; convert it')
    return pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, _GREY[pixels.shape[2]]))
