"""The needle in an ultrasound slice: a thin, straight, oblique echo with tissue below it."""

import cv2
import numpy as np

from hybrid_guidance.detection.line import PixelNeedle, Shaft, gate, measure
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
                 angles: tuple[float, float] = (np.deg2rad(12.0), np.deg2rad(78.0)),
                 widths: tuple[float, float] = (1.0, 5.0),
                 minimum_probability: float = 0.05, candidates: int = 4) -> None:
        """Set the limits.

        Args:
            minimum_length: px of visible echo.
            angles: rad, range of the angle between shaft and beam.
            widths: px, range of σ of the echo's profile.
            minimum_probability: candidates below are not returned at all.
            candidates: segments measured per image; the time per image grows with them.
        """
        self._minimum_length = minimum_length
        self._angles = angles
        self._widths = widths
        self._minimum_probability = minimum_probability
        self._search = LineSearch(sigma=1.5, minimum_length=0.4 * minimum_length,
                                  maximum_segments=candidates, angles=angles)

    def __call__(self, frame: Frame) -> PixelNeedle | None:
        """Return the most probable needle of a frame of (H, W) uint8, or None."""
        pixels = frame.pixels
        small = cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2),
                           interpolation=cv2.INTER_AREA)
        mask = sector_mask(small)
        image = fill_outside(small, mask)
        mask_full = cv2.resize(mask, pixels.shape[::-1], interpolation=cv2.INTER_NEAREST)
        full = cv2.resize(image, pixels.shape[::-1], interpolation=cv2.INTER_LINEAR)
        cv2.copyTo(pixels.astype(np.float32), mask_full, full)
        best: PixelNeedle | None = None
        for segment in self._search(image, cv2.erode(mask, np.ones((3, 3), np.uint8))):
            if not self._is_oblique(segment.ends[1] - segment.ends[0], 0.1):
                continue
            shaft = measure(full, 2.0 * segment.ends + 0.5, mask=mask_full,
                            minimum_length=self._minimum_length, widths=self._widths)
            if shaft is None or not self._is_oblique(shaft.direction, 0.0):
                continue
            tip_end = int(shaft.direction[1] > 0.0)
            needle = shaft.needle(tip_end, _probability(shaft, tip_end))
            if best is None or needle.probability > best.probability:
                best = needle
        return best if best and best.probability >= self._minimum_probability else None

    def _is_oblique(self, axis: Array, slack: float) -> bool:
        return self._angles[0] - slack <= _beam_angle(axis) <= self._angles[1] + slack


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
        gate(float(shaft.continuation[tip_end]), 0.75, 0.05),
        gate(_shadow(shaft), 0.35, 0.05),
        gate(-shaft.amplitude, -15.0, 2.0),
        gate(_beam_angle(shaft.direction), np.deg2rad(75.5), np.deg2rad(0.5)),
        0.3 if shaft.open_end[tip_end] else 1.0,
    ]
    if not shaft.open_end[1 - tip_end]:
        # A shaft that comes up out of sight ends there; fascia goes on, curved, or is short.
        odds += [gate(float(shaft.continuation[1 - tip_end]), 0.7, 0.06),
                 gate(-shaft.length, -85.0, 4.0)]
    return float(np.prod(odds))


def _shadow(shaft: Shaft) -> float:
    """Return the share of the brightness above the shaft that is missing below it."""
    below = int(shaft.direction[0] > 0.0)
    above, under = shaft.far_sides[1 - below], shaft.far_sides[below]
    return float(above - under) / max(float(above), 8.0)


def _beam_angle(axis: Array) -> float:
    """Return the angle to the image's vertical, 0 to π/2."""
    return float(np.arctan2(abs(axis[0]), abs(axis[1])))
