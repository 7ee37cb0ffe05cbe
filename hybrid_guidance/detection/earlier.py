"""Whether a line was in earlier X-rays already: bone, a catheter, a wire, rather than the needle.

Digital subtraction without a difference image. Each line is looked for in earlier pictures, along
its whole length, with its contrast, where anatomy lay then. So there are no ghosts: where C-arm,
table or patient moved otherwise a line is not found again, and is judged by its own picture
alone. A needle that has come, or gone deeper, is not found either: it is new.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hybrid_guidance.detection.anatomy import Picture, structure
from hybrid_guidance.detection.profile import gaussian_template
from hybrid_guidance.detection.shaft import Shaft
from hybrid_guidance.detection.strip import resample
from hybrid_guidance.geometry.types import Array, Image, Pixels

_SIZE = 128
_RESPONSE, _FARTHEST = 0.3, 6.0
_ASIDE, _NEAR, _BLOCK, _INSET = 5, 32, 12, 3
_ALIKE, _ABSENT = 0.6, 0.3
_SUREST = 0.98


@dataclass(frozen=True)
class _Kept:
    image: Image
    structure: Picture
    stamp_ns: int
    has_needle: bool


class EarlierPictures:
    """Keeps the first picture of what a C-arm looks at, and the last ones.

    A line that stands in those without a needle is looked at anew in each: their noise is another,
    and so is what a breath lays over it. One look that passes weighs no more than the others.

    Args:
        judge: probability that the line at a (2, 2) px segment of a picture is a needle.
        grey: turns resampled pixels into float32 on which lines are bright.
        count: pictures kept beside the first.
        apart_s: s between two of them at least.
    """

    def __init__(self, judge: Callable[[Image, Pixels], float], grey: Callable[[Image], Image],
                 count: int = 2, apart_s: float = 0.5) -> None:
        self._judge, self._grey = judge, grey
        self._first: _Kept | None = None
        self._last: deque[_Kept] = deque(maxlen=count)
        self._apart_ns = int(apart_s * 1e9)
        self._now: tuple[Image, list[tuple[_Kept, Array]]] | None = None

    def forget(self) -> None:
        """Forget all pictures."""
        self._first = self._now = None
        self._last.clear()

    def keep(self, image: Image, stamp_ns: int, has_needle: bool) -> None:
        """Keep a picture, where one is due; as the first, where it shows something else."""
        self._now = None
        newest = self._last[-1] if self._last else self._first
        if newest is not None and abs(stamp_ns - newest.stamp_ns) < self._apart_ns:
            return
        kept = _Kept(image.copy(), _structure(image), stamp_ns, has_needle)
        moved = None if self._first is None else _moved(kept.structure, self._first.structure)
        if moved is None or not _is_breath(moved):
            self.forget()
            self._first = kept
        else:
            self._last.append(kept)

    def __call__(self, image: Image, shaft: Shaft, alone: float) -> tuple[float, bool]:
        """Return how likely a shaft is a needle, knowing earlier pictures; and whether it is new.

        Args:
            image: (H, W), where the shaft was measured.
            shaft: what was measured.
            alone: its probability by this picture alone; never exceeded.

        Returns:
            The probability, and whether the first picture does not show it.
        """
        looks, is_new = [_log_odds(alone)], True
        there = self._amplitudes(image, shaft, np.zeros(2), 0)[:, 0]
        for kept, moved in self._places(image):
            # What is fixed to the C-arm stays where anatomy moves.
            for place in (moved, np.zeros(2)):
                before = self._amplitudes(kept.image, shaft, place, _NEAR)
                if kept is self._first and _is_breath(moved * (_SIZE / max(image.shape))):
                    is_new = is_new and _is_absent(there, before)
                if _is_same(there, before):
                    if not kept.has_needle:
                        looks.append(_log_odds(self._judge(kept.image, shaft.ends + place)))
                    break
        return min(alone, 1.0 / (1.0 + math.exp(-sum(looks) / len(looks)))), is_new

    def _places(self, image: Image) -> list[tuple[_Kept, Array]]:
        """Return the pictures with the same anatomy, and how far, (2,) px, it lay elsewhere."""
        if self._now is None or self._now[0] is not image:
            self._now = image, []
            if self._first is not None:
                now, scale = _structure(image), max(image.shape) / _SIZE
                self._now = image, [(kept, scale * moved) for kept in (self._first, *self._last)
                                    if (moved := _moved(now, kept.structure)) is not None]
        return self._now[1]

    def _amplitudes(self, image: Image, shaft: Shaft, moved: Array, aside: int) -> Array:
        """Return (B, 2 aside + 1) amplitudes of a shaft's stretches, if it lay some px aside."""
        template = gaussian_template(shaft.width)
        start = shaft.origin + moved + (shaft.edges[0] + _INSET) * shaft.direction
        rows = max(int(shaft.length) - 2 * _INSET, 1)
        u, v = shaft.direction
        pixels = self._grey(resample(image, start, shaft.direction, np.array([-v, u]),
                                     (rows, template.half + aside)))
        count = max(rows // _BLOCK, 1)
        first = np.arange(count) * rows // count
        blocks = np.add.reduceat(pixels, first) / np.diff(first, append=rows)[:, None]
        return np.asarray(sliding_window_view(blocks, 2 * template.half + 1, axis=1)
                          @ template.filters[0], float)


def _is_same(now: Array, before: Array) -> bool:
    """Tell whether (B,) amplitudes were the same before: all in all, and at either end.

    Args:
        now: of the stretches of a line.
        before: (B, A) of the same stretches, for each of some places aside.
    """
    # What lies deeper than the anatomy around moves otherwise with a breath: aside, and turned.
    middle = before.shape[1] // 2
    before = before[:, middle - _ASIDE:middle + _ASIDE + 1]
    paths = _paths(*before.shape)
    shares = now @ before[np.arange(now.size)[:, None], paths] / max(float(now @ now), 1e-9)
    best = int(shares.argmax())
    ends = before[[0, -1], paths[[0, -1], best]] / np.maximum(now[[0, -1]], 1e-9)
    ratios = np.array([shares[best], *ends])
    return bool(np.all((ratios > _ALIKE) & (ratios < 1.0 / _ALIKE)))


def _is_absent(now: Array, before: Array) -> bool:
    """Tell whether nothing like a line, or like an end of it, was anywhere near before."""
    levels = before.max(axis=1) / np.maximum(now, 1e-9)
    return bool(np.median(levels) < _ALIKE
                or min(levels[:2].max(), levels[-2:].max()) < _ABSENT)


@lru_cache(maxsize=64)
def _paths(count: int, places: int) -> NDArray[np.intp]:
    """Return the (B, A²) places of B stretches on each line from one place to another."""
    first, last = (x.ravel() for x in np.mgrid[:places, :places])
    share = np.linspace(0.0, 1.0, count)[:, None]
    return np.asarray(np.rint(first + share * (last - first)), np.intp)


def _structure(image: Image) -> Picture:
    return structure(image, max(image.shape) / _SIZE)


def _moved(now: Picture, before: Picture) -> Array | None:
    """Return by how many (2,) px of both anatomy lay elsewhere before; None where none fits."""
    moved, response = cv2.phaseCorrelate(now, before, _window(*now.shape))
    return np.array(moved) if response > _RESPONSE else None


def _is_breath(moved: Array) -> bool:
    """Tell whether a breath goes as far as (2,) px; else it was the C-arm or the table."""
    return math.hypot(*moved) < _FARTHEST


@cache
def _window(height: int, width: int) -> Picture:
    return np.asarray(cv2.createHanningWindow((width, height), cv2.CV_32F), np.float32)


def _log_odds(probability: float) -> float:
    kept = min(max(probability, 1.0 - _SUREST), _SUREST)
    return math.log(kept / (1.0 - kept))
