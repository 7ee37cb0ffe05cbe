"""The surface of bone in ultrasound: a bright ridge along the scan lines with a shadow behind.

Intensity, ridge and shadow are multiplied to a confidence on each scan line, the best place of
each line is linked to its neighbours' (after Foroughi et al., IEEE Ultrasonics Symposium 2007).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.detection.ultrasound import Beams, sector_mask
from hybrid_guidance.geometry.types import Array, Image, Pixels
from hybrid_guidance.imaging.frame import Frame

# An echo with more than this share of it in the tissue before is that of bone only where less than
# the other share lies behind: where sound fades, tissue is as bright before, and grey behind.
_PLAIN, _FADING = np.float32(0.7), np.float32(0.2)
# Rows behind an echo at which it must be dark.
_BEHIND = 20


@dataclass(frozen=True)
class _Lines:
    """Scan lines of one sector: rows are ranges, columns are lines.

    Attributes:
        key: the sector they were made for.
        map: (R, L, 2) float32 pixels of the halved image.
        lateral: full-resolution px between neighbouring lines, at mid depth.
    """

    key: tuple[float, ...]
    map: NDArray[np.float32]
    lateral: float


class BoneSurfaceDetector:
    """Finds the bone surface in B-mode images. Keeps buffers: one instance per thread."""

    def __init__(self, *, minimum_confidence: float = 0.3, minimum_width: float = 45.0,
                 shadow: tuple[float, float] = (14.0, 110.0), thickness: float = 4.0,
                 line_spacing: float = 4.0, deep_echo: float = 0.4) -> None:
        """Set the limits.

        Args:
            minimum_confidence: of a point, 0 to 1.
            minimum_width: px across the beams; shorter pieces are dropped.
            shadow: px behind the surface between which it must be dark.
            thickness: px, σ of the echo along the beam.
            line_spacing: px between the scan lines looked at.
            deep_echo: share of a piece's echo that the brightest place 40 px behind it has at most,
                in the median of its lines: fascia casts some shadow, but tissue goes on below.
        """
        self._minimum_confidence = minimum_confidence
        self._minimum_width = minimum_width
        self._shadow = shadow
        self._line_spacing = line_spacing
        self._deep_echo = deep_echo
        half = thickness / 2.0
        x = np.arange(-np.ceil(3.0 * half), np.ceil(3.0 * half) + 1.0)
        ridge = (1.0 - (x / half) ** 2) * np.exp(-0.5 * (x / half) ** 2)
        ridge -= ridge.mean()
        # Scaled so that an ideal echo of that thickness answers with its height.
        self._ridge = (ridge / float(ridge @ np.exp(-0.5 * (x / half) ** 2))).reshape(-1, 1)
        self._lines = _Lines((), np.zeros((0, 0, 2), np.float32), 1.0)

    def __call__(self, frame: Frame) -> tuple[Pixels, Array]:
        """Find the surface.

        Args:
            frame: (H, W) uint8, log-compressed, depth downwards.

        Returns:
            (N, 2) px on the crest of the echo, at most one per scan line, ordered across the
            beams, and (N,) confidence from 0 to 1. Both empty where there is no bone.
        """
        height, width = frame.pixels.shape
        small = cv2.resize(frame.pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        mask = self._look_along_beams(small)
        image = cv2.remap(small, self._lines.map, None, cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_CONSTANT)
        smooth = cv2.blur(image.astype(np.float32), (3, 1))
        echo = cv2.GaussianBlur(smooth, (1, 5), 1.0)
        confidence = self._confidence(smooth, echo)
        confidence[_at_the_end(mask, self._lines.map)] = 0.0
        rows = np.argmax(confidence, axis=0)
        best = np.take_along_axis(confidence, rows[None], axis=0)[0]
        deep = _brightest_behind(echo, _BEHIND) > echo * np.where(
            _mean_before(smooth) > _PLAIN * echo, _FADING, np.float32(self._deep_echo))
        kept = self._linked(rows, best, np.take_along_axis(deep, rows[None], axis=0)[0])
        return self._points(confidence, rows, kept), np.asarray(best[kept], dtype=float)

    def _look_along_beams(self, small: Image) -> Image:
        """Choose the scan lines; return the mask of the sector."""
        mask = sector_mask(small)
        beams = Beams.of(mask)
        key = (*small.shape, *(np.round(beams.apex) if beams.apex is not None else ()))
        if key != self._lines.key:
            self._lines = _scan_lines(key, mask, beams, 0.5 * self._line_spacing)
        return mask

    def _confidence(self, smooth: Image, echo: Image) -> Image:
        """Return how well each place of each scan line passes for bone, 0 to 1."""
        ridge = cv2.sepFilter2D(smooth, cv2.CV_32F, np.ones(1), self._ridge)
        behind = _mean_behind(smooth, self._shadow[0] / 2.0, self._shadow[1] / 2.0)
        dark = np.clip(1.6 - 4.0 * behind / np.maximum(echo, 1.0), 0.0, 1.0)
        bright = np.clip((echo - 50.0) / 80.0, 0.0, 1.0)
        crest = np.maximum(ridge - 10.0, 0.0)
        crest /= crest + 20.0
        last = np.clip(1.9 - 1.6 * _brightest_behind(echo, self._shadow[0] / 2.0)
                       / np.maximum(echo, 1.0), 0.0, 1.0)
        # Bone lies under tissue, which scatters; a wire or a tank's floor lies under water.
        tissue = np.clip((_mean_before(smooth) - 4.0) / 8.0, 0.0, 1.0)
        confidence = dark * bright * crest * last * tissue
        return np.where(confidence > 0.1, _along_paths(confidence), np.float32(0.0))

    def _linked(self, rows: NDArray[np.intp], best: Array,
                deep: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Return the indices of lines whose place continues in their neighbours'.

        ``deep`` says behind which of them tissue goes on: a piece with that in most is none.
        """
        good = best >= self._minimum_confidence
        step = np.abs(np.diff(rows)) <= 5
        linked = good[1:] & good[:-1] & step
        piece = np.concatenate([[0], np.cumsum(~linked)])
        count, going_on = (np.bincount(piece, weights=each)[piece] for each in (good, good & deep))
        return np.flatnonzero(good & (count * self._lines.lateral >= self._minimum_width)
                              & (2.0 * going_on <= count))

    def _points(self, confidence: Image, rows: NDArray[np.intp],
                kept: NDArray[np.intp]) -> Pixels:
        """Return (N, 2) px of the full image, refined between rows by a parabola."""
        if kept.size == 0:
            return np.zeros((0, 2))
        row = np.clip(rows[kept], 1, confidence.shape[0] - 2)
        before, at, after = (confidence[row + k, kept] for k in (-1, 0, 1))
        bend = np.minimum(before - 2.0 * at + after, -1e-6)
        shift = np.clip(0.5 * (before - after) / bend, -0.5, 0.5)
        here, ahead = self._lines.map[row, kept], self._lines.map[row + 1, kept]
        return np.asarray(2.0 * (here + shift[:, None] * (ahead - here)) + 0.5, dtype=float)


def _at_the_end(mask: Image, lines: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return what is so near the lower edge of the field that no shadow would be seen, (R, L).

    The field is as convex as a sector. Bone may cover all of it with black, so that nothing seems
    to lie behind: what ends in the upper three quarters is a shadow.
    """
    hull = np.zeros_like(mask)
    inside = cv2.findNonZero(mask)
    if inside is not None:
        cv2.fillConvexPoly(hull, cv2.convexHull(inside), 1)
    outside = cv2.remap(hull, lines, None, cv2.INTER_NEAREST) == 0
    outside[:3 * len(outside) // 4] = False
    ending = np.ones_like(outside)
    ending[:-_BEHIND] = outside[_BEHIND:]
    return np.asarray(ending)


def _mean_behind(image: Image, near: float, far: float) -> Image:
    """Return the mean of what lies between ``near`` and ``far`` rows behind each pixel."""
    total = np.zeros((image.shape[0] + 1, image.shape[1]), np.float32)
    np.cumsum(image, axis=0, out=total[1:])
    rows = np.arange(image.shape[0])
    first = np.minimum(rows + int(near), image.shape[0] - 1)
    last = np.minimum(rows + int(far), image.shape[0])
    mean = (total[last] - total[first]) / np.maximum(last - first, 1)[:, None]
    # Too close to the end to see a shadow: not known to be dark.
    mean[image.shape[0] - int(near) - 4:] = 255.0
    return np.asarray(mean)


def _mean_before(image: Image) -> Image:
    """Return the mean of the 10 to 60 px before each pixel."""
    return _mean_behind(image[::-1], 5.0, 30.0)[::-1]


def _brightest_behind(echo: Image, near: float) -> Image:
    """Return the brightest place at least ``near`` rows behind each pixel."""
    brightest = np.maximum.accumulate(echo[::-1], axis=0)[::-1]
    behind = np.zeros_like(brightest)
    behind[:-int(near)] = brightest[int(near):]
    return behind


def _along_paths(confidence: Image, keep: float = 0.75, step: int = 4) -> Image:
    """Average the confidence along the best path through each pixel, from line to line.

    Dynamic programming in both directions with a memory that fades: a surface may rise or fall
    by ``step`` rows per line.
    """
    ahead = _fading_maximum(confidence.T, keep, step)
    back = _fading_maximum(confidence.T[::-1], keep, step)[::-1]
    return np.asarray(((ahead + back) * (1.0 - keep) - confidence.T * (1.0 - keep)).T
                      / (1.0 + keep))


def _fading_maximum(lines: Image, keep: float, step: int) -> Image:
    kernel = np.ones((1, 2 * step + 1), np.uint8)
    result = np.ascontiguousarray(lines, dtype=np.float32)
    for index in range(1, len(result)):
        reach = cv2.dilate(result[index - 1:index], kernel)
        result[index] += np.float32(keep) * reach[0]
    return result


def _scan_lines(key: tuple[float, ...], mask: Image, beams: Beams, spacing: float) -> _Lines:
    """Return the scan lines of a sector, ``spacing`` px of the halved image apart."""
    if beams.apex is None:
        grid = np.stack(np.meshgrid(np.arange(spacing / 2.0, mask.shape[1], spacing),
                                    np.arange(0.0, mask.shape[0])), axis=-1)
        return _Lines(key, grid.astype(np.float32), 2.0 * spacing)
    v, u = np.nonzero(mask)
    offset = np.column_stack([u, v]) - beams.apex
    angle, reach = np.arctan2(offset[:, 0], offset[:, 1]), np.hypot(*offset.T)
    middle = 0.5 * (float(reach.min()) + float(reach.max()))
    angles = np.arange(float(angle.min()), float(angle.max()), spacing / middle)
    ranges = np.arange(float(reach.min()), float(reach.max()))
    direction = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    grid = beams.apex + ranges[:, None, None] * direction
    return _Lines(key, grid.astype(np.float32), 2.0 * spacing)
