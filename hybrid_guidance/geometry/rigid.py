"""Rigid transforms. ``a_T_b`` takes points from frame b to frame a and equals tf's (a, b)."""

import math
from collections.abc import Iterable

import numpy as np

from hybrid_guidance.geometry.types import Array, Points, Transform

_IDENTITY = np.eye(4)


def transform(rotation: Array | None = None, translation: Array | None = None) -> Transform:
    """Build a (4, 4) transform from a (3, 3) rotation and a (3,) translation in metres."""
    a_T_b = _IDENTITY.copy()
    if rotation is not None:
        a_T_b[:3, :3] = rotation
    if translation is not None:
        a_T_b[:3, 3] = translation
    return a_T_b


def inverse(a_T_b: Transform) -> Transform:
    """Return ``b_T_a``, exactly rigid."""
    rotation = a_T_b[:3, :3].T
    return transform(rotation, -rotation @ a_T_b[:3, 3])


def transform_points(a_T_b: Transform, points_b: Points) -> Points:
    """Take points from frame b to frame a.

    Args:
        a_T_b: (4, 4) rigid transform.
        points_b: (..., 3) metres, in b.

    Returns:
        (..., 3) metres, in a.
    """
    return points_b @ a_T_b[:3, :3].T + a_T_b[:3, 3]


def is_rigid(a_T_b: Transform, tolerance: float = 1e-6) -> bool:
    """Tell whether a matrix is finite, (4, 4) and a proper rotation with a translation."""
    if a_T_b.shape != (4, 4):
        return False
    # Numbers one by one: every transform that arrives is asked, and arrays this small are slow.
    (a, b, c, x), (d, e, f, y), (g, h, i, z), (j, k, n, m) = a_T_b.tolist()
    errors = (a * a + b * b + c * c - 1.0, d * d + e * e + f * f - 1.0, g * g + h * h + i * i - 1.0,
              a * d + b * e + c * f, a * g + b * h + c * i, d * g + e * h + f * i,
              j, k, n, m - 1.0)
    volume = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return (math.isfinite(x) and math.isfinite(y) and math.isfinite(z) and volume > 0.0
            and all(abs(error) <= tolerance for error in errors))


def is_still(first: Transform, second: Transform, tolerance: float = 1e-7) -> bool:
    """Tell whether two (4, 4) poses are one up to rounding (metres, radians)."""
    return bool(np.abs(first - second).max() < tolerance)


def from_quaternion(xyzw: Iterable[float], translation: Iterable[float]) -> Transform:
    """Build a transform from ROS's quaternion (x, y, z, w), of any length but zero.

    Args:
        xyzw: (4,).
        translation: (3,) m.

    Raises:
        ValueError: the quaternion has no length.
    """
    (x, y, z, w), (u, v, t) = map(float, xyzw), map(float, translation)
    squared = x * x + y * y + z * z + w * w
    if not squared > 0.0 or not math.isfinite(squared):
        raise ValueError(f'a rotation needs a quaternion with a length, got {xyzw}')
    s = 2.0 / squared
    return np.array([
        [1.0 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w), u],
        [s * (x * y + z * w), 1.0 - s * (x * x + z * z), s * (y * z - x * w), v],
        [s * (x * z - y * w), s * (y * z + x * w), 1.0 - s * (x * x + y * y), t],
        [0.0, 0.0, 0.0, 1.0]])


def quaternion(a_T_b: Transform) -> Array:
    """Return the rotation of a transform as ROS's quaternion (x, y, z, w)."""
    return _quaternion(a_T_b[:3, :3])


def _quaternion(rotation: Array) -> Array:
    """Return a (3, 3) rotation as (x, y, z, w), w not negative.

    From the largest of the four, which is well conditioned (Shepperd, J. Guidance and Control
    1978).
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    squares = 1.0 + a - e - i, 1.0 - a + e - i, 1.0 - a - e + i, 1.0 + a + e + i
    rows = ((squares[0], b + d, c + g, h - f), (b + d, squares[1], f + h, c - g),
            (c + g, f + h, squares[2], d - b), (h - f, c - g, d - b, squares[3]))
    row = rows[squares.index(max(squares))]
    scale = math.copysign(1.0 / math.sqrt(sum(value * value for value in row)), row[3])
    return np.array([scale * value for value in row])


def skew(vector: Array) -> Array:
    """Return the (3, 3) matrix with ``skew(v) @ w == cross(v, w)``."""
    x, y, z = vector.tolist()
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def rotation_from_vector(vector: Array) -> Array:
    """Exponential map: (3,) axis times angle in radians to a (3, 3) rotation (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    k = skew(vector)
    if angle < 1e-8:
        return np.asarray(np.eye(3) + k + 0.5 * k @ k)
    return np.asarray(np.eye(3) + np.sin(angle) / angle * k
                      + (1.0 - np.cos(angle)) / angle**2 * k @ k)


def vector_from_rotation(rotation: Array) -> Array:
    """Logarithm: a (3, 3) rotation to its (3,) axis times angle, angle in [0, pi]."""
    quaternion_ = _quaternion(rotation)
    axis, w = quaternion_[:3], float(quaternion_[3])
    sine = math.sqrt(float(axis @ axis))
    return np.asarray(axis * (2.0 if sine < 1e-9 else 2.0 * math.atan2(sine, w) / sine))


def rotation_angle(rotation: Array) -> float:
    """Return the angle of a (3, 3) rotation, in radians."""
    return float(np.linalg.norm(vector_from_rotation(rotation)))


def interpolate(a_T_b0: Transform, a_T_b1: Transform, fraction: float) -> Transform:
    """Position linear, rotation by slerp; fraction 0 gives the first, 1 the second."""
    step = vector_from_rotation(a_T_b0[:3, :3].T @ a_T_b1[:3, :3])
    return transform(a_T_b0[:3, :3] @ rotation_from_vector(fraction * step),
                     (1.0 - fraction) * a_T_b0[:3, 3] + fraction * a_T_b1[:3, 3])


def perturbed(a_T_b: Transform, offset: Array) -> Transform:
    """Apply a (6,) offset (x, y, z in metres, then a rotation vector about a's axes).

    This is the parameterisation of a ROS ``PoseWithCovariance``: position and rotation both
    in the axes of the parent frame.
    """
    return transform(rotation_from_vector(offset[3:]) @ a_T_b[:3, :3], a_T_b[:3, 3] + offset[:3])


def cross(first: Array, second: Array) -> Array:
    """Return the cross product of two (3,) vectors; a tenth of the time ``numpy.cross`` takes."""
    a, b, c = first.tolist()
    x, y, z = second.tolist()
    return np.array([b * z - c * y, c * x - a * z, a * y - b * x])


def perpendiculars(direction: Array) -> Array:
    """Return (2, 3): two unit vectors that make a right-handed triad (first, second, direction).

    The direction is of unit length.
    """
    return np.array(_perpendiculars(*direction.tolist()))


def _perpendiculars(x: float, y: float, z: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # Across the axis that the direction is furthest from.
    sizes = abs(x), abs(y), abs(z)
    least = sizes.index(min(sizes))
    a, b, c = ((0.0, -z, y), (z, 0.0, -x), (-y, x, 0.0))[least]
    length = math.sqrt(a * a + b * b + c * c)
    a, b, c = a / length, b / length, c / length
    return (a, b, c), (y * c - z * b, z * a - x * c, x * b - y * a)


def pose_along(origin: Points, direction: Array) -> Transform:
    """Return the pose at ``origin`` whose +z axis is ``direction`` (any length but zero).

    The roll about the direction is the one that ``perpendiculars`` chooses.

    Raises:
        ValueError: the direction has no length.
    """
    x, y, z = np.asarray(direction, dtype=float).tolist()
    length = math.hypot(x, y, z)
    if not length > 0.0 or not math.isfinite(length):
        raise ValueError(f'a pose needs a direction with a length, got {direction}')
    x, y, z = x / length, y / length, z / length
    (a, b, c), (d, e, f) = _perpendiculars(x, y, z)
    u, v, w = np.asarray(origin, dtype=float).tolist()
    return np.array([[a, d, x, u], [b, e, y, v], [c, f, z, w], [0.0, 0.0, 0.0, 1.0]])


def angle_between(first: Array, second: Array) -> float:
    """Return the angle between two directions, in radians, well conditioned near zero."""
    sine = float(np.linalg.norm(cross(first, second)))
    return float(np.arctan2(sine, float(np.dot(first, second))))


def rotation_between(first: Array, second: Array) -> Array:
    """Return the (3, 3) least rotation that turns one (3,) direction into another."""
    axis = cross(first, second)
    length = float(np.linalg.norm(axis))
    if length < 1e-12 * float(np.linalg.norm(first)) * float(np.linalg.norm(second)):
        axis, length = perpendiculars(first)[0], 1.0
    return rotation_from_vector(axis / length * float(angle_between(first, second)))
