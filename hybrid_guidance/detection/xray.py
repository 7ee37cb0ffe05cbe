"""The needle in an X-ray image: a straight, thin, evenly dark shaft with two like sides."""

import math
from collections.abc import Hashable
from dataclasses import replace

import cv2
import numpy as np

from hybrid_guidance.detection.earlier import EarlierPictures
from hybrid_guidance.detection.line import follow, measure
from hybrid_guidance.detection.needle import CERTAIN, PixelNeedle, gate, most_probable
from hybrid_guidance.detection.ridge import LineSearch, Segment
from hybrid_guidance.detection.shaft import Shaft, ShaftModel
from hybrid_guidance.detection.track import LIKELY, Track, geometry
from hybrid_guidance.geometry.types import Array, Image, Pixels
from hybrid_guidance.imaging.frame import Frame

_HUB_BULK, _SURE_BULK = 1.5, 2.0
_OUTSIDE = 0.3
_BENT = 2e-4
_STEEL = 0.1
"""Attenuation per px of the profile's σ: shafts of 0.7 to 1.3 mm have 0.2 to 0.3, ribs 0.06."""
_USUAL_WIDTH = 3.0
_STALE_NS = 500_000_000
"""Exposures further apart are searched: a needle may have come beside what was followed."""


class XrayNeedleDetector:
    """Finds the needle in images of detector counts (air bright, metal dark).

    The logarithm makes the shaft's contrast independent of what it overlies (Beer and
    Lambert). The search runs at half resolution; each candidate is measured at full
    resolution. A needle once found is measured where it was, and searched for only where it is
    not found there. The tip is the end opposite the hub, where the hub is the end at which the
    shaft leaves the image or grows thick; without such a sign, the tip is the end with more
    body around it, and where that does not tell, the one nearer the centre of the image. A line
    that was there before the needle is judged by the earlier images, too. Keeps buffers and
    images: one instance per stream.
    """

    def __init__(self, *, minimum_length: float = 60.0, widths: tuple[float, float] = (0.8, 5.0),
                 minimum_probability: float = 0.05, candidates: int = 8) -> None:
        """Set the limits.

        Args:
            minimum_length: px of visible shaft.
            widths: px, range of σ of the shaft's profile (a shaft of diameter d: about d / 4
                to d / 3, plus the blur of the detector).
            minimum_probability: candidates below are not returned at all.
            candidates: segments measured per image; the time per image grows with them.
        """
        self._model = ShaftModel(minimum_length, widths, systematic=(0.2, 0.0, 0.023),
                                 grey=_attenuation)
        self._minimum_probability = minimum_probability
        self._search = LineSearch(sigma=1.5, minimum_length=0.4 * minimum_length,
                                  maximum_segments=candidates)
        self._track = Track()
        self._earlier = EarlierPictures(self._judge, _attenuation)
        self._geometry: Hashable = None
        self._stamp_ns = 0
        self._small: Image = np.zeros((0, 0), np.uint16)

    def __call__(self, frame: Frame) -> PixelNeedle | None:
        """Return the most probable needle of a frame of (H, W) uint8 or uint16, or None."""
        pixels = frame.pixels
        # OpenCV interpolates between 8-bit levels only to whole ones.
        exact = pixels if pixels.dtype == np.uint16 else pixels.astype(np.float32)
        known = geometry(frame)
        if known != self._geometry:
            self.forget()
        elif abs(frame.stamp_ns - self._stamp_ns) > _STALE_NS:
            self._track.forget()
        self._geometry, self._stamp_ns = known, frame.stamp_ns
        needle = self._track(
            known, lambda segment: self._follow(exact, segment),
            lambda: self._measure(exact, [2.0 * segment.ends + 0.5
                                          for segment in self._candidates(pixels)]))
        self._earlier.keep(exact, frame.stamp_ns,
                           needle is not None and needle.probability >= LIKELY)
        return needle

    def forget(self) -> None:
        """Search the next image as if it were the first."""
        self._track.forget()
        self._earlier.forget()

    def _measure(self, image: Image, segments: list[Pixels]) -> PixelNeedle | None:
        """Return the most probable needle near (2, 2) px segments: a new one, where there is."""
        found: dict[bool, list[PixelNeedle]] = {True: [], False: []}
        for shaft in measure(image, segments, self._model, count=3):
            needle, is_new = self._known(image, shaft)
            found[is_new and needle.probability >= LIKELY].append(needle)
            if found[True] and needle.probability >= CERTAIN:
                break
        return most_probable(found[True] or found[False], self._minimum_probability)

    def _known(self, image: Image, shaft: Shaft) -> tuple[PixelNeedle, bool]:
        """Return a shaft as a needle, knowing earlier images, and whether it is new to them."""
        needle = _needle(shaft, image.shape)
        if needle.probability < self._minimum_probability:
            return needle, False
        probability, is_new = self._earlier(image, shaft, needle.probability)
        return replace(needle, probability=probability), is_new

    def _judge(self, image: Image, segment: Pixels) -> float:
        needle = self._follow(image, segment)
        return 0.0 if needle is None else needle.probability

    def _follow(self, image: Image, segment: Pixels) -> PixelNeedle | None:
        shaft = follow(image, segment, self._model)
        return None if shaft is None else _needle(shaft, image.shape)

    def _candidates(self, pixels: Image) -> list[Segment]:
        height, width = pixels.shape
        if self._small.shape != (height // 2, width // 2):
            self._small = np.zeros((height // 2, width // 2), pixels.dtype)
            self._values = np.zeros(self._small.shape, np.float32)
        if self._small.dtype != pixels.dtype:
            self._small = self._small.astype(pixels.dtype)
        cv2.resize(pixels, (width // 2, height // 2), dst=self._small,
                   interpolation=cv2.INTER_AREA)
        mask = cv2.erode((self._small > 0).view(np.uint8), np.ones((5, 5), np.uint8))
        return self._search(_attenuation(self._small, self._values), mask)


def _attenuation(counts: Image, values: Image | None = None) -> Image:
    """Return −log counts as float32, into ``values`` where given; zero counts as half one."""
    values = np.empty(counts.shape, np.float32) if values is None else values
    np.copyto(values, counts)
    cv2.max(values, 0.5, dst=values)
    cv2.log(values, dst=values)
    return np.asarray(cv2.multiply(values, -1.0, dst=values))


def _needle(shaft: Shaft, shape: tuple[int, ...]) -> PixelNeedle:
    tip_end = _tip_end(shaft, np.array(shape[::-1]))
    return shaft.needle(tip_end, _probability(shaft, tip_end))


def _tip_end(shaft: Shaft, size: Array) -> int:
    """Return which end of the shaft is the tip."""
    hub = np.minimum(shaft.bulk, _SURE_BULK) + 10.0 * shaft.open_end
    if abs(float(hub[1] - hub[0])) > 0.6 and float(hub.max()) > _HUB_BULK:
        return int(hub[0] > hub[1])
    # Bone that the tip touches may look like a hub. But a hub is outside the body.
    if abs(float(shaft.halves[1] - shaft.halves[0])) > _OUTSIDE:
        return int(shaft.halves[1] > shaft.halves[0])
    distance = np.linalg.norm(shaft.ends - 0.5 * (size - 1.0), axis=1)
    return int(distance[1] < distance[0])


def _probability(shaft: Shaft, tip_end: int) -> float:
    """Return the probability that a shaft is a needle with its tip at that end."""
    odds = [
        # Thick steel is dark steel: an 18 gauge needle in a field of 20 cm is 11 px wide.
        gate(-shaft.significance, -5.5 * max(shaft.width / _USUAL_WIDTH, 1.0)**2, 0.5),
        gate(-shaft.coverage, -0.85, 0.03),
        gate(shaft.unevenness, 0.28, 0.03),
        gate(shaft.asymmetry, 0.9, 0.07),
        gate(shaft.bow.sagitta, 0.25 + 0.002 * shaft.length + _BENT * shaft.length**2 / 8.0, 0.06),
        gate(shaft.taper, 1.35, 0.05),
        gate(shaft.width, 4.5, 0.08),
        gate(float(shaft.continuation[tip_end]), 0.62, 0.03),
        0.2 if shaft.open_end[tip_end] else 1.0,
        _hub_probability(shaft, 1 - tip_end),
    ]
    return math.prod(odds)


def _hub_probability(shaft: Shaft, end: int) -> float:
    """Return the probability that a needle looks like this where it is held.

    A hub, the image's edge, or nothing at all; a line that goes on is a catheter's. One that
    ends in the middle of the image must be steel: a rib as wide casts a fourth of its shadow.
    """
    if shaft.open_end[end] or shaft.bulk[end] > _HUB_BULK:
        return 1.0
    return gate(float(shaft.continuation[end]), 0.5, 0.05) * gate(
        -shaft.amplitude / shaft.width, -_STEEL, 0.01)
