"""Small least squares: what the calibrations share.

Levenberg and Marquardt's damping with a numerical Jacobian, and Tukey's biweight by iterative
reweighting (Huber and Ronchetti, Robust Statistics, 2009) for whatever outliers got through.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array, Points, Transform

_TUKEY = 4.685


@dataclass(frozen=True)
class Solution:
    """A minimum.

    Attributes:
        values: (P,) parameters.
        residuals: (N,) at the minimum, unweighted.
        covariance: (P, P) of the parameters, scaled by the residuals that are left.
        condition: ratio of the largest to the smallest singular value of the scaled Jacobian.
        weakest: (P,) scaled direction that the data tell least of.
    """

    values: Array
    residuals: Array
    covariance: Array
    condition: float
    weakest: Array


def least_squares(function: Callable[[Array], Array], start: Array, scale: Array, *,
                  group: int = 1, robust: bool = False, prior: Array | None = None,
                  iterations: int = 40) -> Solution:
    """Minimise a sum of squares.

    Args:
        function: (P,) parameters to (N,) residuals, all of one unit and weight.
        start: (P,) parameters to begin with.
        scale: (P,) typical size of a change of each parameter.
        group: residuals that belong to one observation, and are weighted together.
        robust: whether observations far off lose their weight (Tukey).
        prior: (P,) residuals per unit of each parameter's change that hold it to zero.
        iterations: at most.
    """
    x, scale = np.array(start, dtype=float), np.asarray(scale, dtype=float)
    held = np.zeros_like(x) if prior is None else (prior * scale) ** 2
    residuals = function(x)
    weights = np.ones_like(residuals)
    damping = 1e-4
    for _ in range(iterations):
        if robust:
            weights = tukey_weights(residuals, group)
        slopes = jacobian(function, x, scale)
        normal = slopes.T @ (weights[:, None] * slopes) + np.diag(held)
        gradient = slopes.T @ (weights * residuals) + held * x / scale
        cost = float(weights @ residuals**2 + held @ (x / scale) ** 2)
        step = np.zeros_like(x)
        for _ in range(12):
            step = -_solve(normal + damping * np.diag(np.diag(normal) + 1e-12), gradient)
            trial = function(x + step * scale)
            if float(weights @ trial**2 + held @ (x / scale + step) ** 2) <= cost:
                damping = max(damping * 0.1, 1e-12)
                break
            damping *= 10.0
        else:
            break
        x, residuals = x + step * scale, trial
        if float(np.abs(step).max()) < 1e-7:
            break
    return _solution(jacobian(function, x, scale), x, scale, residuals, weights, held)


def _solution(slopes: Array, x: Array, scale: Array, residuals: Array, weights: Array,
              held: Array) -> Solution:
    rows = np.concatenate([np.sqrt(weights)[:, None] * slopes, np.diag(np.sqrt(held))])
    _, singular, right = np.linalg.svd(rows, full_matrices=False)
    freedom = max(float(weights.sum()) - len(x), 1.0)
    variance = float(weights @ residuals**2) / freedom
    inverse = right.T @ np.diag(1.0 / np.maximum(singular, 1e-12) ** 2) @ right
    return Solution(x, residuals, variance * inverse * np.outer(scale, scale),
                    float(singular[0] / max(singular[-1], 1e-12)), right[-1])


def _solve(normal: Array, gradient: Array) -> Array:
    return np.asarray(np.linalg.lstsq(normal, gradient, rcond=None)[0])


def jacobian(function: Callable[[Array], Array], x: Array, scale: Array) -> Array:
    """Return the (N, P) central differences, by parameters in units of ``scale``."""
    columns = []
    for index, size in enumerate(scale):
        step = np.zeros_like(x)
        step[index] = 1e-4 * size
        columns.append((function(x + step) - function(x - step)) / 2e-4)
    return np.stack(columns, axis=1)


def tukey_weights(residuals: Array, group: int = 1) -> Array:
    """Return the (N,) biweights of residuals, those of a group of neighbours together."""
    size = np.linalg.norm(residuals.reshape(-1, group), axis=1)
    sigma = max(1.4826 * float(np.median(size)) / np.sqrt(group), 1e-12)
    weight = np.clip(1.0 - (size / (np.sqrt(group) * _TUKEY * sigma)) ** 2, 0.0, None) ** 2
    return np.repeat(weight, group)


def mean_rotation(rotations: Array) -> Array:
    """Return the (3, 3) chordal mean of (N, 3, 3) rotations (Hartley et al., IJCV 2013)."""
    left, _, right = np.linalg.svd(np.mean(rotations, axis=0))
    return np.asarray(left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right)


def fit_rigid(points_b: Points, points_a: Points, weights: Array | None = None) -> Transform:
    """Return ``a_T_b`` that takes (N, 3) points in b closest to (N, 3) points in a.

    Arun et al., IEEE PAMI 1987, with Umeyama's correction for reflections (1991).
    """
    w = np.ones(len(points_b)) if weights is None else weights
    w = w / w.sum()
    centre_b, centre_a = w @ points_b, w @ points_a
    left, _, right = np.linalg.svd((points_a - centre_a).T @ (w[:, None] * (points_b - centre_b)))
    rotation = left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right
    return rigid.transform(rotation, centre_a - rotation @ centre_b)


def consensus(count: int, size: int, fit: Callable[[NDArray[np.intp]], Array],
              tolerance: float, seed: int = 0, trials: int = 300) -> NDArray[np.bool_]:
    """Return which of ``count`` samples agree with one another (RANSAC, MSAC's truncated cost).

    Args:
        count: of samples.
        size: of the smallest set that ``fit`` can use.
        fit: indices of some samples to the (count,) error of all; infinite where it cannot.
        tolerance: error of a sample that still agrees.
        seed: of the draws, so that the same data give the same answer.
        trials: of draws.
    """
    random = np.random.default_rng(seed)
    best, best_cost = np.zeros(count, bool), np.inf
    for _ in range(trials):
        errors = fit(random.choice(count, size, replace=False))
        cost = float(np.minimum(errors**2, tolerance**2).sum())
        if cost < best_cost:
            best, best_cost = errors <= tolerance, cost
    for _ in range(3):
        if best.sum() < size:
            break
        best = fit(np.flatnonzero(best)) <= tolerance
    return best
