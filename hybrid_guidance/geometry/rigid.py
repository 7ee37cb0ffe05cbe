"""Rigid transforms. ``a_T_b`` takes points from frame b to frame a and equals tf's (a, b)."""

import numpy as np
from transforms3d.quaternions import mat2quat, quat2mat

from hybrid_guidance.geometry.types import Array, Points, Transform


def transform(rotation: Array | None = None, translation: Array | None = None) -> Transform:
    """Build a (4, 4) transform from a (3, 3) rotation and a (3,) translation in metres."""
    a_T_b = np.eye(4)
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
    if a_T_b.shape != (4, 4) or not np.all(np.isfinite(a_T_b)):
        return False
    rotation = a_T_b[:3, :3]
    return bool(np.allclose(rotation @ rotation.T, np.eye(3), atol=tolerance)
                and np.linalg.det(rotation) > 0
                and np.allclose(a_T_b[3], (0, 0, 0, 1), atol=tolerance))


def from_quaternion(xyzw: Array, translation: Array) -> Transform:
    """Build a transform from ROS's quaternion (x, y, z, w) and a translation in metres."""
    x, y, z, w = xyzw
    return transform(quat2mat((w, x, y, z)), np.asarray(translation, dtype=float))


def quaternion(a_T_b: Transform) -> Array:
    """Return the rotation of a transform as ROS's quaternion (x, y, z, w)."""
    w, x, y, z = mat2quat(a_T_b[:3, :3])
    return np.array([x, y, z, w])


def skew(vector: Array) -> Array:
    """Return the (3, 3) matrix with ``skew(v) @ w == cross(v, w)``."""
    x, y, z = vector
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
    w, x, y, z = mat2quat(rotation)
    axis = np.array([x, y, z])
    sine = float(np.linalg.norm(axis))
    return 2.0 * axis if sine < 1e-9 else 2.0 * np.arctan2(sine, w) * axis / sine


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


def perpendiculars(direction: Array) -> tuple[Array, Array]:
    """Return two unit vectors that make a right-handed triad (first, second, direction)."""
    helper = np.eye(3)[int(np.argmin(np.abs(direction)))]
    first = cross(helper, direction)
    first /= np.linalg.norm(first)
    return first, cross(direction, first)


def pose_along(origin: Points, direction: Array) -> Transform:
    """Return the pose at ``origin`` whose +z axis is ``direction`` (any length but zero).

    The roll about the direction is the one that ``perpendiculars`` chooses.

    Raises:
        ValueError: the direction has no length.
    """
    length = float(np.linalg.norm(direction))
    if not length > 0.0 or not np.isfinite(length):
        raise ValueError(f'a pose needs a direction with a length, got {direction}')
    unit = np.asarray(direction, dtype=float) / length
    first, second = perpendiculars(unit)
    return transform(np.column_stack([first, second, unit]), np.asarray(origin, dtype=float))


def angle_between(first: Array, second: Array) -> float:
    """Return the angle between two directions, in radians, well conditioned near zero."""
    sine = float(np.linalg.norm(cross(first, second)))
    return float(np.arctan2(sine, float(np.dot(first, second))))
