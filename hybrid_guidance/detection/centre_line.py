"""The centre line of a shaft: a robust fit of lateral offsets, and how surely it is known.

The covariance follows from the residuals and their correlation along the shaft (Newey and West,
Econometrica 1987).
"""

import math
from dataclasses import dataclass

import numpy as np

from hybrid_guidance.detection.series import autocorrelation, correlate, median
from hybrid_guidance.geometry.types import Array

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


def uncertainty(fit: Fit, floor: float) -> tuple[Array, float]:
    """Return how sure a line is, its residuals correlated along the shaft, and if it bows.

    Returns:
        The (2, 2) sandwich covariance of intercept and slope, and px by which the residuals bow,
        less twice its own deviation.
    """
    total, first, second = fit.moments
    weight, residual = fit.weight, fit.residual
    squared = float((residual * residual) @ weight) / total
    correlation = autocorrelation(residual * np.sqrt(weight))
    freedom = max(total - 2.0, 1.0) / total
    variance = max(squared / freedom, floor)
    turned = weight * fit.s
    spread, spread_turned = correlate(weight, correlation), correlate(turned, correlation)
    a, b, d = float(weight @ spread), float(turned @ spread), float(turned @ spread_turned)
    bread = np.array([[second, -first], [-first, total]]) / (total * second - first * first)
    covariance = bread @ np.array([[a, b], [b, d]]) @ bread * variance + LEAST_LINE_VARIANCE
    return covariance, _sagitta(fit, squared * (1.0 + 2.0 * float(np.add.reduce(correlation[1:]))))


def _sagitta(fit: Fit, variance: float) -> float:
    """Return the bow of residuals of a variance in px, less twice its own deviation."""
    half = max(float(fit.s[-1] - fit.s[0]) / 2.0, 1.0)
    total, _, second = fit.moments
    bow = (fit.s * fit.s - second / total) * (1.0 / half**2)
    weighted = fit.weight * bow
    power = float(weighted @ bow)
    rise = float(weighted @ fit.residual) / power
    return max(abs(rise) - 2.0 * math.sqrt(variance / power), 0.0)
