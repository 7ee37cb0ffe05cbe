"""Where a shaft ends, to a part of a pixel.

An end is a fit of an error function to the amplitudes: the edge response of a Gaussian blur
(Steger, PAMI 1998).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np

from hybrid_guidance.detection.series import autocorrelation, correlate, median
from hybrid_guidance.geometry.types import Array

_FAINT, _NEXT, _FARTHEST = 0.25, 3, 30
_SETTLED = 5e-2
_SCAN_EDGES = np.repeat(np.arange(-10.0, 10.5, 1.0), 3)
_SCAN_BLURS = np.tile([1.0, 2.0, 3.5], 21)
_ROOT_TWO_PI = float(np.sqrt(2.0 * np.pi))


class Edge(Protocol):
    """Where a shaft ends: px, px², and the px of blur that were found, if any."""

    @property
    def position(self) -> float:
        """Px along the shaft."""

    @property
    def variance(self) -> float:
        """px²."""

    @property
    def blur(self) -> float | None:
        """Px."""


@dataclass(frozen=True)
class Gap:
    """An end that is only known to lie between shaft and bone."""

    position: float
    variance: float
    blur: float | None = None


def fit_edge(s: Array, response: Array, guess: float, blur: float | None = None
             ) -> 'EdgeFit':
    """Fit a falling edge, ``low + (high - low) Φ((position - s) / blur)``.

    The shaft ends abruptly and the image is blurred: Φ is the cumulative normal distribution.

    Args:
        s: (N,) px, increasing, evenly spaced by one.
        response: (N,) amplitudes, any unit.
        guess: px, edge to within about ten pixels; to within two where the blur is known.
        blur: px, of another fit to the same end.
    """
    edge, blur = _scan_edge(s, response, guess) if blur is None else (guess, blur)
    fit = EdgeFit(s, response, edge, blur)
    for _ in range(4):
        shift, growth = fit.change
        edge += min(max(shift, -2.0), 2.0)
        blur = min(max(blur + min(max(growth, -0.5), 0.5), 0.7), 5.0)
        if abs(shift) < _SETTLED:
            break
        fit = EdgeFit(s, response, edge, blur)
    return fit


def next_rise(response: Array, edge: int, brighter: float) -> int | None:
    """Return the number of rows up to where, beyond an edge, something brighter begins: bone.

    None where there is no gap between them, and so no edge to be seen.
    """
    inside = median(response[:edge]) if edge > 3 else np.inf
    bone = (response[edge + 3:] > brighter * inside).nonzero()[0]
    if not bone.size:
        return response.size
    gap = edge + int(response[edge:edge + 3 + int(bone[0])].argmin())
    return gap + 1 if response[gap] < 0.6 * inside else None


def reach_beyond(s: Array, response: Array, edge: float, length: float) -> float:
    """Return px beyond an end up to which something has a fourth of the shaft's level."""
    first, last = s.searchsorted((edge - length, edge)).tolist()
    if last - first < 4:
        return 0.0
    smooth = cv2.blur(response[None], (5, 1))[0]
    level = _FAINT * median(response[first:last])
    beyond = smooth[last + _NEXT:last + _FARTHEST]
    seen = (beyond > level).nonzero()[0]
    return float(seen[-1]) + _NEXT if seen.size else 0.0


def _scan_edge(s: Array, response: Array, guess: float) -> tuple[float, float]:
    """Return edge and blur on a coarse grid: the shape that explains most of the response."""
    nearest = min(max(round(guess - float(s[0])), 0), s.size - 1)
    shapes, power = _edge_shapes(s.size, nearest)
    projection = np.maximum(shapes @ (response - np.add.reduce(response) / s.size), 0.0)
    best = int((projection * projection / power).argmax())
    return float(s[nearest]) + float(_SCAN_EDGES[best]), float(_SCAN_BLURS[best])


@lru_cache(maxsize=64)
def _edge_shapes(size: int, nearest: int) -> tuple[Array, Array]:
    """Return (63, size) edges about a sample, and (63,) their power about their mean."""
    shapes = _normal((nearest - np.arange(size) + _SCAN_EDGES[:, None]) / _SCAN_BLURS[:, None])
    return shapes, size * shapes.var(axis=1) + 1e-9


def _normal(z: Array) -> Array:
    """Return the cumulative normal distribution (Page 1977, good to 2e-4)."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.7979 * z * (1.0 + 0.044715 * z * z)))


class EdgeFit:
    """A response near ``low + (high - low) Φ((position - s) / blur)``, to first order.

    High and low are what fits best: all is taken about its mean, and apart from the edge's shape.

    Attributes:
        position: px.
        blur: px.
        change: px, by how much position and blur miss the least-squares fit.
    """

    def __init__(self, s: Array, response: Array, position: float, blur: float) -> None:
        self.position, self.blur = position, blur
        rows = self._rows = np.empty((4, s.size))
        slope, stretch, step, rows[3] = rows[0], rows[1], rows[2], response
        z = (position - s) * (1.0 / blur)
        squared = z * z
        np.tanh(z * (0.7979 + 0.7979 * 0.044715 * squared), out=step)
        np.exp(-0.5 * squared, out=slope)
        np.multiply(slope, -z, out=stretch)
        rows -= np.add.reduce(rows, axis=1, keepdims=True) * (1.0 / s.size)
        first, second, third, _ = (rows @ rows.T).tolist()
        power = third[2] + 1e-12
        along, aside, rise = third[0] / power, third[1] / power, third[3] / power
        # The cumulative normal distribution is half of the step.
        height = 2.0 * rise / (blur * _ROOT_TWO_PI)
        a = height * height * (first[0] - along * third[0])
        b = height * height * (first[1] - along * third[1])
        d = height * height * (second[1] - aside * third[1])
        firmness = 1e-9 * (a + d) + 1e-12
        a, d = a + firmness, d + firmness
        scale = height / (a * d - b * b)
        moved, widened = first[3] - along * third[3], second[3] - aside * third[3]
        self.change = scale * (d * moved - b * widened), scale * (a * widened - b * moved)
        self._rise = rise
        self._weights = scale * d, -scale * b, scale * (b * aside - d * along)

    @property
    def variance(self) -> float:
        """px², of the position: from the residuals and their correlation."""
        residual = self._rows[3] - self._rise * self._rows[2]
        influence = np.array(self._weights) @ self._rows[:3]
        spread = float(influence @ correlate(influence, autocorrelation(residual)))
        return float(spread * (residual @ residual) / max(residual.size - 4, 1))
