"""Where the last image had its needle, the next is measured first; all of it is searched seldom.

A wrong lock must not survive, so the last needle is a hint and never evidence: what is measured
near it has to pass for a needle by itself, and to go on from where the last one was. All else,
and every so often even that, is settled by a full search that knows nothing of the hint: the
less certain the needle, the sooner.
"""

from collections.abc import Callable, Hashable

import numpy as np

from hybrid_guidance.detection.needle import CERTAIN, PixelNeedle
from hybrid_guidance.geometry.types import Pixels
from hybrid_guidance.imaging.frame import Frame

LIKELY = 0.5
_DOUBT = 0.1
_STEP = 15.0
_SIDEWAYS = 6.0
_TURN = np.deg2rad(4.0)


class Track:
    """Follows a needle from frame to frame. Keeps state: one instance per stream of images."""

    def __init__(self, period: int = 15, uncertain_period: int = 4) -> None:
        """Start without a needle.

        Args:
            period: frames from one full search to the next, at most: a better candidate
                elsewhere waits no longer.
            uncertain_period: the same while the needle is not certain.
        """
        self._periods = uncertain_period, period
        self._last: PixelNeedle | None = None
        self._geometry: Hashable = None
        self._followed = 0

    def __call__(self, geometry: Hashable, measure: Callable[[Pixels], PixelNeedle | None],
                 search: Callable[[], PixelNeedle | None]) -> PixelNeedle | None:
        """Return the needle of the next frame, or None.

        Args:
            geometry: what the image's pixels mean; a needle seen under another is forgotten.
            measure: takes the (2, 2) px of a segment, tip last, to the needle beneath it.
            search: looks for the needle in the whole image.
        """
        if geometry != self._geometry:
            self._last, self._geometry = None, geometry
        needle = self._follow(measure)
        if needle is None:
            self._followed = 0
            needle = search()
        self._last = needle if needle is not None and needle.probability >= LIKELY else None
        return needle

    def forget(self) -> None:
        """Search the next image as if it were the first."""
        self._last = None

    def _follow(self, measure: Callable[[Pixels], PixelNeedle | None]) -> PixelNeedle | None:
        """Return the needle where the last one was, or None where a full search is due."""
        last = self._last
        if last is None or self._followed + 1 >= self._periods[last.probability >= CERTAIN]:
            return None
        self._followed += 1
        needle = measure(last.ends)
        return needle if needle is not None and _goes_on(last, needle) else None


def _goes_on(last: PixelNeedle, needle: PixelNeedle) -> bool:
    """Tell whether a needle is hardly less likely than the last, and not far from it."""
    step = needle.tip - last.tip
    return bool(needle.probability >= max(min(last.probability, CERTAIN) - _DOUBT, LIKELY)
                and abs(float(step @ last.direction)) < _STEP
                and abs(float(step @ last.normal)) < _SIDEWAYS
                and float(needle.direction @ last.direction) > np.cos(_TURN))


def geometry(frame: Frame) -> Hashable:
    """Return what must stay the same for a pixel of one frame to mean the same in the next."""
    return frame.pixels.shape, frame.pixels.dtype.char, frame.projection.matrix.tobytes()
