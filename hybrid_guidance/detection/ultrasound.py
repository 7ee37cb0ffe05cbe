"""The needle in an ultrasound slice: a thin, straight, oblique echo with tissue below it."""

import cv2
import numpy as np

from hybrid_guidance.detection.line import (
    PixelNeedle,
    Shaft,
    ShaftModel,
    gate,
    measure,
    most_probable,
)
from hybrid_guidance.detection.ridge import LineSearch
from hybrid_guidance.geometry.types import Array, Image
from hybrid_guidance.imaging.frame import Frame


class UltrasoundNeedleDetector:
    """Finds the needle in B-mode images (log-compressed, depth downwards).

    The tip is the deeper end. Bone is told by its shadow, fascia by its angle to the beam
    (taken as the image's vertical), both by their curvature. Keeps buffers: one instance
    per thread.
    """

    def __init__(self, *, minimum_length: float = 45.0,
                 angles: tuple[float, float] = (np.deg2rad(13.0), np.deg2rad(75.5)),
                 widths: tuple[float, float] = (1.0, 5.0),
                 dynamic_range_db: float = 60.0, minimum_probability: float = 0.05,
                 candidates: int = 8) -> None:
        """Set the limits.

        Args:
            minimum_length: px of visible echo.
            angles: rad, range of the angle between shaft and beam.
            widths: px, range of σ of the echo's profile.
            dynamic_range_db: dB of echo between black and white (255).
            minimum_probability: candidates below are not returned at all.
            candidates: segments measured per image; the time per image grows with them.
        """
        self._model = ShaftModel(
            minimum_length, widths, systematic=(0.6, 0.5), turn=np.deg2rad(36.0),
            tail=(0.0, 1.0), windows=((12.0, 12.0), (20.0, 14.0)),
            compression=255.0 / dynamic_range_db * 20.0 / np.log(10.0))
        self._angles = angles
        self._minimum_probability = minimum_probability
        self._search = LineSearch(sigma=1.5, minimum_length=0.4 * minimum_length,
                                  maximum_segments=candidates, angles=angles)

    def __call__(self, frame: Frame) -> PixelNeedle | None:
        """Return the most probable needle of a frame of (H, W) uint8, or None."""
        pixels = frame.pixels
        small = cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2),
                           interpolation=cv2.INTER_AREA)
        mask = sector_mask(small)
        filled = fill_outside(small, mask)
        found = self._search(filled, cv2.erode(mask, np.ones((3, 3), np.uint8)))
        segments = [2.0 * segment.ends + 0.5 for segment in found]
        full_mask = cv2.resize(mask, pixels.shape[::-1], interpolation=cv2.INTER_NEAREST)
        full = cv2.resize(filled, pixels.shape[::-1], interpolation=cv2.INTER_LINEAR)
        cv2.copyTo(pixels.astype(np.float32), full_mask, full)
        shafts = measure(full, segments, self._model, mask=full_mask)
        needles = (_needle(shaft) for shaft in shafts if self._is_oblique(shaft.direction, 0.0))
        return most_probable(needles, self._minimum_probability)

    def _is_oblique(self, axis: Array, slack: float) -> bool:
        return self._angles[0] - slack <= _beam_angle(axis) <= self._angles[1] + slack


def _needle(shaft: Shaft) -> PixelNeedle:
    tip_end = int(shaft.direction[1] > 0.0)
    return shaft.needle(tip_end, _probability(shaft, tip_end))


def sector_mask(image: Image) -> Image:
    """Return (H, W) uint8, 1 inside the sector: not in a black region that touches the border.

    Args:
        image: (H, W) uint8.
    """
    height, width = image.shape
    small = cv2.resize(image, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    black = cv2.copyMakeBorder((small == 0).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT,
                               value=1)
    _, labels = cv2.connectedComponents(black, connectivity=4)
    inside = (labels[1:-1, 1:-1] != labels[0, 0]).astype(np.uint8)
    inside = cv2.erode(inside, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(inside, (width, height), interpolation=cv2.INTER_NEAREST))


def fill_outside(image: Image, mask: Image, window: int = 21) -> Image:
    """Return float32 with the outside set to the mean of the inside nearby.

    Without it, the sector's edge is the strongest edge of the image.
    """
    values = image.astype(np.float32)
    inside = mask.astype(np.float32)
    total = cv2.blur(values * inside, (window, window))
    weight = cv2.blur(inside, (window, window))
    return np.where(mask > 0, values, total / np.maximum(weight, 1e-3))


def _probability(shaft: Shaft, tip_end: int) -> float:
    """Return the probability that a shaft is a needle with its tip at that end."""
    odds = [
        gate(-shaft.significance, -3.5, 0.4),
        gate(-shaft.coverage, -0.75, 0.04),
        gate(shaft.unevenness, 0.5, 0.05),
        gate(shaft.sagitta, 0.4 + 0.002 * shaft.length, 0.1),
        gate(shaft.taper, 1.5, 0.08),
        gate(_shadow(shaft), 0.5, 0.05),
        gate(-shaft.amplitude, -15.0, 2.0),
        gate(_beam_angle(shaft.direction), np.deg2rad(75.5), np.deg2rad(0.5)),
        0.3 if shaft.open_end[tip_end] else 1.0,
    ]
    if shaft.open_end[1 - tip_end]:
        # The tip may touch bone, which goes on and is brighter.
        odds.append(gate(float(shaft.continuation[tip_end]), 1.3, 0.04))
    else:
        # A shaft that comes up out of sight ends there; fascia goes on, curved, or is short.
        odds += [gate(float(shaft.continuation.max()), 0.45, 0.05),
                 gate(-shaft.length, -90.0, 4.0)]
    return float(np.prod(odds))


def _shadow(shaft: Shaft) -> float:
    """Return the share of the brightness above the shaft that is missing below it."""
    below = int(shaft.direction[0] > 0.0)
    above, under = shaft.far_sides[1 - below], shaft.far_sides[below]
    return float(above - under) / max(float(above), 8.0)


def _beam_angle(axis: Array) -> float:
    """Return the angle to the image's vertical, 0 to π/2."""
    return float(np.arctan2(abs(axis[0]), abs(axis[1])))
