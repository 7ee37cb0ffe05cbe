"""Numbers along a shaft: medians, and how they depend on those beside them."""

from functools import cache

import numpy as np

from hybrid_guidance.geometry.types import Array

_LAGS = 16


def median(values: Array) -> float:
    """Return the upper median of (N,) values."""
    ordered, middle = values.copy(), values.size // 2
    ordered.partition(middle)
    return float(ordered[middle])


def lower_quartile(values: Array) -> float:
    """Return the 25th percentile, interpolated."""
    rank = 0.25 * (values.size - 1)
    below = int(rank)
    ordered = sorted(values.tolist())[below:below + 2]
    return float(ordered[0] + (rank - below) * (ordered[-1] - ordered[0]))


def autocorrelation(residual: Array) -> Array:
    """Return (K,) autocorrelation from lag 0, tapered (Bartlett) so that it stays positive."""
    centred = residual - np.add.reduce(residual) / residual.size
    lags = int(min(_LAGS, max(centred.size // 5, 1)))
    raw = np.correlate(np.concatenate([centred, np.zeros(lags - 1)]), centred, 'valid')
    # A fitted line takes correlation away from a short series; the taper does so from all.
    return np.asarray(np.maximum(raw, 0.0) * (_taper_of(lags) / (float(raw[0]) + 1e-12)))


@cache
def _taper_of(lags: int) -> Array:
    return np.asarray(np.sqrt(1.0 - np.arange(lags) / (lags + 1.0)))


def correlate(values: Array, correlation: Array) -> Array:
    """Apply the banded Toeplitz matrix of a shorter autocorrelation to (N,) values."""
    kernel = np.concatenate([correlation[:0:-1], correlation])
    return np.correlate(values, kernel, 'same')
