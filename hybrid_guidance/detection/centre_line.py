"""The centre line of a shaft: a robust fit of lateral offsets, and how surely it is known.

The covariance follows from the residuals and their correlation along the shaft (Newey and West,
Econometrica 1987).
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from hybrid_guidance.detection.series import autocorrelation, correlate, median
from hybrid_guidance.geometry.types import Array

_LEAST_BOW = 0.5
LEAST_LINE_VARIANCE = np.diag([1e-6, 1e-10])


@dataclass(frozen=True)
class Fit:
    """A line ``intercept + slope s``: (N,) s, weights and residuals, and what s is measured from.

    The moments are the sums of the weights, of weighted s, and of weighted s².
    """

    s: Array
    weight: Array
    residual: Array
    intercept: float
    slope: float
    moments: tuple[float, float, float]
    middle: float


def robust_line(s: Array, offset: Array, middle: float, rounds: int) -> Fit:
    """Fit offset = intercept + slope s with Tukey's weights; s is measured from ``middle``."""
    powers = np.empty((5, s.size))
    powers[0], powers[1], powers[3] = 1.0, s, offset
    np.multiply(powers[1::2], s, out=powers[2::2])
    intercept, slope = median(offset), 0.0
    for _ in range(rounds):
        residual = s * slope
        np.subtract(offset, residual, out=residual)
        residual -= intercept
        np.abs(residual, out=residual)
        residual *= 1.0 / (4.685 * max(1.4826 * median(residual), 0.15))
        residual *= residual
        weight = np.maximum(1.0 - residual, 1e-3)
        weight *= weight
        total, first, second, target, turned = (powers @ weight).tolist()
        determinant = total * second - first * first
        intercept = (second * target - first * turned) / determinant
        slope = (total * turned - first * target) / determinant
    return Fit(s, weight, offset - (intercept + slope * s), intercept, slope,
                (total, first, second), middle)


@dataclass(frozen=True)
class Bow:
    """How a centre line departs from the straight one fitted to it: a parabola.

    Attributes:
        rise: px, by which it departs at the ends more than in its middle, along the normal.
        variance: px², of that.
        half: px, half the length.
        mean: px², mean of the squared s: the parabola has no mean.
    """

    rise: float
    variance: float
    half: float
    mean: float

    @property
    def sagitta(self) -> float:
        """The rise less twice its own deviation, px."""
        return max(abs(self.rise) - 2.0 * math.sqrt(self.variance), 0.0)

    @property
    def is_sure(self) -> bool:
        """Whether the shaft is bent for certain, and by what matters."""
        return abs(self.rise) > max(3.0 * math.sqrt(self.variance), _LEAST_BOW)

    def scaled(self, factor: float) -> 'Bow':
        """Return the bow of offsets multiplied by a factor."""
        return replace(self, rise=factor * self.rise, variance=factor**2 * self.variance)

    def shape(self, s: float) -> tuple[float, float]:
        """Return offset and slope of a rise of 1 px at some s (px) from the middle."""
        return (s * s - self.mean) / self.half**2, 2.0 * s / self.half**2


def uncertainty(fit: Fit, floor: float) -> tuple[Array, Bow]:
    """Return how sure a line is, its residuals correlated along the shaft, and how it bows.

    Returns:
        The (2, 2) sandwich covariance of intercept and slope, and the bow of the residuals.
    """
    total, first, second = fit.moments
    weight, residual = fit.weight, fit.residual
    bow, bent = _bow(fit)
    squared, correlation = _scatter(weight, residual if not bow.is_sure else bent, total)
    freedom = max(total - 2.0, 1.0) / total
    variance = max(squared / freedom, floor)
    turned = weight * fit.s
    spread, spread_turned = correlate(weight, correlation), correlate(turned, correlation)
    a, b, d = float(weight @ spread), float(turned @ spread), float(turned @ spread_turned)
    bread = np.array([[second, -first], [-first, total]]) / (total * second - first * first)
    covariance = bread @ np.array([[a, b], [b, d]]) @ bread * variance + LEAST_LINE_VARIANCE
    return covariance, bow


def _scatter(weight: Array, residual: Array, total: float) -> tuple[float, Array]:
    """Return the mean square of weighted residuals, and their autocorrelation."""
    return (float((residual * residual) @ weight) / total,
            autocorrelation(residual * np.sqrt(weight)))


def _bow(fit: Fit) -> tuple[Bow, Array]:
    """Return the bow of the residuals, and what it leaves of them."""
    half = max(float(fit.s[-1] - fit.s[0]) / 2.0, 1.0)
    total, _, second = fit.moments
    mean = second / total
    shape = (fit.s * fit.s - mean) * (1.0 / half**2)
    weighted = fit.weight * shape
    power = float(weighted @ shape)
    rise = float(weighted @ fit.residual) / power
    bent = fit.residual - rise * shape
    squared, correlation = _scatter(fit.weight, bent, total)
    spread = squared * (1.0 + 2.0 * float(np.add.reduce(correlation[1:])))
    return Bow(rise, spread / power, half, mean), bent
