"""Pose covariance, as ROS defines it: (x, y, z, rotation about x, y, z of the parent frame)."""

import math
from functools import lru_cache

import numpy as np

from hybrid_guidance.geometry.rigid import skew
from hybrid_guidance.geometry.small import is_positive
from hybrid_guidance.geometry.types import Array, Points, Transform

_SIX = np.eye(6)


@lru_cache(maxsize=16)
def diagonal(position: float, rotation: float) -> Array:
    """Return the (6, 6) covariance of deviations in m and rad, alike along all axes; read-only."""
    covariance = np.diag([position**2] * 3 + [rotation**2] * 3)
    covariance.setflags(write=False)
    return covariance


def rotate(a_T_b: Transform, covariance_b: Array) -> Array:
    """Express a (6, 6) pose covariance in frame a, for an exactly known ``a_T_b``.

    Args:
        a_T_b: (4, 4) transform from the pose's present parent frame to the new one.
        covariance_b: (6, 6), m² and rad², of a pose in b.

    Returns:
        (6, 6) covariance of the same pose in a.
    """
    rotation = _twice(a_T_b[:3, :3])
    return np.asarray(rotation @ covariance_b @ rotation.T)


def _twice(rotation: Array) -> Array:
    """Return the (6, 6) matrix that turns position and rotation alike."""
    both = np.zeros((6, 6))
    both[:3, :3] = both[3:, 3:] = rotation
    return both


def lever(arm: Points) -> Array:
    """Return (6, 6): how an error of a pose becomes one of a pose (3,) m away."""
    moved = _SIX.copy()
    moved[:3, 3:] = -skew(arm)
    return moved


def compose(a_T_b: Transform, covariance_ab: Array,
            b_T_c: Transform, covariance_bc: Array) -> Array:
    """Return the (6, 6) covariance of ``a_T_b @ b_T_c``, both uncertain and independent.

    First order (Barfoot and Furgale, IEEE T-RO 2014, adapted to ROS's split parameterisation):
    an error of rotation in ``a_T_b`` turns the lever arm from b to c.
    """
    moved = lever(a_T_b[:3, :3] @ b_T_c[:3, 3])
    return np.asarray(moved @ covariance_ab @ moved.T) + rotate(a_T_b, covariance_bc)


def relative(a_T_b: Transform, covariance_ab: Array,
             a_T_c: Transform, covariance_ac: Array) -> Array:
    """Return the (6, 6) covariance, in b, of ``inverse(a_T_b) @ a_T_c``, both uncertain.

    First order; the lever arm from b to c turns b's error of rotation into one of position.
    """
    to_b = -_twice(a_T_b[:3, :3].T)
    jacobian = to_b @ lever(a_T_c[:3, 3] - a_T_b[:3, 3])
    return np.asarray(jacobian @ covariance_ab @ jacobian.T + to_b @ covariance_ac @ to_b.T)


def of_point(a_T_b: Transform, covariance_ab: Array, point_b: Points) -> Array:
    """Return the (3, 3) covariance in a, m², of a (3,) point exactly known in b."""
    lever = np.hstack([np.eye(3), -skew(a_T_b[:3, :3] @ point_b)])
    return np.asarray(lever @ covariance_ab @ lever.T)


def is_valid(covariance: Array) -> bool:
    """Tell whether a covariance is finite, symmetric and not negative."""
    # Number by number: every needle that arrives is asked, and arrays this small are slow.
    rows = covariance.tolist()
    sizes = [abs(value) for row in rows for value in row]
    if not all(map(math.isfinite, sizes)):
        return False
    scale = max(1e-30, *sizes)
    for i, row in enumerate(rows):
        if any(abs(row[j] - rows[j][i]) > 1e-6 * scale for j in range(i)):
            return False
    return is_positive(rows, 1e-9 * scale)


def distance_deviation(covariance: Array, direction: Array) -> float:
    """Return σ in metres of a (3, 3) position covariance along a (3,) unit direction."""
    return float(max(float(direction @ covariance[:3, :3] @ direction), 0.0) ** 0.5)
