"""From a needle in pixels to a needle in space, with what the projection cannot see left open."""

import numpy as np

from hybrid_guidance.detection.line import PixelNeedle
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Array, Points

MINIMUM_RAY_DEVIATION = 0.5
"""Metres: a perspective image says nothing of the depth along its ray."""

_FWHM_PER_SIGMA = 2.3548
_PIXEL_STEP = 0.25
_ANGLE_STEP = 1e-3


def lift(needle: PixelNeedle, projection: Projection, *, depth: float = 0.0,
         depth_deviation: float = MINIMUM_RAY_DEVIATION, slice_thickness: float = 0.003,
         ) -> NeedleEstimate:
    """Place a needle seen in an image into the sensor's frame.

    Shaft and rays span a plane. The tip is put on its ray, the shaft into the plane at right
    angles to the ray: exact for a slice, a guess for a perspective image. The covariance is
    that of the pixels, carried to first order, plus what is blind: the tip along its ray, the
    rotation about the plane's normal, the roll about the shaft.

    Args:
        needle: tip, direction and their covariance, in pixels.
        projection: of the image, calibrated.
        depth: metres, z of the tip in a perspective image; not used for a slice.
        depth_deviation: metres along the ray, for a perspective image; values below
            ``MINIMUM_RAY_DEVIATION`` are raised to it.
        slice_thickness: metres, full width at half maximum of a slice's beam.

    Returns:
        The needle in the sensor's frame; covariance (6, 6) in the sensor's axes, as
        ``rigid.perturbed`` defines it.

    Raises:
        ValueError: the projection is not calibrated, or the depth of a perspective image or
            the thickness of a slice is not positive.
    """
    _check(projection, depth, slice_thickness)
    z = depth if projection.is_perspective else 0.0
    tip, direction = _pose(needle, projection, z, np.zeros(3))
    jacobian = _jacobian(needle, projection, z)
    covariance = jacobian @ needle.covariance @ jacobian.T
    ray = projection.ray(needle.tip)
    normal = np.cross(ray, direction)
    covariance += _blind(_blind_deviations(needle, projection, depth_deviation, slice_thickness),
                         ray, normal, direction)
    return NeedleEstimate(rigid.pose_along(tip, direction), 0.5 * (covariance + covariance.T),
                          needle.probability)


def _check(projection: Projection, depth: float, slice_thickness: float) -> None:
    if not projection.is_calibrated:
        raise ValueError('the image is not calibrated (k[0] == 0): its pixels have no place in '
                         'space; calibrate the sensor, or take its scale from the source')
    if projection.is_perspective and not depth > 0.0:
        raise ValueError(f'a perspective image needs a depth above zero, got {depth} m')
    if not projection.is_perspective and not slice_thickness > 0.0:
        raise ValueError(f'a slice needs a thickness above zero, got {slice_thickness} m')


def _pose(needle: PixelNeedle, projection: Projection, z: float, offset: Array
          ) -> tuple[Points, Array]:
    """Return tip and direction for an offset (along px, across px, angle rad) of the needle."""
    pixel = needle.tip + offset[0] * needle.direction + offset[1] * needle.normal
    axis = np.cos(offset[2]) * needle.direction + np.sin(offset[2]) * needle.normal
    behind = projection.back_project(pixel - needle.length * axis, z or 0.0)
    tip = projection.back_project(pixel, z)
    ray = projection.ray(pixel)
    across = (tip - behind) - float((tip - behind) @ ray) * ray
    return tip, across / np.linalg.norm(across)


def _jacobian(needle: PixelNeedle, projection: Projection, z: float) -> Array:
    """Return the (6, 3) derivative of tip and rotation vector by (along, across, angle)."""
    _, direction = _pose(needle, projection, z, np.zeros(3))
    columns = []
    for step in np.diag([_PIXEL_STEP, _PIXEL_STEP, _ANGLE_STEP]):
        ahead, turned = _pose(needle, projection, z, step)
        behind, back = _pose(needle, projection, z, -step)
        # The smallest rotation that turns the direction: roll is left to the blind part.
        rotation = np.cross(direction, turned - back)
        columns.append(np.concatenate([ahead - behind, rotation]) / (2.0 * step.sum()))
    return np.column_stack(columns)


def _blind_deviations(needle: PixelNeedle, projection: Projection, depth_deviation: float,
                      slice_thickness: float) -> tuple[float, float, float]:
    """Return σ along the ray (m), σ about the plane's normal (rad), and their correlation."""
    if projection.is_perspective:
        return max(depth_deviation, MINIMUM_RAY_DEVIATION), np.pi / 2.0, 0.0
    deviation = slice_thickness / _FWHM_PER_SIGMA
    ends = projection.back_project(
        np.stack([needle.tip - needle.length * needle.direction, needle.tip]))
    visible = float(np.linalg.norm(ends[1] - ends[0]))
    # Both ends lie in the slice, each with this deviation on its own.
    tilt = min(2.0**0.5 * deviation / visible, np.pi / 2.0)
    return deviation, tilt, -deviation / (visible * tilt)


def _blind(deviations: tuple[float, float, float], ray: Array, normal: Array, direction: Array
           ) -> Array:
    """Return the (6, 6) covariance of what the projection cannot see."""
    along_ray, about_normal, correlation = deviations
    along = np.concatenate([along_ray * ray, np.zeros(3)])
    about = np.concatenate([np.zeros(3), about_normal * normal])
    roll = np.concatenate([np.zeros(3), np.pi * direction])
    cross = correlation * np.outer(along, about)
    return np.asarray(np.outer(along, along) + np.outer(about, about) + np.outer(roll, roll)
                      + cross + cross.T)
