"""By how much the anatomy of an X-ray has moved since the X-ray before it.

Phase correlation (Kuglin and Hines, 1975; Foroosh et al., IEEE T-IP 2002;11:188) of tiles of both
pictures, without the needle. Tiles with hardly any structure do not count; the median of the others
is the shift, and how far they disagree its deviation: a patient moves as a whole.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.geometry.types import Array, Image
from hybrid_guidance.imaging.frame import Frame

_SIZE = 256
_TILE, _STRIDE = 128, 64
_FINE, _COARSE = 1.5, 8.0
_LEAST_RESPONSE = 0.08
_LEAST_TILES = 4
_FLOOR, _DRAWN, _LARGEST = 0.05, 0.05, 2.0

Picture = NDArray[np.float32]


@dataclass(frozen=True)
class Shift:
    """How far anatomy moved from one picture to the next.

    Attributes:
        pixels: (2,) px of the full picture, (u, v).
        deviation: px, of each.
        tiles: how many agreed on it.
    """

    pixels: Array
    deviation: float
    tiles: int


class AnatomyShift:
    """Compares each picture with the one before. Keeps one picture, small: one per stream."""

    def __init__(self) -> None:
        self._last: tuple[Picture, NDArray[np.bool_], bytes] | None = None
        self._window = cv2.createHanningWindow((_TILE, _TILE), cv2.CV_32F)

    def __call__(self, frame: Frame, needle: PixelNeedle | None) -> Shift | None:
        """Take a frame and the needle in it; return how far its anatomy moved, where it shows.

        None: the first picture, one of another geometry, or too little that both show.
        """
        scale = max(frame.pixels.shape) / _SIZE
        picture, mask = structure(frame.pixels, scale), _needle_mask(needle, scale)
        key = frame.projection.matrix.tobytes() + bytes(str(frame.pixels.shape), 'ascii')
        last, self._last = self._last, (picture, mask, key)
        if last is None or last[2] != key:
            return None
        hidden = mask | last[1]
        return self._compare(np.where(hidden, 0.0, last[0]), np.where(hidden, 0.0, picture), scale)

    def _compare(self, before: Picture, after: Picture, scale: float) -> Shift | None:
        moves = []
        for top in range(0, before.shape[0] - _TILE + 1, _STRIDE):
            for left in range(0, before.shape[1] - _TILE + 1, _STRIDE):
                tile = np.s_[top:top + _TILE, left:left + _TILE]
                move, response = cv2.phaseCorrelate(
                    np.ascontiguousarray(before[tile], np.float32),
                    np.ascontiguousarray(after[tile], np.float32), self._window)
                if response > _LEAST_RESPONSE:
                    moves.append(move)
        if len(moves) < _LEAST_TILES:
            return None
        found = np.array(moves)
        middle = np.median(found, axis=0)
        spread = 1.4826 * np.median(np.abs(found - middle), axis=0).max()
        # Tiles overlap by half: a quarter as many are independent; a median is π/2 as uncertain.
        deviation = 1.25 * spread / max(len(found) / 4.0, 1.0)**0.5
        if deviation > _LARGEST:
            return None
        # The window stays where it is, and draws what moved a little towards no motion.
        drawn = _DRAWN * float(np.linalg.norm(middle))
        return Shift(scale * middle, scale * float(np.linalg.norm([deviation, _FLOOR, drawn])),
                     len(found))


def structure(pixels: Image, scale: float) -> Picture:
    """Return a picture's structure, float32, smaller by a scale: attenuation between two sizes."""
    size = round(pixels.shape[1] / scale), round(pixels.shape[0] / scale)
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    values = -np.log(np.maximum(small, 0.5))
    fine = cv2.GaussianBlur(values, (0, 0), _FINE)
    return np.asarray(fine - cv2.GaussianBlur(values, (0, 0), _COARSE), np.float32)


def _needle_mask(needle: PixelNeedle | None, scale: float) -> NDArray[np.bool_]:
    mask = np.zeros((_SIZE, _SIZE), np.uint8)
    if needle is not None:
        # Beyond both ends: the shaft goes on into its hub, and the tip moves.
        ends = np.stack([needle.tip + 40.0 * needle.direction,
                         needle.tip - (needle.length + 200.0) * needle.direction]) / scale
        first, second = (tuple(round(float(value)) for value in end) for end in ends)
        cv2.line(mask, first, second, 1, thickness=9)
    return mask.astype(bool)
