"""Matrices of a few rows in plain numbers: for those, numpy's own take two to five times as long.

Fusion meets them once for each needle, when nothing of numpy's is in the processor's cache.
"""

import math

import numpy as np

from hybrid_guidance.geometry.types import Array


def length(vector: Array) -> float:
    """Return the length of an (N,) vector."""
    return math.sqrt(float(vector @ vector))


def squared(vector: Array) -> Array:
    """Return the (N, N) outer product of a vector with itself."""
    return vector[:, None] * vector


def is_positive(rows: list[list[float]], least: float) -> bool:
    """Tell whether no eigenvalue of a symmetric matrix is below ``-least``; spoils the matrix.

    A matrix with a negative one has a pivot below zero (Sylvester's law of inertia).
    """
    for k, pivots in enumerate(rows):
        pivots[k] += least
        if not pivots[k] > 0.0:
            return False
        for row in rows[k + 1:]:
            factor = row[k] / pivots[k]
            for j in range(k + 1, len(rows)):
                row[j] -= factor * pivots[j]
    return True


def inverse(matrix: Array) -> Array:
    """Return the inverse of a symmetric positive (N, N) matrix, which needs no pivoting.

    Raises:
        LinAlgError: it is not positive.
    """
    rows = matrix.tolist()
    size = len(rows)
    for k, row in enumerate(rows):
        row += [0.0] * k + [1.0] + [0.0] * (size - 1 - k)
    for k in range(size):
        if not rows[k][k] > 0.0:
            raise np.linalg.LinAlgError(f'the matrix is not positive: {matrix.tolist()}')
        scale = 1.0 / rows[k][k]
        pivots = rows[k] = [value * scale for value in rows[k]]
        for i, row in enumerate(rows):
            if i != k:
                factor = row[k]
                rows[i] = [value - factor * pivot
                           for value, pivot in zip(row, pivots, strict=True)]
    return np.array([row[size:] for row in rows])


def widest(covariance: Array) -> Array:
    """Return the (3,) unit axis along which a (3, 3) covariance is largest.

    Squared five times, the largest eigenvalue leads by its 32nd power.
    """
    (a, b, c), (_, d, e), (_, _, f) = covariance.tolist()
    if not a + d + f > 0.0:
        return np.array([0.0, 0.0, 1.0])
    for _ in range(5):
        scale = 1.0 / (a + d + f)
        a, b, c, d, e, f = a * scale, b * scale, c * scale, d * scale, e * scale, f * scale
        a, b, c, d, e, f = (a * a + b * b + c * c, a * b + b * d + c * e, a * c + b * e + c * f,
                            b * b + d * d + e * e, b * c + d * e + e * f, c * c + e * e + f * f)
    axis = max((a, (a, b, c)), (d, (b, d, e)), (f, (c, e, f)))[1]
    return np.array(axis) * (1.0 / math.hypot(*axis))
