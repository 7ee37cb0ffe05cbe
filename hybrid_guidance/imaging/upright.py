"""Turning stored pictures upright: which way rows and columns run, and what undoes it."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array

_LETTERS = {'L': (1, 0, 0), 'R': (-1, 0, 0), 'P': (0, 1, 0), 'A': (0, -1, 0),
            'H': (0, 0, 1), 'F': (0, 0, -1)}
"""Directions of DICOM's PatientOrientation (PS3.3 C.7.6.1.1.1) in LPS axes."""

_SURE = 0.45
"""Least cosine between where letters and axes of the image point: one letter is up to 63° off."""


@dataclass(frozen=True)
class Flips:
    """What brings a picture upright: rows for columns first, then mirrored.

    Attributes:
        transpose: whether rows become columns.
        horizontal: whether left and right change places afterwards.
        vertical: whether top and bottom change places afterwards.
    """

    transpose: bool = False
    horizontal: bool = False
    vertical: bool = False

    def __call__(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return a (H, W, ...) picture upright."""
        image = image.swapaxes(0, 1) if self.transpose else image
        return image[::-1 if self.vertical else 1, ::-1 if self.horizontal else 1]

    def sizes(self, pair: tuple[float, float]) -> tuple[float, float]:
        """Return an (x, y) pair of sizes, such as pixels per metre, upright."""
        return pair[::-1] if self.transpose else pair

    def pixel(self, pixel: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
        """Return where a (u, v) pixel of a stored picture of (width, height) is upright."""
        u, v = self.sizes(pixel)
        width, height = self.sizes(size)
        return (width - 1 - u if self.horizontal else u, height - 1 - v if self.vertical else v)

    @property
    def words(self) -> str:
        """What is done, in words; '' for nothing."""
        what = {(False, False, False): '', (False, True, False): 'mirrored left to right',
                (False, False, True): 'mirrored top to bottom',
                (False, True, True): 'turned by 180 degrees',
                (True, True, False): 'turned by 90 degrees clockwise',
                (True, False, True): 'turned by 90 degrees counter-clockwise',
                (True, False, False): 'mirrored about the falling diagonal',
                (True, True, True): 'mirrored about the rising diagonal'}
        return what[self.transpose, self.horizontal, self.vertical]


def direction(letters: str) -> Array | None:
    """Return the (3,) unit direction in LPS axes of letters such as ``LA``, or None.

    The first letter is the main direction; each that follows counts half of the one before.
    """
    vector = np.zeros(3)
    for place, letter in enumerate(letters.strip().upper()[:3]):
        if letter not in _LETTERS:
            return None
        vector += np.array(_LETTERS[letter]) * 0.5**place
    length = float(np.linalg.norm(vector))
    return vector / length if length > 1e-9 else None


def flips_between(orientation: tuple[str, str], axes: Array) -> Flips | None:
    """Return what makes rows and columns run along two axes; None where that is not clear.

    Args:
        orientation: letters of where rows, and where columns run (PatientOrientation).
        axes: (3, 2) where x and y of the image shall run, in LPS axes.
    """
    rows, columns = (direction(letters) for letters in orientation)
    if rows is None or columns is None:
        return None
    for transpose, horizontal, vertical in product((False, True), repeat=3):
        x, y = (columns, rows) if transpose else (rows, columns)
        along = (float((-x if horizontal else x) @ axes[:, 0]),
                 float((-y if vertical else y) @ axes[:, 1]))
        if min(along) >= _SURE:
            return Flips(transpose, horizontal, vertical)
    return None
