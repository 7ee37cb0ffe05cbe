"""The needle in an ultrasound slice: a thin, straight, oblique echo with tissue below it."""

import math
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.detection.line import follow, followed_window, measure
from hybrid_guidance.detection.needle import PixelNeedle, gate, most_probable
from hybrid_guidance.detection.ridge import LineSearch
from hybrid_guidance.detection.shaft import Shaft, ShaftModel
from hybrid_guidance.detection.track import Track, geometry
from hybrid_guidance.geometry.types import Array, Image, Pixels
from hybrid_guidance.imaging.frame import Frame

_ANGLE_SOFTNESS = np.deg2rad(0.5)
_WINDOW = 21
_FLICKER = 0.002
_BLACK = 12
_ENOUGH = 1.0
_BENT = 5e-4


class UltrasoundNeedleDetector:
    """Finds the needle in B-mode images (log-compressed, depth downwards).

    The tip is the deeper end. Bone is told by its shadow, fascia by its angle to the beam
    (which fans out where the sector's sides do), both by their curvature. A needle once found
    is measured where it was, and searched for only where it is not found there. Keeps buffers:
    one instance per thread.
    """

    def __init__(self, *, minimum_length: float = 45.0,
                 angles: tuple[float, float] = (np.deg2rad(13.0), np.deg2rad(75.5)),
                 widths: tuple[float, float] = (1.0, 5.0),
                 dynamic_range_db: float = 60.0, minimum_probability: float = 0.05,
                 candidates: int = 6) -> None:
        """Set the limits.

        Args:
            minimum_length: px of visible echo.
            angles: rad, range of the angle between shaft and beam, and largest angle to the
                image's vertical.
            widths: px, range of σ of the echo's profile.
            dynamic_range_db: dB of echo between black and white (255).
            minimum_probability: candidates below are not returned at all.
            candidates: segments measured per image; the time per image grows with them.
        """
        self._model = ShaftModel(
            minimum_length, widths, systematic=(1.3, 0.24, 0.16), doubt=0.2, hub=False,
            turn=np.deg2rad(36.0),
            tail=(0.0, 1.0), windows=((12.0, 12.0), (20.0, 14.0)), brighter=4.0,
            compression=255.0 / dynamic_range_db * 20.0 / np.log(10.0),
            grey=partial(np.asarray, dtype=np.float32))
        self._angles = angles
        self._minimum_probability = minimum_probability
        self._search = LineSearch(sigma=1.5, minimum_length=0.4 * minimum_length,
                                  maximum_segments=candidates, maximum_points=3000,
                                  angles=(angles[0], np.deg2rad(80.0)))
        self._track = Track()
        self._sector: Sector | None = None
        self._tissue = 255.0

    def __call__(self, frame: Frame) -> PixelNeedle | None:
        """Return the most probable needle of a frame of (H, W) uint8, or None."""
        return self._track(geometry(frame),
                           lambda segment: self._follow(frame.pixels, segment),
                           lambda: self._find(frame.pixels))

    def forget(self) -> None:
        """Search the next image as if it were the first."""
        self._track.forget()

    def _find(self, pixels: Image) -> PixelNeedle | None:
        """Search the whole image; its sector is determined afresh."""
        small = cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2),
                           interpolation=cv2.INTER_AREA)
        mask = sector_mask(small)
        if self._sector is None or not self._sector.fits(mask, pixels.shape):
            self._sector = Sector.of(mask, pixels.shape)
        self._tissue = _tissue_level(small)
        found = self._search(self._sector.fill(small), self._sector.inner)
        return self._measure(pixels, small, [2.0 * segment.ends + 0.5 for segment in found])

    def _measure(self, pixels: Image, small: Image, segments: list[Pixels]
                 ) -> PixelNeedle | None:
        """Return the most probable of the needles near (2, 2) px segments."""
        sector = self._sector
        if sector is None or not segments:
            return None
        beams, (low, high) = sector.beams, self._angles

        def oblique(ends: Array) -> NDArray[np.bool_]:
            narrow, wide = beams.angles(ends.mean(axis=1), ends[:, 1] - ends[:, 0])
            return np.asarray((narrow > low - 0.05) & (wide < high + 0.05))

        shafts = measure(sector.fill_full(pixels, small), segments, self._model,
                         mask=sector.full_mask, accept=oblique)
        needles = (self._needle(shaft, sector) for shaft in shafts)
        return most_probable(needles, self._minimum_probability)

    def _follow(self, pixels: Image, segment: Pixels) -> PixelNeedle | None:
        """Return the needle that the last image had at a (2, 2) px segment."""
        sector = self._sector
        if sector is None:
            return None
        shaft = follow(sector.fill_about(pixels, segment), segment, self._model,
                       mask=sector.full_mask)
        return None if shaft is None else self._needle(shaft, sector)

    def _needle(self, shaft: Shaft, sector: 'Sector') -> PixelNeedle:
        tip_end = int(shaft.direction[1] > 0.0)
        first, last = shaft.ends
        narrow, wide = (float(x) for x in sector.beams.angles(0.5 * (first + last),
                                                              shaft.direction))
        low, high = self._angles
        oblique = gate(wide, high, _ANGLE_SOFTNESS) * gate(-narrow, -low, _ANGLE_SOFTNESS)
        brightness = (shaft.amplitude + 0.5 * float(shaft.sides.sum())) / self._tissue
        gap = sector.skin.gap(shaft.ends[1 - tip_end], shaft.ends[tip_end])
        evidence = _evidence(shaft, brightness, wide, gap)
        return shaft.needle(tip_end, oblique * gate(-evidence, -_ENOUGH, 0.4)
                            * _probability(shaft, tip_end))


@dataclass(frozen=True)
class Beams:
    """Which way sound travels: from a point above the image, or straight down.

    Attributes:
        apex: (2,) px where the beams of a curved probe meet, None for parallel beams.
    """

    apex: Pixels | None

    @classmethod
    def of(cls, mask: Image, scale: float = 1.0) -> 'Beams':
        """Find where the straight sides of a sector meet.

        Args:
            mask: (H, W) uint8, zero outside the sector.
            scale: pixels of the image per pixel of the mask.
        """
        inside = mask > 0
        left = _side(np.argmax(inside, axis=1), inside)
        right = _side(np.argmax(inside[:, ::-1], axis=1), inside)
        if left is None or right is None or left[1] + right[1] > -0.1:
            return cls(None)
        v = (mask.shape[1] - 1.0 - right[0] - left[0]) / (left[1] + right[1])
        return cls(scale * np.array([left[0] + left[1] * v, v]) + 0.5 * (scale - 1.0))

    def angles(self, points: Pixels, axes: Array) -> tuple[Array, Array]:
        """Return two angles, 0 to π/2, for (..., 2) axes at (..., 2) px.

        The first is to the beam. The second is the larger of that and the angle to the
        vertical: fascia runs along the skin, be that flat or pressed round by the probe.
        """
        beam = np.array([0.0, 1.0]) if self.apex is None else points - self.apex
        cross = np.abs(axes[..., 0] * beam[..., 1] - axes[..., 1] * beam[..., 0])
        along = np.abs(axes[..., 0] * beam[..., 0] + axes[..., 1] * beam[..., 1])
        narrow = np.asarray(np.arctan2(cross, along))
        vertical = np.arctan2(np.abs(axes[..., 0]), np.abs(axes[..., 1]))
        return narrow, np.maximum(narrow, vertical)


@dataclass(frozen=True)
class Skin:
    """The skin beside the probe: level with the uppermost corners of the sector.

    Attributes:
        row: px.
        left: px, column of the footprint's left end.
        right: px, of its right end.
        height: px, of the image.
    """

    row: float
    left: float
    right: float
    height: float

    @classmethod
    def of(cls, mask: Image, scale: float = 1.0) -> 'Skin':
        """Find the corners of a (H, W) mask whose pixels are each ``scale`` wide."""
        rows = np.flatnonzero(mask.any(axis=1))
        row = int(rows[0]) if rows.size else 0
        columns = np.flatnonzero(mask[min(row + 2, len(mask) - 1)])
        left, right = (columns[0], columns[-1]) if columns.size else (0, mask.shape[1] - 1)
        return cls(scale * row, scale * float(left), scale * (float(right) + 1.0),
                   scale * len(mask))

    def gap(self, upper: Pixels, lower: Pixels) -> float:
        """Return how far from the probe a line through two (2,) px comes in through the skin.

        As a share of the image's height; negative where it would come out of the probe's face.
        """
        (u, v), (x, y) = upper.tolist(), lower.tolist()
        column = u + (u - x) / min(v - y, -1e-3) * (self.row - v)
        aside = column - self.right if u > x else self.left - column
        return float(aside) / self.height


@dataclass(frozen=True)
class Sector:
    """The outline of an ultrasound image, and buffers for images that have it.

    Outside, an image is set to the mean of the inside nearby: without that, the sector's edge
    is the strongest edge of the image.

    Attributes:
        mask: (h, w) uint8, 1 inside; at half resolution.
        inner: (h, w) uint8, the same without the outermost pixels.
        full_mask: (H, W) uint8, 1 inside; at full resolution.
        beams: which way sound travels, px of the full resolution.
        skin: where the skin lies beside the probe, px of the full resolution.
        share: (h, w) float32, one over the share of the window around that is inside.
        filled: (h, w) float32, buffer.
        full: (H, W) uint8, buffer.
    """

    mask: Image
    inner: Image
    full_mask: Image
    beams: Beams
    skin: 'Skin'
    share: Image
    filled: Image
    full: Image

    @classmethod
    def of(cls, mask: Image, shape: tuple[int, ...]) -> 'Sector':
        """Prepare for images of (H, W) whose sector at half resolution is a (h, w) mask."""
        share = 1.0 / np.maximum(cv2.blur(mask.astype(np.float32), (_WINDOW, _WINDOW)), 1e-3)
        return cls(mask, cv2.erode(mask, np.ones((3, 3), np.uint8)),
                   cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_NEAREST),
                   Beams.of(mask, 2.0), Skin.of(mask, 2.0), share, np.zeros(mask.shape, np.float32),
                   np.zeros(shape, np.uint8))

    def fits(self, mask: Image, shape: tuple[int, ...]) -> bool:
        """Tell whether a (h, w) mask of a (H, W) image is this one, but for a few dark pixels."""
        return (self.mask.shape == mask.shape and self.full.shape == shape
                and cv2.norm(self.mask, mask, cv2.NORM_L1) < _FLICKER * mask.size)

    def fill(self, small: Image) -> Image:
        """Return ``filled`` with (h, w) uint8 inside, and the mean of the inside nearby."""
        inside = cv2.copyTo(small, self.mask)
        cv2.boxFilter(inside, cv2.CV_32F, (_WINDOW, _WINDOW), dst=self.filled)
        cv2.multiply(self.filled, self.share, dst=self.filled)
        np.copyto(self.filled, small, where=self.mask.view(np.bool_))
        return self.filled

    def fill_full(self, pixels: Image, small: Image) -> Image:
        """Return ``full`` with (H, W) uint8 inside, and the mean of the inside nearby."""
        cv2.resize(self.fill(small).astype(np.uint8), pixels.shape[::-1], dst=self.full,
                   interpolation=cv2.INTER_LINEAR)
        return self.fill_inside(pixels)

    def fill_inside(self, pixels: Image) -> Image:
        """Return ``full`` with (H, W) uint8 inside; outside stays what it was.

        The last image's surroundings hide the sector's edge as well as this one's would.
        """
        return np.asarray(cv2.copyTo(pixels, self.full_mask, self.full))

    def fill_about(self, pixels: Image, segment: Pixels) -> Image:
        """Return the same, where it is looked at when a (2, 2) px segment is followed.

        To copy all of an image would take the cache from what comes after.
        """
        rows, columns = followed_window(segment)
        cv2.copyTo(pixels[rows, columns], self.full_mask[rows, columns],
                   self.full[rows, columns])
        return self.full


def _side(columns: NDArray[np.intp], inside: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Return offset and slope of a sector's side by row; None if it is not straight.

    Args:
        columns: (H,) first column inside, counted from that side of the image.
        inside: (H, W) whether a pixel lies in the sector.
    """
    rows = np.flatnonzero(inside.any(axis=1))
    # Below the row where the sector is widest its lower edge begins, or the image's.
    rows = rows[:int(np.argmin(columns[rows])) + 1] if rows.size else rows
    if rows.size < 30:
        return None
    slope, offset = np.polyfit(rows, columns[rows], 1)
    residual = columns[rows] - offset - slope * rows
    return (float(offset), float(slope)) if np.median(np.abs(residual)) < 2.0 else None


def sector_mask(image: Image) -> Image:
    """Return (H, W) uint8, 1 inside the sector: not in a black region that touches the border.

    Shadows that reach the lower edge are inside.

    Args:
        image: (H, W) uint8.
    """
    height, width = image.shape
    small = cv2.resize(image, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    black = cv2.copyMakeBorder((small == 0).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT,
                               value=1)
    _, labels = cv2.connectedComponents(black, connectivity=4)
    inside = _filled(labels[1:-1, 1:-1] != labels[0, 0]).astype(np.uint8)
    inside = cv2.erode(inside, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(inside, (width, height), interpolation=cv2.INTER_NEAREST))


def _filled(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Add what has the sector to its left, to its right and above it: a deep shadow."""
    left = np.maximum.accumulate(inside, axis=1)
    right = np.maximum.accumulate(inside[:, ::-1], axis=1)[:, ::-1]
    above = np.maximum.accumulate(inside, axis=0)
    return np.asarray(inside | (left & right & above))


def _probability(shaft: Shaft, tip_end: int) -> float:
    """Return the probability that a shaft is a needle with its tip at that end."""
    odds = [
        gate(-shaft.significance, -3.5, 0.4),
        gate(-shaft.coverage, -0.75, 0.04),
        gate(shaft.unevenness, 0.5, 0.05),
        # A bevel bends needles to a radius of a third of a metre; fascia is rounder.
        gate(shaft.bow.sagitta, 0.4 + 0.002 * shaft.length + _BENT * shaft.length**2 / 8.0, 0.1),
        gate(shaft.taper, 1.5, 0.08),
        gate(_shadow(shaft), 0.5, 0.05),
        gate(-shaft.amplitude, -15.0, 2.0),
        # No echo is as thin as what a scanner draws: colour boxes, callipers.
        gate(-shaft.width, -1.4, 0.1),
        0.3 if shaft.open_end[tip_end] else 1.0,
    ]
    if shaft.open_end[1 - tip_end]:
        # The tip may touch bone, which goes on and is brighter. A short piece that leaves the
        # image and goes on inside it is a chord of something curved.
        limit = min(max(0.62 + 0.03 * (shaft.length - 58.0), 0.62), 1.3)
        odds.append(gate(float(shaft.continuation[tip_end]), limit, 0.04))
    else:
        # A shaft that comes up out of sight ends there; fascia goes on, curved, or is short.
        odds += [gate(float(shaft.continuation.max()), 0.38, 0.04),
                 gate(-shaft.length, -90.0, 4.0)]
    return math.prod(odds)


def _evidence(shaft: Shaft, brightness: float, wide: float, gap: float) -> float:
    """Return the logarithm of the odds that what has the shape of a needle is one.

    Fascia is as straight as steel, now and then, over a short way. But it is hardly brighter
    than what it lies in, runs with the skin rather than across it, and leads to no place where
    a needle goes in: a hand's breadth away from the probe, or the probe itself. The weights are
    those of a logistic regression on simulated needles and look-alikes (all procedures).

    Args:
        shaft: what was measured.
        brightness: grey level of the shaft's crest over the mean of the tissue in the image.
        wide: rad, as ``Beams.angles``.
        gap: as ``Skin.gap``.
    """
    beyond = min(max(gap - 0.23, 0.0), 0.94)
    inside = min(max(-gap, 0.0), 0.06)
    return (8.5 * math.log(max(brightness, 1e-3)) + 1.1 * math.log(shaft.length)
            - 7.8 * max(wide - 1.0, 0.0) - 7.1 * beyond - 66.0 * inside - 6.1)


def _tissue_level(image: Image) -> float:
    """Return the mean grey level of what is not black."""
    return max(float(cv2.mean(image, (image > _BLACK).view(np.uint8))[0]), 1.0)


def _shadow(shaft: Shaft) -> float:
    """Return the share of the brightness above the shaft that is missing below it."""
    below = int(shaft.direction[0] > 0.0)
    above, under = shaft.far_sides[1 - below], shaft.far_sides[below]
    return float(above - under) / max(float(above), 8.0)
